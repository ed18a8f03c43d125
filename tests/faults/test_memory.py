"""Memory runs out, in one process or for all: the trial goes on in smaller parts, and the search comes to its end."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.capacity import control_groups
from tunelab.records import TrialStatus

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MIB = 2**20
WIDE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "a network whose batches take some 200 MiB"
VERSION = 1
BASELINES = ({"lr": 0.01},)


def draw(suggest):
    recipe = {"batch_size": 100, "precision": "float32", "lr": suggest.suggest_float("lr", 0.001, 0.01)}
    arch = ArchSpec(StemSpec(64), ((BlockSpec("basic", 64, 1, 1),),), norm="none")
    return TrialConfig(arch, TrainConfig(**recipe))
"""


def test_a_trial_that_eats_memory_is_ended_by_the_guard_and_retried(fault: Fault) -> None:
    """Row 14: once, and another one every time; what runs beside them is not concerned."""
    once = {"do": "eat", "trial": 1, "epoch": 2, "times": 1, "saved": True}
    fault.order(once, {"do": "eat", "trial": 2, "epoch": 2, "saved": True})
    fault.search("--memory", "1200MB", trials=4, epochs=3)
    fault.end(0, 200)
    trials = fault.check_books()
    assert [trial.number for trial in trials if trial.status is TrialStatus.COMPLETED] == [0, 1, 3]
    (retry,) = trials[1].retries
    assert (retry["cause"], retry["epoch"], retry["split"]) == ("memory", 1, 4)
    assert retry["why"].startswith("its process held ") or "; its process was the largest with " in retry["why"], (
        "whichever limit it came to first"
    )
    assert trials[1].split == 4
    assert any("computed in 4 parts" in note for note in trials[1].notes)
    assert [(one["cause"], one["split"], one["fewer"]) for one in trials[2].retries] == [
        ("memory", 4, False),
        ("memory", 8, True),
    ], "a batch has no more than 8 images"
    assert trials[2].status is TrialStatus.FAILED
    assert trials[2].reason.startswith("out of memory 3 times: ")
    assert fault.trained("eat") == {(1, 2): 1, (2, 2): 3}
    assert not list(fault.study.glob("trials/*/memory.json")), "what was written for the driver is gone"
    fault.check_nothing_is_left()


def test_a_batch_that_does_not_fit_is_computed_in_parts_that_do(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 14: under a real limit of the process, which it keeps; each trial there needs parts."""
    space = fault.folder / "wide.py"
    space.write_text(WIDE, encoding="utf-8")
    monkeypatch.setattr(fault, "write_space", lambda *_kinds: str(space))
    fault.order({"do": "squeeze", "bytes": 80 * MIB, "times": 1})
    options = ["--image-size", "32", "--val-fraction", "0.03", "--max-params", "100000000", "--max-mflops", "100000"]
    fault.search(*options, trials=2, epochs=2, concurrent=1)
    fault.end(0, 200)
    trials = fault.check_books(retrained=4)
    begun = fault.trained("begin")
    for trial in trials:
        assert trial.status is TrialStatus.COMPLETED, trial.reason
        assert [retry["split"] for retry in trial.retries] in ([4], [4, 16]), "how much is held differs from run to run"
        for retry in trial.retries:
            assert retry["cause"] == "memory"
            assert "; the process held " in retry["why"]
        lacking = [retry["epoch"] + 1 for retry in trial.retries]
        assert {epoch: begun[trial.number, epoch] for epoch in (1, 2)} == {
            epoch: 1 + lacking.count(epoch) for epoch in (1, 2)
        }, "the epochs that lacked memory, and no other"
        assert trial.notes[-1] == f"for want of memory every batch was computed in {trial.split} parts"
    assert not list(fault.study.glob("trials/*/error.txt"))
    fault.check_nothing_is_left()


@contextlib.contextmanager
def control_group(most: int) -> Iterator[Path]:
    """A new control group below this process's own with a limit in bytes; the test is skipped where there is none."""
    groups = [(folder, version) for folder, version in control_groups("memory") if folder.is_dir()]
    if not groups:
        pytest.skip("there are no control groups for memory here")
    above, version = groups[0]
    own = above / f"tunelab-{uuid.uuid4().hex[:8]}"
    try:
        own.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (own / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(most))
        except OSError as error:
            pytest.skip(f"control groups cannot be limited here: {error}")
        yield own
    finally:
        end = time.monotonic() + 15.0
        while (own / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.1)
        own.rmdir()


def test_in_a_control_group_the_trial_goes_and_nothing_else(fault: Fault) -> None:
    """Row 14: by the guard, or by the kernel where that is faster; both are told from a process that just died."""
    with control_group(1800 * MIB) as group:
        fault.order({"do": "eat", "trial": 1, "epoch": 2, "times": 1, "saved": True})
        into = f"import os\nwith open({str(group / 'cgroup.procs')!r}, 'w') as file:\n    file.write(str(os.getpid()))"
        fault.search(trials=2, epochs=3, concurrent=1, before=into)
        fault.end(0, 200)
        trials = fault.check_books()
        assert [trial.status for trial in trials] == [TrialStatus.COMPLETED] * 2
        (retry,) = trials[1].retries
        assert (retry["cause"], retry["epoch"], retry["split"]) == ("memory", 1, 4)
        assert "machine or its control group had" in retry["why"] or "held" in retry["why"]
        fault.check_nothing_is_left()
