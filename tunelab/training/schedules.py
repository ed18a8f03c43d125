"""How the learning rate moves: pure functions of the progress of the training, as factors of the peak rate.

A schedule spans the configured length, `TrainConfig.epochs`, whatever the training is stopped at. It is asked at every
step; nothing about it needs saving, because "plateau", the only one that looks at results, is a function of the losses
in the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tunelab.config import ScheduleConfig
from tunelab.errors import InputError
from tunelab.records import PROGRESS, EpochMetrics

Losses = Sequence[tuple[float, float]]
"""(progress in (0, 1] at which it was measured, loss), one for each finished epoch."""

Schedule = Callable[[float, ScheduleConfig, Losses], float]
"""(progress in [0, 1] of what follows the warm-up, the numbers of the schedule, losses) -> factor in [0, 1]."""

ONE_CYCLE_RISE = 0.3  # share of the cycle with a rising rate; our choice, as in fastai and PyTorch
ONE_CYCLE_START = 1 / 25  # first rate; Smith & Topin (arXiv 1708.07120) section 3 leave it open, fastai's choice
ONE_CYCLE_END = 1e-4 / 25  # last rate, "several orders of magnitude" below the first (section 3); PyTorch's choice


def constant(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """The peak rate throughout."""
    return 1.0


def step(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """A drop by `factor` after every `period` of the training.

    He et al. (arXiv 1512.03385, section 4.2) drop to a tenth at 1/2 and 3/4 of the training.
    """
    drops = math.floor(progress * (1.0 - schedule.warmup) / schedule.period + 1e-9)
    return float(schedule.factor**drops)


def cosine(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """Half a cosine from 1 to 0: Loshchilov & Hutter (arXiv 1608.03983, equation 5) without a restart."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warm_restarts(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """`cycles` equal cosines from 1 to 0: Loshchilov & Hutter (arXiv 1608.03983, equation 5, T_mult = 1)."""
    return 0.0 if progress >= 1.0 else cosine(progress * schedule.cycles % 1.0, schedule, losses)


def one_cycle(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """One rise and one longer fall far below the first rate: Smith & Topin (arXiv 1708.07120, section 3).

    Both parts are half cosines, as in fastai. The momentum stays as it is.
    """
    if progress < ONE_CYCLE_RISE:
        return _between(ONE_CYCLE_START, 1.0, progress / ONE_CYCLE_RISE)
    return _between(1.0, ONE_CYCLE_END, (progress - ONE_CYCLE_RISE) / (1.0 - ONE_CYCLE_RISE))


def cyclic(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """`cycles` triangles from `factor` up to 1 and back: "triangular" of Smith (arXiv 1506.01186, section 3.1)."""
    height = 1.0 - abs(2.0 * (progress * schedule.cycles % 1.0) - 1.0)
    return schedule.factor + (1.0 - schedule.factor) * height


def plateau(progress: float, schedule: ScheduleConfig, losses: Losses) -> float:
    """A drop by `factor` whenever the loss has not improved for `period` of the training.

    The loss is the validation loss, or the training loss where nothing is held out; better means lower by 0.01%. The
    count begins after the warm-up. As torch's ReduceLROnPlateau, with the patience as a fraction of the training.
    """
    best, since, drops = math.inf, schedule.warmup, 0
    for at, loss in losses:
        if loss < best * (1.0 - PROGRESS):
            best, since = loss, max(at, since)
        elif at - since >= schedule.period - 1e-9:
            since, drops = at, drops + 1
    return float(schedule.factor**drops)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "warm_restarts": warm_restarts,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "plateau": plateau,
}


def find_schedule(schedule: ScheduleConfig) -> Schedule:
    """The function called `schedule.name`.

    Raises:
        InputError: there is none of that name.
    """
    if schedule.name not in SCHEDULES:
        raise InputError(f"schedule {schedule.name!r} is unknown; allowed are {', '.join(SCHEDULES)}")
    return SCHEDULES[schedule.name]


def losses_of(history: Sequence[EpochMetrics], epochs: int) -> list[tuple[float, float]]:
    """The losses of the epochs that are done, of `epochs` in all, as schedules take them."""
    return [(metrics.epoch / epochs, metrics.loss) for metrics in history]


def lr_factor(schedule: ScheduleConfig, progress: float, losses: Losses = ()) -> float:
    """The learning rate at `progress` (0 to 1 of the configured training) as a factor of the peak rate.

    A linear warm-up from 0 (Goyal et al., arXiv 1706.02677, section 2.2) over the fraction `warmup` leads to the
    schedule's first rate; the schedule then spans the rest.

    Raises:
        InputError: the schedule's name is unknown.
    """
    shape = find_schedule(schedule)
    if progress < schedule.warmup:
        return shape(0.0, schedule, losses) * progress / schedule.warmup
    return shape((progress - schedule.warmup) / (1.0 - schedule.warmup), schedule, losses)


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
