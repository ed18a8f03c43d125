from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunelab.config import ArchSpec, BlockSpec, CustomSpec, LeNetSpec, MLPSpec, StemSpec, to_json
from tunelab.errors import InputError, RefusedError
from tunelab.foreign import settle, trust
from tunelab.models.blocks import BLOCKS
from tunelab.models.check import check
from tunelab.models.layers import list_layers
from tunelab.models.network import build_network

CODE = """
import torch
from torch import nn

from tunelab.config import TrialConfig, from_json
from tunelab.models.network import build_network


def same(channels, classes, image_size, arch):
    return build_network(from_json(TrialConfig, {"arch": arch}).arch, channels, classes, image_size)


class Attention(nn.Module):
    def __init__(self, channels, classes, width):
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.query = nn.Parameter(torch.randn(width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ self.query @ tokens.transpose(1, 2), 2)
        return self.head((weights @ tokens).mean(1))


def attention(channels, classes, image_size, width=8):
    return Attention(channels, classes, width)


class Reads(nn.Module):
    '''It cannot be run without numbers.'''

    def __init__(self, channels, classes):
        super().__init__()
        self.scale = float(torch.randn(3).sum().item()) * 0 + 1
        self.net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.LazyLinear(classes))

    def forward(self, images):
        return self.net(images) * (1 if images.sum().item() >= 0 else self.scale)


def reads(channels, classes, image_size):
    return Reads(channels, classes)


def tied(channels, classes, image_size):
    layer = nn.Linear(16, 16)
    first = [nn.AdaptiveAvgPool2d(4), nn.Conv2d(channels, 1, 1), nn.Flatten()]
    return nn.Sequential(*first, layer, layer, nn.Linear(16, classes))


def fails(channels, classes, image_size):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(5, classes)))


def raises(channels, classes, image_size, **arguments):
    raise KeyError(sorted(arguments))


def word(channels, classes, image_size):
    return "network"


def empty(channels, classes, image_size):
    return nn.Flatten()


class Two(nn.Linear):
    def forward(self, images):
        scores = super().forward(images.flatten(1))
        return (scores, scores) if self.training else scores


def two(channels, classes, image_size):
    return Two(channels * image_size[0] * image_size[1], classes)
"""
IMAGES: dict[str, Any] = {"image_size": (16, 12), "channels": 3, "classes": 7}


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Makes an allowed description of a network of this module's code."""
    (tmp_path / "net.py").write_text(CODE)

    def make(function: str, **arguments: Any) -> CustomSpec:
        spec = settle(CustomSpec(f"net.py:{function}", arguments), tmp_path)
        trust(spec)
        return spec

    return make


BLOCKY = [
    ArchSpec(StemSpec(8, 5, pool), ((BlockSpec(kind, 16, 2), BlockSpec(kind, 16)), (BlockSpec("basic", 16, 2, 3),)))
    for kind in BLOCKS
    for pool in (False, True)
]


@pytest.mark.parametrize("arch", [*BLOCKY, MLPSpec((9, 8))])
def test_what_is_counted_by_running_is_what_the_plans_count(own: Any, arch: ArchSpec | MLPSpec) -> None:
    assert check(own("same", arch=to_json(arch)), **IMAGES) == check(arch, **IMAGES)


def test_lenet_too(own: Any) -> None:
    images: dict[str, Any] = {**IMAGES, "image_size": (28, 28)}
    assert check(own("same", arch=to_json(LeNetSpec())), **images) == check(LeNetSpec(), **images)


def test_all_products_of_matrices_count(own: Any) -> None:
    stats = check(own("attention", width=8), **IMAGES)
    tokens = 4 * 3
    products = tokens * 8 * 48 + tokens * 8 * 8 + 2 * tokens * tokens * 8 + 8 * 7
    assert stats.mflops * 1e6 == products
    assert stats.params == 8 * 49 + 64 + 9 * 7
    assert (stats.convs, stats.activations, stats.depth) == (1, 8 * tokens, 5)


def test_a_network_that_needs_numbers_is_run_with_them(own: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stats = check(own("reads"), **IMAGES)
    assert stats.params == 4 * 28 + (4 * 14 * 10 + 1) * 7
    assert torch.equal(before, torch.get_rng_state()), "what is counted draws no random numbers"


def test_the_weights_come_from_the_random_state(own: Any) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(build_network(own("attention"), 3, 7, (16, 12)))
    assert torch.equal(made[0].query, made[1].query)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", r"net\.py:fails fails on images of 3x16x12: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("raises", r"net\.py:raises raised KeyError: \['width'\] \(.*net\.py, line \d+\)"),
        ("word", r"net\.py:word made str, not a torch\.nn\.Module"),
        ("empty", r"net\.py:empty has no weights to train"),
        (
            "two",
            r"net\.py:two gives tuple for 2 images in training; it must give scores of shape \(2, 7\), one for each",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(own: Any, function: str, said: str) -> None:
    spec = own(function, **({"width": 3} if function == "raises" else {}))
    for _ in range(2):
        with pytest.raises(RefusedError, match=said):
            check(spec, **IMAGES)


def test_limits_hold(own: Any) -> None:
    with pytest.raises(RefusedError, match="--max-params allows 10"):
        check(own("attention"), **IMAGES, max_params=10)


def test_what_is_not_allowed_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{CODE}")
    spec = settle(CustomSpec("net.py:attention"), tmp_path)
    for use in (check, list_layers):
        with pytest.raises(InputError, match="not allowed yet"):
            use(spec, **IMAGES)
    with pytest.raises(InputError, match="not allowed yet"):
        build_network(spec, 3, 7, (16, 12))
    assert not (tmp_path / "ran").exists()


def test_layers_are_told_as_they_are_called(own: Any) -> None:
    for name in ("attention", "reads", "tied"):
        spec = own(name)
        rows, stats = list_layers(spec, **IMAGES), check(spec, **IMAGES)
        assert sum(row.params for row in rows) == stats.params
        assert sum(row.multiply_adds for row in rows) == round(stats.mflops * 1e6)
    rows = list_layers(own("attention"), **IMAGES)
    assert [(row.name, row.shape) for row in rows] == [("patches", (8, 4, 3)), ("head", (7,)), ("", (7,))]
    assert rows[-1].what == "beside these layers"
    assert rows[-1].params == 64
    tied = list_layers(own("tied"), **IMAGES)
    assert [row.params for row in tied if row.what.startswith("Linear(in_features=16, out_features=16")] == [272, 0]


def test_the_layer_that_fails_is_named(own: Any) -> None:
    with pytest.raises(RefusedError, match=r"cannot be multiplied .*; it fails in the layer '1\.1'"):
        list_layers(own("fails"), **IMAGES)


def test_a_trained_network_is_kept_with_weights_that_are_in_two_places(own: Any, make_model: Any) -> None:
    from tunelab.training.model_files import find_model, open_model

    folder = make_model(own("tied"), channels=3)
    network = open_model(find_model(folder)).network
    assert isinstance(network, nn.Module)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(images), open_model(find_model(folder)).network(images))
