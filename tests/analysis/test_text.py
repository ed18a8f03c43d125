from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tunelab.analysis.rank import summary
from tunelab.analysis.text import (
    count,
    percent,
    print_best,
    print_retrained,
    print_study,
    print_trial,
    study_rows,
    study_summary,
)

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SCORES = [0.1, 0.2, 0.3, 0.4]


def test_numbers_for_people() -> None:
    assert [percent(score) for score in (None, 0.0, 0.12345, 1.0)] == ["-", "0.0%", "12.3%", "100.0%"]
    assert [count(number) for number in (None, 999, 123456, 11_173_962)] == ["-", "1.0k", "123.5k", "11.17M"]


def test_brackets_of_an_architecture_are_not_taken_for_markup(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    print_best(summary(make_study([("COMPLETED", SCORES)]), top=3))
    assert "[basic, /2 basic]" in capsys.readouterr().out


def test_a_study_and_a_trial_say_why_they_ended(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study([("COMPLETED", SCORES), ("STOPPED", [0.1])])
    print_study(study, study_summary(study))
    assert "stopped for a reason" in capsys.readouterr().out
    print_trial(study, study.trial(1))
    said = capsys.readouterr().out
    assert "stopped for a reason" in said
    assert "1.2k parameters" in said


@pytest.mark.parametrize(("asked", "state"), [(2, "finished"), (3, "paused")])
def test_the_state_of_a_study(asked: int, state: str, make_study: MakeStudy) -> None:
    (row,) = study_rows([make_study([("COMPLETED", SCORES), ("STOPPED", [0.1])], asked=asked)])
    assert row["state"] == state
    assert row["trials"] == f"2/{asked}"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_retraining_names_earlier_looks_at_the_test_images(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "test_accuracy": 0.5,
        "test_accuracy_std": 0.01 if seeds > 1 else None,
        "test_images": 600,
        "trial": 3,
        "epochs": 12,
        "trained_on": "train+val",
        "search_val_accuracy": 0.55,
        "search_epochs": 6,
        "test_reads_before": 0,
        "folder": "runs/x",
        "seeds": [{}] * seeds,
    }
    print_retrained(metrics)
    said = capsys.readouterr().out
    assert ("+- 1.0" in said) is (seeds > 1)
    assert "note" not in said
    print_retrained({**metrics, "test_reads_before": 2})
    assert "note: 2 other trainings" in capsys.readouterr().out
