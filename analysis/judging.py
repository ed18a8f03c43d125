"""Whether changed configurations differ from the unchanged one, all of them trained with the same seeds.

The scores form a randomised complete block design: configurations are treatments, seeds are blocks. What a seed does to
all configurations alike is taken off, and the rest of the spread is pooled over the configurations (Montgomery, Design
and Analysis of Experiments, section 4.1), since a few seeds tell little about each one's own. Of one comparison that is
the paired t test; of several it gives away few degrees of freedom where seeds do nothing to all alike. As in
`tunelab.noise`, a guess counts for some degrees of freedom more, so that few seeds that happen to agree prove nothing.
A configuration of a far larger noise is found out by the spread of its runs and judged by that. Where three of its runs
happen to agree it is not: of such comparisons without an effect one in ten is decided wrongly (simulated, 8 times the
noise), where it is one in twenty of the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scipy.special import fdtrc, stdtr, stdtrit

from tunelab.noise import CONFIDENCE, DIVERGED, Noise

HELPS: Final = "helps"
UNDECIDED: Final = "no evidence"
HURTS: Final = "hurts"
FAILED: Final = "failed"

OUTLYING: Final = 0.05
"""A configuration whose runs spread so much more than those of the others that chance does it this seldom has a noise
of its own (our choice): a training that only just works is no measure for one that works."""

Scores = Sequence[float | None]
"""One score per seed: DIVERGED for a run that diverged, None for one that failed."""


def judge(
    unchanged: Scores, changed: Sequence[Scores], guess: Noise, confidence: float = CONFIDENCE
) -> tuple[Noise, list[dict[str, Any]]]:
    """The noise within a seed, and one row for each changed configuration, in the order given.

    A row has `change`, the mean of changed - unchanged over the seeds that have both, `low` to `high`, its interval at
    this confidence, `p`, how probable so large a change is by chance, and the `verdict` on what was changed: it "helps"
    if the interval lies below 0, "hurts" if above, else there is "no evidence". `sure` says that the verdict stands
    when all comparisons are made together: Holm (Scandinavian Journal of Statistics 6, 1979), which holds although all
    of them share the unchanged runs; `own_spread` that the interval is from the changes of its own runs, because one of
    the two configurations is not of the common noise. Without a seed that has both the verdict is "failed", the numbers
    are None.

    Args:
        unchanged: scores of the unchanged configuration.
        changed: scores of each changed one, the same seeds in the same order.
        guess: what the noise is taken for as far as the runs do not tell.
        confidence: of the intervals, and of all verdicts together for `sure`.
    """
    noise, steady = pooled([unchanged, *changed], guess)
    rows = []
    for number, scores in enumerate(changed, start=1):
        both = zip(unchanged, scores, strict=True)
        changes = [other - one for one, other in both if one is not None and other is not None]
        rows.append(_row(changes, noise, confidence, own_spread=not (steady[0] and steady[number])))
    _mark_sure(rows, confidence)
    return noise, rows


def pooled(groups: Sequence[Scores], guess: Noise) -> tuple[Noise, list[bool]]:
    """The noise within a seed, and of each configuration whether it is of that noise.

    Not of it are those with a run that diverged or failed, and those whose variance is OUTLYING.
    """
    whole = [[score for score in group if score is not None] for group in groups]
    sound = [len(own) == len(group) and DIVERGED not in own for own, group in zip(whole, groups, strict=True)]
    places = _without_outliers({place: own for place, own in enumerate(whole) if sound[place]}, guess)
    steady = [place in places for place in range(len(groups))]
    kept = [whole[place] for place in places]
    degrees = (len(kept) - 1) * (len(kept[0]) - 1) if kept else 0
    if degrees == 0:
        return guess, steady
    variance = (guess.degrees * guess.sd**2 + _residual_squares(kept)) / (guess.degrees + degrees)
    source = f"measured on {len(kept)} configurations with {len(kept[0])} seeds each"
    return Noise(math.sqrt(variance), guess.degrees + degrees, source, degrees), steady


def _without_outliers(groups: Mapping[int, Sequence[float]], guess: Noise) -> list[int]:
    """Those whose variances are alike, by Cochran's test (Annals of Eugenics 11, 1941), the largest first; at least 2.

    The largest variance is compared with that of the others and the guess, at a level shared by all of them.
    """
    kept, free = sorted(groups), min((len(group) - 1 for group in groups.values()), default=0)
    if free == 0:
        return kept
    variances = {place: statistics.variance(group) for place, group in groups.items()}
    while len(kept) > 2:
        largest = max(kept, key=lambda place: variances[place])
        rest = [variances[place] for place in kept if place != largest]
        degrees = guess.degrees + free * len(rest)
        usual = (guess.degrees * guess.sd**2 + free * sum(rest)) / degrees
        if fdtrc(free, degrees, variances[largest] / usual) * len(kept) >= OUTLYING:
            break
        kept.remove(largest)
    return kept


def _residual_squares(groups: Sequence[Sequence[float]]) -> float:
    """The sum of squares that neither the configurations nor the seeds explain."""
    means = [statistics.fmean(group) for group in groups]
    seeds = [statistics.fmean(block) for block in zip(*groups, strict=True)]
    centre = statistics.fmean(means)
    return sum(
        (score - mean - seed + centre) ** 2
        for group, mean in zip(groups, means, strict=True)
        for score, seed in zip(group, seeds, strict=True)
    )


def _row(changes: Sequence[float], noise: Noise, confidence: float, *, own_spread: bool) -> dict[str, Any]:
    """One comparison; with `own_spread` by that of its changes, if it is larger than the noise says."""
    if not changes:
        empty = dict.fromkeys(("change", "low", "high", "p"))
        return {**empty, "verdict": FAILED, "sure": False, "own_spread": own_spread}
    change = statistics.fmean(changes)
    error, degrees = noise.sd * math.sqrt(2 / len(changes)), noise.degrees
    margin = _bound(degrees, confidence) * error
    if own_spread and len(changes) > 1:
        free, spread = len(changes) - 1, statistics.stdev(changes) / math.sqrt(len(changes))
        if _bound(free, confidence) * spread > margin:
            error, degrees, margin = spread, free, _bound(free, confidence) * spread
    low, high = change - margin, change + margin
    return {
        "change": change,
        "low": low,
        "high": high,
        "p": float(2 * stdtr(degrees, -abs(change) / error)),
        "verdict": HELPS if high < 0 else HURTS if low > 0 else UNDECIDED,
        "sure": False,
        "own_spread": own_spread,
    }


def _bound(degrees: float, confidence: float) -> float:
    """What Student's t stays within, either side."""
    return float(stdtrit(degrees, (1 + confidence) / 2))


def _mark_sure(rows: Sequence[dict[str, Any]], confidence: float) -> None:
    """Holm's step-down: the smallest p against 1 - confidence shared by all, the next by one less, until one fails."""
    ordered = sorted((row for row in rows if row["p"] is not None), key=lambda row: float(row["p"]))
    for before, row in enumerate(ordered):
        if row["p"] * (len(ordered) - before) >= 1 - confidence:
            break
        row["sure"] = True
