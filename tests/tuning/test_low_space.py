from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunelab.journal import RESERVE, Journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning import low_space
from tunelab.tuning.low_space import EVERY, PATIENCE, SPARE, LowSpace
from tunelab.tuning.room import checkpoint_bytes


class Halting:
    """What an engine is told."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.halted = ""

    def hold(self, why: str) -> None:
        self.held.append(why)

    def halt(self, why: str) -> None:
        self.halted = self.halted or why


class Place:
    """A study on a disk whose room is what a test says, looked at every time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.free = {folder: 10 * SPARE, folder / "ray": 10 * SPARE}
        self.files: int | None = 10_000
        self.error = 0
        self.now = 0.0
        self.said: list[str] = []
        self.engine: Any = Halting()
        self.journal = Journal.open(folder)
        self.low = LowSpace(folder, self.journal, 2, self.said.append, lambda: self.now)
        monkeypatch.setattr(low_space, "free_bytes", self._free_bytes)
        monkeypatch.setattr(low_space, "free_files", lambda _folder: self.files)

    def look(self) -> None:
        self.now += EVERY
        self.low.look(self.engine, self.folder / "ray")

    def _free_bytes(self, folder: Path) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self.free[folder]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    made.journal.close()


def test_with_room_nothing_is_said_and_there_is_a_reserve(place: Place) -> None:
    place.look()
    place.look()
    assert place.engine.held == place.said == []
    assert (place.folder / RESERVE).exists()


@pytest.mark.parametrize("which", ["study", "ray", "files", "gone"])
def test_it_waits_for_room_and_goes_on(place: Place, which: str) -> None:
    folder = place.folder / "ray" if which == "ray" else place.folder
    if which == "files":
        place.files = 100
    elif which == "gone":
        place.error = errno.EIO
    else:
        place.free[folder] = 2**20
    place.look()
    place.look()
    (why,) = place.engine.held
    said = {"files": "room for 100 more files", "gone": "Input/output error"}.get(which, "1.0 MiB free")
    assert said in why
    assert str(folder) in why
    assert place.said == [f"{why}; no trial is begun until there is room"]
    place.files, place.error, place.free[folder] = None, 0, 10 * SPARE
    place.look()
    place.look()
    assert place.engine.held == [why, ""]
    assert place.said[1:] == ["there is room again; it goes on"]
    assert not place.engine.halted


def test_it_does_not_waver_at_the_limit(place: Place) -> None:
    place.free[place.folder] = SPARE - 1
    place.look()
    place.free[place.folder] = SPARE + 1
    place.look()
    assert len(place.said) == 1
    place.free[place.folder] = int(1.3 * SPARE)
    place.look()
    assert place.engine.held[-1] == ""


def test_large_trials_need_more_room(place: Place) -> None:
    trial = Trial(3, {"train": {"optimizer": "adam"}}, {}, stats={"params": 4_000_000})
    place.free[place.folder] = 6 * checkpoint_bytes(trial) + SPARE - 1
    place.look()
    assert place.said == []
    place.low.started(trial)
    place.look()
    assert len(place.said) == 1
    place.low.ended(trial)
    place.look()
    assert len(place.said) == 2


def test_trials_that_have_their_checkpoints_need_room_for_another_one_alone(place: Place) -> None:
    """What a search needs is estimated before it starts: it is not held for what it has written of that."""
    epochs = [EpochMetrics(number, 1.0, 0.5, None, None, 0.1, 1.0, 1.0, 1.0) for number in (1, 2, 3)]
    running = Trial(0, {}, {}, stats={"params": 4_000_000}, status=TrialStatus.RUNNING)
    trials = [running, dataclasses.replace(running, number=1, epochs=epochs)]
    for trial in trials:
        place.low.started(trial)
    for free, held in ((4, False), (4 - 1e-6, True), (6, False)):
        place.free[place.folder] = int(free * checkpoint_bytes(running)) + SPARE
        place.look()
        assert bool(place.engine.held and place.engine.held[-1]) is held
    trials[0].epochs = epochs
    place.free[place.folder] = int(2 * checkpoint_bytes(trials[0])) + SPARE
    place.look()
    assert place.engine.held[-1] == ""
    trials[0].status = TrialStatus.PAUSED  # another one is begun in its place
    place.look()
    assert place.engine.held[-1]


def test_a_reserve_that_was_used_is_taken_again_before_it_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.journal, "reserve", lambda: False)
    place.look()
    assert "the record's reserve" in place.said[0]
    monkeypatch.undo()
    monkeypatch.setattr(low_space, "free_bytes", place._free_bytes)
    place.look()
    assert place.engine.held[-1] == ""
    assert (place.folder / RESERVE).exists()


def test_after_long_it_is_over_for_now(place: Place) -> None:
    place.free[place.folder] = 0
    place.look()
    place.now += PATIENCE - 2 * EVERY
    place.look()
    assert not place.engine.halted
    place.now += EVERY
    place.look()
    assert "0.0 MiB free" in place.engine.halted


def test_it_looks_only_every_few_seconds(place: Place) -> None:
    place.look()
    place.free[place.folder] = 0
    place.now += EVERY / 2
    place.low.look(place.engine, place.folder / "ray")
    assert place.said == []


def test_the_size_of_a_checkpoint_follows_from_the_recipe() -> None:
    plain = Trial(0, {"train": {"optimizer": "sgd", "epochs": 10}}, {}, stats={"params": 100_000})
    sizes = [
        checkpoint_bytes(dataclasses.replace(plain, config={"train": {"epochs": 10, **train}}))
        for train in (
            {"optimizer": "sgd"},
            {"optimizer": "adamw"},
            {"optimizer": "sgd", "stages": [{}]},
            {"optimizer": "adamw", "averaging": {"kind": "ema"}},
        )
    ]
    assert [round((size - sizes[0]) / 400_000, 1) for size in sizes] == [0, 1, 1, 2]
