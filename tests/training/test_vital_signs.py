from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tunelab.config import ArchSpec, BlockSpec, StemSpec
from tunelab.models.network import build_network
from tunelab.training.observe import LayerNorms
from tunelab.training.vital_signs import LayerSigns, Sensors, Signs, begin_of, dropout_of, units_alike, weights_of


def signs_of(model: nn.Module, images: Tensor) -> Signs:
    """What the sensors see of one forward pass in training mode."""
    sensors = Sensors(model.train(), images)
    model(images)
    layers = tuple(LayerNorms(name, 1.0, 0.5, 0.1) for name, _ in model.named_parameters())
    look: Any = SimpleNamespace(epoch=1, step=0, steps=9, lr=0.1, loss=2.0, layers=layers, model=model)
    return sensors.read(look, weights_of(model))


def by_name(signs: Signs) -> dict[str, LayerSigns]:
    return {layer.name: layer for layer in signs.layers}


def images(count: int = 20, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (6,)), generator=torch.Generator().manual_seed(1))


def test_layers_are_those_with_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    assert list(weights_of(model)) == ["0", "3"]
    (conv, linear) = begin_of(model)
    assert (conv.name, conv.units, conv.alike, conv.zero, conv.trained) == ("0", 4, False, False, True)
    assert conv.gain == pytest.approx(3**-0.5, rel=0.2), "torch draws uniformly within 1 / sqrt(inputs)"
    model[3].weight.requires_grad_(False).zero_()
    assert (begin_of(model)[1].gain, begin_of(model)[1].zero, begin_of(model)[1].trained) == (0.0, True, False)
    assert linear.zero is False


def test_units_are_alike_up_to_rounding() -> None:
    weight = torch.randn(1, 5).expand(3, 5).clone()
    assert units_alike(weight)
    weight[1, 2] *= 1 + 1e-7
    assert units_alike(weight)
    weight[1, 2] += 0.01
    assert not units_alike(weight)
    assert not units_alike(torch.ones(1, 5)), "one unit is like no other"


def test_dead_units_are_those_of_the_layer_before_the_relu() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        model[0].bias[:6] = -100.0
    found = by_name(signs_of(model, images()))
    assert found["0"].dead == 0.75
    assert found["2"].dead is not None
    assert found["2"].dead < 0.75
    assert found["4"].dead is None, "nothing follows the scores"


def test_what_the_images_lack_is_no_dead_unit() -> None:
    blank = images()
    blank[:, :4] = 0.0
    assert by_name(signs_of(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), blank))["1"].dead is None


def test_what_dropout_drops_is_not_dead() -> None:
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Dropout(0.97), nn.Linear(50, 2))
    assert by_name(signs_of(model, images()))["0"].dead == 0.0
    assert dropout_of(model) == {"2": 0.97}


@pytest.mark.parametrize("kind", [nn.Tanh, nn.Sigmoid])
def test_saturated_values(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 2))
    nn.init.constant_(model[0].weight, 0.01)
    assert by_name(signs_of(model, images()))["0"].saturated == 0.0
    with torch.no_grad():
        model[0].bias[:4] = 100.0
        model[0].bias[4:6] = -100.0
    assert by_name(signs_of(model, images()))["0"].saturated == 0.75
    assert by_name(signs_of(model, images()))["2"].saturated is None


class ByFunction(nn.Module):
    """Its activations are no modules."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 4), last

    def forward(self, given: Tensor) -> Tensor:
        return self.last(self.second(torch.tanh(100 * self.first(given))))


def test_activations_that_are_no_modules_are_seen() -> None:
    signs = signs_of(ByFunction(functional.relu), images())
    assert (by_name(signs)["first"].saturated or 0.0) > 0.9
    assert signs.scores is not None
    assert signs.scores.after == "relu"
    assert 0 < signs.scores.zeros < 1


@pytest.mark.parametrize(
    ("last", "after"),
    [
        (lambda x: x, ""),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x.log_softmax(1), ""),
        (torch.sigmoid, "sigmoid"),
        (functional.gelu, "gelu"),
        (lambda x: functional.leaky_relu(x).view(-1, 4), "leaky_relu"),
        (lambda x: x.exp() / x.exp().sum(1, keepdim=True), ""),
    ],
)
def test_what_the_scores_come_out_of(last: Callable[[Tensor], Tensor], after: str) -> None:
    scores = signs_of(ByFunction(last), images()).scores
    assert scores is not None
    assert scores.after == after
    assert scores.normed == (after == "softmax" or bool((last(torch.zeros(1, 4)).sum() - 1).abs() < 0.01))


def test_inputs_and_sameness_are_told() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, 0.1)
    signs = signs_of(model, 10 + 3 * images(500))
    assert signs.inputs == pytest.approx((10.0, 3.0), abs=0.2)
    assert signs.alike == ("0",)
    assert (signs.step, signs.steps_done) == (1, 1)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "inception"])
def test_the_networks_of_blocks_compute_the_same_while_they_are_looked_at(norm: Any, kind: str) -> None:
    blocks = (BlockSpec(kind, 16, 2), BlockSpec(kind, 16))
    torch.manual_seed(1)
    model = build_network(ArchSpec(StemSpec(8), (blocks, blocks), norm=norm, dropout=0.3), 1, 10, (8, 8)).train()
    batch = images(32, 1, 8, 8).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        torch.manual_seed(2)
        model.zero_grad()
        functional.cross_entropy(model(batch), torch.arange(32) % 10).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain = gradients()
    sensors = Sensors(model, batch)
    watched = gradients()
    sensors.off()
    assert len(plain) == len(watched)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    signs = signs_of(model, batch)
    known = [layer.dead for layer in signs.layers if layer.dead is not None]
    assert len(known) >= len(signs.layers) // 2
    assert all(0 <= share <= 1 for share in known)


def test_a_few_units_of_one_value_per_image_may_all_be_0_by_chance() -> None:
    """As the two hidden units of squeeze and excitation in a narrow network."""
    model = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 2))
    maps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    for one in (model, maps):
        torch.nn.init.constant_(one[0].bias, -100.0)
    assert by_name(signs_of(model, images()))["0"].dead is None
    model = nn.Sequential(maps, nn.Flatten(), nn.Linear(32, 2))
    assert by_name(signs_of(model, images(4, 1, 8, 8)))["0.0"].dead == 1.0, "maps have many values"


def test_a_gate_of_one_number_is_no_layer() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate, self.sigmoid = nn.Linear(6, 2), nn.Parameter(torch.tensor(9.0)), nn.Sigmoid()

        def forward(self, values: Tensor) -> Tensor:
            scores: Tensor = self.layer(values) * self.sigmoid(self.gate)
            return scores

    assert by_name(signs_of(Gated(), images()))["layer"].saturated is None


def test_what_is_added_and_what_scales_is_no_layer_that_multiplies() -> None:
    model = nn.Sequential(nn.Linear(6, 2), nn.LayerNorm([2, 3]), nn.Embedding(5, 900))
    model.place = nn.Parameter(torch.randn(1, 64, 64))  # embeddings of places are often drawn so
    model.scale = nn.Parameter(torch.ones(4, 1, 1))
    found = {layer.name: layer for layer in begin_of(model)}
    assert list(found) == ["place", "scale", "0", "2"]
    assert (found["place"].gain, found["2"].gain) == (0.0, 0.0)
    assert found["0"].gain > 0.1
    assert not any(layer.alike or layer.zero for layer in found.values())


@pytest.mark.parametrize(("least", "after"), [(0.0, "relu"), (-100.0, "")])
def test_scores_that_are_cut_off_at_0_come_out_of_a_relu(least: float, after: str) -> None:
    class Clamped(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values).clamp(min=least)

    scores = signs_of(Clamped(6, 3), images()).scores
    assert scores is not None
    assert scores.after == after


def test_complex_weights_are_looked_at() -> None:
    weight = torch.ones(3, 4, dtype=torch.complex64)
    assert units_alike(weight)
    weight[1] *= 1j
    assert not units_alike(weight)


def test_layers_inside_of_vmap_are_left_alone() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, values: Tensor) -> Tensor:
            scores: Tensor = torch.func.vmap(self.layers)(values)
            return scores

    for shape in ((6,), (3, 6)):
        signs = signs_of(Mapped(), images(20, *shape))
        assert [(layer.dead, layer.saturated) for layer in signs.layers] == [(None, None)] * 2


def test_layers_that_a_step_leaves_out_are_idle() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, values: Tensor) -> Tensor:
            scores: Tensor = self.first(values)
            return scores

    assert signs_of(Deep(), images()).idle == ("second",)
