"""What a process tells that cannot go on, without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from tunelab.tuning import member


class Telling:
    """In place of Ray and of the driver's actor: what is told, in order."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.tell = self

    def remote(self, content: dict[str, Any]) -> None:
        self.told.append(content)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(member.time, "sleep", seconds.append)
    monkeypatch.setattr(member.ray, "get", lambda answer: answer)
    return seconds


@pytest.mark.parametrize(
    ("content", "first", "waits"),
    [
        ({"status": "DIVERGED", "reason": "a weight is no longer finite"}, True, False),
        ({"status": "DIVERGED", "reason": "a weight is no longer finite"}, False, True),
        ({"status": "FAILED", "reason": "ValueError: x"}, False, False),
        ({"halt": "deadline"}, False, False),
    ],
)
def test_each_that_cannot_go_on_tells_and_ends(
    waited: list[float], content: dict[str, Any], first: bool, waits: bool
) -> None:
    """None waits for the others, which are somewhere else in the epoch if they have not seen the same."""
    inbox = Telling()
    with pytest.raises(RuntimeError):
        member._give_up(inbox, content, first=first)
    assert inbox.told == [content]
    assert bool(waited) == waits, "the first one tells what led to a divergence"
