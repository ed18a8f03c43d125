"""What becomes of what the processes of a training tell, without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tunelab.records import EpochMetrics, Trial
from tunelab.tuning import ray_train
from tunelab.tuning.losses import Loss
from tunelab.tuning.ray_train import Inbox

EPOCH = {"metrics": EpochMetrics(1, 2.0, 0.5, None, None, 0.1, 0.25, 400.0, 300.0).to_json()}
KILLED = Loss("lost", "it was killed, or crashed")


class Told:
    """An engine that writes down what it is told, and lets trials go on for `epochs`."""

    def __init__(self, epochs: int = 2) -> None:
        self.events: list[Any] = []
        self.should_halt = False
        self._left = epochs

    def report(self, number: int, metrics: EpochMetrics, *_more: Any) -> bool:
        self.events.append(("epoch", number))
        self._left -= 1
        return self._left > 0

    def lose(self, number: int, loss: Loss) -> None:
        self.events.append(loss)

    def end(self, number: int, status: Any, reason: str, findings: Any = ()) -> None:
        self.events.append((status.value, reason))

    def halt(self, why: str) -> None:
        self.events.append(why)
        self.should_halt = True


class Processes:
    """A training whose processes tell what is given, and end after that."""

    def __init__(self, *told: dict[str, Any]) -> None:
        self._told = list(told)
        self.answers: list[bool] = []
        self.closed = False

    @property
    def over(self) -> bool:
        return not self._told

    def take(self, seconds: float) -> dict[str, Any] | None:
        return self._told.pop(0) if self._told else None

    def answer(self, goes_on: bool) -> None:
        self.answers.append(goes_on)

    def close(self) -> None:
        self.closed = True


def train(engine: Told, processes: Processes) -> None:
    given: Any = engine, Trial(7, {}), processes
    ray_train._train(*given, witnesses=(), asked=lambda: None)


def test_epochs_are_recorded_and_answered_until_there_are_enough() -> None:
    engine, processes = Told(), Processes(EPOCH, EPOCH)
    train(engine, processes)
    assert engine.events == [("epoch", 7), ("epoch", 7)]
    assert processes.answers == [True, False]
    assert processes.closed


@pytest.mark.parametrize(
    ("told", "events"),
    [
        ([], [KILLED]),
        ([{"parted": "closed by peer"}], [KILLED]),
        ([{"status": "FAILED", "reason": "ValueError: x"}, {"parted": ""}], [("FAILED", "ValueError: x")]),
        ([{"parted": ""}, {"lost": {"cause": "memory", "why": "no room"}}], [Loss("memory", "no room")]),
        ([{"lost": {"cause": "memory", "why": "1"}}, {"lost": {"cause": "memory", "why": "2"}}], [Loss("memory", "1")]),
        ([{"halt": "the trials' storage: full"}], ["the trials' storage: full"]),
    ],
)
def test_a_cause_counts_once_and_before_what_it_leads_to(told: list[dict[str, Any]], events: list[Any]) -> None:
    engine, processes = Told(), Processes(*told)
    train(engine, processes)
    assert engine.events == events


def test_a_pause_lets_the_epoch_end_and_no_other_begin() -> None:
    engine, processes = Told(epochs=9), Processes(EPOCH)
    engine.should_halt = True
    train(engine, processes)
    assert engine.events == [("epoch", 7)]
    assert processes.answers == [False]


def test_a_pause_waits_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Processes):
        over = False  # type: ignore[assignment]

    engine, processes = Told(), Silent()
    engine.should_halt = True
    train(engine, processes)
    assert engine.events == []
    assert not processes.closed, "Ray's end ends them"
    engine.should_halt = False
    monkeypatch.setattr(ray_train, "_GRACE", 0.0)
    monkeypatch.setattr(ray_train, "_END", 1.0)
    train(engine, Silent({"status": "FAILED", "reason": "x"}))
    assert engine.events[-1] == "the processes of trial 7 have not ended for 1 s"


def test_the_inbox_keeps_the_order_and_answers_who_asks() -> None:
    async def talk() -> list[Any]:
        inbox = Inbox()
        asking = asyncio.create_task(inbox.ask({"one": 1}))
        await asyncio.sleep(0)
        await inbox.tell({"two": 2})
        found: list[Any] = [await inbox.take(1.0), await inbox.take(1.0), await inbox.take(0.01)]
        await inbox.answer(True)
        return [*found, await asking]

    assert asyncio.run(talk()) == [{"one": 1}, {"two": 2}, None, True]


def test_an_actor_that_is_gone_tells_nothing_and_ends_nothing() -> None:
    """The processes end for that, which is seen."""

    class Gone(Exception):
        pass

    def get(_answer: object) -> None:
        raise Gone

    made: Any = object.__new__(ray_train._Training)
    made._ray = SimpleNamespace(get=get, kill=print, exceptions=SimpleNamespace(RayActorError=Gone))
    made._inbox = made._end = MagicMock()
    assert made.take(0.01) is None
    made.answer(True)
    made.close()
