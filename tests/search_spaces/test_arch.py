from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import optuna
import pytest
import torch
from torch import nn
from tunelab.search_spaces import _recipes
from tunelab.search_spaces import arch as space

from tunelab.config import AugmentConfig, ScheduleConfig, TrialConfig, config_id, from_json, to_json
from tunelab.errors import RefusedError
from tunelab.models.check import NetworkStats, check
from tunelab.models.network import build_network
from tunelab.space import load_space

SIZES = (8, 28, 32, 40, 64)


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


def stats_or_none(
    config: TrialConfig, size: int, channels: int, max_mflops: float | None = None
) -> NetworkStats | None:
    try:
        return check(config.arch, image_size=(size, size), channels=channels, classes=10, max_mflops=max_mflops)
    except RefusedError:
        return None


def losses_of_one_step(config: TrialConfig, size: int, channels: int, bfloat16: bool) -> list[float]:
    """The loss before and after one step of plain SGD."""
    torch.manual_seed(0)
    network = build_network(config.arch, channels, 10, (size, size))
    images = torch.randn(4, channels, size, size).to(memory_format=torch.channels_last)
    labels = torch.tensor([1, 3, 5, 7])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(network(images), labels)
        losses.append(loss.item())
        if len(losses) == 1:
            loss.backward()
            optimizer.step()
    return losses


@pytest.mark.parametrize(("size", "channels"), list(product(SIZES, (1, 3))))
def test_fifty_draws_are_refused_or_train(size: int, channels: int) -> None:
    trained = 0
    for _, config in drawn(50, seed=size + channels):
        if stats_or_none(config, size, channels, max_mflops=60) is None:
            continue
        losses = losses_of_one_step(config, size, channels, bfloat16=False)
        assert all(0 < loss < 50 for loss in losses), config
        trained += 1
    assert trained >= 8


@pytest.mark.parametrize("size", [8, 32])
def test_draws_train_under_bfloat16(size: int) -> None:
    configs = [config for _, config in drawn(32, seed=size) if stats_or_none(config, size, 3, max_mflops=60)]
    assert {config.arch.norm for config in configs} == {"batch", "group", "layer", "none"}
    for config in configs:
        assert all(0 < loss < 50 for loss in losses_of_one_step(config, size, 3, bfloat16=True)), config


@pytest.mark.parametrize(("size", "channels", "max_mflops"), [(32, 3, 20.0), (8, 1, None), (28, 1, 20.0)])
def test_a_fair_share_is_accepted(size: int, channels: int, max_mflops: float | None) -> None:
    found = [stats_or_none(config, size, channels, max_mflops) for _, config in drawn(200, seed=0)]
    accepted = [stats for stats in found if stats is not None]
    assert len(accepted) > 0.2 * len(found)
    assert len({stats.depth for stats in accepted}) > 10


def test_draws_are_what_the_field_report_asks_for() -> None:
    kinds: Counter[str] = Counter()
    for _, config in drawn(200, seed=1):
        assert 1 <= len(config.arch.branches) <= 3
        halvings = [sum(block.stride == 2 for block in branch) for branch in config.arch.branches]
        assert len(set(halvings)) == 1
        assert 2 <= halvings[0] <= 4
        for branch in config.arch.branches:
            assert 4 <= len(branch) <= 12
            assert branch[-1].width == config.arch.stem.width * 2 ** halvings[0]
            width = config.arch.stem.width
            for block in branch:
                width *= block.stride
                assert block.width == width
                kinds[f"{block.kind} {block.convs}"] += 1
    assert set(kinds) == {f"basic {convs}" for convs in range(1, 6)} | {"bottleneck 2", "inception 2"}
    assert min(kinds["bottleneck 2"], kinds["inception 2"]) > 0.3 * sum(kinds.values()) * 0.9


def test_every_choice_of_the_recipe_is_drawn() -> None:
    trials = drawn(300, seed=2)
    recipes = [config.train for _, config in trials]
    assert {recipe.schedule.name for recipe in recipes} == set(_recipes.SCHEDULES)
    assert {recipe.batch_size for recipe in recipes} == {16, 32, 64, 128, 256, 512, 1024}
    for optimizer in _recipes.OPTIMIZERS:
        mine = [(t.params[f"lr_{optimizer}"], c.train) for t, c in trials if c.train.optimizer == optimizer]
        low, high = _recipes.LR[optimizer]
        assert len(mine) > 40
        for lr, recipe in mine:
            assert low <= lr <= high
            growth = (recipe.batch_size / 128) ** (1.0 if optimizer == "sgd" else 0.5)
            assert recipe.lr == pytest.approx(lr * growth)
    assert {recipe.nesterov for recipe in recipes if recipe.optimizer == "sgd"} == {False, True}
    assert all(recipe.schedule.warmup == 0 for recipe in recipes if recipe.schedule.name in ("one_cycle", "cyclic"))
    assert 0.3 < sum(recipe.augment.mixup > 0 for recipe in recipes) / len(recipes) < 0.7
    assert 0.3 < sum(recipe.augment.cutout > 0 for recipe in recipes) / len(recipes) < 0.7
    assert all((recipe.augment.mixup_until < 1) == (recipe.augment.mixup > 0) for recipe in recipes)
    assert {recipe.epochs for recipe in recipes} == {30}


def test_the_names_are_known_to_the_training() -> None:
    from tunelab.training.optim import OPTIMIZERS
    from tunelab.training.schedules import SCHEDULES

    assert set(_recipes.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(_recipes.SCHEDULES) == set(SCHEDULES)


def test_a_name_has_one_distribution() -> None:
    seen: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial, _ in drawn(200, seed=3):
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution
    assert "branch_3_block_12_convs" in seen


def test_same_params_same_config_and_json_round_trip() -> None:
    for trial, config in drawn(50, seed=4):
        assert space.draw(optuna.trial.FixedTrial(trial.params)) == config
        assert from_json(TrialConfig, to_json(config)) == config


@pytest.mark.parametrize("depth", [4, 7, 12])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_choice_of_halvings_can_be_drawn(depth: int, count: int) -> None:
    grid = [step / 40 for step in range(41)]
    found = {tuple(space.halving_positions(depth, list(places))) for places in product(grid[::4], repeat=count)}
    assert found <= set(combinations(range(depth), count))
    if depth <= 7:
        assert found == set(combinations(range(depth), count))


def test_baselines_are_the_plain_resnet18_from_wide_to_narrow() -> None:
    configs = [space.draw(optuna.trial.FixedTrial(params)) for params in space.BASELINES]
    assert [config.arch.stem.width for config in configs] == [64, 48, 32, 24, 16, 12, 8]
    for config, params in zip(configs, space.BASELINES, strict=True):
        trial = optuna.trial.FixedTrial(params)
        space.draw(trial)
        assert set(trial.params) == set(params)
        (branch,) = config.arch.branches
        width = config.arch.stem.width
        assert [(block.kind, block.convs) for block in branch] == [("basic", 2)] * 8
        assert [block.stride for block in branch] == [1, 1, 2, 1, 2, 1, 2, 1]
        assert [block.width // width for block in branch] == [1, 1, 2, 2, 4, 4, 8, 8]
        assert all(stats_or_none(config, size, channels) for size in SIZES for channels in (1, 3))
    # The network of 11,173,962 parameters that is known as ResNet18 for CIFAR-10.
    stats = stats_or_none(configs[0], 32, 3)
    assert stats is not None
    assert (stats.params, stats.depth) == (11_173_962, 18)
    recipe = configs[0].train
    assert (recipe.optimizer, recipe.lr, recipe.batch_size, recipe.nesterov) == ("sgd", 0.1, 128, True)
    assert recipe.schedule == ScheduleConfig("cosine")
    assert recipe.augment == AugmentConfig(crop=0.125)


def test_a_baseline_fits_a_small_limit() -> None:
    configs = [space.draw(optuna.trial.FixedTrial(params)) for params in space.BASELINES]
    fitting = [config.arch.stem.width for config in configs if stats_or_none(config, 32, 3, max_mflops=20)]
    assert fitting == [12, 8]


def test_the_space_is_found_by_its_name() -> None:
    loaded = load_space("arch")
    assert loaded.version == space.VERSION
    assert loaded.draw is space.draw
    assert len(loaded.baselines) == 7


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
def test_the_portfolio_fits_usual_sizes_with_configurations_that_differ(size: int, channels: int) -> None:
    found = []
    for family in space.STARTERS:
        configs = [space.draw(optuna.trial.FixedTrial(dict(params))) for params in family]
        fitting = [config for config in configs if stats_or_none(config, size, channels, max_mflops=40)]
        found += [config_id(config) for config in fitting[:1]]
    assert 8 <= len(space.STARTERS) <= 16
    assert len(found) >= len(space.STARTERS) // 2, "images of 8 pixels cannot be halved as often as others"
    assert size == 8 or len(found) == len(space.STARTERS)
    assert len(set(found)) == len(found)


def test_the_portfolio_says_where_it_is_from() -> None:
    """Of the searches and of each configuration, in the file itself."""
    text = Path(space.__file__).with_name("arch_portfolio.json").read_text(encoding="utf-8")
    told = json.loads(text)
    assert told["space"] == {"name": "arch", "version": space.VERSION}, "build it anew for another version"
    searches = {one["search"] for one in told["searches"]}
    assert len(searches) >= 3
    for one in told["configurations"]:
        assert set(one["scores"]) == searches
        assert one["from"].startswith(("baseline", "starter", "trial "))
    assert [one["params"] for one in told["configurations"]] == [dict(family[0]) for family in space.STARTERS]
