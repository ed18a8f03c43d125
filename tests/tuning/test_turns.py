from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tunelab.errors import StorageError, TunelabError
from tunelab.records import Trial
from tunelab.tuning.turns import Turns


class Place:
    """A record in memory; `said` tells in one list what is written together, and what followed from it."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.broken = False
        self.failed: list[TunelabError] = []
        journal: Any = self
        self.turns = Turns(journal, self.failed.append)

    def append(self, *events: Mapping[str, Any]) -> None:
        if self.broken:
            raise StorageError("the record cannot be written")
        self.said.append([f"{event['event']} {event['trial']}" for event in events])

    def record(self, event: str, number: int) -> None:
        self.turns.record(event, Trial(number, {}))
        self.turns.or_else(lambda: self.said.append(f"no {event} {number}"))
        self.turns.then(lambda: self.said.append(f"{event} {number}"))


@pytest.fixture
def place() -> Place:
    return Place()


def test_nothing_follows_before_all_of_a_turn_is_written(place: Place) -> None:
    with place.turns.turn():
        place.record("result", 1)
        with place.turns.turn():
            place.record("decision", 1)
        place.record("ended", 1)
        assert place.said == []
    assert place.said == [["result 1", "decision 1", "ended 1"], "result 1", "decision 1", "ended 1"]


def test_outside_of_a_turn_each_event_is_written_at_once(place: Place) -> None:
    place.record("proposed", 1)
    place.record("proposed", 2)
    assert place.said == [["proposed 1"], "proposed 1", ["proposed 2"], "proposed 2"]


def test_a_turn_in_which_nothing_happens_writes_nothing(place: Place) -> None:
    with place.turns.turn():
        place.turns.then(lambda: place.said.append("looked"))
    assert place.said == ["looked"]


def test_what_is_not_written_did_not_happen(place: Place) -> None:
    def report() -> None:
        with place.turns.turn():
            place.record("result", 1)
            place.record("decision", 1)

    place.broken = True
    with pytest.raises(StorageError):
        report()
    assert place.said == ["no decision 1", "no result 1"]
    assert [str(error) for error in place.failed] == ["the record cannot be written"]
    place.broken = False
    place.record("ended", 1)
    assert place.said[2:] == [["ended 1"], "ended 1"], "nothing is left of the turn before"


def test_what_happened_before_an_error_is_written(place: Place) -> None:
    def report() -> None:
        with place.turns.turn():
            place.record("result", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report()
    assert place.said == [["result 1"], "result 1"]


def test_what_follows_may_be_recorded_too(place: Place) -> None:
    with place.turns.turn():
        place.record("ended", 1)
        place.turns.then(lambda: place.record("ended", 2))
        place.record("ended", 3)
    assert place.said == [["ended 1", "ended 3"], "ended 1", ["ended 2"], "ended 2", "ended 3"]
