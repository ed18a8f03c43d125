from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tunelab.config import ArchSpec, BlockSpec, StemSpec
from tunelab.models.blocks import ResidualBlock
from tunelab.models.init import CLASSIC_INITS, DENSE_INITS, INITS
from tunelab.models.network import build_network


def test_he_keeps_the_variance_of_gradients() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 128, 3, bias=True)
    INITS["he"](conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert conv.bias is not None
    assert conv.bias.abs().max() == 0


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "inception"])
@pytest.mark.parametrize("bias", [False, True])
def test_deep_networks_without_norm_start_at_the_loss_of_guessing(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    blocks = tuple(BlockSpec(kind, 16 * 2 ** (i // 3), 2 if i and i % 3 == 0 else 1, 5) for i in range(12))
    network = build_network(ArchSpec(StemSpec(16), (blocks,), norm="none", bias=bias), 3, 10, (16, 16))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    features = network.branches[0](network.stem(images))  # type: ignore[operator, index]
    assert 1e-3 < features.std() < 1e3
    loss = nn.functional.cross_entropy(network(images), labels)
    assert loss.item() == pytest.approx(math.log(10), abs=1e-4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < math.log(10)


def test_fixup_scales_a_block_by_the_number_of_blocks_on_its_path() -> None:
    torch.manual_seed(0)
    blocks = tuple(BlockSpec("basic", 64, convs=3) for _ in range(4))
    network = build_network(ArchSpec(StemSpec(64), (blocks, blocks), norm="none"), 3, 10, (8, 8))
    residuals = [block for block in network.modules() if isinstance(block, ResidualBlock)]
    assert len(residuals) == 8
    for block in residuals:
        first, second, last = (layer for layer in block.residual if isinstance(layer, nn.Conv2d))
        expected = math.sqrt(2 / (64 * 9)) * 4 ** (-1 / 4)  # L = 4 blocks, m = 3 convolutions
        assert first.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert second.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert last.weight.abs().max() == 0


def test_networks_with_norm_have_no_dead_weights() -> None:
    network = build_network(ArchSpec(StemSpec(8), ((BlockSpec("basic", 8),),)), 3, 10, (8, 8))
    assert all(layer.weight.std() > 0 for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


@pytest.mark.parametrize(
    ("init", "sd", "bound"),
    [
        ("torch", math.sqrt(1 / 3 / 288), math.sqrt(1 / 288)),
        ("lecun", math.sqrt(1 / 288), None),
        ("xavier", math.sqrt(2 / (288 + 1152)), math.sqrt(6 / (288 + 1152))),
        ("he", math.sqrt(2 / 288), None),
    ],
)
def test_classic_weights_have_the_spread_that_is_told(init: str, sd: float, bound: float | None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 128, 3), nn.Linear(288, 1152))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    CLASSIC_INITS[init](network)
    for layer, weight, bias in zip(network, before[::2], before[1::2], strict=True):
        assert not torch.equal(layer.weight, weight)
        assert layer.weight.std().item() == pytest.approx(sd, rel=0.02)
        if bound is not None:
            assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        if init == "torch":
            assert not torch.equal(layer.bias, bias)
        else:
            assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("init", "sd", "bound"),
    [
        ("normal", 0.01, None),
        ("zero", 0.0, None),
        ("uniform", 0.05 / math.sqrt(3), 0.05),
        ("he", math.sqrt(2 / 300), None),
        ("sparse", math.sqrt(2 / 300), None),
        ("xavier_uniform", math.sqrt(2 / 800), math.sqrt(6 / 800)),
        ("xavier_normal", math.sqrt(2 / 800), None),
    ],
)
def test_weights_of_dense_layers_have_the_spread_that_is_told(init: str, sd: float, bound: float | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 500)
    DENSE_INITS[init](layer)
    assert layer.weight.std().item() == pytest.approx(sd, rel=0.03)
    assert layer.bias.abs().max() == 0
    if bound is not None:
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound


@pytest.mark.parametrize(("inputs", "read"), [(784, 15), (64, 15), (15, 15), (9, 9)])
def test_a_unit_of_a_sparse_layer_reads_fifteen_inputs(inputs: int, read: int) -> None:
    """Each its own ones, by weights of variance 2 / 15."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, 400)
    DENSE_INITS["sparse"](layer)
    there = layer.weight != 0
    assert there.sum(1).tolist() == [read] * 400
    assert layer.weight[there].std().item() == pytest.approx(math.sqrt(2 / 15), rel=0.05)
    assert inputs == read or len({tuple(row) for row in there.tolist()}) > 390
