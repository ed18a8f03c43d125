from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from tunelab.errors import InputError
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.extend import extend
from tunelab.tuning.objectives import AUGMENTED, PARTS, costs_of, draw_weights, non_dominated, scalarise
from tunelab.tuning.runner import search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

NUMBERS = st.sampled_from([0.1, 0.2, 0.3, 0.4])
CANDIDATES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=12)


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    mine, theirs = (-one[0], *one[1:]), (-other[0], *other[1:])
    return mine != theirs and all(ours <= own for ours, own in zip(mine, theirs, strict=True))


@given(CANDIDATES)
def test_the_front_is_all_that_nobody_beats(candidates: list[tuple[float, float, float]]) -> None:
    front = non_dominated([one[0] for one in candidates], [one[1:] for one in candidates])
    assert {candidates[place] for place in front} == {
        one for one in candidates if not any(beats(other, one) for other in candidates)
    }
    assert len({candidates[place] for place in front}) == len(front), "of equal ones there is one"
    assert [candidates[place][1] for place in front] == sorted(candidates[place][1] for place in front)


def test_of_equal_ones_the_first_stays() -> None:
    assert non_dominated([0.5, 0.5, 0.4], [[1.0], [1.0], [2.0]]) == [0]
    assert non_dominated([], []) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_add_up_to_one_and_reach_the_corners(count: int) -> None:
    generator = random.Random(0)
    drawn = [draw_weights(generator, count) for _ in range(500)]
    for weights in drawn:
        assert len(weights) == count
        assert sum(weights) == pytest.approx(1)
        assert all(0 <= weight <= 1 and round(weight * PARTS, 6).is_integer() for weight in weights)
    assert all(any(weights[place] == 1 for weights in drawn) for place in range(count))


def test_one_goal_alone_keeps_its_order() -> None:
    scores, costs = [0.1, 0.9, 0.5], [[10.0, 1000.0, 100.0]]
    by_score, by_cost = scalarise(scores, costs, [1, 0]), scalarise(scores, costs, [0, 1])
    assert by_score == pytest.approx([-1 - AUGMENTED, 0, -0.5 * (1 + AUGMENTED)])
    assert by_cost == pytest.approx([0, -1 - AUGMENTED, -0.5 * (1 + AUGMENTED)]), "costs by their logarithms"


@given(CANDIDATES, st.integers(0, 1000))
def test_what_is_beaten_never_counts_more(candidates: list[tuple[float, float, float]], seed: int) -> None:
    weights = draw_weights(random.Random(seed), 3)
    columns = list(zip(*candidates, strict=True))
    found = scalarise(columns[0], columns[1:], weights)
    for one, value in zip(candidates, found, strict=True):
        assert -1 - AUGMENTED - 1e-9 <= value <= 0
        for other, others in zip(candidates, found, strict=True):
            assert not beats(one, other) or value >= others - 1e-12


def test_costs_of_a_trial() -> None:
    trial = Trial(0, {}, stats={"params": 7, "mflops": 0.5, "depth": 3})
    assert costs_of(trial) == {"params": 7.0, "mflops": 0.5}
    trial.epochs = [EpochMetrics(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, 2.0, 1.0, 1.0) for epoch in (1, 2)]
    assert costs_of(trial)["seconds"] == 4.0


# A whole search.

SMALL: dict[str, Any] = {"trials": 16, "epochs": 9, "limit_train": 100, "progress": False, "race": 0.0}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_optuna_is_told_of_all_objectives(played: Played, space: Path, sampler: Any) -> None:
    objective = ["val_accuracy", "params", "seconds"]
    study = search(str(space), **SMALL, sampler=sampler, objective=objective)
    for again in (False, True):
        if again:  # made anew from the record
            (study.path / "optuna.journal").unlink()
            study = extend(study, trials=17, progress=False)
        storage = JournalStorage(JournalFileBackend(str(study.path / "optuna.journal")))
        told = optuna.load_study(study_name="plain", storage=storage)
        assert told.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
        assert told.metric_names == objective
        for trial, shown in zip(study.list_trials(), told.trials, strict=True):
            assert len(shown.intermediate_values) == len(trial.epochs)
            if trial.status is TrialStatus.COMPLETED:
                assert shown.values == [trial.score, trial.stats["params"], 9.0]
            else:
                assert (shown.state, trial.status) == (TrialState.PRUNED, TrialStatus.STOPPED)
        assert told.best_trials


@pytest.mark.parametrize("wrong", [["params"], ["params", "val_accuracy"], ["val_accuracy", "params", "params"], []])
def test_accuracy_comes_first_and_nothing_twice(played: Played, space: Path, wrong: list[str], runs_dir: Path) -> None:
    with pytest.raises(InputError, match="the first must be val_accuracy"):
        search(str(space), **SMALL, objective=wrong)
    with pytest.raises(InputError, match="objective"):
        search(str(space), **SMALL, objective=["val_accuracy", "beauty"])
    assert not runs_dir.exists()
