"""Run-to-run noise: by how much two trainings of one configuration differ, and what can be told apart in spite of it.

Scores are accuracies in [0, 1]. The noise is one standard deviation for all configurations, measured on those that were
trained more than once. Few repeats measure a standard deviation badly (two equal ones would give 0), so they are
combined with a guess that counts like a few repeats more: the binomial error of the validation images, or the jitter
between the last epochs if that is larger.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunelab.records import EpochMetrics, Trial, out_of_patience

CONFIDENCE = 0.95
PRIOR_DEGREES = 2.0
"""How many degrees of freedom the guess counts for: a scaled inverse chi-square prior of the variance (our choice).

The binomial error is a fair guess: of well trained networks that tell two classes apart the variance between runs is
about half of it, (1 - p) / 2n (Jordan, "Calibrated Chaos", arXiv 2304.01910), of short trainings several times that.
In simulated races two degrees erred less than three where the guess was less than half of the truth.
"""
LAST_EPOCHS = 6
"""Over so many last epochs the jitter is taken (our choice): they give three third differences."""
JITTER_TRIALS = 100
"""Of at most so many trials, the best ones: more change the median little and cost time (our choice)."""
UNKNOWN = 0.01
"""The guess where there is nothing to guess from (our choice)."""
UNSTABLE = 5.0
"""A configuration whose runs differ by so many times the noise of others is unstable and no measure (our choice)."""
DIVERGED = 0.0
"""The score of a run that diverged beside others of its configuration: no accuracy at all (our choice)."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation between runs, how well it is known, and what it was found from.

    `degrees` are the degrees of freedom, those of the guess included; `repeats` counts the measured ones alone.
    """

    sd: float
    degrees: float
    source: str
    repeats: int = 0


def noise_at(trials: Iterable[Trial], epoch: int, val_images: int) -> Noise:
    """The noise of scores after `epoch` epochs, from all trials that came so far.

    Runs of one configuration are compared only if they were to have the same full length, since a schedule depends
    on it. Those that ended by early stopping keep their last score.

    Args:
        trials: all trials of a study, repeats included.
        epoch: after how many epochs, from 1.
        val_images: on how many images a score was measured; 0 if that is not known.
    """
    reached = []
    groups: dict[tuple[int, int], list[float]] = {}
    for trial in trials:
        there = len(trial.epochs)
        if there < epoch and counted_epochs(trial) < epoch:
            continue
        reached.append(trial)
        last = trial.epochs[min(there, epoch) - 1]
        groups.setdefault((configuration_of(trial), full_length(trial)), []).append(last.score)
    return measured(groups.values(), _guess(reached, epoch, val_images))


class NoiseSoFar:
    """`noise_at` of one search that goes on: the same answers, but a trial is looked at until it is known alone.

    Args:
        epoch: after how many epochs, from 1.
        val_images: as for `noise_at`.
    """

    def __init__(self, epoch: int, val_images: int) -> None:
        self._epoch = epoch
        self._val_images = val_images
        self._forget({})

    def _forget(self, trials: Mapping[int, Trial]) -> None:
        self._trials = trials
        self._looked_at = 0
        self._open: dict[int, Trial] = {}
        self._reached: list[tuple[float, int, Trial]] = []  # the best first, of equal ones the first
        self._groups: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self._repeated: dict[tuple[int, int], list[tuple[int, float]]] = {}  # those of several runs
        self._guessed: tuple[int, Noise] | None = None  # from how many of the best; as long as they stay the best

    def noise(self, trials: Mapping[int, Trial]) -> Noise:
        """The noise now; `trials` is always the same mapping, to which trials are added, or all begins anew."""
        if trials is not self._trials:
            self._forget(trials)
        for place, trial in enumerate(itertools.islice(trials.values(), self._looked_at, None), self._looked_at):
            self._open[place] = trial
        self._looked_at = len(trials)
        for place, trial in list(self._open.items()):
            if len(trial.epochs) >= self._epoch or counted_epochs(trial) >= self._epoch:
                self._take(place, trial)
            elif not trial.status.ended:
                continue
            del self._open[place]
        count = _better(len(self._reached))
        if self._guessed is None or self._guessed[0] != count:
            best = [trial.epochs[: self._epoch] for _, _, trial in self._reached[:count]]
            self._guessed = count, _guess_from(best, self._val_images)
        groups = sorted(self._repeated.values())
        return measured([[score for _, score in group] for group in groups], self._guessed[1])

    def _take(self, place: int, trial: Trial) -> None:
        """The trial has come this far: what it scored then does not change any more."""
        score = trial.epochs[min(len(trial.epochs), self._epoch) - 1].score
        at = bisect.bisect(self._reached, (-score, place, trial))
        self._reached.insert(at, (-score, place, trial))
        if self._guessed is not None and at < self._guessed[0]:
            self._guessed = None
        key = configuration_of(trial), full_length(trial)
        group = self._groups.setdefault(key, [])
        bisect.insort(group, (place, score))
        if len(group) > 1:
            self._repeated[key] = group


def configuration_of(trial: Trial) -> int:
    """The number of the trial that the configuration was first proposed in."""
    return trial.number if trial.repeat_of is None else trial.repeat_of


def full_length(trial: Trial) -> int:
    """How many epochs a trial is to have."""
    train: Mapping[str, int] = trial.config.get("train", {})
    return int(train.get("epochs", len(trial.epochs)))


def ended_early(trial: Trial) -> str:
    """Why the recipe's early stopping ends a trial after the epochs that it has, "" if it does not."""
    patience = trial.config.get("train", {}).get("patience")
    return "" if patience is None else out_of_patience(trial.epochs, patience, full_length(trial))


def counted_epochs(trial: Trial) -> int:
    """How many epochs a trial counts as: those that it has, or its full length where it ended by early stopping."""
    return full_length(trial) if ended_early(trial) else len(trial.epochs)


def measured(groups: Iterable[Sequence[float]], guess: Noise) -> Noise:
    """The pooled standard deviation within groups of scores, each of one configuration, combined with a guess.

    The variance is (degrees of the guess x its variance + sum of squares) / all degrees: the scale of the posterior
    where the guess is a scaled inverse chi-square prior (Gelman et al., Bayesian Data Analysis, section 2.6). An
    UNSTABLE configuration is left out if at least two repeats of others are left to judge it by.
    """
    pooled = sorted(((_squares(group), len(group) - 1) for group in groups if len(group) > 1), key=_variance)
    found = len(pooled)
    while len(pooled) > 1:
        rest, degrees = _combine(pooled[:-1], guess)
        if degrees - guess.degrees < 2 or _variance(pooled[-1]) <= UNSTABLE**2 * rest:
            break
        pooled.pop()
    if not pooled:
        return guess
    variance, degrees = _combine(pooled, guess)
    repeats = sum(count for _, count in pooled)
    source = f"measured on {_counted(repeats, 'repeat')}"
    if repeats < guess.degrees:
        source += f" and guessed from {guess.source}"
    if len(pooled) < found:
        source += f", {_counted(found - len(pooled), 'unstable configuration')} left out"
    return Noise(math.sqrt(variance), degrees, source, repeats)


def noise_of(scores: Sequence[float], noise: Noise) -> Noise:
    """The noise of one configuration: its own if its runs show it to be UNSTABLE, which others say nothing about.

    Runs that diverged are no part of it.
    """
    group = [score for score in scores if score != DIVERGED]
    if len(group) < 3:
        return noise
    variance = _squares(group) / (len(group) - 1)
    if variance <= UNSTABLE**2 * noise.sd**2:
        return noise
    return Noise(math.sqrt(variance), float(len(group) - 1), "its own runs", len(group) - 1)


def half_width(noise: Noise, variances: float, confidence: float = CONFIDENCE) -> float:
    """Half the width of the interval of an estimate whose variance is so many times that of one run."""
    return student_t(confidence, noise.degrees) * noise.sd * math.sqrt(variances)


def margin_between(one: Sequence[float], other: Sequence[float], noise: Noise, confidence: float = CONFIDENCE) -> float:
    """By how much the means of two configurations may differ by chance at this confidence.

    With two noises the fewer degrees of freedom count, which is on the safe side of Welch's test.
    """
    first, second = noise_of(one, noise), noise_of(other, noise)
    spread = math.sqrt(first.sd**2 / len(one) + second.sd**2 / len(other))
    return student_t(confidence, min(first.degrees, second.degrees)) * spread


@functools.lru_cache(maxsize=64)
def student_t(confidence: float, degrees: float) -> float:
    """The bound that Student's t stays within, either side, with this confidence; to 0.2% from 2 degrees on.

    Hill, "Algorithm 396: Student's t-quantiles", Communications of the ACM 13 (1970). In place of scipy, which takes
    longer to load than a study.
    """
    outside = 1 - confidence
    a = 1 / (degrees - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * degrees
    y = (d * outside) ** (2 / degrees)
    if y > 0.05 + a:
        x = statistics.NormalDist().inv_cdf(outside / 2)
        y = x**2
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y**2)
    else:
        inner = 1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3) + 0.5 / (degrees + 4)
        y = (inner * y - 1) * (degrees + 1) / (degrees + 2) + 1 / y
    return math.sqrt(degrees * y)


def binomial_error(accuracy: float, images: int) -> float:
    """The standard error of an accuracy measured on so many images, sqrt(p (1 - p) / n).

    Two right and two wrong images are added, so that 100% is not taken for certain (Agresti & Coull, The American
    Statistician 52, 1998).
    """
    adjusted = (accuracy * images + 2) / (images + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (images + 4))


def jitter(scores: Sequence[float]) -> float:
    """The standard deviation of scores about a smooth curve, from at least four epochs in a row.

    From third differences, which a parabola has none of; those of independent scores have 20 times their variance.
    """
    thirds = [d - 3 * c + 3 * b - a for a, b, c, d in zip(scores, scores[1:], scores[2:], scores[3:], strict=False)]
    return math.sqrt(statistics.fmean(third**2 for third in thirds) / 20)


def _guess(reached: Sequence[Trial], epoch: int, val_images: int) -> Noise:
    """What the noise is taken for without repeats, from the better half of the trials that came so far."""
    histories = sorted((trial.epochs[:epoch] for trial in reached), key=lambda epochs: epochs[-1].score, reverse=True)
    return _guess_from(histories[: _better(len(histories))], val_images)


def _better(count: int) -> int:
    """How many of so many trials are the better half that a guess is made from."""
    return min((count + 1) // 2, JITTER_TRIALS)


def _guess_from(better: Sequence[Sequence[EpochMetrics]], val_images: int) -> Noise:
    """As `_guess`, from the epochs of the better half, the best first."""
    guesses: list[tuple[float, str]] = []
    if better and val_images > 0 and all(epochs[-1].val_accuracy is not None for epochs in better):
        accuracy = statistics.median(epochs[-1].score for epochs in better)
        guesses.append((binomial_error(accuracy, val_images), f"the binomial error of {val_images} validation images"))
    curves = [[one.score for one in epochs[-LAST_EPOCHS:]] for epochs in better if len(epochs) >= 4]
    if curves:
        guesses.append((statistics.median(jitter(curve) for curve in curves), "the jitter between epochs"))
    sd, source = max(guesses, default=(0.0, ""))
    return Noise(sd, PRIOR_DEGREES, source) if sd > 0 else Noise(UNKNOWN, PRIOR_DEGREES, "nothing")


def _squares(scores: Sequence[float]) -> float:
    """The sum of squared distances from the mean."""
    mean = statistics.fmean(scores)
    return sum((score - mean) ** 2 for score in scores)


def _variance(squares: tuple[float, int]) -> float:
    """The variance from a sum of squares and its degrees of freedom."""
    return squares[0] / squares[1]


def _combine(pooled: Sequence[tuple[float, int]], guess: Noise) -> tuple[float, float]:
    """Variance and degrees of freedom of sums of squares, each with its own, and the guess."""
    degrees = guess.degrees + sum(count for _, count in pooled)
    return (guess.degrees * guess.sd**2 + sum(squares for squares, _ in pooled)) / degrees, degrees


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
