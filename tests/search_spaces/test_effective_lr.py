from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import torch
from tunelab.search_spaces import effective_lr as space

from tunelab.config import AugmentConfig, DataConfig, TrainConfig, TrialConfig, config_id, from_json, to_json
from tunelab.data.cache import prepare
from tunelab.errors import InputError, RefusedError
from tunelab.models.check import check
from tunelab.models.network import build_network
from tunelab.space import load_space
from tunelab.training.optim import OPTIMIZERS, build_optimizer
from tunelab.training.schedules import SCHEDULES
from tunelab.tuning.grid import by_hand, complete
from tunelab.tuning.grid_files import find_grid
from tunelab.tuning.options import GridRequest, SearchOptions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(n: int, seed: int) -> list[tuple[optuna.Trial, TrialConfig]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(n)]
    return [(trial, space.draw(trial)) for trial in trials]


def made_of(params: Any) -> TrialConfig:
    return space.draw(optuna.trial.FixedTrial(dict(params)))


def norm_of(config: TrialConfig, seed: int = 0) -> float:
    torch.manual_seed(seed)
    network = build_network(config.arch, 3, 10, (32, 32))
    return float(torch.cat([weight.detach().flatten() for weight in network.parameters() if weight.ndim >= 2]).norm())


def test_draws_are_what_the_space_says() -> None:
    trials = drawn(300, seed=1)
    recipes = [config.train for _, config in trials]
    assert {recipe.schedule.name for recipe in recipes} == set(space.SCHEDULES) <= set(SCHEDULES)
    assert {recipe.optimizer for recipe in recipes} == {"sgd", "adam", "rmsprop"}
    assert {recipe.batch_size for recipe in recipes} == set(space.BATCH_SIZES)
    assert all(recipe.augment == AugmentConfig() for recipe in recipes), "without augmentation"
    assert 0.4 < sum(recipe.schedule.by_norm for recipe in recipes) / len(recipes) < 0.6
    assert {config.arch.norm for _, config in trials} == {"batch"}
    for trial, config in trials:
        (branch,) = config.arch.branches
        stages, blocks = trial.params["stages"], trial.params["blocks"]
        assert len(branch) == stages * blocks
        assert sum(block.stride == 2 for block in branch) == stages - 1
        assert branch[-1].width == trial.params["width"] * 2 ** (stages - 1)
        name = trial.params["optimizer"]
        assert (config.train.momentum, config.train.nesterov) == ((0.9, True) if name == "momentum" else (0.0, False))


def test_a_name_has_one_distribution_and_params_make_the_configuration_again() -> None:
    seen: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial, config in drawn(100, seed=2):
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution
        assert made_of(trial.params) == config
        assert from_json(TrialConfig, to_json(config)) == config


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 3), (64, 3)])
def test_no_draw_is_refused_for_its_shape(size: int, channels: int) -> None:
    for _, config in drawn(60, seed=size):
        check(config.arch, image_size=(size, size), channels=channels, classes=10)


def test_the_norm_of_a_fresh_network_is_known_beforehand() -> None:
    configs = [made_of(params) for params in space.BASELINES] + [config for _, config in drawn(20, seed=3)]
    for config in configs:
        assert norm_of(config) == pytest.approx(space.fresh_norm(config.arch), rel=0.1)


def test_a_training_begins_at_the_same_rate_with_and_without_the_division() -> None:
    for baseline in space.BASELINES:
        plain, divided = (made_of({**baseline, "by_norm": by_norm}) for by_norm in (False, True))
        assert divided.train.lr / norm_of(divided) == pytest.approx(plain.train.lr, rel=0.1)
        alike = dataclasses.replace(divided.train, lr=plain.train.lr, schedule=plain.train.schedule)
        assert dataclasses.replace(divided, train=alike) == plain


@pytest.mark.parametrize("optimizer", sorted({*space._TORCH.values()}))
def test_weight_decay_is_l2_regularisation(optimizer: str) -> None:
    """A step with weight decay is the step without it on the loss plus half of it times the square of the weights."""
    decay, after = 0.1, []
    for in_the_loss in (False, True):
        layer = torch.nn.Linear(3, 2, bias=False)
        layer.weight.data = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0]])
        made = TrainConfig(optimizer=optimizer, lr=0.01, weight_decay=0.0 if in_the_loss else decay, momentum=0.0)
        stepper = build_optimizer(layer, made)
        for _ in range(3):
            stepper.zero_grad()
            loss = (layer(torch.tensor([[0.2, -0.1, 0.4]])) ** 2).sum()
            (loss + 0.5 * decay * (layer.weight**2).sum() if in_the_loss else loss).backward()
            stepper.step()
        after.append(layer.weight.detach().clone())
    assert torch.allclose(*after, rtol=1e-5)
    assert "adamw" in OPTIMIZERS
    assert "adamw" not in space._TORCH.values(), "its decay is apart from the gradient"


def test_baselines_are_the_plain_resnet18_from_wide_to_narrow() -> None:
    configs = [made_of(params) for params in space.BASELINES]
    for config, params in zip(configs, space.BASELINES, strict=True):
        trial = optuna.trial.FixedTrial(dict(params))
        space.draw(trial)
        assert set(trial.params) == set(params)
        check(config.arch, image_size=(8, 8), channels=1, classes=10)
    whole = [check(config.arch, image_size=(32, 32), channels=3, classes=10) for config in configs]
    assert (whole[0].params, whole[0].depth) == (11_173_962, 18)
    assert [stats.mflops for stats in whole] == sorted((stats.mflops for stats in whole), reverse=True)


@pytest.mark.parametrize(("max_params", "max_mflops", "width"), [(12_000_000, 1200.0, 64), (1_000_000, 40.0, 16)])
def test_the_pairs_are_sixteen_that_differ_in_the_recipe_alone(max_params: int, max_mflops: float, width: int) -> None:
    """With the limits of a GPU and of a CPU; the network is the widest ResNet18 that they allow."""

    def fits(config: TrialConfig) -> None:
        check(
            config.arch,
            image_size=(32, 32),
            channels=3,
            classes=10,
            max_params=max_params,
            max_mflops=max_mflops,
        )

    loaded = load_space("effective_lr")
    found = complete(find_grid("effective_lr/pairs", loaded), loaded, fits, seed=0)
    configs = [made_of(params) for params in found]
    assert len({config_id(config) for config in configs}) == 16
    assert {config.arch for config in configs} == {space.resnet(width, 4, 2)}
    pairs = [(params["optimizer"], params["schedule"], params["by_norm"]) for params in found]
    assert len(set(pairs)) == 16
    assert len({pair[:2] for pair in pairs}) == 8
    assert all((optimizer, schedule, not by_norm) in pairs for optimizer, schedule, by_norm in pairs)
    assert {(config.train.weight_decay, config.train.batch_size) for config in configs} == {(5e-4, 128)}
    baseline = next(config for params in space.BASELINES if (config := made_of(params)).arch == configs[0].arch)
    assert baseline in configs, "the baseline is one of the sixteen and is not trained twice"


def test_a_search_of_the_pairs_has_sixteen_trials() -> None:
    """Beside them there is no other: the baseline is one of them."""
    options = SearchOptions(trials=1, data=DataConfig("digits"), max_params=1_000_000, max_mflops=40.0)
    request = GridRequest("pairs", alone=True, in_full=True)
    asked, first = by_hand(request, load_space("effective_lr"), options, prepare(options.data), show_progress=False)
    assert asked.trials == len(first) == 16


def test_a_limit_below_every_network_is_said() -> None:
    def refuse(config: TrialConfig) -> None:
        raise RefusedError("too large")

    loaded = load_space("effective_lr")
    with pytest.raises(InputError, match="effective_lr/pairs, entry 1 is refused: too large"):
        complete(find_grid("pairs", loaded), loaded, refuse, seed=0)
