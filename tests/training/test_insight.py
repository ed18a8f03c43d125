from __future__ import annotations

import torch
from torch import Tensor, nn

from tunelab.config import ArchSpec, BlockSpec, LeNetSpec, StemSpec
from tunelab.models.network import build_network
from tunelab.training.insight import look_inside

ARCH = ArchSpec(StemSpec(8), ((BlockSpec("basic", 8), BlockSpec("basic", 16, 2), BlockSpec("basic", 16)),))


def test_each_activation_is_seen_and_the_scores_are_the_networks_own():
    torch.manual_seed(0)
    model, images = build_network(ARCH, 1, 10, (8, 8)), torch.randn(4, 1, 8, 8)
    shapes: dict[str, tuple[int, ...]] = {}
    lowest: dict[str, float] = {}

    def see(name: str, output: Tensor) -> None:
        shapes[name], lowest[name] = tuple(output.shape), float(output.min())

    found = look_inside(model, images, see)
    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert list(shapes) == [*relus, "scores"]
    assert shapes["stem.2"] == (4, 8, 8, 8)
    assert all(lowest[name] == 0 for name in relus)
    with torch.no_grad():
        expected = model.eval()(images)
    assert torch.allclose(found.scores, expected, rtol=1e-4, atol=1e-5)
    assert {name: tuple(maps.shape) for name, maps in found.maps.items()} == {
        "branches.0.0.activation": (8, 8, 8),
        "branches.0.2.activation": (16, 4, 4),
    }


def test_nothing_of_the_network_or_the_random_state_changes():
    torch.manual_seed(0)
    model = build_network(ARCH, 1, 10, (8, 8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    look_inside(
        nn.Sequential(model, AlwaysDrops()), torch.randn(4, 1, 8, 8, generator=torch.Generator()), lambda *_: None
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


class AlwaysDrops(nn.Module):
    """Draws random numbers also where it is evaluated."""

    def forward(self, scores: Tensor) -> Tensor:
        return nn.functional.dropout(scores, 0.5, training=True)


def test_lenet_and_networks_without_modules_for_activations_are_seen_too():
    seen: list[str] = []
    found = look_inside(
        build_network(LeNetSpec(), 1, 10, (28, 28)), torch.randn(2, 1, 28, 28), lambda name, _: seen.append(name)
    )
    assert seen == ["features.1", "features.4", "classifier.1", "classifier.3", "scores"]
    assert [tuple(maps.shape) for maps in found.maps.values()] == [(6, 28, 28), (16, 10, 10)]
    seen.clear()
    look_inside(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(2, 1, 2, 2), lambda name, _: seen.append(name)
    )
    assert seen == ["1", "scores"]
