from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.tuning import calibrate as module
from tunelab.tuning.calibrate import (
    Calibration,
    Layout,
    Sample,
    calibrate,
    choose,
    explain,
    processes_for,
    startable,
    within,
)
from tunelab.tuning.probes import ProbeError, Probes, TooSlowError
from tunelab.tuning.slots import Slots
from tunelab.tuning.speed import Load, Point

TWO = [Slots(2, 1, 0.0, "cpu"), Slots(1, 2, 0.0, "cpu")]
FOUR = [Slots(4, 1, 0.0, "cpu"), Slots(2, 2, 0.0, "cpu"), Slots(1, 4, 0.0, "cpu")]
MIB = 2**20
ON_GPU = [Slots(2, 8, 1.0, "cuda"), Slots(4, 4, 0.5, "cuda"), Slots(8, 2, 0.25, "cuda")]  # two GPUs


def samples(count: int, batch_size: int = 64) -> list[Sample]:
    """Configurations of growing size; the baseline is the third smallest."""
    found = []
    for number in range(count):
        arch = ArchSpec(StemSpec(4 + number), ((BlockSpec("basic", 8),),))
        config = to_json(TrialConfig(arch, TrainConfig(batch_size=batch_size)))
        found.append(Sample.of(config, {"mflops": 0.1 * (number + 1), "activations": 500 * (number + 1), "convs": 3}))
    return [found[2], *found[:2], *found[3:]] if count > 2 else found


class Pretended(Probes):
    """Processes on a machine that trains as it is told; what they were asked is in `asked`.

    Args:
        rate: images per second of one process, from how many there are and their threads.
        memory: MiB of a process, from multiply-adds.
        fails: from how many there are and their threads to why they fail, "" if they do not.
    """

    def __init__(
        self,
        rate: Callable[[int, int], float],
        memory: Callable[[float], float] = lambda mflops: 300.0,
        fails: Callable[[int, int], str] = lambda count, threads: "",
    ) -> None:
        self.rate = rate
        self.memory = memory
        self.fails = fails
        self.asked: list[tuple[int, int, float]] = []
        self.built: list[list[Mapping[str, Any]]] = []

    def wait(self) -> float:
        return 2.5

    def build(self, requests: Sequence[Mapping[str, Any]]) -> None:
        if self.fails(len(requests), requests[0]["threads"]):
            raise ProbeError(self.fails(len(requests), requests[0]["threads"]))
        self.built.append(list(requests))

    def measure(self, count: int, threads: int, seconds: float, patience: float = 0.0) -> list[dict[str, Any]]:
        if self.fails(count, threads):
            raise ProbeError(self.fails(count, threads))
        self.asked.append((count, threads, seconds))
        images = self.built[-1][0]["config"]["train"]["batch_size"]
        mflops = 0.1 * (self.built[-1][0]["config"]["arch"]["stem"]["width"] - 3)
        one = {
            "step": images / self.rate(count, threads),
            "images": images,
            "val_image": 1e-4,
            "build": 0.05,
            "warm_up": 0.15,
            "memory": self.memory(mflops),
            "idle": 200.0,
            "steps": 3,
            "free": 8000.0 - count * (self.memory(mflops) + 500)
            if "cuda" in str(self.built[-1][0]["device"])
            else None,
        }
        return [one] * count


def even(count: int, threads: int) -> float:
    """Many one-thread trials are faster than one with many threads."""
    return 100.0 * threads**0.5


def test_the_layout_with_the_most_images_per_second_is_taken() -> None:
    found = calibrate(samples(6), TWO, Pretended(even), 9 * 1024 + 800)
    assert found.slots == TWO[0]
    assert [round(layout.images) for layout in found.layouts] == [200, 141]
    assert found.start == 2.5
    assert found.trial == pytest.approx(0.2)
    assert found.limit == 9 * 1024
    assert found.reason == (
        "2 trials at once with 1 thread each: 200 images/s against 141 with 1 x 2 threads; 300 MiB each of 9.0 GiB"
    )
    other = calibrate(samples(6), FOUR, Pretended(lambda count, threads: 100.0 * threads**1.5), 9000)
    assert other.slots == FOUR[2]
    assert other.reason.startswith("1 trial at a time with 4 threads: 800 images/s against 400 with 4 x 1 thread and")


def test_a_draw_that_something_else_slowed_down_is_measured_again() -> None:
    """As when another program read the disk while it was measured: 8 times as slow as it is."""

    class Disturbed(Pretended):
        def measure(self, count: int, threads: int, seconds: float, patience: float = 0.0) -> list[dict[str, Any]]:
            if self.asked and len(self.asked) == refused:
                raise ProbeError("it died")
            found = super().measure(count, threads, seconds, patience)
            slower = slow.get(len(self.asked), {})
            return [{**one, "step": slower.get(place, 1) * one["step"]} for place, one in enumerate(found)]

    slow: dict[int, dict[int, float]] = {}
    refused = 0
    quiet = Disturbed(even)
    expected = calibrate(samples(6), TWO, quiet, 9000)
    first_draw = len(quiet.asked) - 1
    assert [count for count, _, _ in quiet.asked[first_draw - 1 :]] == [2, 2], "three draws, two at a time"
    slow = {first_draw: {1: 8}, first_draw + 1: {0: 8}}  # of each the better measurement counts
    probes = Disturbed(even)
    assert calibrate(samples(6), TWO, probes, 9000).points == expected.points
    assert len(probes.asked) == len(quiet.asked) + 1, "once again, and no more"
    refused = first_draw  # whatever comes after it fails: the first measurement stays, and the third draw is missing
    assert calibrate(samples(6), TWO, Disturbed(even), 9000).points == (
        *expected.points[:-2],
        dataclasses.replace(expected.points[-2], step=8 * expected.points[-2].step),
    )


def test_three_sizes_are_measured_on_each_layout_and_the_rest_on_the_chosen_one() -> None:
    probes = Pretended(even)
    found = calibrate(samples(6), TWO, probes, 9000)
    assert [(count, threads) for count, threads, _ in probes.asked] == [(2, 1), (1, 2)] * 3 + [(2, 1)] * 2
    first = [requests[0]["config"]["arch"]["stem"]["width"] for requests in probes.built[:3]]
    assert first == [6, 4, 9], "the baseline, the smallest, the largest"
    assert all(len({str(one) for one in requests}) == 1 for requests in probes.built[:3])
    last = [one["config"]["arch"]["stem"]["width"] for requests in probes.built[3:] for one in requests]
    assert last == [5, 7, 8, 5], "each process another one, and none is idle"
    assert len(found.points) == 6 + 3
    assert {point.load.mflops for point in found.points} == {sample.load.mflops for sample in samples(6)}


def test_measuring_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAW_SECONDS", -1.0)
    assert len(calibrate(samples(60), TWO, Pretended(even), 9000).points) == 6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_configurations_are_enough(count: int) -> None:
    found = calibrate(samples(count), TWO, Pretended(even), 9000)
    assert found.slots == TWO[0]
    assert len(found.points) >= 2


def test_a_hopeless_layout_is_measured_once() -> None:
    probes = Pretended(lambda count, threads: 100.0 if threads == 1 else 1.0)
    found = calibrate(samples(3), TWO, probes, 9000)
    assert [threads for _, threads, _ in probes.asked].count(2) == 1
    assert found.layouts[1].images == pytest.approx(1.0)


def test_large_batches_are_measured_in_part() -> None:
    probes = Pretended(even)
    big = samples(3)
    config = {**big[0].config, "train": {**big[0].config["train"], "batch_size": 1024}}
    big[0] = Sample.of(config, {"mflops": 30.0, "activations": 200_000, "convs": 30})
    found = calibrate(big, TWO, probes, 90_000)
    size = probes.built[0][0]["config"]["train"]["batch_size"]
    assert 8 <= size <= 128
    assert found.points[0].load.batch_size == size
    assert max(layout.memory for layout in found.layouts) > 1000, "the memory is that of the whole batch"


def test_a_layout_that_does_not_fit_into_memory_is_not_taken() -> None:
    found = calibrate(samples(4), FOUR, Pretended(even, memory=lambda mflops: 1000.0), 800 + 3500)
    assert found.slots == FOUR[1]
    assert found.reason.endswith("; 1000 MiB each of 3.4 GiB; not enough memory for 4 x 1 thread")
    tiny = calibrate(samples(4), TWO, Pretended(even, memory=lambda mflops: 1000.0), 800 + 100)
    assert tiny.slots == TWO[1], "one at a time is tried whatever is free"


def test_a_bound_on_memory_leaves_a_share_for_images() -> None:
    """What is measured holds none of the data, which is streamed then; each trial holds 170 MiB of Ray."""
    probes = Pretended(even, memory=lambda mflops: 1000.0)
    free = calibrate(samples(4), FOUR, probes, 90_000)
    assert (free.slots.memory, probes.built[0][0]["memory"]) == (None, None)
    found = calibrate(samples(4), FOUR, probes, 3340 + 800, memory=3340 * MIB)
    assert probes.built[-1][0]["memory"] == 0
    assert found.slots == dataclasses.replace(FOUR[1], memory=500 * MIB)
    assert found.reason.startswith("2 trials at once with 2 threads each: 283 images/s")
    assert found.reason.endswith("; not enough memory for 4 x 1 thread; 500 MiB each left for images")
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    one = calibrate(samples(4), FOUR, probes, 1170 + 800, memory=1170 * MIB)
    assert one.slots == dataclasses.replace(FOUR[2], memory=0)
    with pytest.raises(InputError, match=r"--memory: 1024 MiB is too little, .* give at least 1170MiB"):
        calibrate(samples(4), FOUR, probes, 1024 + 800, memory=1024 * MIB)


def test_on_gpus_the_bound_is_on_the_memory_of_the_machine() -> None:
    probes = Pretended(lambda count, threads: 1000.0 / count**0.5, memory=lambda mflops: 700.0)
    found = calibrate(samples(4), ON_GPU, probes, 64_000, gpus=2, memory=8 * 1170 * MIB)
    assert found.slots == dataclasses.replace(ON_GPU[2], memory=100 * MIB)


def test_memory_is_that_of_the_largest_configuration() -> None:
    probes = Pretended(even, memory=lambda mflops: 240.0 + 300 * mflops)
    few = calibrate(samples(4), TWO, probes, 90_000)
    assert max(layout.memory for layout in few.layouts) == pytest.approx(240 + 300 * 0.4)


def test_networks_without_convolutions_are_measured_too() -> None:
    """Fully connected ones: nothing of their memory grows with what convolutions put out."""
    dense = [
        dataclasses.replace(sample, load=dataclasses.replace(sample.load, activations=0.0, convs=0.0))
        for sample in samples(4)
    ]
    found = calibrate(dense, TWO, Pretended(even), 90_000)
    assert max(layout.memory for layout in found.layouts) == pytest.approx(300.0)


def test_a_layout_that_fails_is_dropped() -> None:
    probes = Pretended(even, fails=lambda count, threads: "killed by signal 9" if count > 2 else "")
    found = calibrate(samples(5), FOUR, probes, 9000)
    assert found.slots == FOUR[1]
    assert found.layouts[0] == Layout(FOUR[0], failed="killed by signal 9")
    assert found.reason.endswith("; 4 x 1 thread: killed by signal 9")


def test_a_layout_that_does_not_answer_in_time_is_far_slower() -> None:
    class Slow(Pretended):
        def measure(self, count: int, threads: int, seconds: float, patience: float = 0.0) -> list[dict[str, Any]]:
            if threads > 1:
                assert 1 < patience < 30, "the first layout says how long to wait for the others"
                raise TooSlowError("no answer within 2 s")
            return super().measure(count, threads, seconds, patience)

    found = calibrate(samples(5), TWO, Slow(even), 9000)
    assert found.slots == TWO[0]
    assert found.reason.endswith("; 1 x 2 threads: far slower (no answer within 2 s)")


def test_a_draw_that_fails_is_left_out() -> None:
    class Odd(Pretended):
        def build(self, requests: Sequence[Mapping[str, Any]]) -> None:
            if any(one["config"]["arch"]["stem"]["width"] == 5 for one in requests):
                raise ProbeError("odd")
            super().build(requests)

    found = calibrate([*samples(7)[:1], *samples(7)[3:], samples(7)[2], samples(7)[1]], TWO, Odd(even), 9000)
    assert found.slots == TWO[0]
    assert 6 <= len(found.points) < 6 + 5


def test_one_error_if_nothing_can_be_measured() -> None:
    with pytest.raises(TunelabError, match="no trial could be measured: the disk is gone"):
        calibrate(samples(4), FOUR, Pretended(even, fails=lambda count, threads: "the disk is gone"), 9000)

    class Dead(Pretended):
        def wait(self) -> float:
            raise ProbeError("status 1: no module torch")

    with pytest.raises(TunelabError, match="no trial could be measured: status 1: no module torch"):
        calibrate(samples(4), FOUR, Dead(even), 9000)


def test_gpus_are_shared_as_measured_on_one_of_them() -> None:
    assert processes_for(ON_GPU, 2) == 4
    probes = Pretended(lambda count, threads: 1000.0 / count**0.5, memory=lambda mflops: 700.0)
    found = calibrate(samples(4), ON_GPU, probes, 64_000, gpus=2)
    assert found.slots == ON_GPU[2]
    assert [round(layout.images) for layout in found.layouts] == [2000, 2828, 4000]
    assert found.limit == 8000
    assert found.reason.startswith("8 trials at once with 0.25 GPU each: 4000 images/s against 2000 with 2 x 1 GPU")
    large = calibrate(
        samples(4), ON_GPU, Pretended(lambda count, threads: 1000.0 / count**0.5, lambda mflops: 2500.0), 64_000, 2
    )
    assert large.slots == ON_GPU[1]


def test_processes_are_as_many_as_the_largest_layout() -> None:
    assert processes_for(FOUR, 0) == 4
    assert processes_for(FOUR[1:], 0) == 2


def test_no_more_processes_are_started_than_memory_carries() -> None:
    """Each loads torch before anything is measured."""
    assert startable(FOUR, 9000) == list(FOUR)
    assert startable(FOUR, 800 + 2 * 300) == [slots for slots in FOUR if slots.concurrent <= 2]
    only = startable([Slots(8, 1, 0.0, "cpu")], 800 + 3 * 300)
    assert only == [Slots(3, 1, 0.0, "cpu")]
    assert startable([Slots(8, 1, 0.0, "cpu")], 10)[0].concurrent == 1


def test_trials_that_go_on_stay_within_memory() -> None:
    slots = Slots(8, 1, 0.0, "cpu")
    layouts = (Layout(slots, 800.0, 1500.0), Layout(Slots(1, 8, 0.0, "cpu"), 0.0, 9000.0, failed="far slower"))
    measured = Calibration(slots, layouts, (), 1.0, 0.1, 16000.0, "")
    assert within(slots, measured, 16000.0) == slots
    assert within(slots, measured, 4000.0).concurrent == 2
    assert within(slots, measured, 100.0).concurrent == 1
    assert within(slots, dataclasses.replace(measured, layouts=()), 100.0) == slots, "nothing is known"


def test_none_that_fits_is_made_smaller() -> None:
    layouts = [Layout(Slots(8, 1, 0.0, "cpu"), 800.0, 500.0)]
    assert choose(layouts, 1600).concurrent == 3
    assert choose(layouts, 10).concurrent == 1
    said = explain(choose(layouts, 1600), layouts, 1600)
    assert said == "3 trials at once with 1 thread each; 500 MiB each of 1.6 GiB; not enough memory for 8 x 1 thread"


def test_it_survives_json() -> None:
    found = calibrate(samples(6), TWO, Pretended(even), 9000)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert isinstance(found.points[0], Point)
    assert isinstance(found.points[0].load, Load)


def test_on_this_machine() -> None:
    """Real processes, on real data."""
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2),),))
    config = TrialConfig(arch, TrainConfig(batch_size=64), DataConfig(limit_train=200))
    one = Sample.of(to_json(config), {"mflops": 0.02, "activations": 400, "convs": 4})
    with Probes(2) as probes:
        found = calibrate([one], TWO[:1], probes, 1e6)
    assert found.slots == TWO[0]
    assert found.layouts[0].images > 10
    assert 50 < found.layouts[0].memory < 5000
    assert 0.1 < found.start < 100
    assert [point.load.batch_size for point in found.points] == [64, 64]


def test_on_this_machine_with_data_that_is_gone() -> None:
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2),),))
    one = Sample.of(to_json(TrialConfig(arch, data=DataConfig("npz:/nowhere.npz"))), {"mflops": 1.0, "activations": 9})
    with Probes(1) as probes, pytest.raises(TunelabError, match=r"no trial could be measured: .*/nowhere.npz"):
        calibrate([one], TWO[1:], probes, 1e6)
