"""The blocks that networks are made of; each is described first as a plan of convolutions, then built from that plan.

The plan is what `tunelab.models.check` counts, so a network need not be built to be refused. Every convolution of a
plan is followed by a norm of its output channels (none with norm "none").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tunelab.errors import InputError, RefusedError
from tunelab.models.fused import MaxPool, norm_act


class Conv(NamedTuple):
    """The shape of one square convolution; padding is `kernel // 2`, so stride 1 keeps the resolution."""

    width_in: int
    width_out: int
    kernel: int
    stride: int = 1


class Plan(NamedTuple):
    """A block's convolutions: those on its longest path, in order, and those beside it, at its input's resolution."""

    path: tuple[Conv, ...]
    side: tuple[Conv, ...] = ()


@dataclass(frozen=True)
class Style:
    """What all convolutions of a network share: keys of NORMS and ACTIVATIONS, and a bias or not."""

    norm: str = "batch"
    activation: str = "relu"
    bias: bool = False


def norm_groups(norm: str, width: int) -> int:
    """The number of groups that `width` channels are normalised in: 1 for "layer", for "group" as many as suit.

    "group" takes the largest divisor of `width` up to 32 (Wu & He, arXiv 1803.08494, section 3.3) that leaves at least
    8 channels in a group: narrow networks have one-pixel maps, where smaller groups keep little but signs (our choice).
    """
    if norm != "group":
        return 1
    return max((groups for groups in range(1, 33) if width % groups == 0 and width // groups >= 8), default=1)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda width: nn.BatchNorm2d(width),
    "group": lambda width: nn.GroupNorm(norm_groups("group", width), width),
    "layer": lambda width: nn.GroupNorm(1, width),
    "none": lambda width: nn.Identity(),
}

# In place where the backward pass needs the output alone; gelu and silu need their input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "gelu": lambda: nn.GELU(),
    "silu": lambda: nn.SiLU(),
}


def build_conv(conv: Conv, style: Style) -> nn.Conv2d:
    """The convolution alone: (N, width_in, H, W) -> (N, width_out, ceil(H / stride), ceil(W / stride))."""
    return nn.Conv2d(conv.width_in, conv.width_out, conv.kernel, conv.stride, conv.kernel // 2, bias=style.bias)


def build_layers(convs: tuple[Conv, ...], style: Style, *, last_activation: bool) -> list[nn.Module]:
    """Convolution, norm, activation for each of `convs`; the last activation is left out if it comes after a sum."""
    layers: list[nn.Module] = []
    for number, conv in enumerate(convs, start=1):
        layers.append(build_conv(conv, style))
        if style.norm != "none":
            layers.append(NORMS[style.norm](conv.width_out))
        if last_activation or number < len(convs):
            layers.append(ACTIVATIONS[style.activation]())
    return layers


class Layers(nn.Sequential):
    """Layers in turn; a norm, the activation after it and what is added before that are one operation."""

    def forward(self, images: Tensor, shortcut: Tensor | None = None, activation: nn.Module | None = None) -> Tensor:
        """The last layer's output, to which `shortcut` is added and `activation` applied, where they are given."""
        layers = list(self)
        place = 0
        while place < len(layers):
            layer, place = layers[place], place + 1
            if not isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
                images = layer(images)
            elif place == len(layers):
                return norm_act(images, layer, activation, shortcut)
            elif isinstance(layers[place], nn.Conv2d):
                images = norm_act(images, layer, None)
            else:
                images, place = norm_act(images, layer, layers[place]), place + 1
        if shortcut is not None:
            images += shortcut
        return images if activation is None else activation(images)


def _shortcut(width_in: int, width: int, stride: int) -> tuple[Conv, ...]:
    """The 1x1 projection that a change of shape needs (He et al., arXiv 1512.03385, section 4.1, option B)."""
    return (Conv(width_in, width, 1, stride),) if stride != 1 or width_in != width else ()


class Subsample(nn.Module):
    """Every `stride`-th pixel: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    Before a 1x1 convolution this is the same function as a stride in it. The stride is kept out of the convolution
    because oneDNN 3.12 (torch 2.13) then computes the gradient of the weights of fewer than 16 channels in float32 and
    channels_last with writes beyond its memory: wrong gradients, or the end of the process
    (github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """A view of the input."""
        return images[:, :, :: self.stride, :: self.stride]


def _build_shortcut(plan: Plan, style: Style) -> nn.Module | None:
    if not plan.side:
        return None
    (projection,) = plan.side
    layers = build_layers((projection._replace(stride=1),), style, last_activation=False)
    return Layers(*([Subsample(projection.stride)] if projection.stride > 1 else []), *layers)


class ResidualBlock(nn.Module):
    """act(F(x) + shortcut(x)): (N, width_in, H, W) -> (N, width, ceil(H / stride), ceil(W / stride)).

    F are the convolutions on the plan's path, each with its norm, and an activation between two of them.
    """

    def __init__(self, plan: Plan, style: Style) -> None:
        super().__init__()
        self.residual = Layers(*build_layers(plan.path, style, last_activation=False))
        self.shortcut = _build_shortcut(plan, style)
        self.activation = ACTIVATIONS[style.activation]()

    def forward(self, images: Tensor) -> Tensor:
        """The block's output; the input is left as it is."""
        shortcut = images if self.shortcut is None else self.shortcut(images)
        out: Tensor = self.residual(images, shortcut, self.activation)
        return out

    @property
    def last_conv(self) -> nn.Conv2d:
        """The convolution whose output, normalised, is added to the shortcut."""
        return next(layer for layer in reversed(self.residual) if isinstance(layer, nn.Conv2d))


def plan_basic(width_in: int, width: int, stride: int, convs: int) -> Plan:
    """`convs` 3x3 convolutions with a shortcut; the first has the stride.

    Two of them are the block of ResNet18 (He et al., arXiv 1512.03385, section 4.1 and table 1).
    """
    first = Conv(width_in, width, 3, stride)
    return Plan((first, *[Conv(width, width, 3)] * (convs - 1)), _shortcut(width_in, width, stride))


def plan_bottleneck(width_in: int, width: int, stride: int, convs: int) -> Plan:
    """1x1 to a quarter of `width`, 3x3 with the stride, 1x1 to `width`, with a shortcut; `convs` has no meaning here.

    The block of ResNet50 (He et al., arXiv 1512.03385, figure 5), with the stride in the 3x3 as in torchvision (v1.5).

    Raises:
        RefusedError: `width` is below 4, so that a quarter of it is no channel.
    """
    quarter = width // 4
    if quarter == 0:
        raise RefusedError(f"a bottleneck block of width {width} has an inner width of 0; its width must be at least 4")
    path = (Conv(width_in, quarter, 1), Conv(quarter, quarter, 3, stride), Conv(quarter, width, 1))
    return Plan(path, _shortcut(width_in, width, stride))


def plan_inception(width_in: int, width: int, stride: int, convs: int) -> Plan:
    """The inception module of GoogLeNet, then a 3x3 convolution with the stride; `convs` has no meaning here.

    Szegedy et al., arXiv 1409.4842, section 4, in torchvision's form: 3x3 in place of 5x5, a norm after each
    convolution. The parts have the proportions of inception 3a (table 1): of `width`, 1/4 from the 1x1, 1/2 from the
    3x3 (reduced to 3/8), 1/8 from the second 3x3 (reduced to 1/16), 1/8 from the pool; what rounding leaves over goes
    to the first 3x3.
    The path is (reduce, 3x3, 3x3 after); beside it are (1x1, second reduce, second 3x3, pool projection).

    Raises:
        RefusedError: `width` is below 8, so that an eighth of it is no channel.
    """
    if width < 8:
        raise RefusedError(f"an inception block of width {width} has a part of width 0; its width must be at least 8")
    quarter, eighth, reduced, thin = width // 4, width // 8, 3 * width // 8, max(1, width // 16)
    path = (Conv(width_in, reduced, 1), Conv(reduced, width - quarter - 2 * eighth, 3), Conv(width, width, 3, stride))
    side = (Conv(width_in, quarter, 1), Conv(width_in, thin, 1), Conv(thin, eighth, 3), Conv(width_in, eighth, 1))
    return Plan(path, side)


def plan_plain(width_in: int, width: int, stride: int, convs: int) -> Plan:
    """A basic block without its shortcut: the plain networks of He et al. (arXiv 1512.03385, section 3.3)."""
    return plan_basic(width_in, width, stride, convs)._replace(side=())


def plan_plain_bottleneck(width_in: int, width: int, stride: int, convs: int) -> Plan:
    """A bottleneck block without its shortcut; `convs` has no meaning here.

    Raises:
        RefusedError: `width` is below 4.
    """
    return plan_bottleneck(width_in, width, stride, convs)._replace(side=())


def build_plain(plan: Plan, style: Style) -> Layers:
    """act(F(x)): the block of a plan without a shortcut, each convolution with its norm and an activation."""
    return Layers(*build_layers(plan.path, style, last_activation=True))


class InceptionModule(nn.Module):
    """Four parallel parts, concatenated: (N, width_in, H, W) -> (N, width, H, W).

    The parts' last norms and activations are applied once, to the concatenated map: with batch norm this is the same
    function as torchvision's module, with fewer and larger operations.
    """

    def __init__(self, plan: Plan, style: Style) -> None:
        super().__init__()
        (reduce, three, _), (one, thin, second, project) = plan.path, plan.side
        self.one = build_conv(one, style)
        self.three = Layers(*build_layers((reduce,), style, last_activation=True), build_conv(three, style))
        self.second = Layers(*build_layers((thin,), style, last_activation=True), build_conv(second, style))
        self.pool = nn.Sequential(MaxPool(3, 1, 1), build_conv(project, style))
        width = one.width_out + three.width_out + second.width_out + project.width_out
        self.norm = NORMS[style.norm](width)
        self.activation = ACTIVATIONS[style.activation]()

    def forward(self, images: Tensor) -> Tensor:
        """The concatenated parts, in torchvision's order."""
        parts = [self.one(images), self.three(images), self.second(images), self.pool(images)]
        return norm_act(torch.cat(parts, 1), self.norm, self.activation)


class InceptionBlock(nn.Module):
    """The module, then the 3x3 convolution: (N, width_in, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, plan: Plan, style: Style) -> None:
        super().__init__()
        self.module = InceptionModule(plan, style)
        self.after = Layers(*build_layers(plan.path[-1:], style, last_activation=True))

    def forward(self, images: Tensor) -> Tensor:
        """The block's output."""
        out: Tensor = self.after(self.module(images))
        return out


class Kind(NamedTuple):
    """One kind of block: how its convolutions are planned, and the module that a plan becomes."""

    plan: Callable[[int, int, int, int], Plan]
    module: Callable[[Plan, Style], nn.Module]

    def __call__(self, width_in: int, width: int, stride: int, convs: int = 2, style: Style | None = None) -> nn.Module:
        """The block as a module."""
        return self.module(self.plan(width_in, width, stride, convs), style or Style())


BLOCKS: dict[str, Kind] = {
    "basic": Kind(plan_basic, ResidualBlock),
    "bottleneck": Kind(plan_bottleneck, ResidualBlock),
    "inception": Kind(plan_inception, InceptionBlock),
    "plain": Kind(plan_plain, build_plain),
    "plain_bottleneck": Kind(plan_plain_bottleneck, build_plain),
}


def block_kind(name: str) -> Kind:
    """The kind of block called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in BLOCKS:
        raise InputError(f"block kind {name!r} is unknown; there are {', '.join(BLOCKS)}")
    return BLOCKS[name]


def after_stride(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The height and width in pixels after a convolution or a 3x3 max-pool with this stride: divided, rounded up."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)
