from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.effective_plots import (
    MOST_LINES,
    MOST_POINTS,
    TEETH_FROM,
    draw_effective,
    draw_teeth,
    effective,
    ending,
    name_of,
    say_effective,
    say_teeth_of,
    teeth,
)

from tunelab.config import ScheduleConfig, TrainConfig, to_json
from tunelab.errors import NothingToDrawError
from tunelab.records import EpochMetrics, Trial, TrialStatus

if TYPE_CHECKING:
    from tests.conftest import MakeStudy
    from tunelab.study import Study


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """The data functions read nothing of it."""
    return make_study()


PAIRS = [(name, by_norm) for name in ("constant", "cosine", "step", "plateau") for by_norm in (False, True)]


def made(number: int, epochs: int, period: int = 0, normed: bool = True) -> Trial:
    """A trial whose norm falls from 20 to 10, with saw-teeth of `period` epochs, 30 points deep."""
    schedule, by_norm = PAIRS[number % len(PAIRS)]
    optimizer = "sgd" if number % 16 < len(PAIRS) else "adam"
    train = TrainConfig(epochs=epochs, optimizer=optimizer, lr=0.1, schedule=ScheduleConfig(schedule, by_norm=by_norm))
    history = []
    for epoch in range(1, epochs + 1):
        score = 0.5 + 0.3 * ((epoch - 1) % period) / period if period else 0.5
        norm = 20 - 10 * epoch / epochs if normed else None
        history.append(EpochMetrics(epoch, 1.0, 0.6, 1.0, score, 0.1, 1.0, 100.0, 100.0, weight_norm=norm))
    return Trial(number, {"train": to_json(train)}, status=TrialStatus.COMPLETED, epochs=history)


def test_the_end_of_a_trial_has_norm_rate_and_teeth() -> None:
    found = ending(made(0, 200, period=40))
    assert found["weight_norm"] == 10
    assert found["effective_lr"] == pytest.approx(0.1 / 10**2)
    assert (found["saw_teeth"], found["period"], found["drops"]) == (4, 40, [41, 81, 121, 161])
    assert json.loads(json.dumps(found)) == found
    for trial in (made(0, 9, normed=False), Trial(1, {})):
        assert (ending(trial)["weight_norm"], ending(trial)["effective_lr"]) == (None, None)


@pytest.mark.parametrize(
    ("train", "name"),
    [
        (TrainConfig(), "sgd 0.9 cosine"),
        (TrainConfig(momentum=0.0, schedule=ScheduleConfig("constant", by_norm=True)), "sgd constant / norm"),
        (TrainConfig(optimizer="adam", schedule=ScheduleConfig("step")), "adam step"),
    ],
)
def test_a_recipe_has_a_short_name(train: TrainConfig, name: str) -> None:
    assert name_of({"train": to_json(train)}) == name


def test_every_trial_has_its_rows(study: Study) -> None:
    trials = [made(number, 50) for number in range(16)]
    rows = effective(study, trials)
    assert len(rows) == 16 * 50
    assert {row["trial"] for row in rows} == set(range(16))
    for row in rows:
        assert row["effective_lr"] == pytest.approx(row["lr"] / row["weight_norm"] ** 2)
    assert len({row["recipe"] for row in rows}) == 16
    told = say_effective(rows)
    assert told.startswith("Norm of the weights and effective rate of 16 trials; at the end the norm lies between 10 (")


def test_thousands_of_epochs_and_trials_are_thinned(study: Study) -> None:
    long = [made(number, 5000) for number in range(3)]
    long[1].epochs[2345] = EpochMetrics(2346, 1.0, 0.6, 1.0, 0.5, 0.1, 1.0, 100.0, 100.0, weight_norm=1.5)
    rows = effective(study, long)
    assert 3 * MOST_POINTS * 0.9 < len(rows) <= 3 * MOST_POINTS
    assert [row["epoch"] for row in rows if row["trial"] == 0][-1] == 5000
    assert (1, 2346) in {(row["trial"], row["epoch"]) for row in rows}, "no peak is lost"
    many = effective(study, [made(number, 3) for number in range(300)])
    assert len({row["trial"] for row in many}) == MOST_LINES


def test_a_record_without_norms_is_left_out(study: Study) -> None:
    with pytest.raises(NothingToDrawError, match="no trial has the norm"):
        effective(study, [made(0, 9, normed=False), Trial(1, {})])


def test_the_trials_with_the_most_teeth_come_first(study: Study) -> None:
    trials = [made(0, 100), made(1, 100, period=25), made(2, 100, period=50), made(3, TEETH_FROM - 1)]
    rows = teeth(study, trials)
    assert [(row["trial"], row["saw_teeth"], row["period"]) for row in rows] == [(1, 3, 25), (2, 1, None), (0, 0, None)]
    assert rows[0]["_drops"] == [26, 51, 76]
    assert rows[0]["weight_norm"] == 10
    expected = "2 of 3 trials have saw-teeth in their accuracy; trial 1 has the most: 3, one every 25 epochs."
    assert say_teeth_of(rows) == expected
    assert say_teeth_of(rows[2:]) == "No saw-teeth in the accuracy of 1 trials of 30 epochs or more."
    with pytest.raises(NothingToDrawError, match="no trial has the 30 epochs"):
        teeth(study, trials[3:])


@pytest.mark.parametrize(("trials", "epochs"), [(1, 1), (1, 40), (16, 60), (100, 40)])
def test_pictures_are_drawn(trials: int, epochs: int, study: Study, tmp_path: Path) -> None:
    drawn: list[Any] = [(effective, draw_effective)]
    if epochs >= TEETH_FROM:
        drawn.append((teeth, draw_teeth))
    mine = [made(number, epochs, period=20) for number in range(trials)]
    mine[0].epochs[-1] = EpochMetrics(epochs, 1.0, 0.6, 1.0, 0.5, 0.0, 1.0, 100.0, 100.0, weight_norm=10.0)
    for data, draw in drawn:
        rows = data(study, mine)
        assert all(value is None or not isinstance(value, float) or math.isfinite(value) for value in rows[0].values())
        draw(rows, tmp_path / "plot.png", "A title")
        assert (tmp_path / "plot.png").stat().st_size > 5000
