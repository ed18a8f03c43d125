"""How L2 regularisation moves the effective learning rate of a ResNet18 without augmentation, for long trainings.

Before a batch norm the scale of weights w has no effect on what a network computes, and the gradient falls with it: a
step of plain SGD at the rate lr does to their direction what one at lr / |w|^2 does to weights of norm 1 (van
Laarhoven, arXiv 1706.05350). L2 regularisation makes the weights smaller, so it raises that effective rate until the
training becomes unstable, the norm jumps, and the accuracy falls: saw-teeth with periods of many epochs.

All of the optimizers here take the weight decay as a term of the gradient, which is L2 regularisation; AdamW does not,
and is left out. With `by_norm` the rate of an epoch is divided by the norm of the weights at the end of the epoch
before. What is divided is then `lr` times the norm that a fresh network of this shape has, so that a training begins at
the rate `lr` with and without the division, and the two differ by what becomes of the norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from tunelab.config import ArchSpec, BlockSpec, ScheduleConfig, StemSpec, TrainConfig, TrialConfig
from tunelab.space import Suggest

from ._recipes import LR_BATCH, LR_GROWTH

SUMMARY = "ResNet18 with L2 regularisation, its rate with and without a division by the norm of the weights"
VERSION = 1

# ResNet18 for small images: a 3x3 stem without a pool, 4 stages of 2 basic blocks (He et al., arXiv 1512.03385). Fewer
# and narrower ones for thousands of epochs on a processor; our choice.
WIDTHS: Final = (4, 8, 12, 16, 24, 32, 48, 64)
STAGES: Final = (2, 4)
BLOCKS: Final = (1, 2)
BATCH_SIZES: Final = (32, 64, 128, 256)

# "momentum" is SGD with Nesterov's momentum of 0.9. Rates are for batches of 128, logarithmic. Momentum: around 0.1 (He
# et al., section 4.2); plain SGD ten times that, 1 / (1 - 0.9), which moves as far; the others as in the space `arch`.
OPTIMIZERS: Final = ("sgd", "momentum", "adam", "rmsprop")
LR: Final = {"sgd": (0.05, 2.0), "momentum": (0.01, 0.4), "adam": (2e-4, 5e-3), "rmsprop": (1e-4, 2e-3)}
MOMENTUM: Final = 0.9
_TORCH: Final = {"sgd": "sgd", "momentum": "sgd", "adam": "adam", "rmsprop": "rmsprop"}

# Logarithmic, around 5e-4 (Zagoruyko & Komodakis, arXiv 1605.07146, section 3). In steps, the norm takes about
# 1 / (lr x weight decay) to follow it: the larger, the sooner the saw-teeth.
WEIGHT_DECAY: Final = (1e-5, 1e-2)

SCHEDULES: Final = ("constant", "step", "cosine", "warm_restarts")

_USUAL_LR: Final = {"sgd": 1.0, "momentum": 0.1, "adam": 1e-3, "rmsprop": 5e-4}
_USUAL_WEIGHT_DECAY: Final = 5e-4
_CHANNELS = 3  # of the images


def draw(suggest: Suggest) -> TrialConfig:
    """One network and its recipe; never fails, whatever is drawn."""
    arch = resnet(
        suggest.suggest_categorical("width", WIDTHS),
        suggest.suggest_int("stages", *STAGES),
        suggest.suggest_int("blocks", *BLOCKS),
    )
    return TrialConfig(arch=arch, train=_draw_recipe(suggest, arch))


def resnet(width: int, stages: int, blocks: int) -> ArchSpec:
    """Stages of so many basic blocks; each stage but the first halves the resolution and doubles the width."""
    branch = [
        BlockSpec("basic", width * 2**stage, 2 if stage and not place else 1)
        for stage in range(stages)
        for place in range(blocks)
    ]
    return ArchSpec(StemSpec(width), (tuple(branch),))


def fresh_norm(arch: ArchSpec) -> float:
    """The norm of all weights of a fresh network of basic blocks for colour images, to a few percent.

    They are drawn with the variance 2 / (outputs x kernel^2) (`tunelab.models.init.he`), so that the square of the norm
    of a convolution is about twice its inputs. The classifier has little part in it.
    """
    width, inputs = arch.stem.width, _CHANNELS
    for block in arch.branches[0]:
        shortcut = width if block.stride != 1 or block.width != width else 0
        inputs += width + (block.convs - 1) * block.width + shortcut
        width = block.width
    return math.sqrt(2 * inputs)


def _draw_recipe(suggest: Suggest, arch: ArchSpec) -> TrainConfig:
    """A training recipe without its length and without augmentation."""
    name = suggest.suggest_categorical("optimizer", OPTIMIZERS)
    optimizer = _TORCH[name]
    batch_size = suggest.suggest_categorical("batch_size", BATCH_SIZES)
    lr = suggest.suggest_float(f"lr_{name}", *LR[name], log=True) * (batch_size / LR_BATCH) ** LR_GROWTH[optimizer]
    weight_decay = suggest.suggest_float(f"weight_decay_{name}", *WEIGHT_DECAY, log=True)
    schedule = suggest.suggest_categorical("schedule", SCHEDULES)
    by_norm = suggest.suggest_categorical("by_norm", (False, True))
    return TrainConfig(
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr * fresh_norm(arch) if by_norm else lr,
        weight_decay=weight_decay,
        momentum=MOMENTUM if name == "momentum" else 0.0,
        nesterov=name == "momentum",
        schedule=ScheduleConfig(schedule, by_norm=by_norm),
    )


def recipe(optimizer: str, schedule: str, by_norm: bool) -> dict[str, Any]:
    """The parameters of a recipe with the usual rate of its optimizer, and the same weight decay for all."""
    return {
        "optimizer": optimizer,
        f"lr_{optimizer}": _USUAL_LR[optimizer],
        f"weight_decay_{optimizer}": _USUAL_WEIGHT_DECAY,
        "schedule": schedule,
        "by_norm": by_norm,
    }


def _baseline(width: int, stages: int, blocks: int) -> dict[str, Any]:
    shape = {"width": width, "stages": stages, "blocks": blocks, "batch_size": LR_BATCH}
    return {**shape, **recipe("momentum", "constant", by_norm=False)}


# ResNet18 from wide to narrow, then networks with less of everything for the smallest limits.
BASELINES: Final[tuple[Mapping[str, Any], ...]] = (
    *(_baseline(width, 4, 2) for width in reversed(WIDTHS)),
    *(_baseline(width, stages, 1) for width, stages in ((4, 3), (4, 2))),
)

# Eight pairs of optimizer and schedule, each without and with the division by the norm: 16 configurations that differ
# in nothing else. The network is left out: it is that of the baseline which the limits allow.
GRIDS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "pairs": tuple(
        recipe(optimizer, schedule, by_norm)
        for optimizer in OPTIMIZERS
        for schedule in ("constant", "cosine")
        for by_norm in (False, True)
    ),
}
