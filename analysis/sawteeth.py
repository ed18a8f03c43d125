"""Saw-teeth in the accuracy of a long training: a sharp drop, then a rise. Pure functions of accuracies.

Around each epoch the level before is the median of the three epochs before it, the level after that of itself and the
two after it, so that a single bad epoch is no drop. A drop is a fall of the level by more than 10 times the noise
there, and by 2 points of accuracy at least. It is the beginning of a tooth if the level then regains half of the fall
before the next drop; otherwise the training collapsed.

The noise is the standard deviation of single epochs around a slow course: from the differences of neighbouring epochs
within 50 epochs on either side, less their median, of whose sizes the upper quartile is taken. So the drops themselves
have no part in it while they are fewer than a quarter of the epochs. All numbers are our choice: in 200,000 epochs of
independent normal noise they gave no tooth, in as many of a random walk 3.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NOISES = 10.0
"""A drop is deeper than so many times the local noise."""
LEAST_DEPTH = 0.02
"""A drop is at least so deep, as a share of all images."""
REGAINED = 0.5
"""So much of its depth is regained after a drop that begins a tooth."""
LEVEL = 3
"""Epochs whose median is the level."""
AROUND = 50
"""Epochs on either side that tell the noise."""
SHORTEST = 2 * LEVEL
"""Of fewer epochs nothing can be said."""
_QUARTILE = 1.1503  # upper quartile of the size of a standard normal number


def find_teeth(accuracies: Sequence[float]) -> list[dict[str, Any]]:
    """The saw-teeth in the accuracies of the epochs 1, 2, ...: where each drops, from where to where, and how deep.

    `epoch` is the first after the fall, `high` and `low` are the levels before and after, `depth` is their difference.
    """
    drops = _drops(accuracies)
    levels = [statistics.median(accuracies[at : at + LEVEL]) for at in range(len(accuracies) - LEVEL + 1)]
    found = []
    for place, (at, high, low) in enumerate(drops):
        end = drops[place + 1][0] - LEVEL if place + 1 < len(drops) else len(levels) - 1
        if max(levels[at : end + 1], default=low) >= low + REGAINED * (high - low):
            found.append({"epoch": at + 1, "high": high, "low": low, "depth": high - low})
    return found


def describe_teeth(accuracies: Sequence[float]) -> dict[str, Any]:
    """How many saw-teeth there are, the epochs of their drops, their period and depth.

    Those are the medians of the distances between two drops and of what `find_teeth` calls depth. `period` (epochs) is
    None for fewer than two teeth, `depth` for none.
    """
    teeth = find_teeth(accuracies)
    epochs = [tooth["epoch"] for tooth in teeth]
    distances = [after - before for before, after in itertools.pairwise(epochs)]
    return {
        "saw_teeth": len(teeth),
        "period": statistics.median(distances) if distances else None,
        "depth": statistics.median(tooth["depth"] for tooth in teeth) if teeth else None,
        "drops": epochs,
    }


def say_teeth(found: Mapping[str, Any]) -> str:
    """What `describe_teeth` found in a few words: "12 saw-teeth, one every 38 epochs, 21.4 points deep"."""
    number = found["saw_teeth"]
    if not number:
        return "no saw-teeth"
    period = f", one every {found['period']:g} epochs" if number > 1 else ""
    return f"{number} saw-{'teeth' if number > 1 else 'tooth'}{period}, {100 * found['depth']:.1f} points deep"


def _drops(accuracies: Sequence[float]) -> list[tuple[int, float, float]]:
    """Each drop as (place of the first epoch after the fall, level before, level after)."""
    falls = {}
    for at in range(LEVEL, len(accuracies) - LEVEL + 1):
        high = statistics.median(accuracies[at - LEVEL : at])
        low = statistics.median(accuracies[at : at + LEVEL])
        if high - low >= LEAST_DEPTH and high - low > NOISES * noise_at(accuracies, at):
            falls[at] = (high, low)
    groups: list[list[int]] = []
    for at in falls:  # one fall is seen from the epochs around it too
        if groups and at - groups[-1][-1] < LEVEL:
            groups[-1].append(at)
        else:
            groups.append([at])
    found = []
    for group in groups:
        at = max(group, key=lambda one: accuracies[one - 1] - accuracies[one])
        high, low = max((falls[one] for one in group), key=lambda levels: levels[0] - levels[1])
        found.append((at, high, low))
    return found


def noise_at(accuracies: Sequence[float], at: int) -> float:
    """The standard deviation of single epochs around a slow course, near the epoch at this place (from 0)."""
    near = accuracies[max(0, at - AROUND) : at + AROUND + 1]
    steps = [after - before for before, after in itertools.pairwise(near)]
    course = statistics.median(steps)
    sizes = sorted(abs(step - course) for step in steps)
    return sizes[math.ceil(0.75 * len(sizes)) - 1] / _QUARTILE / math.sqrt(2)
