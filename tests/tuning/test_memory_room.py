from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Trial
from tunelab.tuning import memory_room as room_module
from tunelab.tuning.calibrate import Calibration, Layout
from tunelab.tuning.fleet import Fleet, Node
from tunelab.tuning.footprint import Footprint
from tunelab.tuning.memory_guard import Limits
from tunelab.tuning.memory_room import (
    ClusterRoom,
    Memory,
    MemoryRoom,
    cluster_memory,
    find_memory,
    limits_of,
    node_limits_of,
)
from tunelab.tuning.slots import Slots

SLOTS = Slots(concurrent=4, cpus=1, gpus=0.0, device="cpu")
GPUS = Slots(concurrent=4, cpus=1, gpus=0.5, device="cuda")
FOOTPRINT = Footprint(base=200.0, each=0.001)  # MiB


def trial(
    number: int, activations: int = 1000, params: int = 0, batch: int = 100, split: int = 1, **more: Any
) -> Trial:
    config = {"arch": {"norm": "none"}, "train": {"batch_size": 100}}
    return Trial(number, config, stats={"activations": activations, "params": params}, split=split, **more)


def took(trial: Trial, *peaks: float) -> Trial:
    trial.epochs = [
        EpochMetrics(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0, peak) for epoch, peak in enumerate(peaks, start=1)
    ]
    return trial


def fewer(number: int) -> Trial:
    return trial(number, retries=[{"cause": "memory", "why": "", "epoch": 0, "split": 16, "fewer": True}])


def test_a_trial_takes_a_base_its_activations_and_its_weights() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0), FOOTPRINT)
    assert room.predict(trial(0)) == 200 + 100
    assert room.predict(trial(0, split=4)) == 200 + 25
    assert room.predict(trial(0, activations=0, params=2**20)) == 200 + 20


def test_as_many_fit_as_there_is_memory_for() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0), FOOTPRINT)
    running = [trial(number) for number in range(2)]
    assert room.fits(trial(2), running)
    assert not room.fits(trial(2, activations=5000), running)
    assert room.fits(trial(2, activations=5000, split=4), running)
    assert room.fits(trial(2, activations=10**9), []), "alone it is tried"
    running.append(trial(2))
    assert not room.fits(trial(3), running)


def test_nothing_measured_is_nothing_predicted() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0))
    assert room.predict(trial(0, activations=10**9)) == 0.0
    assert room.fits(trial(2, activations=10**9), [trial(0), trial(1)])
    assert room.refuses(trial(2, activations=10**9)) == ""
    room.reported(took(trial(0), 500.0))


def test_one_that_ran_out_of_memory_twice_has_fewer_beside_it() -> None:
    room = MemoryRoom(SLOTS, Memory(1e6), FOOTPRINT)
    assert room.fits(fewer(0), [trial(1)])
    assert not room.fits(fewer(0), [trial(1), trial(2)])
    assert not room.fits(trial(3), [fewer(0), trial(1)])


def test_what_trials_take_corrects_what_is_predicted() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0, images=50.0), FOOTPRINT)
    for number in range(3):
        assert room.predict(trial(9)) == 300
        room.started(trial(number))
        room.reported(took(trial(number), 100.0, 410.0))  # 50 are images, which all share
    assert room.predict(trial(9)) == pytest.approx(360)
    assert not room.fits(trial(9), [trial(0), trial(1)])
    room.reported(took(trial(2), 950.0))
    assert room.predict(trial(2)) == pytest.approx(900), "of itself it is known"
    assert room.predict(trial(9)) == pytest.approx(360), "one of three says little"
    room.retried(trial(2), "out of memory")
    room.ended(trial(1))
    assert room.predict(trial(2, split=4)) == 225, "smaller parts were not measured yet, and two trials say nothing"


def test_a_correction_has_bounds() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0), FOOTPRINT)
    for number in range(3):
        room.reported(took(trial(number), 1.0))
    assert room.predict(trial(9)) == pytest.approx(0.8 * 300)
    for number in range(3):
        room.reported(took(trial(number), 90000.0))
    assert room.predict(trial(9)) == pytest.approx(1.5 * 300)


def test_a_trial_that_takes_little_keeps_none_waiting() -> None:
    """Small images were measured at 20 bytes of an output, and took 5 in large batches."""
    room = MemoryRoom(SLOTS, Memory(2000.0), FOOTPRINT)
    large = trial(0, activations=15_000)
    assert not room.fits(trial(1, activations=5000), [large])
    room.reported(took(large, 690.0))
    assert room.predict(large) == pytest.approx(690)
    assert room.fits(trial(1, activations=5000), [large])


@pytest.mark.parametrize(("slots", "host"), [(SLOTS, 3000.0), (dataclasses.replace(SLOTS, memory=2**30), 9000.0)])
def test_images_that_are_streamed_are_no_part_of_what_a_trial_took(slots: Slots, host: float) -> None:
    room = MemoryRoom(slots, Memory(host, images=5000.0), FOOTPRINT)
    room.reported(took(trial(0), 400.0))
    assert room.predict(trial(0)) == pytest.approx(400)


def test_what_can_never_run_is_refused_and_says_why() -> None:
    room = MemoryRoom(SLOTS, Memory(1000.0), FOOTPRINT)
    assert room.refuses(trial(0, activations=100_000)) == "", "in 16 parts it can: 625 MiB"
    assert room.refuses(trial(0, activations=250_000)) == (
        "too large for the memory: it takes at least 1.1 GiB with batches in 16 parts, of 1000 MiB"
    )
    assert room.refuses(trial(0, activations=0, params=200 * 2**20)).startswith("too large for the memory: ")
    assert room.refuses(trial(0, activations=0, params=100 * 2**20)) == ""
    assert MemoryRoom(SLOTS, Memory(0.0), FOOTPRINT).refuses(trial(0)) == "", "nothing is known of it"


def test_what_others_have_taken_for_now_refuses_no_trial() -> None:
    large = trial(0, activations=100_000)
    assert MemoryRoom(SLOTS, Memory(50.0, whole=16000.0), FOOTPRINT).refuses(large) == ""
    assert MemoryRoom(SLOTS, Memory(0.0, whole=400.0), FOOTPRINT).refuses(large).endswith(", of 400 MiB")
    assert MemoryRoom(GPUS, Memory(50.0, device=400.0, whole=16000.0), FOOTPRINT).refuses(large) != ""


def test_on_gpus_it_is_their_memory_that_counts() -> None:
    memory = Memory(host=100.0, device=500.0, devices=2)
    room = MemoryRoom(GPUS, memory, FOOTPRINT)
    running = [trial(number) for number in range(2)]
    assert room.fits(trial(2), running)
    assert not room.fits(trial(3), [*running, trial(2)])
    assert room.refuses(trial(0, activations=150_000)).endswith(", of 500 MiB")


def test_a_healthy_trial_is_far_below_its_limit() -> None:
    assert limits_of(SLOTS, Memory(16000.0, largest=600.0)) == Limits(4000.0, 8000.0, None)
    tight = limits_of(SLOTS, Memory(2400.0, largest=600.0))
    assert tight == Limits(1200.0, 1200.0, None), "twice what the largest takes, though the share is 600"
    assert limits_of(SLOTS, Memory(0.0)).each == 1024.0, "the machine itself is looked at in any case"
    assert limits_of(GPUS, Memory(64000.0)).each == 16000.0


def test_a_bound_of_the_user_is_one_for_all_together() -> None:
    assert limits_of(SLOTS, Memory(4000.0, largest=900.0, bound=True)) == Limits(1800.0, 2000.0, 4000.0)
    assert limits_of(SLOTS, Memory(100.0, bound=True)).together == 470.0, (
        "less than a process without a network is none"
    )


INFO = {
    "data": {"image_size": [32, 32], "channels": 4, "counts": {"train": 1024, "val": 256, "test": 10**9}},
    "hardware": {"gpus": ["one", "another"]},
}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "free_memory_mib", lambda: 8800.0)
    monkeypatch.setattr(room_module, "all_memory_mib", lambda: 16800.0)


@pytest.mark.usefixtures("free")
def test_what_there_is_of_memory() -> None:
    assert find_memory(INFO, SLOTS, None) == (Memory(8000.0, images=5.0, whole=16000.0), None)
    assert find_memory(INFO, SLOTS, 2**30) == (Memory(1024.0, bound=True, images=5.0, whole=1024.0), None)
    layouts = (Layout(SLOTS, 100.0, 700.0), Layout(SLOTS, 0.0, 9000.0, "failed"))
    measured = Calibration(SLOTS, layouts, (), 1.0, 1.0, 4000.0, "", FOOTPRINT)
    info = {**INFO, "calibration": measured.to_json()}
    assert find_memory(info, SLOTS, None) == (Memory(8000.0, largest=700.0, images=5.0, whole=16000.0), FOOTPRINT)
    on_gpus = dataclasses.replace(measured, slots=GPUS, layouts=(Layout(GPUS, 100.0, 700.0),))
    info = {**INFO, "calibration": on_gpus.to_json()}
    assert find_memory(info, GPUS, None) == (
        Memory(8000.0, device=4000.0, devices=2, images=5.0, whole=16000.0),
        FOOTPRINT,
    )
    assert find_memory(info, SLOTS, None)[1] is None, "measured on something else"


@pytest.mark.usefixtures("free")
def test_a_calibration_of_an_older_version_has_no_footprint() -> None:
    plain = Calibration(SLOTS, (Layout(SLOTS, 100.0, 700.0),), (), 1.0, 1.0, 4000.0, "").to_json()
    del plain["footprint"]
    assert find_memory({**INFO, "calibration": plain}, SLOTS, None) == (
        Memory(8000.0, 700.0, images=5.0, whole=16000.0),
        None,
    )


def test_on_a_cluster_trials_ask_for_memory_in_steps_and_are_packed_by_it() -> None:
    gib = 2**30
    fleet = Fleet((Node("a", "a", 4.0, memory=4 * gib), Node("b", "b", 4.0, memory=1 * gib)))
    room = ClusterRoom(Slots(8, 1, 0.0, "cpu"), Memory(4096.0, whole=4096.0), FOOTPRINT, lambda: fleet)
    small, large = trial(0, activations=1000), trial(1, activations=18_000)
    assert room.request(small) == 512 * 2**20
    assert room.predict(large) > 1536
    assert room.request(large) in (2048 * 2**20, 3072 * 2**20)
    assert room.fits(small, [large])
    assert room.fits(small, [small] * 5)
    assert not room.fits(small, [small] * 6), "four processors on the one, two times the memory on the other"
    assert not room.fits(large, [large, large]), "no memory, wherever it is"
    assert room.fits(trial(2, activations=10**6), []), "alone it always may"
    assert room.request(trial(2, activations=10**6)) == 4 * gib, "no more than there is anywhere"
    unknown = ClusterRoom(Slots(8, 1, 0.0, "cpu"), Memory(4096.0), None, lambda: fleet)
    assert unknown.request(large) == 0
    assert ClusterRoom(Slots(8, 1, 1.0, "cuda"), Memory(4096.0), FOOTPRINT, lambda: fleet).request(large) == 0


@pytest.mark.usefixtures("free")
def test_the_memory_of_a_cluster_is_that_of_its_largest_node() -> None:
    gib = 2**30
    works = (Node("a", "a", 1.0, memory=2 * gib), Node("b", "b", 1.0, memory=6 * gib))
    fleet = Fleet((*works, Node("c", "c", 0.0, memory=99 * gib)))
    memory, footprint = cluster_memory(INFO, Slots(2, 1, 0.0, "cpu"), fleet, None)
    assert (memory.host, memory.whole, memory.bound, footprint) == (6144.0, 6144.0, False, None)
    memory, _ = cluster_memory(INFO, Slots(2, 1, 0.0, "cpu"), fleet, 3 * gib)
    assert (memory.host, memory.bound) == (3072.0, True)


def test_limits_on_a_node_are_worked_out_there() -> None:
    limits = node_limits_of(Slots(64, 1, 0.0, "cpu"), Memory(8000.0, 700.0), None)
    assert limits.on(4.0, 0.0, 16_000.0) == Limits(4000.0, 8000.0)
    assert limits.on(64.0, 0.0, 16_000.0).each == 1400.0, "twice what the largest takes"
    bound = node_limits_of(Slots(64, 1, 0.0, "cpu"), Memory(8000.0, 700.0), 3000 * 2**20)
    assert bound.on(64.0, 0.0, 16_000.0) == Limits(1400.0, 1500.0, 3000.0), "four trials fit"
    shared = node_limits_of(Slots(4, 1, 0.5, "cuda"), Memory(8000.0), None)
    assert shared.on(64.0, 2.0, 32_000.0).each == 8000.0
    uneven = node_limits_of(Slots(4, 1, 0.4, "cuda"), Memory(8000.0), None)
    assert uneven.on(64.0, 2.0, 32_000.0).each == 8000.0, "two trials on each GPU"
