"""The components of a recipe, each with the configurations that it becomes: pure functions.

A learning rate belongs to an optimizer, to a batch size, and to whether it is divided by the norm of the weights: where
one of them changes, the rate goes with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from tunelab.config import AugmentConfig, ScheduleConfig, StageSpec, TrialConfig
from tunelab.variants import BACK, REMOVED, Changes, Component

READ_BY_OPTIMIZER: Final = {"momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",)}
"""Numbers of a recipe that only some optimizers read."""

LR_GROWTH: Final = {"sgd": 1.0, "adam": 0.5, "adamw": 0.5, "rmsprop": 0.5}
"""The power of the batch size that a good learning rate grows with.

In proportion for SGD (Goyal et al., arXiv 1706.02677, section 2.1), with the square root for the adaptive ones (Malladi
et al., arXiv 2205.10287, section 5); as the space `arch` draws them.
"""


def _with_train(config: TrialConfig, **values: Any) -> TrialConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


def _with_augment(config: TrialConfig, **values: Any) -> TrialConfig:
    return _with_train(config, augment=dataclasses.replace(config.train.augment, **values))


def _stages(config: TrialConfig, **values: Any) -> tuple[StageSpec, ...]:
    """The stages of the recipe, each with these values."""
    return tuple(dataclasses.replace(stage, **values) for stage in config.train.stages)


def _is_read(config: TrialConfig, number: str) -> bool:
    """True if the optimizer of the recipe, or of a stage of it, reads a number."""
    optimizers = {config.train.optimizer, *(stage.optimizer for stage in config.train.stages)}
    return not optimizers.isdisjoint(READ_BY_OPTIMIZER[number])


def _augmentation(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {
        REMOVED: _with_train(config, augment=AugmentConfig()),
        BACK: _with_train(config, augment=baseline.train.augment),
    }


def _crop(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_augment(config, crop=0.0), BACK: _with_augment(config, crop=baseline.train.augment.crop)}


def _flip(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_augment(config, flip=False), BACK: _with_augment(config, flip=baseline.train.augment.flip)}


def _cutout(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _with_augment(config, cutout=baseline.train.augment.cutout)
    return {REMOVED: _with_augment(config, cutout=0.0), BACK: back}


def _mixup(config: TrialConfig, baseline: TrialConfig) -> Changes:
    there = baseline.train.augment
    back = _with_augment(config, mixup=there.mixup, mixup_until=there.mixup_until)
    return {REMOVED: _with_augment(config, mixup=0.0, mixup_until=1.0), BACK: back}


def _label_smoothing(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _with_train(config, label_smoothing=baseline.train.label_smoothing)
    return {REMOVED: _with_train(config, label_smoothing=0.0), BACK: back}


def _of_another_optimizer(config: TrialConfig, baseline: TrialConfig, what: str) -> str:
    """Why a number of the baseline's recipe is not used, "" if it can be."""
    mine, theirs = config.train.optimizer, baseline.train.optimizer
    return "" if mine == theirs else f"the baseline's {what} is for {theirs}, not for {mine}; see optimizer"


def _weight_decay(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _of_another_optimizer(config, baseline, "weight decay")
    return {
        REMOVED: _with_train(config, weight_decay=0.0, stages=_stages(config, weight_decay=None)),
        BACK: back
        or _with_train(config, weight_decay=baseline.train.weight_decay, stages=_stages(config, weight_decay=None)),
    }


def _momentum(config: TrialConfig, baseline: TrialConfig) -> Changes:
    if not _is_read(config, "momentum"):
        return {}
    back = _of_another_optimizer(config, baseline, "momentum")
    return {
        REMOVED: _with_train(config, momentum=0.0, stages=_stages(config, momentum=None)),
        BACK: back or _with_train(config, momentum=baseline.train.momentum, stages=_stages(config, momentum=None)),
    }


def _nesterov(config: TrialConfig, baseline: TrialConfig) -> Changes:
    if not _is_read(config, "nesterov"):
        return {}
    changes: Changes = {REMOVED: _with_train(config, nesterov=False)}
    if baseline.train.optimizer in READ_BY_OPTIMIZER["nesterov"]:
        changes[BACK] = _with_train(config, nesterov=baseline.train.nesterov)
    return changes


def _warmup(config: TrialConfig, baseline: TrialConfig) -> Changes:
    schedule = config.train.schedule
    back = dataclasses.replace(schedule, warmup=baseline.train.schedule.warmup)
    return {
        REMOVED: _with_train(config, schedule=dataclasses.replace(schedule, warmup=0.0)),
        BACK: _with_train(config, schedule=back),
    }


def _schedule(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """A constant rate, and the baseline's schedule, each after the warm-up and by the norm as it is."""
    warmup, by_norm = config.train.schedule.warmup, config.train.schedule.by_norm
    back = dataclasses.replace(baseline.train.schedule, warmup=warmup, by_norm=by_norm)
    return {
        REMOVED: _with_train(config, schedule=ScheduleConfig("constant", warmup, by_norm=by_norm)),
        BACK: _with_train(config, schedule=back),
    }


def _divided(config: TrialConfig, baseline: TrialConfig) -> ScheduleConfig:
    """The schedule, with the division by the norm that goes with the baseline's rate."""
    return dataclasses.replace(config.train.schedule, by_norm=baseline.train.schedule.by_norm)


def _rate(lr: float, optimizer: str, batch_size: int, other: int) -> float:
    """The rate for batches of `other` that goes with `lr` for batches of `batch_size`."""
    grown: float = lr * (other / batch_size) ** LR_GROWTH[optimizer]
    return min(grown, 1000.0)  # what TrainConfig allows


def _optimizer(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, with its rate for this batch size, momentum and weight decay: they mean nothing for another."""
    if config.train.optimizer == baseline.train.optimizer:
        return {}
    there = baseline.train
    back = _with_train(
        config,
        optimizer=there.optimizer,
        lr=_rate(there.lr, there.optimizer, there.batch_size, config.train.batch_size),
        schedule=_divided(config, baseline),
        momentum=there.momentum,
        nesterov=there.nesterov,
        weight_decay=there.weight_decay,
    )
    return {BACK: back}


def _batch_size(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, and the rates that go with it."""
    train, size = config.train, baseline.train.batch_size
    rate = _rate(train.lr, train.optimizer, train.batch_size, size)
    stages = tuple(
        dataclasses.replace(stage, lr=_rate(stage.lr, stage.optimizer, train.batch_size, size))
        for stage in train.stages
    )
    return {BACK: _with_train(config, batch_size=size, lr=rate, stages=stages)}


def _lr(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, for this batch size."""
    there = baseline.train
    rate = _rate(there.lr, there.optimizer, there.batch_size, config.train.batch_size)
    back = _with_train(config, lr=rate, schedule=_divided(config, baseline))
    return {BACK: _of_another_optimizer(config, baseline, "learning rate") or back}


def _later_stages(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """Trained to the end as it began, and with the baseline's stages."""
    return {REMOVED: _with_train(config, stages=()), BACK: _with_train(config, stages=baseline.train.stages)}


def _averaging(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {
        REMOVED: _with_train(config, averaging=None),
        BACK: _with_train(config, averaging=baseline.train.averaging),
    }


def _patience(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {
        REMOVED: _with_train(config, patience=None),
        BACK: _with_train(config, patience=baseline.train.patience),
    }


RECIPE: Final[dict[str, Component]] = {
    "crop": _crop,
    "flip": _flip,
    "cutout": _cutout,
    "mixup": _mixup,
    "augmentation": _augmentation,
    "label_smoothing": _label_smoothing,
    "optimizer": _optimizer,
    "lr": _lr,
    "batch_size": _batch_size,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "weight_decay": _weight_decay,
    "schedule": _schedule,
    "warmup": _warmup,
    "stages": _later_stages,
    "averaging": _averaging,
    "patience": _patience,
}
"""Components of every configuration."""
