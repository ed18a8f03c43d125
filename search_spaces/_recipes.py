"""Training recipes, drawn: optimizer, rates, schedule, augmentation. The parts that several spaces have in common.

A recipe's numbers have a name for each family that reads them (`lr_sgd`, `lr_adam`), because their useful ranges
differ. Ranges are for images of 8 to 64 pixels and trainings of a few to some hundred epochs; "our choice" where no
source is named. Where there is a recipe to begin with, ranges and lists of choices are widened so that it can be drawn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final, TypeVar

from tunelab.config import AugmentConfig, ScheduleConfig, TrainConfig
from tunelab.space import Suggest

Choice = TypeVar("Choice", bound="bool | int | float | str | None")

OPTIMIZERS: Final = ("sgd", "adam", "adamw", "rmsprop")

# Learning rates for batches of 128, logarithmic; the rate of another batch size grows with it: in proportion for SGD
# (Goyal et al., arXiv 1706.02677, section 2.1), with its square root for the adaptive ones (Malladi et al., arXiv
# 2205.10287, section 5). So a good rate stays good when another batch size is drawn. SGD: around 0.1 (He et al.,
# section 4.2). Adam: around 1e-3, the default of Kingma & Ba (arXiv 1412.6980, algorithm 1). RMSprop moves as far.
LR: Final = {"sgd": (0.01, 0.4), "adam": (2e-4, 5e-3), "adamw": (2e-4, 5e-3), "rmsprop": (1e-4, 2e-3)}
LR_BATCH: Final = 128
LR_GROWTH: Final = {"sgd": 1.0, "adam": 0.5, "adamw": 0.5, "rmsprop": 0.5}

# Weight decay, logarithmic. SGD: around 1e-4 (He et al.) and 5e-4 (Zagoruyko & Komodakis, arXiv 1605.07146, section 3).
# AdamW's is multiplied by the rate, so it is a hundred times larger (Loshchilov & Hutter, arXiv 1711.05101, section 4).
WEIGHT_DECAY: Final = {"sgd": (1e-5, 5e-3), "adam": (1e-6, 1e-3), "adamw": (1e-3, 0.5), "rmsprop": (1e-6, 1e-3)}

# Momentum: 0.9 is everyone's default; up to 0.98 as in Sutskever et al. (ICML 2013, section 3), less for RMSprop.
MOMENTUM: Final = {"sgd": (0.8, 0.98), "rmsprop": (0.0, 0.9)}

BATCH_SIZES: Final = (16, 32, 64, 128, 256, 512, 1024)
LABEL_SMOOTHING: Final = (0.0, 0.2)  # 0.1 in Szegedy et al. (arXiv 1512.00567, section 7)

SCHEDULES: Final = ("constant", "step", "cosine", "warm_restarts", "one_cycle", "cyclic", "plateau")
WARMUP: Final = (0.0, 0.2)  # 5 of 90 epochs in Goyal et al. (arXiv 1706.02677, section 2.2), more in short trainings
WARMED_UP: Final = ("constant", "step", "cosine", "warm_restarts", "plateau")  # the other two begin with a rise
STEP_PERIOD: Final = (0.15, 0.5)  # drops at 30% and 60% (He et al., ImageNet) to 50% and 75% (CIFAR)
PLATEAU_PERIOD: Final = (0.05, 0.25)
DROP_FACTOR: Final = (0.1, 0.5)  # 0.1 in He et al., 0.2 in Zagoruyko & Komodakis (section 3)
CYCLES: Final = (2, 5)  # as in Loshchilov & Hutter (arXiv 1608.03983, section 4), Smith (arXiv 1506.01186, section 4)
CYCLIC_LOWEST: Final = (0.01, 0.3)  # Smith (section 3.3): a third to a fourth of the highest rate, or less

CROP: Final = (0.0, 0.25)  # 4 of 32 pixels, 0.125, in He et al. (section 4.2)
CUTOUT: Final = (0.125, 0.625)  # 8 to 20 of 32 pixels in DeVries & Taylor (arXiv 1708.04552, section 4)
MIXUP: Final = (0.1, 1.0)  # Zhang et al. (arXiv 1710.09412): 0.2 on ImageNet (section 3.1), 1 on CIFAR (3.2)
MIXUP_UNTIL: Final = (0.5, 1.0)  # the last part without mixup, as GluonCV and timm do


def draw_recipe(suggest: Suggest, own: TrainConfig | None = None) -> TrainConfig:
    """A training recipe without its length; what is not drawn is as in `own`, which can be drawn too."""
    plain = own or TrainConfig()
    optimizer = suggest.suggest_categorical("optimizer", OPTIMIZERS)
    mine = own if own is not None and own.optimizer == optimizer else None
    batch_size = suggest.suggest_categorical("batch_size", with_own(BATCH_SIZES, _known(own, "batch_size")))
    return dataclasses.replace(
        plain,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=_draw_lr(suggest, f"lr_{optimizer}", optimizer, batch_size, mine),
        weight_decay=_draw_weight_decay(suggest, optimizer, mine),
        momentum=draw_number(suggest, f"momentum_{optimizer}", MOMENTUM[optimizer], _known(mine, "momentum"))
        if optimizer in MOMENTUM
        else plain.momentum,
        nesterov=suggest.suggest_categorical("nesterov", (False, True)) if optimizer == "sgd" else plain.nesterov,
        label_smoothing=draw_number(suggest, "label_smoothing", LABEL_SMOOTHING, _known(own, "label_smoothing")),
        schedule=_of(mine, _draw_schedule(suggest, _known(own, "schedule"))),
        augment=_draw_augment(suggest, _known(own, "augment")),
    )


def usual_lr(lr: float, optimizer: str, batch_size: int) -> float:
    """The rate for batches of 128 that stands for the rate `lr` of other batches."""
    return lr / _growth(optimizer, batch_size)


def draw_number(
    suggest: Suggest, name: str, ends: tuple[float, float], own: float | None = None, *, log: bool = False
) -> float:
    """A number between `ends`, or between them and `own`."""
    low, high = ends if own is None else (min(ends[0], own), max(ends[1], own))
    return suggest.suggest_float(name, low, high, log=log)


def with_own(choices: tuple[Choice, ...], own: Choice | None) -> tuple[Choice, ...]:
    """The choices with `own` among them."""
    return choices if own is None or own in choices else (*choices, own)


def _known(own: Any, name: str) -> Any:
    """A field of what there is to begin with; None without it."""
    return None if own is None else getattr(own, name)


def _growth(optimizer: str, batch_size: int) -> float:
    return float((batch_size / LR_BATCH) ** LR_GROWTH[optimizer])


def _draw_lr(suggest: Suggest, name: str, optimizer: str, batch_size: int, own: TrainConfig | None) -> float:
    known = None if own is None else usual_lr(own.lr, optimizer, own.batch_size)
    lr = draw_number(suggest, name, LR[optimizer], known, log=True) * _growth(optimizer, batch_size)
    if own is not None and own.batch_size == batch_size and math.isclose(lr, own.lr, rel_tol=1e-12):
        return own.lr  # there and back is not the same to the last bit
    return lr


def _draw_weight_decay(suggest: Suggest, optimizer: str, own: TrainConfig | None) -> float:
    """None at all can only be drawn where that is known to be an answer: a logarithmic range has no 0."""
    decay = None if own is None else own.weight_decay
    if decay == 0.0 and not suggest.suggest_categorical(f"decayed_{optimizer}", (False, True)):
        return 0.0
    return draw_number(suggest, f"weight_decay_{optimizer}", WEIGHT_DECAY[optimizer], decay or None, log=True)


def _draw_schedule(suggest: Suggest, own: ScheduleConfig | None) -> ScheduleConfig:
    name = suggest.suggest_categorical("schedule", with_own(SCHEDULES, _known(own, "name")))
    mine = own if own is not None and own.name == name else None
    drawn: dict[str, Any] = {"name": name}
    if name in WARMED_UP:
        drawn["warmup"] = draw_number(suggest, "warmup", WARMUP, _known(own, "warmup"))
    elif mine is None:
        drawn["warmup"] = 0.0
    if name in ("step", "plateau"):
        period = STEP_PERIOD if name == "step" else PLATEAU_PERIOD
        drawn["period"] = draw_number(suggest, f"period_{name}", period, _known(mine, "period"))
        drawn["factor"] = draw_number(suggest, f"factor_{name}", DROP_FACTOR, _known(mine, "factor"))
    if name == "cyclic":
        drawn["factor"] = draw_number(suggest, "factor_cyclic", CYCLIC_LOWEST, _known(mine, "factor"), log=True)
    if name in ("warm_restarts", "cyclic"):
        low, high = CYCLES if mine is None else (min(CYCLES[0], mine.cycles), max(CYCLES[1], mine.cycles))
        drawn["cycles"] = suggest.suggest_int(f"cycles_{name}", low, high)
    return dataclasses.replace(own or ScheduleConfig(), **drawn)


def _of(mine: TrainConfig | None, schedule: ScheduleConfig) -> ScheduleConfig:
    """The schedule; only the rate of one's own optimizer is one that a norm divides: others are drawn as they are."""
    return schedule if mine is not None else dataclasses.replace(schedule, by_norm=False)


def _draw_augment(suggest: Suggest, own: AugmentConfig | None) -> AugmentConfig:
    cutout = suggest.suggest_categorical("cutout", (False, True))
    mixup = suggest.suggest_categorical("mixup", (False, True))
    drawn: dict[str, Any] = {
        "crop": draw_number(suggest, "crop", CROP, _known(own, "crop")),
        "flip": suggest.suggest_categorical("flip", (False, True)),
        "cutout": 0.0,
        "mixup": 0.0,
    }
    if cutout and own is None:
        drawn["cutout"] = suggest.suggest_float("cutout_size", *CUTOUT, step=0.125)
    elif cutout and own is not None:
        drawn["cutout"] = draw_number(suggest, "cutout_size", CUTOUT, own.cutout or None)
    if mixup:
        drawn["mixup"] = draw_number(suggest, "mixup_alpha", MIXUP, _known(own, "mixup") or None, log=True)
        until = own.mixup_until if own is not None and own.mixup else None
        drawn["mixup_until"] = draw_number(suggest, "mixup_until", MIXUP_UNTIL, until)
    elif own is None or own.mixup:
        drawn["mixup_until"] = 1.0
    return dataclasses.replace(own or AugmentConfig(), **drawn)
