from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from tunelab.analysis.space_plots import slices, telling, told
from tunelab.analysis.study_plots import (
    MOST_EPOCHS,
    curves,
    duration,
    history,
    hours,
    schedules,
    survival,
    working_hours,
)

from tunelab.errors import NothingToDrawError
from tunelab.journal import encode

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeSearch
    from tests.conftest import MakeStudy


def test_the_best_so_far_is_of_full_length_alone(make_study: MakeStudy) -> None:
    study = make_study(
        [("COMPLETED", [0.3, 0.4]), ("STOPPED", [0.9]), ("COMPLETED", [0.1, 0.3]), ("COMPLETED", [0.1, 0.6])],
        repeats={3: 0},
    )
    rows = history(study, study.list_trials())
    assert [(row["trial"], row["score"], row["best"]) for row in rows] == [(0, 0.4, 0.4), (1, 0.9, 0.4), (2, 0.3, 0.4)]
    assert all(row["hours"] is None for row in rows)  # this record has no times


def test_pauses_are_no_hours_of_searching(make_study: MakeStudy) -> None:
    study = make_study()
    times = [(0, 100.0), (0, 110.0), (1, 130.0), (1, 90_000.0), (1, 90_020.0), (0, 89_000.0)]
    metrics = {"seconds": 9.0}
    lines = [encode({"event": "result", "trial": one, "time": at, "metrics": metrics}) for one, at in times]
    (study.path / "journal.jsonl").write_bytes(b"".join(lines) + b'{"crc":"torn')
    assert {number: 3600 * at for number, at in working_hours(study).items()} == pytest.approx({0: 50.0, 1: 50.0})


def test_curves_say_who_was_stopped_where(make_search: MakeSearch) -> None:
    study = make_search(16)
    rows = curves(study, study.list_trials())
    stopped = {row["trial"] for row in rows if row["rung"] == "stopped"}
    assert stopped == {trial.number for trial in study.list_trials() if trial.status.value == "STOPPED"}
    assert {row["epoch"] for row in rows if row["rung"]} <= {1, 3}


def test_survival_ends_with_the_full_length_without_repeats(make_search: MakeSearch) -> None:
    study = make_search(16, repeats=3)
    rows = survival(study, study.list_trials())
    assert rows[0]["reached"] == rows[0]["kept"] + rows[0]["stopped"] == 14  # the failed ones never came there
    whole = sum(one.status.value == "COMPLETED" for one in study.list_trials() if one.repeat_of is None)
    assert rows[-1] == {"epoch": 9, "reached": whole, "kept": whole, "stopped": 0, "paused": 0}


def test_hours_add_up(make_search: MakeSearch) -> None:
    study = make_search(16, repeats=2)
    trials = study.list_trials()
    rows = hours(study, trials)
    assert sum(row["hours"] for row in rows) == pytest.approx(
        sum(metrics.seconds for trial in trials for metrics in trial.epochs) / 3600
    )
    assert {row["trials_that"]: row["trials"] for row in rows}["repeats"] == 2
    assert [duration(value) for value in (0.001, 0.5, 3.25)] == ["4 s", "30.0 min", "3.2 h"]


def test_schedules_are_compared_at_full_length(make_search: MakeSearch, make_study: MakeStudy) -> None:
    study = make_search(60)
    rows = schedules(study, study.list_trials())
    assert {row["schedule"] for row in rows} == {"cosine", "one_cycle", "step"}
    assert rows[0]["schedule"] == "one_cycle"  # the best
    assert all(0 < row["lr_share"] <= 1 for row in rows)
    one = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    with pytest.raises(NothingToDrawError, match=r"no two schedules to compare: all .* cosine"):
        schedules(one, one.list_trials())


def test_what_tells_of_the_score_comes_first(make_search: MakeSearch) -> None:
    study = make_search(120)
    whole = [trial for trial in study.list_trials() if trial.status.value == "COMPLETED"]
    assert telling(whole)[0] == "schedule"  # the scores of this fixture depend on it
    rows = slices(study, study.list_trials())
    assert {"optimizer", "dropout", "flip", "branches"} <= {row["parameter"] for row in rows}


def test_how_much_a_parameter_tells() -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert told(list("aaaabbbb"), scores) > 0.6
    assert told(list("abababab"), scores) < 0.1
    assert told(list("abcdefgh"), scores) == 0.0  # each its own: nothing can be said
    assert told([0.1 * place for place in range(8)], scores) > 0.6
    assert told(list("aabb"), [0.5] * 4) == 0.0


def test_a_schedule_divided_by_the_norm_is_one_of_its_own(make_search: MakeSearch) -> None:
    study = make_search(60)
    trials = study.list_trials()
    for trial in trials[::2]:
        trial.config["train"]["schedule"]["by_norm"] = True
        trial.config["train"]["lr"] = 1000.0
    rows = schedules(study, trials)
    assert {row["schedule"] for row in rows} >= {"one_cycle", "one_cycle / norm"}
    assert max(row["lr_share"] for row in rows if row["schedule"] == "one_cycle / norm") == 1.0


def test_long_curves_are_thinned(make_search: MakeSearch) -> None:
    study = make_search(60)
    trials = study.list_trials()
    for trial in trials:
        if trial.status.value == "COMPLETED":
            trial.config["train"]["epochs"] = 1800
            trial.epochs = [
                dataclasses.replace(trial.epochs[place % 9], epoch=place + 1, lr=0.1 / (1 + place))
                for place in range(1800)
            ]
    shown = {one.number for one in trials if len(one.epochs) == 1800}
    rows = [row for row in curves(study, trials) if row["trial"] in shown]
    assert len(rows) <= (MOST_EPOCHS + 2) * len(shown)
    assert {1, 3, 1800} <= {row["epoch"] for row in rows}, "the rungs too"
    assert len(schedules(study, trials)) <= MOST_EPOCHS * 3
