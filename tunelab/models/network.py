"""A network from its description: stem, parallel branches of blocks, head; or a classic one, or the user's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunelab.config import AnyArch, ArchSpec, BlockSpec, CustomSpec, LeNetSpec, MLPSpec
from tunelab.errors import RefusedError
from tunelab.models.blocks import Conv, Layers, Style, block_kind, build_layers
from tunelab.models.classic import build_lenet
from tunelab.models.custom import build_custom
from tunelab.models.dense import build_mlp
from tunelab.models.fused import MaxPool
from tunelab.models.init import INITS


class Network(nn.Module):
    """Images (N, C, H, W) to class scores (N, classes), before any softmax.

    Every branch reads the stem's output and is averaged over its map; several branches are normalised (LayerNorm, each
    its own) and summed.
    """

    def __init__(self, stem: nn.Module, branches: list[nn.Module], width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in branches] if len(branches) > 1 else [])
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The scores, fastest with `images` in channels_last order."""
        maps = self.stem(images)
        if len(self.branches) == 1:
            features = self.branches[0](maps).mean((2, 3))
        else:
            pairs = zip(self.branches, self.norms, strict=True)
            features = torch.stack([norm(branch(maps).mean((2, 3))) for branch, norm in pairs]).sum(0)
        scores: Tensor = self.classifier(self.dropout(features))
        return scores


def style_of(arch: ArchSpec) -> Style:
    """What all convolutions of the network share."""
    return Style(arch.norm, arch.activation, arch.bias)


def stem_conv(arch: ArchSpec, channels: int) -> Conv:
    """The first convolution."""
    return Conv(channels, arch.stem.width, arch.stem.kernel)


def final_width(arch: ArchSpec) -> int:
    """The channels that every branch ends with.

    Raises:
        RefusedError: the branches differ, so that their outputs cannot be summed.
    """
    widths = [blocks[-1].width if blocks else arch.stem.width for blocks in arch.branches]
    if len(set(widths)) > 1:
        raise RefusedError(f"the branches end with widths {', '.join(map(str, widths))}; the sum needs equal ones")
    return widths[0]


def build_network(arch: AnyArch, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The network of `arch` for images of `channels` channels, in channels_last order, its weights drawn anew.

    The weights come from PyTorch's random state: the same seed gives the same network. `image_size`, (height, width) in
    pixels, has a part in fully connected layers only. Call `tunelab.models.check.check` first.

    Raises:
        InputError: a kind of block is unknown, or the code of a network of the user's own cannot be run.
        RefusedError: a block is too narrow for its kind, the branches end with different widths, LeNet-5 cannot take
            images of that size, or the code of a network of the user's own fails.
    """
    if isinstance(arch, LeNetSpec):
        network: nn.Module = build_lenet(arch, channels, classes, image_size)
    elif isinstance(arch, MLPSpec):
        network = build_mlp(arch, channels, classes, image_size)
    elif isinstance(arch, CustomSpec):
        network = build_custom(arch, channels, classes, image_size)
    else:
        network = _build_of_blocks(arch, channels, classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _build_of_blocks(arch: ArchSpec, channels: int, classes: int) -> Network:
    style = style_of(arch)
    width = final_width(arch)
    stem = build_layers((stem_conv(arch, channels),), style, last_activation=True)
    if arch.stem.pool:
        stem.append(MaxPool(3, 2, 1))
    branches: list[nn.Module] = [_build_branch(blocks, arch.stem.width, style) for blocks in arch.branches]
    network = Network(Layers(*stem), branches, width, classes, arch.dropout)
    INITS["fixup" if arch.norm == "none" else "he"](network)
    return network


def _build_branch(blocks: tuple[BlockSpec, ...], width_in: int, style: Style) -> nn.Module:
    modules = []
    for block in blocks:
        modules.append(block_kind(block.kind)(width_in, block.width, block.stride, block.convs, style))
        width_in = block.width
    return nn.Sequential(*modules)
