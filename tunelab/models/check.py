"""Whether a network can work and what it costs, found from its description in under a millisecond.

The counts are sums over the plans that `tunelab.models.network` builds from; tests compare them with networks run on
the meta device, where a forward pass takes a hundred times longer. A network of the user's own has no plan and is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunelab.config import AnyArch, ArchSpec, CustomSpec, LeNetSpec, MLPSpec
from tunelab.errors import RefusedError
from tunelab.models.blocks import Conv, Style, after_stride, block_kind, norm_groups
from tunelab.models.classic import Plan, plan_lenet
from tunelab.models.custom import count_custom
from tunelab.models.dense import plan_mlp
from tunelab.models.network import final_width, stem_conv, style_of

Size = tuple[int, int]


@dataclass(frozen=True)
class NetworkStats:
    """What a network costs for one image.

    `params`: trained numbers. `mflops`: millions of multiply-adds in convolutions and fully connected layers, biases
    left out, counted as pycls and torchvision's tables do. `activations`: numbers that the convolutions put out
    (Radosavovic et al., arXiv 2003.13678, section 3.2). `depth`: convolutions on the longest path and fully connected
    layers; 18 for ResNet18, 5 for LeNet-5. `convs`: all convolutions, shortcuts and parallel paths included; what a
    step costs beside its images grows with it. A network of the user's own is run on two images for this, and all its
    products of matrices count.
    """

    params: int
    mflops: float
    activations: int
    depth: int
    convs: int


class _Tally:
    """Running sums over convolutions."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.params = 0
        self.multiply_adds = 0
        self.activations = 0
        self.convs = 0

    def add(self, convs: Iterable[Conv], size: Size) -> Size:
        """Count `convs`, each reading the one before, the first a map of `size`; the last one's size comes back."""
        for conv in convs:
            size = after_stride(size, conv.stride)
            pixels = size[0] * size[1]
            weights = conv.width_in * conv.width_out * conv.kernel**2
            per_channel = self.style.bias + (2 if self.style.norm != "none" else 0)
            self.params += weights + per_channel * conv.width_out
            self.multiply_adds += weights * pixels
            self.activations += conv.width_out * pixels
            self.convs += 1
            _refuse_single_values(conv.width_out, pixels, self.style.norm)
        return size


def check(
    arch: AnyArch,
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    max_params: int | None = None,
    max_mflops: float | None = None,
) -> NetworkStats:
    """What `arch` costs on images of `image_size` (height, width in pixels), if it can work and is within the limits.

    Raises:
        RefusedError: a map of one pixel would be halved, a norm would see single values, a block is too narrow for its
            kind, the branches end with different widths, LeNet-5 cannot take images of that size, the code of a network
            of the user's own fails, or a limit is exceeded; the message says which and where.
        InputError: a kind of block is unknown, or the code of a network of the user's own cannot be run.
    """
    if isinstance(arch, LeNetSpec):
        stats = _count_layers(plan_lenet(image_size, channels, classes))
    elif isinstance(arch, MLPSpec):
        stats = _count_layers(plan_mlp(arch, image_size, channels, classes))
    elif isinstance(arch, CustomSpec):
        counted = count_custom(arch, channels, classes, image_size)
        mflops = counted.multiply_adds / 1e6
        stats = NetworkStats(counted.params, mflops, counted.activations, counted.depth, counted.convs)
    else:
        stats = _count_blocks(arch, image_size, channels, classes)
    if max_params is not None and stats.params > max_params:
        raise RefusedError(f"{stats.params / 1e6:.3g} million parameters, --max-params allows {max_params}")
    if max_mflops is not None and stats.mflops > max_mflops:
        raise RefusedError(f"{stats.mflops:.3g} million multiply-adds per image, --max-mflops allows {max_mflops:g}")
    return stats


def _count_layers(plan: Plan) -> NetworkStats:
    layers = plan.convs + plan.dense
    return NetworkStats(
        params=sum((layer.fan_in + 1) * layer.width for layer in layers),
        mflops=sum(layer.fan_in * layer.width * layer.pixels for layer in layers) / 1e6,
        activations=sum(layer.width * layer.pixels for layer in plan.convs),
        depth=len(layers),
        convs=len(plan.convs),
    )


def _count_blocks(arch: ArchSpec, image_size: Size, channels: int, classes: int) -> NetworkStats:
    width = final_width(arch)
    tally = _Tally(style_of(arch))
    size = tally.add((stem_conv(arch, channels),), image_size)
    if arch.stem.pool:
        size = _halved(size, 2, "the stem's pool", image_size)
    depths = [_add_branch(tally, arch, number, size, image_size) for number in range(len(arch.branches))]
    params = tally.params + (width + 1) * classes
    if len(arch.branches) > 1:
        params += 2 * width * len(arch.branches)
    mflops = (tally.multiply_adds + width * classes) / 1e6
    return NetworkStats(params, mflops, tally.activations, 2 + max(depths), tally.convs)


def _add_branch(tally: _Tally, arch: ArchSpec, number: int, size: Size, image_size: Size) -> int:
    """Count a branch that reads maps of `size`; its convolutions on the longest path come back."""
    width_in, depth = arch.stem.width, 0
    for position, block in enumerate(arch.branches[number], start=1):
        plan = block_kind(block.kind).plan(width_in, block.width, block.stride, block.convs)
        after = _halved(size, block.stride, f"block {position} of branch {number + 1}", image_size)
        tally.add(plan.path, size)
        for conv in plan.side:
            tally.add((conv,), size)
        size, width_in, depth = after, block.width, depth + len(plan.path)
    return depth


def _halved(size: Size, stride: int, what: str, image_size: Size) -> Size:
    if stride > 1 and max(size) == 1:
        raise RefusedError(f"{what} halves a map of 1x1 pixel (the images have {image_size[0]}x{image_size[1]})")
    return after_stride(size, stride)


def _refuse_single_values(width: int, pixels: int, norm: str) -> None:
    """Single values normalised are all zero: nothing of the image is left."""
    if pixels == 1 and norm in ("group", "layer") and width == norm_groups(norm, width):
        raise RefusedError(f"{norm} norm of {width} channel on a map of 1x1 pixel makes every value zero")
