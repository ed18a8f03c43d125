"""The recipe of a network that a study found: its architecture stays, the training around it is searched.

`tunelab search recipe --from STUDY` takes the best trial of a study. Trial 0 is that trial's own recipe, so that the
search cannot end below where it began without saying so; every range is widened where that recipe lies outside of it.
What the recipe has later stages or averages of is a choice as a whole (`own`). Ranges are those of `_recipes.py`; "our
choice" where no source is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tunelab.config import AnyArch, AveragingConfig, StageSpec, TrainConfig, TrialConfig
from tunelab.space import Suggest

from ._recipes import (
    LR,
    LR_BATCH,
    LR_GROWTH,
    MOMENTUM,
    WARMED_UP,
    WEIGHT_DECAY,
    draw_number,
    draw_recipe,
    usual_lr,
)

SUMMARY = "the training recipe of a network that a study found, which --from STUDY names"
VERSION = 1

OWN: Final = "own"
DROPOUT: Final = (0.0, 0.5)  # as in the space arch

# Another optimizer for the later part: Adam's speed at first, SGD's end (Keskar & Socher, arXiv 1712.07628, section 3).
LATER: Final = ("none", "sgd", "adam", "adamw")
LATER_BEGIN: Final = (0.2, 0.8)

# SWA over the last quarter (Izmailov et al., arXiv 1803.05407, section 4.1); decays from 100 to 10,000 steps.
AVERAGES: Final = ("none", "ema", "swa")
AVERAGE_START: Final = (0.5, 0.9)
FORGETS: Final = (1e-4, 1e-2)  # 1 - decay of an exponential average, logarithmic


def draw_from(suggest: Suggest, base: TrialConfig) -> TrialConfig:
    """The network of `base` with another recipe, and with other dropout and biases where its family has them."""
    train = draw_recipe(suggest, base.train)
    train = dataclasses.replace(
        train,
        stages=_draw_stages(suggest, train, base.train),
        averaging=_draw_averaging(suggest, base.train.averaging),
    )
    return dataclasses.replace(base, arch=_draw_fields(suggest, base.arch), train=train)


def baselines_from(base: TrialConfig) -> Sequence[Mapping[str, Any]]:
    """The parameters of the recipe of `base` itself."""
    train, augment = base.train, base.train.augment
    params: dict[str, Any] = {
        "optimizer": train.optimizer,
        "batch_size": train.batch_size,
        f"lr_{train.optimizer}": usual_lr(train.lr, train.optimizer, train.batch_size),
        "label_smoothing": train.label_smoothing,
        "cutout": augment.cutout > 0.0,
        "mixup": augment.mixup > 0.0,
        "crop": augment.crop,
        "flip": augment.flip,
        "later": OWN if train.stages else "none",
        "averaging": OWN if train.averaging else "none",
        **_own_schedule(train),
    }
    if train.weight_decay == 0.0:
        params[f"decayed_{train.optimizer}"] = False
    else:
        params[f"weight_decay_{train.optimizer}"] = train.weight_decay
    if train.optimizer in MOMENTUM:
        params[f"momentum_{train.optimizer}"] = train.momentum
    if train.optimizer == "sgd":
        params["nesterov"] = train.nesterov
    if augment.cutout > 0.0:
        params["cutout_size"] = augment.cutout
    if augment.mixup > 0.0:
        params |= {"mixup_alpha": augment.mixup, "mixup_until": augment.mixup_until}
    return ({**params, **{name: getattr(base.arch, name) for name in _drawn_fields(base.arch)}},)


def _own_schedule(train: TrainConfig) -> dict[str, Any]:
    schedule, name = train.schedule, train.schedule.name
    params: dict[str, Any] = {"schedule": name}
    if name in WARMED_UP:
        params["warmup"] = schedule.warmup
    if name in ("step", "plateau"):
        params |= {f"period_{name}": schedule.period, f"factor_{name}": schedule.factor}
    if name == "cyclic":
        params["factor_cyclic"] = schedule.factor
    if name in ("warm_restarts", "cyclic"):
        params[f"cycles_{name}"] = schedule.cycles
    return params


def _drawn_fields(arch: AnyArch) -> list[str]:
    """Those fields of a network that belong to its training: what they are does not change its shape."""
    return [field.name for field in dataclasses.fields(arch) if field.name in ("dropout", "bias")]


def _draw_fields(suggest: Suggest, arch: AnyArch) -> AnyArch:
    drawn: dict[str, Any] = {}
    for name in _drawn_fields(arch):
        if name == "dropout":
            drawn[name] = draw_number(suggest, name, DROPOUT, getattr(arch, name))
        else:
            drawn[name] = suggest.suggest_categorical(name, (False, True))
    return dataclasses.replace(arch, **drawn)


def _draw_stages(suggest: Suggest, train: TrainConfig, own: TrainConfig) -> tuple[StageSpec, ...]:
    later = suggest.suggest_categorical("later", (*LATER, OWN) if own.stages else LATER)
    if later == OWN:
        return own.stages
    if later == "none":
        return ()
    lr = suggest.suggest_float(f"later_lr_{later}", *LR[later], log=True)
    return (
        StageSpec(
            begin=suggest.suggest_float("later_begin", *LATER_BEGIN),
            optimizer=later,
            lr=lr * (train.batch_size / LR_BATCH) ** LR_GROWTH[later],
            weight_decay=suggest.suggest_float(f"later_weight_decay_{later}", *WEIGHT_DECAY[later], log=True),
            momentum=suggest.suggest_float(f"later_momentum_{later}", *MOMENTUM[later]) if later in MOMENTUM else None,
        ),
    )


def _draw_averaging(suggest: Suggest, own: AveragingConfig | None) -> AveragingConfig | None:
    kind = suggest.suggest_categorical("averaging", (*AVERAGES, OWN) if own is not None else AVERAGES)
    if kind == OWN:
        return own
    if kind == "none":
        return None
    start = suggest.suggest_float("average_start", *AVERAGE_START)
    if kind == "swa":
        return AveragingConfig("swa", start)
    return AveragingConfig("ema", start, 1.0 - suggest.suggest_float("average_forgets", *FORGETS, log=True))
