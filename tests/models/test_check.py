from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

import pytest
import torch
from torch import nn

from tunelab.config import AnyArch, ArchSpec, BlockSpec, LeNetSpec, MLPSpec, StemSpec
from tunelab.data.vision import import_torchvision
from tunelab.errors import InputError, RefusedError
from tunelab.models.blocks import BLOCKS, NORMS
from tunelab.models.check import NetworkStats, check
from tunelab.models.network import build_network

MIXED = (
    BlockSpec("basic", 16, 1, 3),
    BlockSpec("inception", 32, 2),
    BlockSpec("bottleneck", 32),
    BlockSpec("bottleneck", 64, 2),
    BlockSpec("inception", 64),
    BlockSpec("basic", 64, 1, 1),
)
OTHER = (BlockSpec("bottleneck", 32, 2), BlockSpec("basic", 64, 2, 5), BlockSpec("basic", 64, 1, 2))
PLAIN = (BlockSpec("plain", 32, 2, 3), BlockSpec("plain_bottleneck", 64, 2), BlockSpec("plain", 64))


def plain_resnet(kind: str, width: int, lengths: tuple[int, ...]) -> ArchSpec:
    blocks = [
        BlockSpec(kind, width * 2**stage, stride=2 if stage and position == 0 else 1)
        for stage, length in enumerate(lengths)
        for position in range(length)
    ]
    return ArchSpec(StemSpec(64, 7, pool=True), (tuple(blocks),))


def count_on_meta(arch: AnyArch, size: tuple[int, int], channels: int, classes: int) -> tuple[int, float, int, int]:
    """Parameters, multiply-adds, convolution outputs and convolutions of the network, run on the meta device."""
    found = {"multiply_adds": 0, "activations": 0, "convs": 0}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found["multiply_adds"] += out[0].numel() * module.weight[0].numel()
            found["activations"] += out[0].numel()
            found["convs"] += 1
        elif isinstance(module, nn.Linear):
            found["multiply_adds"] += module.weight.numel()

    with torch.device("meta"):
        network = build_network(arch, channels, classes, size).eval()
        images = torch.empty(2, channels, *size)
    for module in network.modules():
        module.register_forward_hook(hook)  # type: ignore[arg-type]
    assert network(images).shape == (2, classes)
    params = sum(p.numel() for p in network.parameters())
    return params, found["multiply_adds"] / 1e6, found["activations"], found["convs"]


@pytest.mark.parametrize(("norm", "bias", "pool"), list(product(NORMS, (False, True), (False, True))))
@pytest.mark.parametrize("branches", [(MIXED,), (OTHER,), (PLAIN,), (MIXED, OTHER, OTHER)])
def test_counts_equal_the_network_on_the_meta_device(
    norm: str, bias: bool, pool: bool, branches: tuple[tuple[BlockSpec, ...], ...]
) -> None:
    arch = ArchSpec(StemSpec(16, 5, pool), branches, norm=norm, bias=bias)  # type: ignore[arg-type]
    stats = check(arch, image_size=(29, 17), channels=3, classes=7)
    assert (stats.params, stats.mflops, stats.activations, stats.convs) == count_on_meta(arch, (29, 17), 3, 7)


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize(("side", "channels", "classes"), [(28, 1, 10), (28, 3, 2), (32, 3, 100)])
def test_lenet_is_counted_as_the_network_on_the_meta_device(
    pooling: Literal["average", "max"], side: int, channels: int, classes: int
) -> None:
    arch = LeNetSpec(pooling=pooling)
    stats = check(arch, image_size=(side, side), channels=channels, classes=classes)
    counted = count_on_meta(arch, (side, side), channels, classes)
    assert (stats.params, stats.mflops, stats.activations, stats.convs) == counted
    assert stats.depth == 5


def test_lenet_on_mnist_costs_what_the_paper_says() -> None:
    """LeCun et al. 1998, section II.B; C3 reads all maps here, and the classifier has weights."""
    stats = check(LeNetSpec(), image_size=(28, 28), channels=1, classes=10)
    assert stats.params == 156 + (16 * 6 * 25 + 16) + 48_120 + 10_164 + 850 == 61_706
    assert stats.activations == 6 * 28 * 28 + 16 * 10 * 10
    assert stats.mflops == (6 * 25 * 28 * 28 + 16 * 150 * 10 * 10 + 48_000 + 10_080 + 840) / 1e6


@pytest.mark.parametrize("size", [(8, 8), (27, 27), (28, 32), (30, 30), (33, 33), (64, 64)])
def test_lenet_takes_two_sizes(size: tuple[int, int]) -> None:
    said = rf"28x28 or 32x32 pixels, these have {size[0]}x{size[1]} \(--image-size 32 resizes them\)"
    with pytest.raises(RefusedError, match=said):
        check(LeNetSpec(), image_size=size, channels=1, classes=10)


@pytest.mark.parametrize("hidden", [(256,), (256, 128), (30, 20, 10, 5)])
@pytest.mark.parametrize(("size", "channels", "classes"), [((28, 28), 1, 10), ((9, 17), 3, 7)])
def test_fully_connected_networks_are_counted_as_on_the_meta_device(
    hidden: tuple[int, ...], size: tuple[int, int], channels: int, classes: int
) -> None:
    arch = MLPSpec(hidden, dropout=0.5)
    stats = check(arch, image_size=size, channels=channels, classes=classes)
    counted = count_on_meta(arch, size, channels, classes)
    assert (stats.params, stats.mflops, stats.activations, stats.convs) == counted
    assert (stats.depth, stats.convs) == (len(hidden) + 1, 0)


def test_a_fully_connected_network_on_mnist_costs_what_one_works_out_by_hand() -> None:
    stats = check(MLPSpec((256, 128, 64)), image_size=(28, 28), channels=1, classes=10)
    assert stats.params == 785 * 256 + 257 * 128 + 129 * 64 + 65 * 10 == 242_762
    assert stats.mflops == (784 * 256 + 256 * 128 + 128 * 64 + 64 * 10) / 1e6


def test_limits_hold_for_lenet_too() -> None:
    size = {"image_size": (28, 28), "channels": 1, "classes": 10}
    check(LeNetSpec(), **size, max_params=61_706, max_mflops=0.42)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="--max-params allows 61705"):
        check(LeNetSpec(), **size, max_params=61_705)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=r"--max-mflops allows 0\.4"):
        check(LeNetSpec(), **size, max_mflops=0.4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "arch", "depth"),
    [
        ("ResNet18", plain_resnet("basic", 64, (2, 2, 2, 2)), 18),
        ("ResNet50", plain_resnet("bottleneck", 256, (3, 4, 6, 3)), 50),
    ],
)
def test_resnets_cost_what_torchvision_says(name: str, arch: ArchSpec, depth: int) -> None:
    published = getattr(import_torchvision().models, f"{name}_Weights").IMAGENET1K_V1.meta
    stats = check(arch, image_size=(112, 112), channels=3, classes=1000)
    # At stride 1 and half the image size, tunelab's stem puts out maps of torchvision's size.
    assert stats.params == published["num_params"]
    assert stats.mflops / 1000 == pytest.approx(published["_ops"], rel=2e-3)
    assert stats.depth == depth


def test_depth_is_of_the_longest_branch() -> None:
    arch = ArchSpec(StemSpec(16), (OTHER, MIXED))
    # stem, 3 + 3 + 3 + 3 + 3 + 1, classifier: an inception block has 3 convolutions on its path.
    assert check(arch, image_size=(32, 32), channels=3, classes=10).depth == 18


def test_stem_alone_works() -> None:
    stats = check(ArchSpec(StemSpec(4, 3), ((),), norm="none"), image_size=(5, 5), channels=2, classes=3)
    assert stats == NetworkStats(params=72 + 15, mflops=(72 * 25 + 12) / 1e6, activations=100, depth=2, convs=1)


@pytest.mark.parametrize("pool", [False, True])
def test_a_map_of_one_pixel_is_not_halved(pool: bool) -> None:
    halvings = (BlockSpec("basic", 16, 2), BlockSpec("basic", 32, 2), BlockSpec("basic", 64, 2))
    arch = ArchSpec(StemSpec(8, 3, pool), (halvings[:1], halvings))
    same = replace(arch, branches=(halvings, halvings))
    fits = 16 if pool else 8
    check(same, image_size=(fits, fits), channels=1, classes=10)
    if pool:
        with pytest.raises(
            RefusedError, match=r"block 3 of branch 1 halves a map of 1x1 pixel \(the images have 8x8\)"
        ):
            check(same, image_size=(8, 8), channels=1, classes=10)
    with pytest.raises(RefusedError, match="block 3 of branch 1"):
        check(same, image_size=(fits // 2, fits // 2), channels=1, classes=10)
    check(same, image_size=(1, fits), channels=1, classes=10)


def test_stem_pool_on_one_pixel_is_refused() -> None:
    with pytest.raises(RefusedError, match="the stem's pool halves a map of 1x1"):
        check(ArchSpec(StemSpec(8, 3, pool=True), ((),)), image_size=(1, 1), channels=1, classes=10)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_norm_of_single_values_is_refused(norm: str) -> None:
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", 8, 2), BlockSpec("inception", 16)),), norm=norm)  # type: ignore[arg-type]
    check(arch, image_size=(4, 4), channels=1, classes=10)
    with pytest.raises(RefusedError, match=f"{norm} norm of 1 channel"):
        check(arch, image_size=(2, 2), channels=1, classes=10)
    check(replace(arch, norm="batch"), image_size=(2, 2), channels=1, classes=10)


def test_limits_are_named_with_what_was_found() -> None:
    arch = plain_resnet("basic", 64, (2, 2, 2, 2))
    size = {"image_size": (32, 32), "channels": 3, "classes": 10}
    stats = check(arch, **size)  # type: ignore[arg-type]
    assert check(arch, **size, max_params=stats.params, max_mflops=stats.mflops) == stats  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=r"11.2 million parameters, --max-params allows 5000000"):
        check(arch, **size, max_params=5_000_000)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=r"\d+ million multiply-adds per image, --max-mflops allows 20"):
        check(arch, **size, max_mflops=20)  # type: ignore[arg-type]


def test_unequal_branches_are_refused() -> None:
    with pytest.raises(RefusedError, match="the branches end with widths 64, 32"):
        check(ArchSpec(StemSpec(16), (MIXED, MIXED[:3])), image_size=(32, 32), channels=3, classes=10)


@pytest.mark.parametrize("kind", BLOCKS)
def test_too_narrow_blocks_are_refused_or_counted(kind: str) -> None:
    arch = ArchSpec(StemSpec(8), ((BlockSpec(kind, 2),),))
    if kind in ("basic", "plain"):
        assert check(arch, image_size=(8, 8), channels=1, classes=10).params > 0
    else:
        with pytest.raises(RefusedError, match="width 2"):
            check(arch, image_size=(8, 8), channels=1, classes=10)


def test_unknown_kind_is_bad_input() -> None:
    with pytest.raises(InputError, match="block kind 'dense' is unknown"):
        check(ArchSpec(StemSpec(8), ((BlockSpec("dense", 8),),)), image_size=(8, 8), channels=1, classes=10)
