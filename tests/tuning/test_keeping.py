from __future__ import annotations

import dataclasses
import fcntl
import os
from pathlib import Path

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.keeping import Keeper

C, S, D, F = TrialStatus.COMPLETED, TrialStatus.STOPPED, TrialStatus.DIVERGED, TrialStatus.FAILED


def folder_of(tmp_path: Path, number: int) -> Path:
    return tmp_path / f"{number:04d}"


def trial(tmp_path: Path, number: int, status: TrialStatus, score: float | None) -> Trial:
    """A trial with all the checkpoints that one can have."""
    folder = folder_of(tmp_path, number) / "checkpoint"
    folder.mkdir(parents=True)
    for name in ("last.pt", "previous.pt", "best.pt"):
        (folder / name).write_bytes(b"weights")
    epochs = [] if score is None else [EpochMetrics(1, 1.0, score, 1.0, score, 0.1, 1.0, 1.0, 1.0)]
    return dataclasses.replace(Trial(number, {}, {}), status=status, epochs=epochs)


def kept(tmp_path: Path) -> dict[int, list[str]]:
    """The checkpoints that there are, by trial."""
    found: dict[int, list[str]] = {}
    for path in sorted(tmp_path.glob("*/checkpoint/*")):
        found.setdefault(int(path.parent.parent.name), []).append(path.stem)
    return found


BOTH = ["best", "last"]
ALL = ["best", "last", "previous"]


def test_the_best_that_ended_keep_theirs(tmp_path: Path) -> None:
    keeper = Keeper(lambda number: folder_of(tmp_path, number), 2)
    running = trial(tmp_path, 9, TrialStatus.RUNNING, 0.99)
    keeper.started(running)
    for number, (status, score, expected) in enumerate(
        [
            (S, 0.9, {0}),
            (C, 0.5, {0, 1}),
            (C, 0.4, {1, 2}),  # of full length before the one that was stopped
            (D, 0.95, {1, 2}),
            (F, None, {1, 2}),
            (C, 0.4, {1, 2}),  # the earlier one of two that are as good
            (C, 0.45, {1, 6}),
        ]
    ):
        keeper.ended(trial(tmp_path, number, status, score))
        assert kept(tmp_path) == {**dict.fromkeys(expected, BOTH), 9: ALL}
    assert [path.name for path in folder_of(tmp_path, 0).iterdir()] == [], "the rest of a trial's folder stays"


@pytest.mark.parametrize(("keep", "expected"), [(0, {}), (1, {0: BOTH}), (None, {0: BOTH, 1: BOTH, 2: BOTH})])
def test_a_search_that_goes_on_clears_up(tmp_path: Path, keep: int | None, expected: dict[int, list[str]]) -> None:
    known = [trial(tmp_path, number, status, 0.5) for number, status in enumerate((C, S, F, TrialStatus.PAUSED))]
    Keeper(lambda number: folder_of(tmp_path, number), keep, known)
    assert kept(tmp_path) == {**expected, 3: ALL}


def test_what_is_being_written_is_removed_when_that_is_over(tmp_path: Path) -> None:
    """The driver ends a trial while its worker still writes the checkpoint of the epoch that it told of."""
    keeper = Keeper(lambda number: folder_of(tmp_path, number), 0)
    ended = trial(tmp_path, 0, S, 0.5)
    path = folder_of(tmp_path, 0) / "checkpoint" / "last.pt.tmp"
    writing = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(writing, fcntl.LOCK_EX)
    keeper.ended(ended)
    assert kept(tmp_path)[0][:3] == ["best", "last", "last.pt"]
    path.rename(path.with_name("last.pt"))
    os.close(writing)
    keeper.reported(ended)
    assert kept(tmp_path) == {}
    path.parent.mkdir()
    path.write_bytes(b"from a worker that was told late")
    keeper.close()
    assert kept(tmp_path) == {}


def test_a_folder_that_somebody_removed_is_no_harm(tmp_path: Path) -> None:
    keeper = Keeper(lambda number: folder_of(tmp_path, number), 1)
    keeper.ended(Trial(0, {}, {}, status=C))
    keeper.close()
    assert kept(tmp_path) == {}
