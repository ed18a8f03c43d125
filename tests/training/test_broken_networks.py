"""Twelve networks that people lose days to, each on real images, named within the first epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tunelab.config import DataConfig, TrialConfig
from tunelab.data import batches
from tunelab.errors import DivergedError
from tunelab.records import Finding
from tunelab.training.health import Health
from tunelab.training.loop import Trainer

Build = Callable[[int], nn.Module]


def convolutional(classes: int, activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Sequential:
    """A small network without norms, which learns digits well."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), activation(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2), activation(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), activation(),
        nn.Flatten(), nn.Linear(128, 64), activation(), nn.Dropout(dropout),
        nn.Linear(64, classes),
    )  # fmt: skip


@torch.no_grad()
def scaled(model: nn.Module, factor: float) -> nn.Module:
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(factor)
    return model


@torch.no_grad()
def zeroed(model: nn.Module) -> nn.Module:
    for weight in model.parameters():
        weight.zero_()
    return model


@torch.no_grad()
def with_biases(model: nn.Module, bias: float) -> nn.Module:
    for layer in list(model.modules())[:-1]:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.bias is not None
            layer.bias.fill_(bias)
    return model


def frozen(model: nn.Sequential) -> nn.Module:
    model[2].requires_grad_(False)
    return model


class Cut(nn.Module):
    """Passes on what it gets, and no gradient."""

    def forward(self, values: Tensor) -> Tensor:
        return values.detach()


def cut(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(*model[:4], Cut(), *model[4:])


BROKEN: dict[str, tuple[Build, dict[str, float], str]] = {
    "lr x1000": (convolutional, {"lr": 50.0}, "learning rate too high"),
    "zero initialisation": (lambda k: zeroed(convolutional(k)), {}, "zero initialisation"),
    "weights x50": (lambda k: scaled(convolutional(k), 50), {}, "weights too large"),
    "ReLU before softmax": (lambda k: nn.Sequential(convolutional(k), nn.ReLU()), {}, "activation before the loss"),
    "no normalisation": (convolutional, {}, "inputs not normalised"),
    "tanh with large weights": (lambda k: scaled(convolutional(k, nn.Tanh), 50), {}, "saturated units"),
    "frozen layer": (lambda k: frozen(convolutional(k)), {}, "frozen layer"),
    "labels shuffled": (convolutional, {}, "labels without information"),
    "softmax twice": (lambda k: nn.Sequential(convolutional(k), nn.Softmax(1)), {}, "softmax before the loss"),
    "dropout 0.95": (lambda k: convolutional(k, dropout=0.95), {}, "dropout too high"),
    "dead ReLU biases": (lambda k: with_biases(convolutional(k), -20.0), {}, "dead units"),
    "gradient cut": (lambda k: cut(convolutional(k)), {}, "gradient cut"),
}


@pytest.fixture
def train(make_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def train_one(build: Build, recipe: dict[str, float], shuffled: bool = False, raw: bool = False) -> list[Finding]:
        monkeypatch.setattr("tunelab.training.loop.build_network", lambda arch, channels, classes, size: build(classes))
        data = {"limit_train": None, "normalise": not raw}
        config: TrialConfig = make_config(data=data, **{"batch_size": 16, "lr": 0.05, **recipe})
        if shuffled:
            config = dataclasses.replace(config, data=DataConfig(f"npz:{shuffled_digits(tmp_path)}"))
        health = Health(tmp_path / "trial")
        trainer = Trainer(config, device="cpu", threads=1, observers=(health,))
        try:
            trainer.run_epoch()
        except DivergedError as error:
            health.broke_off(str(error))
        finally:
            trainer.close()
        return health.findings

    return train_one


def shuffled_digits(folder: Path) -> Path:
    """The digits with labels that have nothing to do with them."""
    digits = batches.load_splits(DataConfig(), ["train"], torch.device("cpu"))[0]
    labels = np.random.default_rng(0).permutation(digits.labels.numpy())
    np.savez(folder / "shuffled.npz", images=digits.images.permute(0, 2, 3, 1).numpy(), labels=labels)
    return folder / "shuffled.npz"


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_network_is_named_within_the_first_epoch(what: str, train) -> None:
    build, recipe, name = BROKEN[what]
    found = train(build, recipe, what == "labels shuffled", what == "no normalisation")
    assert found[0].name == name
    assert found[0].epoch == 1
    assert found[0].suggestion
    assert found[0].evidence


def test_the_same_network_is_well_when_it_is_not_broken(train) -> None:
    assert train(convolutional, {}) == []
