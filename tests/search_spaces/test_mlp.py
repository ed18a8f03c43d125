from __future__ import annotations

from typing import Any

import optuna
from tunelab.search_spaces import mlp as space

from tunelab.config import MLPSpec, TrialConfig
from tunelab.models.classic import ACTIVATIONS
from tunelab.models.init import DENSE_INITS


def given(params: Any) -> TrialConfig:
    return space.draw(optuna.trial.FixedTrial(dict(params)))


def arch_of(params: Any) -> MLPSpec:
    arch = given(params).arch
    assert isinstance(arch, MLPSpec)
    return arch


def test_the_choices_are_those_of_the_network() -> None:
    assert set(space.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(space.INITS) == set(DENSE_INITS)


def test_layouts_are_named_or_drawn() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: set[tuple[int, ...]] = set()
    for trial in [study.ask() for _ in range(200)]:
        hidden = arch_of(trial.params).hidden if space.draw(trial) else ()
        if trial.params["layout"] == "drawn":
            drawn.add(hidden)
            assert len(hidden) == trial.params["layers"]
        else:
            assert hidden == tuple(int(width) for width in trial.params["layout"].split("-"))
    assert {len(hidden) for hidden in drawn} == {1, 2, 3, 4}
    assert len(drawn) > 30


def test_the_table_has_all_layouts_with_all_initialisations_and_changes_of_one_of_them() -> None:
    table = space.GRIDS["table"]
    assert len(table) == 28
    first = [arch_of(params) for params in table[:21]]
    assert {arch.hidden for arch in first} == {(256,), (256, 128), (256, 128, 64)}
    assert len({(arch.hidden, arch.init) for arch in first}) == 21
    assert len({str(given(params).train) for params in table[:21]}) == 1, "one recipe"
    best = {**space.BASELINES[0], "init": "xavier_normal"}
    assert best in table[:21]
    for params in table[21:]:
        changed = {name for name in params if params[name] != best[name]}
        assert len(changed) == 1
        assert changed <= {"lr", "batch_size", "period", "factor"}
    assert space.BASELINES[0] in table, "so that it is not trained twice"


def test_a_period_of_the_whole_training_is_a_fixed_rate() -> None:
    from tunelab.training.schedules import lr_factor

    schedule = given(space.GRIDS["table"][-1]).train.schedule
    assert {lr_factor(schedule, place / 100) for place in range(100)} == {1.0}
