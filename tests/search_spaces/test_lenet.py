from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import optuna
from tunelab.search_spaces import lenet as space

from tunelab.config import LeNetSpec, TrialConfig
from tunelab.models.classic import ACTIVATIONS, POOLINGS
from tunelab.models.init import CLASSIC_INITS
from tunelab.training.schedules import SCHEDULES


def given(params: Any) -> TrialConfig:
    return space.draw(optuna.trial.FixedTrial(dict(params)))


def test_the_choices_are_those_of_the_network() -> None:
    assert set(space.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(space.POOLINGS) == set(POOLINGS)
    assert set(space.INITS) == set(CLASSIC_INITS)


def test_each_strategy_is_drawn_with_its_own_schedule() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: Counter[tuple[str, str, bool]] = Counter()
    for trial in [study.ask() for _ in range(200)]:
        config = space.draw(trial)
        assert config.train.schedule.name in SCHEDULES
        found[trial.params["strategy"], config.train.schedule.name, config.train.patience is not None] += 1
    assert set(found) == {
        ("fixed", "constant", False),
        ("step", "step", False),
        ("cyclic", "cyclic", False),
        ("plateau", "plateau", True),
    }
    assert min(found.values()) > 30


def test_strategies_differ_in_the_rate_alone() -> None:
    configs = [given(params) for params in space.GRIDS["strategies"]]
    assert [config.train.schedule.name for config in configs] == ["constant", "step", "cyclic", "plateau"]
    assert {config.arch for config in configs} == {LeNetSpec("relu", "max", "he")}
    assert len({config.train.batch_size for config in configs}) == 1
    assert space.GRIDS["strategies"][0] is space.BASELINES[0], "so that it is not trained twice"


def test_each_of_the_broken_has_one_thing_wrong() -> None:
    healthy = given(space.BASELINES[0])
    too_high, no_weights, raw = (given(params) for params in space.GRIDS["broken"])
    assert too_high == dataclasses.replace(healthy, train=dataclasses.replace(healthy.train, lr=1.0))
    assert no_weights == dataclasses.replace(healthy, arch=dataclasses.replace(healthy.arch, init="zero"))
    assert raw == dataclasses.replace(healthy, data=dataclasses.replace(healthy.data, normalise=False))
