from __future__ import annotations

import dataclasses
import random
from typing import Any

import optuna
import pytest
from tunelab.search_spaces import arch as arch_space
from tunelab.search_spaces import recipe as space

from tunelab.config import (
    AnyArch,
    ArchSpec,
    AugmentConfig,
    AveragingConfig,
    BlockSpec,
    CustomSpec,
    DataConfig,
    LeNetSpec,
    MLPSpec,
    ScheduleConfig,
    StageSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    from_json,
    to_json,
)
from tunelab.space import draw_config, load_space
from tunelab.tuning.draws import Draw

BLOCKS = ArchSpec(StemSpec(8), ((BlockSpec("inception", 16, 2),),), norm="group", bias=True, dropout=0.7)
ARCHS: list[AnyArch] = [BLOCKS, LeNetSpec(), MLPSpec((9,), dropout=0.2), CustomSpec("/a/net.py:build", {"width": 3})]
PLAIN = TrainConfig(epochs=7)
# Each is beyond what is drawn without it, in one way or another.
RECIPES = [
    PLAIN,
    TrainConfig(optimizer="sgd", lr=3.0, batch_size=100, weight_decay=0.0, momentum=0.0, nesterov=False),
    TrainConfig(optimizer="adam", lr=1e-6, weight_decay=0.9, momentum=0.3, label_smoothing=0.6),
    TrainConfig(optimizer="rmsprop", momentum=0.97, schedule=ScheduleConfig("step", 0.5, 0.9, 0.01)),
    TrainConfig(schedule=ScheduleConfig("cyclic", 0.1, 0.7, 0.9, 40), augment=AugmentConfig(crop=0.5, flip=True)),
    TrainConfig(schedule=ScheduleConfig("warm_restarts", cycles=17), augment=AugmentConfig(cutout=0.9)),
    TrainConfig(schedule=ScheduleConfig("plateau", 0.0, 0.01, 0.9), augment=AugmentConfig(mixup=4.0, mixup_until=0.1)),
    TrainConfig(schedule=ScheduleConfig("one_cycle", 0.3), patience=0.3, precision="float32"),
    TrainConfig(stages=(StageSpec(0.2, "adam", 0.1), StageSpec(0.3, "sgd", 0.1, 0.0, 0.0))),
    TrainConfig(averaging=AveragingConfig("ema", 0.1, 0.5)),
    TrainConfig(lr=4.0, schedule=ScheduleConfig("constant", by_norm=True)),
]
BASES = [TrialConfig(arch, train, DataConfig("mnist"), 5) for arch in ARCHS for train in RECIPES]


def given(params: dict[str, Any], base: TrialConfig) -> TrialConfig:
    """What the space makes of parameters, which must be all that it asks for, and within its ranges."""
    asked = optuna.trial.FixedTrial(dict(params))
    config = space.draw_from(asked, base)
    distributions = asked.distributions
    optuna.create_trial(state=optuna.trial.TrialState.RUNNING, params=dict(params), distributions=distributions)
    return config


@pytest.mark.parametrize("base", BASES, ids=lambda base: f"{type(base.arch).__name__}-{RECIPES.index(base.train)}")
def test_it_begins_with_the_recipe_itself_to_the_last_bit(base: TrialConfig) -> None:
    (params,) = space.baselines_from(base)
    assert given(dict(params), base) == base


def test_it_begins_with_any_recipe_that_arch_draws() -> None:
    for seed in range(100):
        base = arch_space.draw(Draw(random.Random(seed)))
        (params,) = space.baselines_from(base)
        assert given(dict(params), base) == base


@pytest.mark.parametrize("base", BASES[:: len(RECIPES) - 1], ids=lambda base: type(base.arch).__name__)
def test_the_network_stays_but_for_what_belongs_to_its_training(base: TrialConfig) -> None:
    configs = [space.draw_from(Draw(random.Random(seed)), base) for seed in range(200)]
    kept = [field.name for field in dataclasses.fields(base.arch) if field.name not in ("dropout", "bias")]
    for config in configs:
        assert all(getattr(config.arch, name) == getattr(base.arch, name) for name in kept)
        assert (config.data, config.seed, config.train.epochs) == (base.data, base.seed, base.train.epochs)
        assert from_json(TrialConfig, to_json(config)) == config
    if hasattr(base.arch, "dropout"):
        assert len({config.arch.dropout for config in configs}) > 100  # type: ignore[union-attr]
    else:
        assert {config.arch for config in configs} == {base.arch} if isinstance(base.arch, LeNetSpec) else True


def test_every_part_of_a_recipe_is_searched() -> None:
    base = TrialConfig(BLOCKS, RECIPES[8])
    trains = [space.draw_from(Draw(random.Random(seed)), base).train for seed in range(400)]
    assert {train.optimizer for train in trains} == {"sgd", "adam", "adamw", "rmsprop"}
    assert len({train.schedule.name for train in trains}) == 7
    assert {train.averaging and train.averaging.kind for train in trains} == {None, "ema", "swa"}
    later = {tuple(stage.optimizer for stage in train.stages) for train in trains}
    assert later == {(), ("sgd",), ("adam",), ("adamw",), ("adam", "sgd")}, "its own stages are one of the choices"
    for part in ("batch_size", "label_smoothing", "momentum", "nesterov", "weight_decay"):
        assert len({getattr(train, part) for train in trains}) > 1
    for part in ("crop", "flip", "cutout", "mixup"):
        assert len({getattr(train.augment, part) for train in trains}) > 1
    first_adam = [
        train for train in trains if train.optimizer == "adam" and [s.optimizer for s in train.stages] == ["sgd"]
    ]
    assert first_adam, "Adam for some epochs, then SGD"


def test_a_name_has_the_same_choices_as_long_as_the_base_is_the_same() -> None:
    for base in BASES[::7]:
        seen: dict[str, Any] = {}
        for seed in range(100):
            draw = Draw(random.Random(seed))
            config = space.draw_from(draw, base)
            assert given(draw.params, base) == config
            for name, distribution in draw.distributions.items():
                assert seen.setdefault(name, distribution) == distribution


def test_no_decay_at_all_is_only_drawn_where_it_was() -> None:
    none = [space.draw_from(Draw(random.Random(seed)), TrialConfig(BLOCKS, RECIPES[1])).train for seed in range(200)]
    some = [space.draw_from(Draw(random.Random(seed)), TrialConfig(BLOCKS, PLAIN)).train for seed in range(200)]
    assert 0.0 in {train.weight_decay for train in none}
    assert 0.0 not in {train.weight_decay for train in some}


def test_only_the_rate_of_its_own_optimizer_is_divided_by_the_norm() -> None:
    """Those of others are drawn from the ranges of rates that nothing divides, 30 times smaller."""
    base = TrialConfig(MLPSpec((9,)), RECIPES[-1])
    drawn = [space.draw_from(Draw(random.Random(number)), base).train for number in range(40)]
    assert {one.optimizer for one in drawn if one.schedule.by_norm} == {"sgd"}
    assert all(one.schedule.by_norm for one in drawn if one.optimizer == "sgd")


def test_the_space_is_found_by_its_name() -> None:
    loaded = load_space("recipe", BASES[0])
    assert loaded.version == space.VERSION
    assert loaded.base == BASES[0]
    assert draw_config(loaded, optuna.trial.FixedTrial(dict(loaded.baselines[0]))) == BASES[0]
    unbound = load_space("recipe")
    assert unbound.needs_base
    assert unbound.baselines == ()
    assert 10 < len(unbound.summary) < 100
