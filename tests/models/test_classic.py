from __future__ import annotations

from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from tunelab.config import LeNetSpec
from tunelab.errors import RefusedError
from tunelab.models.classic import ACTIVATIONS, POOLINGS, LeNet, build_lenet
from tunelab.models.init import CLASSIC_INITS
from tunelab.models.network import build_network

ALL = [LeNetSpec(*names) for names in product(ACTIVATIONS, POOLINGS, CLASSIC_INITS)]  # type: ignore[arg-type]


def by_hand(spec: LeNetSpec, channels: int, classes: int, padding: int) -> nn.Sequential:
    """LeNet-5 as tutorials write it: activation, then pooling."""
    act, pool = ACTIVATIONS[spec.activation], POOLINGS[spec.pooling]
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=padding), act(), pool()),
        *(nn.Conv2d(6, 16, 5), act(), pool(), nn.Flatten()),
        *(nn.Linear(400, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, classes)),
    )


def test_the_registries_are_what_a_description_allows() -> None:
    hints = get_type_hints(LeNetSpec)
    for name, registry in (("activation", ACTIVATIONS), ("pooling", POOLINGS), ("init", CLASSIC_INITS)):
        assert get_args(hints[name]) == tuple(registry)


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec.init == "xavier"])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3)])
def test_scores_and_gradients_are_those_of_a_network_written_by_hand(spec: LeNetSpec, side: int, channels: int) -> None:
    torch.manual_seed(0)
    ours = build_network(spec, channels, 7, (side, side)).double()
    theirs = by_hand(spec, channels, 7, padding=2 if side == 28 else 0).double()
    with torch.no_grad():
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.shape == their.shape
            their.copy_(mine)
    images = torch.randn(4, channels, side, side, dtype=torch.float64).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 2, 4, 6])
    for network in (ours, theirs):
        nn.functional.cross_entropy(network(images), labels).backward()
    torch.testing.assert_close(ours(images), theirs(images))
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_fast_arithmetic_gives_the_gradients_of_exact_arithmetic(compute: torch.dtype, pooling: Any) -> None:
    """Convolutions of few channels are where oneDNN has been wrong."""
    torch.manual_seed(0)
    network = build_network(LeNetSpec("tanh", pooling, "xavier"), 1, 10, (28, 28))
    images = torch.randn(32, 1, 28, 28).to(memory_format=torch.channels_last)
    labels = torch.arange(32) % 10
    exact = build_network(LeNetSpec("tanh", pooling, "xavier"), 1, 10, (28, 28))
    exact.load_state_dict(network.state_dict())
    exact.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute is torch.bfloat16):
        scores = network(images)
    nn.functional.cross_entropy(scores.float(), labels).backward()
    nn.functional.cross_entropy(exact(images.double()), labels).backward()
    for mine, true in zip(network.parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        off = (mine.grad.double() - true.grad).norm() / true.grad.norm()
        assert off < (0.2 if compute is torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec.init != "zero"])
def test_every_lenet_learns(spec: LeNetSpec) -> None:
    torch.manual_seed(0)
    network = build_network(spec, 1, 2, (28, 28))
    labels = torch.arange(16) % 2
    images = torch.randn(16, 1, 28, 28) + labels[:, None, None, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_are_channels_last_and_follow_the_seed() -> None:
    for spec in (LeNetSpec(init=init) for init in CLASSIC_INITS if init != "zero"):  # type: ignore[arg-type]
        made = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            made.append(build_network(spec, 3, 10, (32, 32)))
        first, second, third = ([p.detach() for p in network.parameters() if p.ndim > 1] for network in made)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in first if w.ndim == 4)


def test_another_size_is_refused() -> None:
    assert isinstance(build_lenet(LeNetSpec(), 1, 10, (28, 28)), LeNet)
    for build in (build_lenet, build_network):
        with pytest.raises(RefusedError, match="28x28 or 32x32 pixels, these have 8x8"):
            build(LeNetSpec(), 1, 10, (8, 8))
