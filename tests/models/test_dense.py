from __future__ import annotations

from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from tunelab.config import MLPSpec
from tunelab.models.classic import ACTIVATIONS
from tunelab.models.dense import MLP
from tunelab.models.init import DENSE_INITS
from tunelab.models.network import build_network

LEARNING = [init for init in DENSE_INITS if init != "zero"]


def test_the_registries_are_what_a_description_allows() -> None:
    hints = get_type_hints(MLPSpec)
    assert get_args(hints["activation"]) == tuple(ACTIVATIONS)
    assert get_args(hints["init"]) == tuple(DENSE_INITS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((5, 7), 3)])
def test_scores_and_gradients_are_those_of_a_network_written_by_hand(
    activation: Any, size: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    ours = build_network(MLPSpec((12, 9), "he", activation), channels, 7, size).double()
    values, act = channels * size[0] * size[1], ACTIVATIONS[activation]
    theirs = nn.Sequential(nn.Linear(values, 12), act(), nn.Linear(12, 9), act(), nn.Linear(9, 7)).double()
    with torch.no_grad():
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.shape == their.shape
            their.copy_(mine)
    images = torch.randn(4, channels, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 2, 4, 6])
    nn.functional.cross_entropy(ours(images), labels).backward()
    nn.functional.cross_entropy(theirs(images.reshape(4, -1)), labels).backward()
    torch.testing.assert_close(ours(images), theirs(images.reshape(4, -1)))
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad)


def steps(spec: MLPSpec, count: int = 60) -> tuple[MLP, list[float]]:
    """Trained on two classes of noise: the network and its losses."""
    torch.manual_seed(0)
    network = build_network(spec, 1, 2, (8, 8))
    assert isinstance(network, MLP)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 1, 8, 8) + labels[:, None, None, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network, losses


@pytest.mark.parametrize(("init", "activation"), list(product(LEARNING, ACTIVATIONS)))
def test_every_network_learns(init: Any, activation: Any) -> None:
    _, losses = steps(MLPSpec((32, 16), init, activation))
    assert losses[-1] < 0.5 * losses[0]


def test_zero_weights_learn_nothing() -> None:
    network, losses = steps(MLPSpec((32, 16), "zero"))
    assert losses[-1] == pytest.approx(losses[0], abs=1e-3)
    assert not any(weight.any() for name, weight in network.named_parameters() if name.endswith("weight"))


def test_dropout_is_after_each_hidden_layer_and_off_in_evaluation() -> None:
    network = build_network(MLPSpec((8, 6, 4), dropout=0.25), 1, 3, (4, 4))
    kinds = [type(module).__name__ for module in network.layers]  # type: ignore[union-attr]
    assert kinds == ["Linear", "ReLU", "Dropout"] * 3 + ["Linear"]
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.25] * 3
    images = torch.randn(2, 1, 4, 4)
    assert network.eval()(images).equal(network(images))


def test_weights_follow_the_seed() -> None:
    for init in LEARNING:
        made = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            made.append(build_network(MLPSpec((20, 20), init), 1, 10, (6, 6)))  # type: ignore[arg-type]
        first, second, third = ([p.detach() for p in network.parameters() if p.ndim > 1] for network in made)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))
