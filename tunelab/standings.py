"""How configurations stand when the noise between runs is taken into account.

The score that a configuration was chosen by out of many is too high on average: the winner's curse. It is therefore
drawn towards the median of all first scores, as far as noise explains how far the better ones lie above it, and by one
standard deviation of the noise at most. Further runs were not chosen by their scores and count as they are. So a single
lucky run does not pass a configuration that further runs have confirmed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunelab.noise import (
    CONFIDENCE,
    DIVERGED,
    Noise,
    configuration_of,
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
FARTHEST = 1.0
"""No score is drawn farther than so many standard deviations of the noise, lest one far above the others is taken for
luck (our choice): the limited translation of Efron & Morris, Journal of the American Statistical Association 66 (1971).
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
    found = expected(scores, noise)
    means = {number: statistics.fmean(runs) for number, runs in scores.items()}
    order = sorted(scores, key=lambda number: (-found[number], -means[number]))
    rows = []
    for number in order:
        own, best = scores[number], order[0]
        margin = half_width(noise_of(own, noise), 1 / len(own), confidence)
        behind = found[best] - found[number]
        tied = number == best or behind <= margin_between(own, scores[best], noise, confidence)
        bounds = (found[number] - margin, found[number] + margin)
        rows.append(Standing(number, means[number], found[number], *bounds, len(scores[number]), tied))
    return rows


def expected(scores: Mapping[int, Sequence[float]], noise: Noise) -> dict[int, float]:
    """Each configuration's mean, its first score corrected for the winner's curse."""
    centre, share = true_share([runs[0] for runs in scores.values()], noise.sd)
    farthest = FARTHEST * noise.sd
    found = {}
    for number, (first, *further) in scores.items():
        drawn = centre + share * (first - centre) if share < 1 else first
        found[number] = statistics.fmean([max(first - farthest, min(first + farthest, drawn)), *further])
    return found


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


def places(trials: Iterable[Trial], val_images: int = 0) -> list[Place]:
    """The configurations with runs of full length, best first; of equal ones the lower loss, then the earlier trial.

    Only like is compared with like: configurations of the longest full length come first, those of shorter ones (from
    before a study was extended) follow, and each length has its own standings. A run that diverged counts as a score of
    0: a configuration that trains at times only is not the best one.

    Args:
        trials: all trials of a study, repeats included.
        val_images: on how many images a score was measured, to guess the noise where few repeats tell of it.
    """
    trials = list(trials)
    lost: dict[int, list[int]] = {}
    diverged: dict[int, list[int]] = {}
    lengths: dict[int, dict[int, list[Trial]]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.status is TrialStatus.COMPLETED:
            lengths.setdefault(len(trial.epochs), {}).setdefault(configuration_of(trial), []).append(trial)
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
            for standing in standings(scores, noise_at(trials, epochs, val_images))
        ]
    return rows
