from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.front import front, objectives_of, write_plot
from tunelab.analysis.plots import pareto
from tunelab.analysis.rank import summary
from tunelab.analysis.text import print_best

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.standings import places
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

TWO = ("val_accuracy", "mflops")


def make_trials(*rows: tuple[float, float], length: int = 2) -> list[Trial]:
    """Trials of full length with these scores and costs; the second of two runs of each scores the same."""
    trials = []
    for score, mflops in rows:
        for repeat_of in (None, len(trials)):
            epochs = [EpochMetrics(n, 1.0, score, 1 - score, score, 0.1, 1.0, 1.0, 1.0) for n in range(1, length + 1)]
            config = {"train": {"epochs": length}, "seed": len(trials)}
            trial = Trial(len(trials), config, status=TrialStatus.COMPLETED, epochs=epochs, repeat_of=repeat_of)
            trial.stats = {"mflops": mflops, "params": 10}
            trials.append(trial)
    return trials


def rows_of(trials: list[Trial], objectives: tuple[str, ...] = TWO) -> list[dict[str, Any]]:
    return front(trials, places(trials, 10_000), objectives, 10_000)


def test_the_front_goes_from_cheap_to_good() -> None:
    trials = make_trials((0.9, 20.0), (0.8, 10.0), (0.7, 15.0), (0.5, 1.0), (0.9, 30.0))
    rows = rows_of(trials)
    assert [(row["trial"], row["mflops"], row["runs"]) for row in rows] == [(6, 1.0, 2), (2, 10.0, 2), (0, 20.0, 2)]
    assert [row["better"] for row in rows] == [False, True, True]
    assert all(row["low"] < row["expected"] < row["high"] for row in rows)


def test_what_noise_may_explain_is_not_called_better() -> None:
    rows = rows_of(make_trials((0.801, 20.0), (0.8, 10.0)))
    assert [(row["mflops"], row["better"]) for row in rows] == [(10.0, False), (20.0, False)]


def test_only_like_is_compared_with_like() -> None:
    short, long = make_trials((0.99, 1.0)), make_trials((0.5, 20.0), length=4)
    for trial in long:
        trial.number += 10
        trial.repeat_of = None if trial.repeat_of is None else 10
    assert [row["trial"] for row in rows_of([*short, *long])] == [10]


@pytest.mark.parametrize("objectives", [("val_accuracy",), TWO])
def test_without_costs_or_trials_there_is_no_front(objectives: tuple[str, ...]) -> None:
    assert rows_of([], objectives) == []
    assert rows_of(make_trials((0.9, 20.0)), ("val_accuracy",)) == []


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    info = {"options": {"trials": 3, "epochs": 4, "device": "cpu", "objective": ["val_accuracy", "mflops", "params"]}}
    scores = [[0.1, 0.2, 0.3, last] for last in (0.9, 0.5, 0.7)]
    return make_study([("COMPLETED", one) for one in scores], info=info)


def test_best_shows_the_front_in_json_and_in_words(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    shown = summary(study, 10)
    assert shown["objectives"] == ["val_accuracy", "mflops", "params"]
    assert [(row["trial"], row["mflops"], row["params"]) for row in shown["front"]] == [(0, 0.5, 1234.0)]
    print_best(shown)
    said = capsys.readouterr().out
    assert "no other beats these in val_accuracy, mflops and params" in said


def test_one_objective_has_neither_front_nor_plot(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.9])])
    assert objectives_of(study) == ("val_accuracy",)
    assert write_plot(study) is None
    print_best(summary(study, 10))
    assert "no other beats" not in capsys.readouterr().out


def test_the_plot_has_every_configuration_once_per_cost(study: Study) -> None:
    ranked = study.standings()
    rows = pareto(ranked, front(study.list_trials(), ranked, TWO, 269), TWO)
    assert [(row["cost"], row["trial"], row["front"]) for row in rows] == [
        ("mflops", 0, True),
        ("mflops", 2, False),
        ("mflops", 1, False),
    ]
    file = write_plot(study)
    assert file == Path(study.path / "pareto.png")
    assert file.read_bytes().startswith(b"\x89PNG")
