from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunelab.config import AnyArch, ArchSpec, BlockSpec, LeNetSpec, MLPSpec, StemSpec
from tunelab.errors import RefusedError
from tunelab.models.blocks import BLOCKS, NORMS
from tunelab.models.check import check
from tunelab.models.fused import MaxPool
from tunelab.models.layers import list_layers
from tunelab.models.network import build_network


def of_torch(arch: AnyArch, size: tuple[int, int], channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The shapes that convolutions, poolings and fully connected layers put out, by the names of the modules."""
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        network = build_network(arch, channels, classes, size).eval()
        images = torch.empty(2, channels, *size)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.AvgPool2d, MaxPool)):

            def hook(_module: nn.Module, _given: Any, out: Tensor, name: str = name) -> None:
                shapes[name] = tuple(out.shape[1:])

            module.register_forward_hook(hook)
    network(images)
    return shapes


ARCHS: list[AnyArch] = [
    ArchSpec(
        StemSpec(8, 5, pool),
        ((BlockSpec(kind, 16, 2, 3), BlockSpec(kind, 16, 1, 1), BlockSpec("basic", 16)),) * (2 if pool else 1),
        norm=norm,  # type: ignore[arg-type]
        bias=pool,
    )
    for kind, norm, pool in product(BLOCKS, NORMS, (False, True))
]


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_layers_are_those_of_torch_and_sum_up_to_the_check(arch: AnyArch) -> None:
    rows = list_layers(arch, image_size=(29, 17), channels=3, classes=7)
    stats = check(arch, image_size=(29, 17), channels=3, classes=7)
    assert sum(row.params for row in rows) == stats.params
    assert sum(row.multiply_adds for row in rows) == round(stats.mflops * 1e6)
    told = {row.name: row.shape for row in rows if not row.name.startswith("norms.")}
    assert told == of_torch(arch, (29, 17), 3, 7)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        (LeNetSpec(pooling="max"), 28),
        (LeNetSpec(pooling="average"), 32),
        (MLPSpec((7, 5, 6)), 9),
        (MLPSpec((7, 5), dropout=0.3), 9),
    ],
)
def test_classic_networks_too(arch: AnyArch, size: int) -> None:
    rows = list_layers(arch, image_size=(size, size), channels=1, classes=10)
    stats = check(arch, image_size=(size, size), channels=1, classes=10)
    assert sum(row.params for row in rows) == stats.params
    assert sum(row.multiply_adds for row in rows) == round(stats.mflops * 1e6)
    assert {row.name: row.shape for row in rows} == of_torch(arch, (size, size), 1, 10)


def seen_side(layer: Tensor, image: Tensor) -> int:
    """The side of the square of the image that the middle value of a map depends on, by its gradient."""
    middle = layer[0, :, layer.shape[2] // 2, layer.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_field_is_what_a_value_depends_on(kind: str) -> None:
    """With positive weights nothing cancels, and with average pools every pixel of a window counts."""
    blocks = (BlockSpec(kind, 16, 2, 2), BlockSpec(kind, 16, 2, 3), BlockSpec(kind, 16))
    arch = ArchSpec(StemSpec(8, 3), (blocks,), norm="none", activation="leaky_relu")
    torch.manual_seed(0)
    network = build_network(arch, 1, 4, (97, 97)).double()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
        if isinstance(module, MaxPool):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.AvgPool2d(3, 1, 1))
    maps: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _given, out, name=name: maps.__setitem__(name, out.clone()))
    image = torch.ones(1, 1, 97, 97, dtype=torch.float64, requires_grad=True)
    network(image)
    fields = {row.name: row.field for row in list_layers(arch, image_size=(97, 97), channels=1, classes=4)}
    last = max(maps, key=lambda name: (int(name.split(".")[2]) if "branches" in name else -1, fields[name] or 0))
    for name in ("stem.0", last):
        assert fields[name] == seen_side(maps[name], image), name


def test_the_field_of_a_network_that_is_known() -> None:
    """ResNet18: 435 pixels with the stem of ImageNet (Araujo et al., distill.pub 2019, table 1)."""
    stages = [(64, 1), (128, 2), (256, 2), (512, 2)]
    blocks = tuple(
        BlockSpec("basic", width, 2 if stride == 2 and place == 0 else 1)  # type: ignore[arg-type]
        for width, stride in stages
        for place in range(2)
    )
    arch = ArchSpec(StemSpec(64, 3), (blocks,))
    rows = list_layers(arch, image_size=(32, 32), channels=3, classes=10)
    # The stem of 3 pixels and stride 1 in place of 7 and 2 and a pool: 435 = 7 + 4 + 4 * (f - 3), so f = 109.
    assert max(row.field or 0 for row in rows) == (435 - 7 - 4) // 4 + 3


def test_a_size_that_cannot_work_is_refused_with_the_layer() -> None:
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", 8, 2),) * 3,))
    with pytest.raises(RefusedError, match=r"block 3 of branch 1 halves a map of 1x1 pixel \(the images have 4x4\)"):
        list_layers(arch, image_size=(4, 4), channels=1, classes=10)
    with pytest.raises(RefusedError, match="LeNet-5 takes images of 28x28 or 32x32 pixels, these have 30x30"):
        list_layers(LeNetSpec(), image_size=(30, 30), channels=1, classes=10)
