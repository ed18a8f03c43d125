"""What is good besides accuracy: costs, who is beaten by nobody, and several goals as one; plain arithmetic.

Accuracy is the higher the better and always the first objective; of the others less is better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from tunelab.records import Trial

FIRST = "val_accuracy"
COSTS: Mapping[str, str] = {
    "params": "weights",
    "mflops": "million multiply-adds per image",
    "seconds": "seconds of the whole training",
}
"""The objectives beside accuracy, and what they count."""
NO_COSTS: Mapping[str, float] = {}
AUGMENTED = 0.05
"""How much the sum of all goals counts beside the worst of them (Knowles 2006, section III)."""
PARTS = 10
"""Weights are multiples of 1 / PARTS, as Knowles has them for two objectives."""


def costs_of(trial: Trial) -> dict[str, float]:
    """What a trial costs, as far as it is known, by the names of COSTS."""
    found = {name: float(trial.stats[name]) for name in ("params", "mflops") if trial.stats.get(name) is not None}
    if trial.epochs:
        found["seconds"] = sum(metrics.seconds for metrics in trial.epochs)
    return found


def non_dominated(scores: Sequence[float], costs: Sequence[Sequence[float]]) -> list[int]:
    """The places of those that no other beats, by their first cost.

    One beats another if it is at least as good in everything and better in something; of equal ones the first stays.

    Args:
        scores: one per candidate, higher is better.
        costs: per candidate its costs, all of the same length, lower is better.
    """
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], *costs[place], place))
    front: list[int] = []
    for place in order:  # whoever could beat one comes before it
        if not any(all(ours <= own for ours, own in zip(costs[one], costs[place], strict=True)) for one in front):
            front.append(place)
    return sorted(front, key=lambda place: (*costs[place], place))


def draw_weights(generator: random.Random, count: int) -> list[float]:
    """Random weights of so many goals, multiples of 1 / PARTS that add up to 1 (Knowles 2006, equation 1)."""
    cuts = sorted(generator.sample(range(1, PARTS + count), count - 1))
    return [(high - low - 1) / PARTS for low, high in zip([0, *cuts], [*cuts, PARTS + count], strict=True)]


def scalarise(scores: Sequence[float], others: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Several goals as one number per candidate, in [-1.05, 0]; higher is better.

    ParEGO (Knowles, IEEE Transactions on Evolutionary Computation 10, 2006, equation 2): each goal is scaled to [0, 1]
    over the candidates, 0 the best; what counts is the worst of them times its weight (the augmented Tchebycheff
    function). Costs are scaled by their logarithms (our choice), since those of networks differ by orders of magnitude.

    Args:
        scores: one per candidate, higher is better.
        others: per cost one value for each candidate, positive, lower is better.
        weights: one for the scores, then one per cost, as `draw_weights` gives them.
    """
    goals = [_scaled([-score for score in scores])]
    goals += [_scaled([math.log(max(value, 1e-9)) for value in values]) for values in others]
    found = []
    for candidate in zip(*goals, strict=True):
        weighted = [weight * value for weight, value in zip(weights, candidate, strict=True)]
        found.append(-max(weighted) - AUGMENTED * sum(weighted))
    return found


def _scaled(values: Sequence[float]) -> list[float]:
    """Values in [0, 1], all 0 where they do not differ."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
