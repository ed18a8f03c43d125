from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tunelab.config import DataConfig
from tunelab.errors import InputError
from tunelab.tuning import profile as module
from tunelab.tuning.probes import ProbeError, TooSlowError
from tunelab.tuning.profile import (
    Figures,
    Point,
    Setting,
    Subject,
    baseline_subject,
    find_devices,
    find_threads,
    measure,
    no_hope,
    plan,
    trial_subject,
    why,
)

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

# Answers as `tunelab.training.probe` does, at once: a step takes a millisecond per image, an image a MiB. Batches of 64
# have no room, those of 128 end the process.
FAKE = """
import json, os, sys
say = lambda content: print(json.dumps(content), flush=True)
say({"hello": True})
for line in sys.stdin:
    asked = json.loads(line)
    if "go" not in asked:
        size = asked["config"]["train"]["batch_size"]
        if size == 128:
            os.kill(os.getpid(), 9)
        no_room = {"error": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"}
        say(no_room if size == 64 else {"ready": True})
    else:
        assert asked["full_validation"]
        found = {"step": size / 1000, "images": size, "val_image": 0.01, "memory": 10 * size, "host_memory": size}
        say({"measured": {**found, "steps": 7, "pid": os.getpid()}})
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    file = tmp_path / "fake_probe.py"
    file.write_text(FAKE)
    return [sys.executable, str(file)]


@pytest.fixture
def subject(make_study: MakeStudy) -> Subject:
    """A configuration with batches of 32 and 100 training images."""
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    return trial_subject(study, study.trial(0))


def point(batch_size: int, memory: float = 0.0, failed: str = "", threads: int = 1, device: str = "cpu") -> Point:
    figures = None if failed else Figures(0.1, 1.0, 100.0, memory, None, 3)
    return Point(Setting(device, threads, batch_size), figures, failed)


def test_a_trial_and_a_baseline_can_be_measured(subject: Subject, tmp_path: Path) -> None:
    assert subject.name == "study, trial 0"
    assert subject.source == {"study": str(tmp_path / "runs" / "study"), "trial": 0}
    assert subject.info.counts["train"] == 100
    found = baseline_subject("arch", DataConfig(limit_train=200), "cpu")
    assert found.name == "baseline of arch on digits"
    assert found.source["space"] == "arch"
    assert found.config.data.limit_train == 200
    assert found.stats["params"] < 1_000_000 < baseline_subject("arch", DataConfig(), "cuda").stats["params"]


def test_a_space_that_raises_is_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "raising.py"
    file.write_text(
        "SUMMARY, VERSION, BASELINES = 'raises', 1, ()\n\ndef draw(suggest):\n    raise OSError('no such')\n"
    )
    with pytest.raises(InputError, match="OSError: no such"):
        baseline_subject(str(file), DataConfig(), "cpu")


def test_batch_sizes_lie_around_the_configurations_own(subject: Subject) -> None:
    threads = {"cpu": [1, 2], "cuda": [2]}
    settings = plan(subject, ["cpu", "cuda"], threads, ())
    assert [one.batch_size for one in settings] == [8, 16, 32, 64] * 3, "128 is more than the 100 images"
    assert [(one.device, one.threads) for one in settings[::4]] == [("cpu", 1), ("cpu", 2), ("cuda", 2)]
    assert [one.batch_size for one in plan(subject, ["cuda"], threads, (512, 32, 512))] == [32, 512]
    large = dataclasses.replace(subject.config, train=dataclasses.replace(subject.config.train, batch_size=1024))
    assert [one.batch_size for one in plan(dataclasses.replace(subject, config=large), ["cuda"], threads, ())] == [1024]


def test_devices_and_threads_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cpus", lambda: 8)
    monkeypatch.setattr(module, "count_gpus", lambda: 0)
    assert find_devices([]) == ["cpu"]
    with pytest.raises(InputError, match="--device cuda: torch finds no CUDA device"):
        find_devices(["cpu", "cuda"])
    assert find_threads([]) == {"cpu": [1, 8], "cuda": [8]}
    assert find_threads([4, 2, 4]) == {"cpu": [2, 4], "cuda": [2, 4]}
    with pytest.raises(InputError, match="--threads 9 is more than the 8 processors"):
        find_threads([9, 1])
    monkeypatch.setattr(module, "count_gpus", lambda: 1)
    assert find_devices([]) == ["cpu", "cuda"]
    assert find_devices(["cuda", "cuda"]) == ["cuda"]


def test_an_epoch_is_its_whole_batches_and_its_validation(subject: Subject) -> None:
    info = dataclasses.replace(subject.info, counts={"train": 100, "val": 50, "test": 0})
    found = {"step": 0.3, "images": 30, "val_image": 0.01, "memory": 700.0, "host_memory": 800.0, "steps": 5}
    figures = Figures.of(found, info, "cuda")
    assert figures.epoch == pytest.approx(3 * 0.3 + 50 * 0.01)
    assert figures.images_per_second == pytest.approx(100)
    assert (figures.host_memory, figures.device_memory, figures.steps) == (800.0, 700.0, 5)
    assert Figures.of(found, info, "cpu").device_memory is None
    nothing_held_out = dataclasses.replace(info, counts={"train": 100, "val": 0, "test": 0})
    assert Figures.of({**found, "val_image": None}, nothing_held_out, "cpu").epoch == pytest.approx(0.9)


def test_each_point_has_a_process_of_its_own_and_none_is_left(subject: Subject, command: list[str]) -> None:
    points: list[Point] = []
    for setting in plan(subject, ["cuda"], {"cuda": [2]}, (16, 32, 64, 256)):
        points.append(measure(subject, setting, 0.1, points, command))
    first, second, third, last = points
    assert first.figures is not None
    assert second.figures is not None
    assert first.figures.images_per_second == pytest.approx(1000)
    assert (second.figures.host_memory, second.figures.device_memory, second.figures.steps) == (32, 320, 7)
    assert second.figures.epoch == pytest.approx(3 * 0.032 + 0.01 * subject.info.counts["val"])
    assert [one.failed for one in points] == ["", "", "out of memory", "not tried after batch 64: out of memory"]
    assert third.note == "leaves out 36 of 100 images"
    assert last.note == "one batch of all 100 images"
    assert [child for child in psutil.Process().children() if "fake_probe.py" in " ".join(child.cmdline())] == []


def test_a_process_that_dies_is_a_point_with_its_reason(subject: Subject, command: list[str]) -> None:
    died = measure(subject, Setting("cpu", 1, 128), 0.1, (), command)
    assert (died.figures, died.failed) == (None, "the process was killed by signal 9: out of memory?")
    after = measure(subject, Setting("cpu", 1, 256), 0.1, [died], command)
    assert after.failed == "not tried after batch 128: the process was killed by signal 9"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([], ""),
        ([point(64, 900)], ""),  # one point does not say how memory grows
        ([point(32, 500), point(64, 900)], ""),  # 900 + 64 * 12.5 = 1700
        ([point(32, 500), point(64, 1100)], "not tried: it would need about 2.2 GiB of 2.0 GiB of free memory"),
        ([point(32, 500), point(64, 1100, threads=2)], ""),
        ([point(32, 1100), point(64, 500)], ""),  # less for more: nothing is concluded
        ([point(64, failed="too slow: no answer within 120 s")], "not tried after batch 64: too slow"),
        ([point(64, failed="InputError: no such images")], ""),
        ([point(64, failed="out of memory", device="cuda")], ""),
        ([point(256, failed="out of memory")], ""),
    ],
)
def test_what_has_no_hope_is_not_tried(before: list[Point], said: str) -> None:
    assert no_hope(Setting("cpu", 1, 128), before, 1000, 2000.0) == said


def test_memory_grows_up_to_the_batch_of_all_images() -> None:
    before = [point(32, 500), point(64, 1100)]
    assert no_hope(Setting("cpu", 1, 4096), before, 100, 2000.0) == ""
    assert no_hope(Setting("cpu", 1, 4096), [point(128, 500), point(256, 1100)], 100, 600.0) == ""
    on_gpu = [dataclasses.replace(one, setting=dataclasses.replace(one.setting, device="cuda")) for one in before]
    assert no_hope(Setting("cuda", 1, 128), on_gpu, 1000, 2000.0) == "", "a GPU without room harms nobody"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TooSlowError("no answer within 120 s"), "too slow: no answer within 120 s"),
        (ProbeError("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (ProbeError("AcceleratorError: CUDA error: out of memory"), "out of memory"),
        (ProbeError("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ProbeError("MemoryError: "), "out of memory"),
        (ProbeError("InputError: no such images"), "InputError: no such images"),
    ],
)
def test_usual_failures_have_a_short_name(error: ProbeError, said: str) -> None:
    assert why(error) == said
