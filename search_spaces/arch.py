"""Random compositions of ResNet18, ResNet50 and GoogLeNet blocks, drawn together with their training recipe.

Every name comes with one fixed distribution; which names are asked for depends on what was drawn before. Ranges are for
images of 8 to 64 pixels; "our choice" where no source is named. Those of the recipe are in `_recipes.py`.
Whatever cannot work for an image size is left to `tunelab.models.check.check`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrialConfig
from tunelab.space import Suggest

from ._recipes import draw_recipe

SUMMARY = "random compositions of ResNet18, ResNet50 and GoogLeNet blocks with their training recipe"
VERSION = 1

# Stem: 3x3 is usual for small images (He et al., arXiv 1512.03385, section 4.2), 7x7 and a pool for large ones
# (table 1). Widths: 16 is the CIFAR ResNets' (section 4.2), 64 ResNet18's; 8 is the narrowest that all blocks allow.
STEM_KERNELS: Final = (3, 5, 7)
STEM_WIDTHS: Final = (8, 12, 16, 24, 32, 48, 64)

# Depth and halvings: the field report's search. ResNet18 has 8 blocks and 3 halvings, ResNet50 16 and 3.
DEPTH: Final = (4, 12)
HALVINGS: Final = (2, 4)
MAX_BRANCHES: Final = 3
KINDS: Final = ("basic", "bottleneck", "inception")
CONVS: Final = (1, 5)
NORMS: Final = ("batch", "group", "layer", "none")
ACTIVATIONS: Final = ("relu", "leaky_relu", "gelu", "silu")
DROPOUT: Final = (0.0, 0.5)  # GoogLeNet has 0.4 (arXiv 1409.4842, section 5), the ResNets none


def draw(suggest: Suggest) -> TrialConfig:
    """One network and its recipe; never fails, whatever is drawn."""
    return TrialConfig(arch=draw_arch(suggest), train=draw_recipe(suggest))


def draw_arch(suggest: Suggest) -> ArchSpec:
    """A stem, then 1 to 3 branches of 4 to 12 blocks; all branches halve the resolution equally often."""
    stem = StemSpec(
        width=suggest.suggest_categorical("stem_width", STEM_WIDTHS),
        kernel=suggest.suggest_categorical("stem_kernel", STEM_KERNELS),
        pool=suggest.suggest_categorical("stem_pool", (False, True)),
    )
    halvings = suggest.suggest_int("halvings", *HALVINGS)
    branches = suggest.suggest_int("branches", 1, MAX_BRANCHES)
    return ArchSpec(
        stem=stem,
        branches=tuple(_draw_branch(suggest, f"branch_{one}", stem.width, halvings) for one in range(1, branches + 1)),
        norm=suggest.suggest_categorical("norm", NORMS),
        activation=suggest.suggest_categorical("activation", ACTIVATIONS),
        bias=suggest.suggest_categorical("bias", (False, True)),
        dropout=suggest.suggest_float("dropout", *DROPOUT),
    )


def halving_positions(depth: int, places: list[float]) -> list[int]:
    """The blocks (from 0) that halve the resolution, one for each of `places`, which lie in [0, 1].

    A place is a share of the depth, 0 the first block and 1 the last. The positions are all different; every choice of
    positions can be drawn, and the range of a place is the same whatever else is drawn.
    """
    free = depth - len(places) + 1
    return [min(int(place * free), free - 1) + before for before, place in enumerate(sorted(places))]


def _draw_branch(suggest: Suggest, name: str, width: int, halvings: int) -> tuple[BlockSpec, ...]:
    depth = suggest.suggest_int(f"{name}_depth", *DEPTH)
    places = [suggest.suggest_float(f"{name}_halving_{number}", 0.0, 1.0) for number in range(1, halvings + 1)]
    halved = halving_positions(depth, places)
    blocks = []
    for position in range(depth):
        stride = 2 if position in halved else 1
        width *= stride
        block = f"{name}_block_{position + 1:02d}"
        kind = suggest.suggest_categorical(f"{block}_kind", KINDS)
        convs = suggest.suggest_int(f"{block}_convs", *CONVS) if kind == "basic" else 2
        blocks.append(BlockSpec(kind=kind, width=width, stride=2 if stride == 2 else 1, convs=convs))
    return tuple(blocks)


def resnet18(width: int) -> dict[str, Any]:
    """The parameters of a plain ResNet18 for small images, `width` channels in its first stage, with its usual recipe.

    Four stages of two basic blocks and a 3x3 stem without a pool (He et al., arXiv 1512.03385); SGD with Nesterov
    momentum, rate 0.1 for batches of 128, cosine, weight decay 5e-4, crops (Zagoruyko & Komodakis, arXiv 1605.07146,
    section 3). Without flips, which their CIFAR recipe has: the space does not know the images, and a mirrored digit or
    letter can be another one, while a missing flip costs little; the search draws it.
    """
    depth, stages = 8, 4
    free = depth - (stages - 1) + 1
    params: dict[str, Any] = {
        "stem_width": width,
        "stem_kernel": 3,
        "stem_pool": False,
        "halvings": stages - 1,
        "branches": 1,
        "branch_1_depth": depth,
        "norm": "batch",
        "activation": "relu",
        "bias": False,
        "dropout": 0.0,
        "optimizer": "sgd",
        "batch_size": 128,
        "lr_sgd": 0.1,
        "weight_decay_sgd": 5e-4,
        "momentum_sgd": 0.9,
        "nesterov": True,
        "label_smoothing": 0.0,
        "schedule": "cosine",
        "warmup": 0.0,
        "mixup": False,
        "crop": 0.125,
        "flip": False,
        "cutout": False,
    }
    for halving in range(1, stages):
        # The first block of a stage, as the middle of the places that mean it.
        params[f"branch_1_halving_{halving}"] = (2 * halving - (halving - 1) + 0.5) / free
    for block in range(1, depth + 1):
        params[f"branch_1_block_{block:02d}_kind"] = "basic"
        params[f"branch_1_block_{block:02d}_convs"] = 2
    return params


def fallbacks(params: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """A parameter set, and what to try in its place where images or limits do not allow it.

    First the same with ever narrower stems; if it has a pool after the stem, then all of these without one, for images
    that are too small for it.
    """
    widths = [width for width in reversed(STEM_WIDTHS) if width <= params["stem_width"]]
    pools = (True, False) if params["stem_pool"] else (False,)
    return tuple({**params, "stem_width": width, "stem_pool": pool} for pool in pools for width in widths)


BASELINES: Final[tuple[Mapping[str, Any], ...]] = fallbacks(resnet18(max(STEM_WIDTHS)))


def _read_portfolio() -> tuple[tuple[Mapping[str, Any], ...], ...]:
    plain = json.loads(Path(__file__).with_name("arch_portfolio.json").read_text(encoding="utf-8"))
    return tuple(fallbacks(one["params"]) for one in plain["configurations"])


# The portfolio: what did well on several data sets in real searches, where the search begins. The file says which, and
# benchmarks/build_portfolio.py makes it. What is from a "starter" there was made by hand: a plain network like ResNet18
# with batches of 32, which make four times the steps of 128, and OneCycle, which ends every length of training with a
# low rate (Smith & Topin, arXiv 1708.07120).
STARTERS: Final[tuple[tuple[Mapping[str, Any], ...], ...]] = _read_portfolio()
