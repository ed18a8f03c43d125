from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from tunelab.data.vision import import_torchvision
from tunelab.errors import InputError, RefusedError
from tunelab.models.blocks import (
    ACTIVATIONS,
    BLOCKS,
    NORMS,
    InceptionModule,
    ResidualBlock,
    Style,
    Subsample,
    block_kind,
    norm_groups,
    plan_inception,
)


@pytest.mark.parametrize(("kind", "norm", "activation"), list(product(BLOCKS, NORMS, ACTIVATIONS)))
def test_every_block_maps_shapes_and_has_gradients_everywhere(kind: str, norm: str, activation: str) -> None:
    torch.manual_seed(0)
    for stride, width_in, width in ((1, 16, 16), (2, 16, 32), (1, 8, 12)):
        block = BLOCKS[kind](width_in, width, stride, 2, Style(norm, activation, bias=True))
        images = torch.randn(3, width_in, 7, 9, requires_grad=True)
        before = images.detach().clone()
        out = block(images)
        assert out.shape == (3, width, -(-7 // stride), -(-9 // stride))
        out.square().sum().backward()
        assert torch.equal(images, before)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
        assert images.grad is not None
        assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(("kind", "norm", "bias"), list(product(BLOCKS, NORMS, (False, True))))
def test_plan_counts_the_parameters_of_the_module(kind: str, norm: str, bias: bool) -> None:
    for width_in, width, stride, convs in product((8, 24), (8, 12, 64), (1, 2), (1, 5)):
        plan = BLOCKS[kind].plan(width_in, width, stride, convs)
        per_channel = bias + 2 * (norm != "none")
        counted = sum(c.width_in * c.width_out * c.kernel**2 + per_channel * c.width_out for c in plan.path + plan.side)
        block = BLOCKS[kind](width_in, width, stride, convs, Style(norm, "relu", bias))
        assert sum(p.numel() for p in block.parameters()) == counted


@pytest.mark.parametrize("convs", [1, 2, 3, 4, 5])
def test_basic_block_has_as_many_convolutions_as_asked(convs: int) -> None:
    block = BLOCKS["basic"](16, 16, 1, convs)
    assert isinstance(block, ResidualBlock)
    assert [layer.kernel_size for layer in block.modules() if isinstance(layer, nn.Conv2d)] == [(3, 3)] * convs
    assert block.last_conv is [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)][-1]


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_residual_block_is_the_identity_when_its_convolutions_are_zero(kind: str) -> None:
    block = BLOCKS[kind](16, 16, 1)
    for conv in (layer for layer in block.modules() if isinstance(layer, nn.Conv2d)):
        nn.init.zeros_(conv.weight)
    images = torch.rand(2, 16, 5, 5)
    assert torch.equal(block(images), images)


@pytest.mark.parametrize(("kind", "without"), [("basic", "plain"), ("bottleneck", "plain_bottleneck")])
def test_a_plain_block_is_the_residual_one_without_its_shortcut(kind: str, without: str) -> None:
    torch.manual_seed(0)
    for norm, width_in, stride in (("batch", 16, 1), ("none", 8, 2)):
        style = Style(norm, "relu", bias=True)
        block, plain = BLOCKS[kind](width_in, 16, stride, 3, style), BLOCKS[without](width_in, 16, stride, 3, style)
        assert isinstance(block, ResidualBlock)
        plan = BLOCKS[kind].plan(width_in, 16, stride, 3)
        assert BLOCKS[without].plan(width_in, 16, stride, 3) == plan._replace(side=())
        plain.load_state_dict(block.residual.state_dict())
        images = torch.randn(4, width_in, 6, 6)
        torch.testing.assert_close(plain(images), torch.relu(block.residual(images)))


def test_subsampling_before_a_1x1_convolution_is_a_stride_in_it() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    weight = torch.randn(6, 4, 1, 1, dtype=torch.float64)
    expected = nn.functional.conv2d(images, weight, stride=2)
    torch.testing.assert_close(nn.functional.conv2d(Subsample(2)(images), weight), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_1x1_convolution_has_a_stride(kind: str) -> None:
    # Its weight gradient damages memory in oneDNN: github.com/uxlfoundation/oneDNN/issues/6035.
    for layer in BLOCKS[kind](8, 16, 2).modules():
        assert not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.stride == (1, 1)


def test_inception_module_is_torchvisions() -> None:
    torchvision = import_torchvision()
    theirs = torchvision.models.googlenet(init_weights=False, weights=None, aux_logits=False).inception3a
    plan = plan_inception(192, 256, 1, 2)
    ours = InceptionModule(plan, Style("batch", "relu", bias=False))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    last = [theirs.branch1, theirs.branch2[1], theirs.branch3[1], theirs.branch4[1]]
    first = {ours.three: theirs.branch2[0], ours.second: theirs.branch3[0]}
    for mine, their in zip([ours.one, ours.three[-1], ours.second[-1], ours.pool[-1]], last, strict=True):
        mine.load_state_dict(their.conv.state_dict())
    for part, their in first.items():
        part[0].load_state_dict(their.conv.state_dict())
        part[1].load_state_dict(their.bn.state_dict())
    for norm in [layer for layer in theirs.modules() if isinstance(layer, nn.BatchNorm2d)]:
        norm.eps = 1e-5  # GoogLeNet's is 1e-3
    images = torch.randn(4, 192, 6, 6)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [8, 12, 16, 24, 32, 48, 64, 96, 768])
def test_inception_parts_fill_the_width(width: int) -> None:
    plan = plan_inception(16, width, 1, 2)
    assert sum(conv.width_out for conv in (plan.path[1], plan.side[0], plan.side[2], plan.side[3])) == width
    assert min(conv.width_out for conv in plan.path + plan.side) >= 1


@pytest.mark.parametrize(
    ("norm", "width", "groups"),
    [("group", 64, 8), ("group", 512, 32), ("group", 24, 3), ("group", 12, 1), ("group", 1, 1), ("layer", 64, 1)],
)
def test_norm_groups(norm: str, width: int, groups: int) -> None:
    assert norm_groups(norm, width) == groups


def test_layer_norm_takes_all_channels_of_an_image_together() -> None:
    images = torch.randn(2, 16, 3, 3) * 5 + 2
    out = NORMS["layer"](16)(images)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "width"), [("bottleneck", 3), ("inception", 7)])
def test_too_narrow_a_block_is_refused(kind: str, width: int) -> None:
    with pytest.raises(RefusedError, match=f"{kind} block of width {width} .* must be at least {width + 1}"):
        BLOCKS[kind](16, width, 1)
    BLOCKS[kind](16, width + 1, 1)


def test_unknown_kind_names_what_there_is() -> None:
    with pytest.raises(InputError, match="'dense' is unknown; there are basic, bottleneck, inception"):
        block_kind("dense")
