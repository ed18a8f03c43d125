"""How the learning rate moves: pure functions of the progress of the training, as factors of the peak rate.

A schedule spans the configured length, `TrainConfig.epochs`, whatever the training is stopped at. It is asked at every
step; nothing about it needs saving, because what looks at results, "plateau" and the division by the norm, is a
function of the history, and is taken from it once for each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tunelab.config import ScheduleConfig, TrainConfig
from tunelab.errors import DivergedError, InputError
from tunelab.records import PROGRESS, EpochMetrics

Losses = Sequence[tuple[float, float]]
"""(progress in (0, 1] at which it was measured, loss), one for each finished epoch."""

Schedule = Callable[[float, ScheduleConfig, int], float]
"""(progress in [0, 1] of what follows the warm-up, the numbers of the schedule, drops) -> factor in [0, 1].

`drops` is how often the losses so far have let the rate drop (`count_drops`).
"""

ONE_CYCLE_RISE = 0.3  # share of the cycle with a rising rate; our choice, as in fastai and PyTorch
ONE_CYCLE_START = 1 / 25  # first rate; Smith & Topin (arXiv 1708.07120) section 3 leave it open, fastai's choice
ONE_CYCLE_END = 1e-4 / 25  # last rate, "several orders of magnitude" below the first (section 3); PyTorch's choice


def constant(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """The peak rate throughout."""
    return 1.0


def step(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """A drop by `factor` after every `period` of the training.

    He et al. (arXiv 1512.03385, section 4.2) drop to a tenth at 1/2 and 3/4 of the training.
    """
    periods = math.floor(progress * (1.0 - schedule.warmup) / schedule.period + 1e-9)
    return float(schedule.factor**periods)


def cosine(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """Half a cosine from 1 to 0: Loshchilov & Hutter (arXiv 1608.03983, equation 5) without a restart."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warm_restarts(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """`cycles` equal cosines from 1 to 0: Loshchilov & Hutter (arXiv 1608.03983, equation 5, T_mult = 1)."""
    return 0.0 if progress >= 1.0 else cosine(progress * schedule.cycles % 1.0, schedule, drops)


def one_cycle(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """One rise and one longer fall far below the first rate: Smith & Topin (arXiv 1708.07120, section 3).

    Both parts are half cosines, as in fastai. The momentum stays as it is.
    """
    if progress < ONE_CYCLE_RISE:
        return _between(ONE_CYCLE_START, 1.0, progress / ONE_CYCLE_RISE)
    return _between(1.0, ONE_CYCLE_END, (progress - ONE_CYCLE_RISE) / (1.0 - ONE_CYCLE_RISE))


def cyclic(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """`cycles` triangles from `factor` up to 1 and back: "triangular" of Smith (arXiv 1506.01186, section 3.1)."""
    height = 1.0 - abs(2.0 * (progress * schedule.cycles % 1.0) - 1.0)
    return schedule.factor + (1.0 - schedule.factor) * height


def plateau(progress: float, schedule: ScheduleConfig, drops: int) -> float:
    """A drop by `factor` whenever the loss has not improved for `period` of the training, as `count_drops` counts."""
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


def count_drops(schedule: ScheduleConfig, losses: Losses) -> int:
    """How often the loss had not improved for `period` of the training, in all that was measured.

    The loss is the validation loss, or the training loss where nothing is held out; better means lower by 0.01%. The
    count begins after the warm-up. As torch's ReduceLROnPlateau, with the patience as a fraction of the training.
    """
    best, since, drops = math.inf, schedule.warmup, 0
    for at, loss in losses:
        if loss < best * (1.0 - PROGRESS):
            best, since = loss, max(at, since)
        elif at - since >= schedule.period - 1e-9:
            since, drops = at, drops + 1
    return drops


def factors(schedule: ScheduleConfig, losses: Losses = ()) -> Callable[[float], float]:
    """From the progress (0 to 1 of the configured training) to the learning rate as a factor of the peak rate.

    A linear warm-up from 0 (Goyal et al., arXiv 1706.02677, section 2.2) over the fraction `warmup` leads to the
    schedule's first rate; the schedule then spans the rest. It holds until another loss is measured.

    Raises:
        InputError: the schedule's name is unknown.
    """
    shape, warmup = find_schedule(schedule), schedule.warmup
    drops = count_drops(schedule, losses) if shape is plateau else 0

    def factor(progress: float) -> float:
        if progress < warmup:
            return shape(0.0, schedule, drops) * progress / warmup
        return shape((progress - warmup) / (1.0 - warmup), schedule, drops)

    return factor


def lr_factor(schedule: ScheduleConfig, progress: float, losses: Losses = ()) -> float:
    """The learning rate at `progress` as a factor of the peak rate; see `factors`.

    Raises:
        InputError: the schedule's name is unknown.
    """
    return factors(schedule, losses)(progress)


def epoch_rates(
    train: TrainConfig, history: Sequence[EpochMetrics], fresh_norm: float | None
) -> Callable[[float], float]:
    """From the progress (0 to 1 of the configured training) to the learning rate, in the epoch after `history`.

    With `by_norm` that is `lr * factor / norm`, the norm being the Euclidean norm of all weights of two or more
    dimensions together, at the end of the epoch before. So the rate rises as weight decay makes the weights smaller.
    For weights before a norm layer a step of plain SGD at the rate lr turns them as a step at lr / norm^2 would turn
    weights of norm 1, the "effective learning rate" of van Laarhoven (arXiv 1706.05350).

    Args:
        train: the recipe, or a later stage of it.
        history: all epochs so far, the last of them with its `weight_norm`.
        fresh_norm: the norm of the network as it was drawn, for the first epoch.

    Raises:
        InputError: the schedule's name is unknown.
        DivergedError: the norm to divide by is 0.
    """
    measured = history if train.schedule.name == "plateau" else ()
    factor = factors(train.schedule, [(metrics.epoch / train.epochs, metrics.loss) for metrics in measured])
    peak = train.lr
    if not train.schedule.by_norm:
        return lambda progress: peak * factor(progress)
    norm = history[-1].weight_norm if history else fresh_norm
    if not norm:
        raise DivergedError(
            f"epoch {len(history) + 1}: the norm of the weights is {norm}; no rate can be divided by it"
        )
    return lambda progress: peak * factor(progress) / norm


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
