"""What holds for each space that comes with tunelab."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from tunelab.config import TrialConfig, config_id, from_json, to_json
from tunelab.errors import RefusedError
from tunelab.models.check import check
from tunelab.models.network import build_network
from tunelab.space import load_space

IMAGES = {"arch": ((32, 32), 3), "lenet": ((28, 28), 1), "mlp": ((28, 28), 1)}
"""Of each space the size and the channels of images that it is usually searched on."""
DRAWN = {"arch": "373c7a16acf17cce", "lenet": "d7a561cf16d93571", "mlp": "68bfcbc842eab229"}
"""Of each space a hash of all names with their choices and ranges. When it changes, VERSION must change too."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(name: str, n: int) -> list[tuple[optuna.Trial, TrialConfig]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n))
    trials = [study.ask() for _ in range(n)]
    return [(trial, load_space(name).draw(trial)) for trial in trials]


def fits(name: str, config: TrialConfig) -> bool:
    size, channels = IMAGES[name]
    try:
        return bool(check(config.arch, image_size=size, channels=channels, classes=10, max_mflops=600).params)
    except RefusedError:
        return False


def given(name: str, params: Mapping[str, Any]) -> TrialConfig:
    """What the space makes of parameters, which must be all that it asks for."""
    asked = optuna.trial.FixedTrial(dict(params))
    config = load_space(name).draw(asked)
    assert set(asked.params) == set(params)
    return config


def test_every_space_is_tested() -> None:
    here = Path(__file__).parent
    files = {file.stem for file in (here.parents[1] / "search_spaces").glob("[!_]*.py")}
    assert set(IMAGES) == set(DRAWN) <= files
    assert all((here / f"test_{name}.py").exists() for name in files)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "arch"])  # whose own tests train more of them
def test_any_draw_is_refused_or_trains(name: str) -> None:
    size, channels = IMAGES[name]
    labels = torch.tensor([1, 3, 5, 7])
    fitting = [config for _, config in drawn(name, 25) if fits(name, config)]
    assert len(fitting) > 5
    for config in fitting:
        torch.manual_seed(0)
        network = build_network(config.arch, channels, 10, size)
        images = torch.randn(4, channels, *size).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.001)
        for _ in range(2):
            loss = nn.functional.cross_entropy(network(images), labels)
            assert 0 < loss.item() < 100, config
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_parameters_make_the_same_configuration(name: str) -> None:
    for trial, config in drawn(name, 30):
        assert given(name, trial.params) == config
        assert from_json(TrialConfig, to_json(config)) == config


@pytest.mark.parametrize("name", IMAGES)
def test_a_name_has_one_distribution_as_long_as_the_version_is_the_same(name: str) -> None:
    seen: dict[str, str] = {}
    for trial, _ in drawn(name, 400):
        for asked, distribution in trial.distributions.items():
            told = optuna.distributions.distribution_to_json(distribution)
            assert seen.setdefault(asked, told) == told, asked
    digest = hashlib.sha256(json.dumps([load_space(name).version, seen], sort_keys=True).encode()).hexdigest()[:16]
    assert digest == DRAWN[name], "names or choices have changed: VERSION must, and this hash"


@pytest.mark.parametrize("name", IMAGES)
def test_what_comes_first_fits_and_is_all_that_the_space_asks_for(name: str) -> None:
    space = load_space(name)
    families = [space.baselines, *space.starters]
    assert all(families)
    for family in families:
        assert any(fits(name, given(name, params)) for params in family)
    ids = [config_id(given(name, family[0])) for family in families]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", IMAGES)
def test_grids_are_complete_fit_and_have_nothing_twice(name: str) -> None:
    for grid in load_space(name).grids.values():
        configs = [given(name, params) for params in grid]
        assert all(fits(name, config) for config in configs)
        assert len({config_id(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("name", IMAGES)
def test_the_summary_is_a_line(name: str) -> None:
    space = load_space(name)
    assert 10 < len(space.summary) < 100
    assert "\n" not in space.summary
    assert space.version >= 1
