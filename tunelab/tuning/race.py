"""The finalists' race: whose configuration is trained again next, and what came of it; plain arithmetic.

Best-arm identification with a fixed budget. As in LUCB (Kalyanakrishnan et al., "PAC Subset Selection in Stochastic
Multi-armed Bandits", ICML 2012) only the leader and the challenger with the highest upper bound get the next run: no
other can change the answer. Which of the two follows from OCBA (Chen et al., Discrete Event Dynamic Systems 10, 2000,
equation 20): with equal noise the leader's runs are the root of the sum of squares of the challengers' runs.

The leader is compared with all at `SETTLED` while the race lasts and at `tunelab.noise.CONFIDENCE` at its end: looking
again after every run would otherwise find a winner among equals too often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunelab.noise import CONFIDENCE, Noise, half_width
from tunelab.standings import Standing, standings

SETTLED = 0.995
"""At this confidence a finalist drops out (our choice).

Of simulated races of two equals and three others, with eight repeats, 6% to 8% had a false winner; at 95%, 6% to 16%.
Of those in which one is better by three standard deviations, 95% to 98% are won; at 95%, one in a hundred more.
"""
SURE_OF = 2
LEAST_RUNS = 3
"""So many that scored best at first, and the leader, have at least so many runs, however clear it is (our choice)."""
REPEATS_EACH = 2
"""The budget is shared among as many finalists as it gives so many repeats each (our choice)."""
MOST_RUNS = 12
"""No configuration is trained more often (our choice): means of 12 runs tell 0.9 standard deviations apart."""


@dataclass(frozen=True)
class Verdict:
    """What a race came to: the number of the `winner`, or None, and of those that are `tied`, best first."""

    winner: int | None
    tied: tuple[int, ...]
    confidence: float


def next_repeat(
    scores: Mapping[int, Sequence[float]], running: Mapping[int, int], noise: Noise, runs_left: int
) -> int | None:
    """The number of the configuration to train again next; None if the question is settled or nothing can be gained.

    Repeats under way count as runs when shares are compared, so that it can be asked several times in a row. The first
    scores enter as `tunelab.standings.estimates` corrects them.

    Args:
        scores: as for `tunelab.standings.standings`: of all configurations of full length, not of finalists alone.
        running: how many repeats of a configuration are under way, or have failed: neither is asked for again.
        noise: between runs of full length.
        runs_left: how many further trainings of full length there is time for, those under way not counted.
    """
    rows = standings(scores, noise, SETTLED)
    if runs_left < 1 or len(rows) < 2:
        return None
    had = {row.number: row.runs + running.get(row.number, 0) for row in rows}
    chosen = sorted(rows, key=lambda row: -scores[row.number][0])[:SURE_OF]
    for least in range(2, LEAST_RUNS + 1):
        for row in (rows[0], *chosen):
            if had[row.number] < least:
                return row.number
    tied = [row for row in rows if row.tied_with_best][: _places(rows, running, runs_left)]
    leader, challengers = tied[0], tied[1:]
    if not challengers:
        return None
    share = math.sqrt(sum(had[row.number] ** 2 for row in challengers))
    if had[leader.number] < MOST_RUNS and had[leader.number] <= share:
        return leader.number
    below = [row for row in challengers if had[row.number] < MOST_RUNS]
    if not below:
        return None
    return max(below, key=lambda row: row.expected + half_width(noise, 1 / had[row.number])).number


def verdict(scores: Mapping[int, Sequence[float]], noise: Noise, confidence: float = CONFIDENCE) -> Verdict:
    """The winner, if every other configuration is clearly worse at this confidence; else those that are tied.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("a verdict needs scores")
    tied = tuple(row.number for row in standings(scores, noise, confidence) if row.tied_with_best)
    return Verdict(tied[0] if len(tied) == 1 else None, tied, confidence)


def _places(rows: Sequence[Standing], running: Mapping[int, int], runs_left: int) -> int:
    """How many finalists there is time for; repeats that the best have had already are part of the budget."""
    had = sum(row.runs - 1 for row in rows if row.tied_with_best)
    return max(SURE_OF, (runs_left + sum(running.values()) + had) // REPEATS_EACH)
