"""How configurations stand when the noise between runs is taken into account.

The score that a configuration was chosen by out of many is too high on average: the winner's curse. Scores above the
median of all first scores are therefore drawn towards it, as far as noise explains how far the better ones lie above
it. Further runs were not chosen by their scores and count as they are. So a single lucky run does not pass a
configuration that further runs have confirmed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunelab.noise import (
    CONFIDENCE,
    DIVERGED,
    Noise,
    binomial_error,
    configuration_of,
    counted_epochs,
    half_width,
    margin_between,
    noise_at,
    noise_of,
)
from tunelab.records import Trial, TrialStatus

FEWEST_TO_DRAW = 8
"""From so many configurations on, first scores are drawn towards their median (our choice).

The best of fewer is less than 1.4 standard deviations of the noise too high, and three values above a median say little
about their spread: in simulated races of six, drawing cost more winners than it saved.
"""


@dataclass(frozen=True)
class Standing:
    """How one configuration stands.

    `mean` is of the scores as measured, `expected` of the same with the first one corrected for having been chosen, and
    `low` to `high` is the interval of `expected`. `tied_with_best` means that it cannot be told apart from the first;
    it is true of the first too.
    """

    number: int
    mean: float
    expected: float
    low: float
    high: float
    runs: int
    tied_with_best: bool


@dataclass(frozen=True)
class Place:
    """A configuration in the ranking of a study.

    `trial` is the one that it was proposed in, or its first repeat of full length where that one has none. `runs` are
    the numbers of all trials of full length that the standing is from, `epochs` their length; `lost` are those of its
    runs that diverged, which the standing counts as scores of 0, or failed, which it does not count.
    """

    trial: Trial
    standing: Standing
    runs: tuple[int, ...]
    epochs: int
    lost: tuple[int, ...]


def standings(scores: Mapping[int, Sequence[float]], noise: Noise, confidence: float = CONFIDENCE) -> list[Standing]:
    """The configurations, best first: by the expected score, then by the mean, then as they come in `scores`.

    Args:
        scores: per configuration, by number, the scores of all its runs of full length, the search's own first; of all
            configurations that came so far, since the correction is taken from them.
        noise: between runs of full length.
        confidence: of the intervals and of `tied_with_best`.
    """
    found = estimates(scores, noise)
    means = {number: statistics.fmean(runs) for number, runs in scores.items()}
    order = sorted(scores, key=lambda number: (-found[number][0], -means[number]))
    rows = []
    for number in order:
        own, best = scores[number], order[0]
        estimate, variances = found[number]
        margin = half_width(noise_of(own, noise), variances, confidence)
        behind = found[best][0] - estimate
        tied = number == best or behind <= margin_between(own, scores[best], noise, confidence)
        rows.append(Standing(number, means[number], estimate, estimate - margin, estimate + margin, len(own), tied))
    return rows


def estimates(scores: Mapping[int, Sequence[float]], noise: Noise) -> dict[int, tuple[float, float]]:
    """Each configuration's mean, its first score corrected for the winner's curse, and the variance of that.

    A first score above the median keeps its share of the distance (see `true_share`), and is drawn no farther than luck
    carries the best of as many (see `luck_of_best`): one far above the others is not all luck (the limited translation
    of Efron & Morris, Journal of the American Statistical Association 66, 1971). The variance is so many times that of
    one run. A first score that was drawn has Morris's (Journal of the American Statistical Association 78, 1983,
    equation 4.1) for as many as the better half, but no more than one that was not.
    """
    centre, share = true_share([runs[0] for runs in scores.values()], noise.sd)
    farthest = luck_of_best(len(scores)) * noise.sd if scores else 0.0
    better = len(scores) // 2
    found = {}
    for number, (first, *further) in scores.items():
        drawn, variance = first, 1.0
        if share < 1 and first > centre:
            drawn = max(centre + share * (first - centre), first - farthest)
            away = (1 - share) * (first - centre) / noise.sd
            known = 1 - (1 - share) * (better - 1) / better + 2 / (better - 3) * away**2
            variance = min(1.0, known)
        runs = 1 + len(further)
        found[number] = (statistics.fmean([drawn, *further]), (variance + len(further)) / runs**2)
    return found


def luck_of_best(count: int) -> float:
    """How many standard deviations the best of so many equal ones scores above their mean, on average.

    Blom, Statistical Estimates and Transformed Beta-Variables (1958): the quantile at (n - 3/8) / (n + 1/4).
    """
    return statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def on_new_data(standing: Standing, val_images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a configuration's accuracy on images that nobody has looked at.

    To the interval of what the validation images would give comes the chance in which images these are, the binomial
    error; both are taken for independent. Runs with other seeds show nothing of the latter.
    """
    error = binomial_error(min(max(standing.expected, 0.0), 1.0), val_images)
    images = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * error
    margin = math.hypot((standing.high - standing.low) / 2, images)
    return max(0.0, standing.expected - margin), min(1.0, standing.expected + margin)


def true_share(firsts: Iterable[float], sd: float) -> tuple[float, float]:
    """The median of first scores, and the share of the spread above it that is not noise; (0, 1) without scores.

    Empirical Bayes as of Efron & Morris (Journal of the American Statistical Association 70, 1975), with the upper half
    alone, because that is where winners come from and bad configurations reach far down: the share is 1 - sd^2 / mean
    squared distance of the better half from the median, at least 0.
    """
    ordered = sorted(firsts)
    centre = statistics.median(ordered) if ordered else 0.0
    if len(ordered) < FEWEST_TO_DRAW:
        return centre, 1.0
    spread = statistics.fmean((score - centre) ** 2 for score in ordered[(len(ordered) + 1) // 2 :])
    return centre, max(0.0, 1 - sd**2 / spread) if spread > 0 else 0.0


def as_runs(trials: Iterable[Trial]) -> list[Trial]:
    """Trials of a list of configurations, with those that differ from an earlier one by their seeds alone its repeats.

    Such a list has no proposals: the seeds of a retraining are runs of one configuration, as those of an ablation are.
    """
    first: dict[str, int] = {}
    marked = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        key = json.dumps({**trial.config, "seed": None}, sort_keys=True)
        of = first.setdefault(key, trial.number)
        marked.append(trial if of == trial.number else dataclasses.replace(trial, repeat_of=of))
    return marked


def places(trials: Iterable[Trial], val_images: int = 0, confidence: float = CONFIDENCE) -> list[Place]:
    """The configurations with runs of full length, best first; of equal ones the lower loss, then the earlier trial.

    Only like is compared with like: configurations of the longest full length come first, those of shorter ones (from
    before a study was extended) follow, and each length has its own standings. A run that diverged counts as a score of
    0: a configuration that trains at times only is not the best one.

    Args:
        trials: all trials of a study, repeats included.
        val_images: on how many images a score was measured, to guess the noise where few repeats tell of it.
        confidence: of the intervals and ties.
    """
    trials = list(trials)
    lost: dict[int, list[int]] = {}
    diverged: dict[int, list[int]] = {}
    lengths: dict[int, dict[int, list[Trial]]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.status is TrialStatus.COMPLETED:
            lengths.setdefault(counted_epochs(trial), {}).setdefault(configuration_of(trial), []).append(trial)
        elif trial.status in (TrialStatus.DIVERGED, TrialStatus.FAILED):
            lost.setdefault(configuration_of(trial), []).append(trial.number)
            if trial.status is TrialStatus.DIVERGED:
                diverged.setdefault(configuration_of(trial), []).append(trial.number)
    rows = []
    for epochs, runs in sorted(lengths.items(), reverse=True):
        order = sorted(runs, key=lambda number: (statistics.fmean(run.epochs[-1].loss for run in runs[number]), number))
        scores = {number: [run.epochs[-1].score for run in runs[number]] for number in order}
        for number in order:
            scores[number] += [DIVERGED] * len(diverged.get(number, ()))
        rows += [
            Place(
                runs[standing.number][0],
                standing,
                tuple(run.number for run in runs[standing.number]),
                epochs,
                tuple(lost.get(standing.number, ())),
            )
            for standing in standings(scores, noise_at(trials, epochs, val_images), confidence)
        ]
    return rows
