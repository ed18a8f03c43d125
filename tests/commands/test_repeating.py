"""`tunelab reproduce`, as it is typed; tests/analysis/test_reproduce.py trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis import reproduce as reproducing
from tunelab.analysis.reproduce import DIFFERENT, IDENTICAL, WITHIN_NOISE

from tunelab.cli import run
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SCORES = [0.1, 0.2, 0.3, 0.4]


def row(verdict: str, epoch: int = 1) -> dict[str, Any]:
    scores = {"then": 0.5, "now": 0.5 if verdict == IDENTICAL else 0.52}
    return {"epoch": epoch, **scores, "difference": 0.02, "margin": 0.013, "noise": "guessed", "verdict": verdict}


def content(verdict: str, **more: Any) -> dict[str, Any]:
    usual = {
        "study": "runs/s",
        "trial": 1,
        "verdict": verdict,
        "epochs": 2,
        "compared": 2,
        "identical": 1 + (verdict == IDENTICAL),
        "different": int(verdict == DIFFERENT),
        "ended": {"then": "stayed finite", "now": "stayed finite"},
        "differences": [],
        "rows": [row(IDENTICAL), row(verdict, 2)],
        "folder": "runs/s/reproduce-trial0001",
    }
    return {**usual, **more}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """What is to be reproduced; nothing is trained."""
    found: list[tuple[Path, int]] = []

    def pretend(study: Study, number: int, address: str | None) -> dict[str, Any]:
        found.append((study.path, number))
        return content(IDENTICAL)

    monkeypatch.setattr(reproducing, "reproduce", pretend)
    return found


def test_a_trial_of_the_newest_or_of_a_named_study(
    asked: list[tuple[Path, int]], make_study: MakeStudy, capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("COMPLETED", SCORES), ("COMPLETED", SCORES)])
    for words in (["1"], ["study", "1"], [str(study.path), "1"]):
        assert run(["reproduce", *words]) == 0
    assert asked == [(study.path, 1)] * 3
    capfd.readouterr()
    assert run(["reproduce", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == content(IDENTICAL)
    assert run(["reproduce", str(study.path)]) == 2
    assert "which trial of" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (content(IDENTICAL), ["identical to the last bit (2 of 2 epochs)", "precision and data are the same"]),
        (content(WITHIN_NOISE), ["equal within the noise of runs (identical: 1 of 2 epochs)", "+2.00", "1.30"]),
        (content(DIFFERENT), ["different beyond the noise", "52.0%"]),
        (
            content(DIFFERENT, ended={"then": "diverged after epoch 2", "now": "stayed finite"}),
            ["then it diverged after epoch 2, now it stayed finite"],
        ),
        (content(IDENTICAL, epochs=9), ["compared are 2 of 9 epochs; remove runs/s/reproduce-trial0001"]),
        (
            content(WITHIN_NOISE, differences=[{"what": "threads", "then": 2, "now": 1}]),
            ["not the same: threads: then 2, now 1"],
        ),
    ],
)
def test_the_answer_in_words(shown: dict[str, Any], said: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    reproducing.print_reproduced(shown)
    out = capfd.readouterr().out
    for words in said:
        assert words in out
    assert ("by chance" in out) == (shown["verdict"] != IDENTICAL)
