from __future__ import annotations

import pytest
import torch
from torch import nn

from tunelab.config import ArchSpec, BlockSpec, StemSpec
from tunelab.data.vision import import_torchvision
from tunelab.errors import InputError, RefusedError
from tunelab.models.network import Network, build_network


def plain_resnet(kind: str, width: int, lengths: tuple[int, ...]) -> ArchSpec:
    blocks = [
        BlockSpec(kind, width * 2**stage, stride=2 if stage and position == 0 else 1)
        for stage, length in enumerate(lengths)
        for position in range(length)
    ]
    return ArchSpec(StemSpec(64, 7, pool=True), (tuple(blocks),))


RESNET18 = plain_resnet("basic", 64, (2, 2, 2, 2))
RESNET50 = plain_resnet("bottleneck", 256, (3, 4, 6, 3))


@pytest.mark.parametrize(
    ("name", "arch", "params"), [("resnet18", RESNET18, 11_689_512), ("resnet50", RESNET50, 25_557_032)]
)
def test_plain_resnet_is_torchvisions(name: str, arch: ArchSpec, params: int) -> None:
    """The same parameters in the same order, and with the same values the same function, stem stride apart."""
    theirs = getattr(import_torchvision().models, name)().eval()
    ours = build_network(arch, 3, 1000, (32, 32)).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == params
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(mine.shape == their.shape for mine, their in pairs)
    with torch.no_grad():
        for mine, their in pairs:
            mine.copy_(their)
        theirs.conv1.stride = (1, 1)  # tunelab's stem has stride 1
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)


def test_branches_are_normalised_and_summed() -> None:
    torch.manual_seed(0)
    blocks = (BlockSpec("basic", 8), BlockSpec("inception", 16, stride=2))
    network = build_network(ArchSpec(StemSpec(8), (blocks, blocks, blocks)), 3, 5, (9, 9)).eval()
    assert isinstance(network, Network)
    assert len(network.norms) == 3
    seen: list[torch.Tensor] = []
    network.classifier.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    images = torch.randn(4, 3, 9, 9)
    maps = network.stem(images)
    vectors = [branch(maps).mean((2, 3)) for branch in network.branches]
    expected = sum(nn.functional.layer_norm(vector, (16,)) for vector in vectors)
    network(images)
    torch.testing.assert_close(seen[-1], expected)


def test_one_branch_has_no_layer_norm() -> None:
    network = build_network(RESNET18, 1, 10, (32, 32))
    assert not any(isinstance(layer, nn.LayerNorm) for layer in network.modules())


def test_weights_are_channels_last_and_follow_the_seed() -> None:
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", 16, 2), BlockSpec("inception", 16)),), dropout=0.3)
    torch.manual_seed(3)
    first = build_network(arch, 3, 10, (8, 8))
    torch.manual_seed(3)
    second = build_network(arch, 3, 10, (8, 8))
    third = build_network(arch, 3, 10, (8, 8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))
    convs = [layer.weight for layer in first.modules() if isinstance(layer, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convs)


def test_dropout_acts_in_training_only() -> None:
    network = build_network(ArchSpec(StemSpec(8), ((BlockSpec("basic", 8),),), norm="layer", dropout=0.5), 1, 4, (8, 8))
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_one_pixel_maps_of_one_image_are_evaluated() -> None:
    for norm in ("batch", "group", "layer", "none"):
        arch = ArchSpec(StemSpec(8), ((BlockSpec("bottleneck", 16, 2), BlockSpec("basic", 32, 2)),), norm=norm)
        scores = build_network(arch, 1, 3, (4, 4)).eval()(torch.randn(1, 1, 4, 4))
        assert scores.shape == (1, 3)
        assert scores.isfinite().all()


def test_unequal_branches_are_refused() -> None:
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", 8),), (BlockSpec("basic", 16),)))
    with pytest.raises(RefusedError, match="widths 8, 16"):
        build_network(arch, 3, 10, (8, 8))


def test_unknown_kind_is_bad_input() -> None:
    with pytest.raises(InputError, match="'dense'"):
        build_network(ArchSpec(StemSpec(8), ((BlockSpec("dense", 8),),)), 3, 10, (8, 8))
