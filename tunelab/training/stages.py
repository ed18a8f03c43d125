"""Which part of a recipe an epoch belongs to: stages with optimizers of their own, and where an average begins."""

from __future__ import annotations

import dataclasses
import math

from tunelab.config import TrainConfig
from tunelab.training.optim import find_optimizer

_ROUNDING = 1e-9  # of a fraction times the epochs: 0.55 x 100 is a little more than 55


def first_epoch(begin: float, epochs: int) -> int:
    """The first epoch, counted from 1, before which the fraction `begin` of all `epochs` is past."""
    return math.ceil(begin * epochs - _ROUNDING) + 1


def stage_of(train: TrainConfig, epoch: int) -> int:
    """How many stages have begun when `epoch`, counted from 1, is trained; 0 is the recipe as it begins.

    Of two stages that begin with the same epoch, the second one counts.
    """
    return sum(first_epoch(stage.begin, train.epochs) <= epoch for stage in train.stages)


def recipe_of(train: TrainConfig, stage: int) -> TrainConfig:
    """The recipe as its stage number `stage` has it, which counts from 1; 0 is the recipe as it begins."""
    if stage == 0:
        return train
    own = train.stages[stage - 1]
    return dataclasses.replace(
        train,
        optimizer=own.optimizer,
        lr=own.lr,
        weight_decay=train.weight_decay if own.weight_decay is None else own.weight_decay,
        momentum=train.momentum if own.momentum is None else own.momentum,
    )


def check_optimizers(train: TrainConfig) -> None:
    """Raises InputError if there is no optimizer of a name in the recipe."""
    for name in (train.optimizer, *(stage.optimizer for stage in train.stages)):
        find_optimizer(name)
