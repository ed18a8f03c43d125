"""The numbers of a search that Ray's metrics are told; the endpoint itself is read in test_dashboard_on_ray.py."""

from __future__ import annotations

from typing import Any

import pytest
from ray.util import metrics

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.ray_metrics import RayMetrics


class Told:
    """In place of one of Ray's metrics."""

    all: dict[str, list[tuple[float, str]]]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description.endswith(".")
        self._name, self._keys = name, tag_keys
        Told.all[name] = []

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {"study": "night"}

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or ()) <= set(self._keys)
        Told.all[self._name].append((value, (tags or {}).get("state", "")))

    def inc(self, value: float) -> None:
        assert value > 0, "as Ray wants it"
        self.set(value)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, str]]]:
    Told.all = {}
    monkeypatch.setattr(metrics, "Gauge", Told)
    monkeypatch.setattr(metrics, "Counter", Told)
    return Told.all


def trial(number: int, *scores: float, status: TrialStatus = TrialStatus.RUNNING) -> Trial:
    epochs = [EpochMetrics(epoch, 1.0, 0.5, 1.0, score, 0.1, 1.0, 250.0, 1.0) for epoch, score in enumerate(scores, 1)]
    given: dict[str, Any] = {"config": {}, "params": {}, "stats": {}, "arch_id": ""}
    return Trial(number=number, status=status, epochs=epochs, **given)


def test_what_happens_is_told(told: dict[str, list[tuple[float, str]]]) -> None:
    known = [trial(0, 0.2, 0.7, status=TrialStatus.COMPLETED)]
    listener = RayMetrics("night", known)
    first, second = trial(1, 0.5), trial(2)
    for one in (first, second):
        listener.started(one)
    listener.reported(first)
    listener.tell()
    assert told["tunelab_best_accuracy_ratio"] == [(0.7, "")]
    assert told["tunelab_images_per_second"] == [(250.0, "")], "of what runs now, and has measured something"
    assert told["tunelab_epochs"] == [(1, "")], "not those of an earlier start"
    assert sorted((state, count) for count, state in told["tunelab_trials"] if count) == [
        ("completed", 1),
        ("running", 2),
    ]
    assert {state for _, state in told["tunelab_trials"]} == {status.value.lower() for status in TrialStatus}


def test_gauges_are_told_again_and_epochs_once(told: dict[str, list[tuple[float, str]]]) -> None:
    listener = RayMetrics("night")
    one = trial(0, 0.5)
    listener.started(one)
    listener.reported(one)
    for _ in range(3):
        listener.tell()
    assert told["tunelab_epochs"] == [(1, "")]
    assert told["tunelab_best_accuracy_ratio"] == [(0.5, "")] * 3
    one.status = TrialStatus.COMPLETED
    listener.ended(one)
    listener.tell()
    assert told["tunelab_images_per_second"][-1] == (0.0, "")


def test_without_an_epoch_there_is_no_best(told: dict[str, list[tuple[float, str]]]) -> None:
    listener = RayMetrics("night")
    one = trial(0)
    listener.started(one)
    listener.retried(one, "it was killed")
    listener.look()
    listener.look()
    assert [state for count, state in told["tunelab_trials"] if count] == ["paused"], "once a second at most"
    assert told["tunelab_best_accuracy_ratio"] == []
    assert told["tunelab_epochs"] == []
