"""What was tried and what came of it: parameters against the score, and what accuracy costs."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import NothingToDrawError
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, proposed
from tunelab.tuning.objectives import FIRST, costs_of

from .canvas import COLOURS, Rows, is_wide, log_axis, new_figure, percents, sample, save
from .front import front, objectives_of
from .plots import draw_pareto, pareto

MOST_LINES = 250
MOST_POINTS = 600
MOST_AXES = 8
MOST_SLICES = 16
MOST_NAMES = 20
"""What is drawn at most: lines of trials, trials as points, axes of parameters, slices, names on one (our choice)."""
FEWEST = 3
"""Trials with a parameter below which it is not drawn (our choice)."""
SHARED = 0.6
"""The share of trials that must have a parameter for it to be an axis that all lines cross (our choice)."""
_BINS = 4  # of a number's values, by quantiles, when it is judged; our choice


def told(values: Sequence[Any], scores: Sequence[float]) -> float:
    """How much of the order of the scores a parameter tells, in [0, 1]: a first look, not its importance.

    The share of the variance of the ranks between groups of equal values, or of four quantiles of a number, less what
    chance gives (epsilon squared, Kelley, Proceedings of the National Academy of Sciences 21, 1935). Ranks, because
    failures lie so far below that they would be all that is seen.
    """
    order = {score: place for place, score in enumerate(sorted(scores))}  # of equal scores the last place counts
    groups: dict[Any, list[int]] = {}
    for value, score in zip(_binned(values), scores, strict=True):
        groups.setdefault(value, []).append(order[score])
    ranks = [rank for group in groups.values() for rank in group]
    centre = statistics.fmean(ranks)
    whole = sum((rank - centre) ** 2 for rank in ranks)
    spare = len(ranks) - len(groups)
    if whole <= 0 or spare <= 0 or len(groups) < 2:
        return 0.0
    within = sum(statistics.pvariance(group) * len(group) for group in groups.values())
    return max(0.0, 1 - within / spare * (len(ranks) - 1) / whole)


def is_number(values: Sequence[Any]) -> bool:
    """True if these are numbers to be put on a scale: True and False are not."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _binned(values: Sequence[Any]) -> list[Any]:
    if not is_number(values) or len(set(values)) <= _BINS:
        return [str(value) for value in values]
    cuts = statistics.quantiles(values, n=_BINS)
    return [sum(value > cut for cut in cuts) for value in values]


def telling(trials: Sequence[Trial]) -> list[str]:
    """The parameters that differ between trials with a score, those that tell most of it first."""
    columns: dict[str, tuple[list[Any], list[float]]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values, scores = columns.setdefault(name, ([], []))
            values.append(value)
            scores.append(trial.score or 0.0)
    several = {name: one for name, one in columns.items() if len(one[0]) >= FEWEST and _differs(one[0])}
    return sorted(several, key=lambda name: (-told(*several[name]) * len(several[name][0]), name))


def _differs(values: Sequence[Any]) -> bool:
    """True if FEWEST values are not the commonest one, and there are not more names than can be read."""
    counts = Counter(map(str, values))
    several = len(values) - counts.most_common(1)[0][1] >= FEWEST
    return several and (is_number(values) or len(counts) <= MOST_NAMES)


def parallel(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per configuration and parameter: its value and the score; the parameters that most trials have.

    Of these the ones that tell most of the score come first. `value` is None where a trial has no such parameter.

    Raises:
        NothingToDrawError: too few trials have a score, or their parameters do not differ.
    """
    scored = _scored(trials)
    common = [name for name in telling(scored) if sum(name in one.params for one in scored) >= SHARED * len(scored)]
    names = common[:MOST_AXES]
    if len(names) < 2:
        raise NothingToDrawError("fewer than two parameters that most trials have differ between them")
    return [
        {
            "trial": trial.number,
            "status": trial.status.value.lower(),
            "score": trial.score,
            "parameter": name,
            "value": _plain(trial.params.get(name)),
        }
        for trial in sample(scored, MOST_LINES)
        for name in names
    ]


def draw_parallel(rows: Rows, path: Path, title: str) -> None:
    """Draws a line per trial through an axis for each parameter; yellow is the best, dark the worst."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = list(dict.fromkeys(row["parameter"] for row in rows))
    scales = [_scale([row["value"] for row in rows if row["parameter"] == name]) for name in names]
    lines: dict[tuple[float, int], list[Any]] = {}
    for row in rows:
        lines.setdefault((100 * row["score"], row["trial"]), []).append(row["value"])
    norm, colours = Normalize(min(lines)[0], max(lines)[0]), colormaps["viridis"]
    figure, (panel,) = new_figure(10, 5.2)
    for (score, _), values in sorted(lines.items()):
        heights = [None if value is None else scale[0](value) for value, scale in zip(values, scales, strict=True)]
        kept = [(place, height) for place, height in enumerate(heights) if height is not None]
        panel.plot(*zip(*kept, strict=True), color=colours(norm(score)), linewidth=1.1, alpha=0.8)
    for place, (_, ticks) in enumerate(scales):
        panel.axvline(place, color="#444444", linewidth=1)
        for height, label in ticks:
            panel.text(
                place, height, label, fontsize=8, ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "#bbbbbb", "alpha": 0.85},
            )  # fmt: skip
    panel.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")
    panel.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.35, len(names) - 0.65))
    panel.grid(visible=False)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colours), ax=panel, label="validation accuracy (%)", pad=0.01)
    save(figure, path, title)


def _scale(values: Sequence[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """How a parameter's values become heights in [0, 1], and what is written where; None has no height."""
    values = [value for value in values if value is not None]
    if is_number(values) and len(set(values)) > _BINS:
        log = is_wide(values)
        low, high = min(values), max(values)

        def height(value: float) -> float:
            return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

        middle = math.sqrt(low * high) if log else (low + high) / 2
        return height, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]
    names = sorted(set(values), key=lambda value: (str(type(value)), value))
    places = {value: 0.5 if len(names) == 1 else at / (len(names) - 1) for at, value in enumerate(names)}
    return places.__getitem__, [(at, _short(value)) for value, at in places.items()]


def slices(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per parameter and configuration: its value, the score, and whether that is of full length.

    Raises:
        NothingToDrawError: too few trials have a score, or their parameters do not differ.
    """
    scored = _scored(trials)
    names = telling(scored)[:MOST_SLICES]
    if not names:
        raise NothingToDrawError("the trials with a score do not differ in any parameter")
    return [
        {
            "parameter": name,
            "value": _plain(trial.params[name]),
            "trial": trial.number,
            "score": trial.score,
            "full_length": trial.status is TrialStatus.COMPLETED,
        }
        for name in names
        for trial in sample([one for one in scored if name in one.params], MOST_POINTS)
    ]


def draw_slices(rows: Rows, path: Path, title: str) -> None:
    """Draws the score against each parameter: blue ran in full, orange ended earlier, the line is the median."""
    names = list(dict.fromkeys(row["parameter"] for row in rows))
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure, axes = new_figure(max(5.0, 2.6 * columns), 0.9 + 2.2 * lines, lines, columns)
    for panel, name in zip(axes, names, strict=False):
        _draw_slice(panel, [row for row in rows if row["parameter"] == name])
        panel.set_title(name)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    figure.supylabel("validation accuracy (%)", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, path, title)


def _draw_slice(panel: Any, rows: Rows) -> None:
    values = [row["value"] for row in rows]
    if is_number(values) and len(set(values)) > _BINS:
        places = {value: float(value) for value in values}
        log = is_wide(values)
    else:
        order = sorted(set(values), key=lambda value: (str(type(value)), value))
        places, log = {value: float(at) for at, value in enumerate(order)}, False
        rotated = {"rotation": 20, "ha": "right"} if sum(len(_short(one)) for one in order) > 18 else {}
        panel.set_xticks(range(len(order)), [_short(value) for value in order], **rotated)
        panel.set_xlim(-0.6, len(order) - 0.4)
    for whole, status, alpha, label in ((False, "stopped", 0.45, "ended earlier"), (True, "completed", 0.8, "in full")):
        mine = [row for row in rows if row["full_length"] is whole]
        points = [places[row["value"]] for row in mine], percents(row["score"] for row in mine)
        panel.scatter(*points, s=12, color=COLOURS[status], alpha=alpha, linewidth=0, label=label)
    middle = _medians(rows, places)
    panel.plot(*zip(*middle, strict=True), color="black", linewidth=1.2, marker="_", markersize=9) if middle else None
    if log:
        log_axis(panel.xaxis, fine=10)


def _medians(rows: Rows, places: Mapping[Any, float]) -> list[tuple[float, float]]:
    """The median score of full length at each value, or in each of four quantiles of many values, with 2 at least."""
    whole = [row for row in rows if row["full_length"]]
    values = [row["value"] for row in whole]
    if len(whole) < 2 * FEWEST:
        return []
    groups: dict[Any, list[dict[str, Any]]] = {}
    for key, row in zip(_binned(values), whole, strict=True):
        groups.setdefault(key, []).append(row)
    found = [
        (
            statistics.median(places[row["value"]] for row in group),
            statistics.median(percents(row["score"] for row in group)),
        )
        for group in groups.values()
        if len(group) > 1
    ]
    return sorted(found) if len(found) > 1 else []


def sizes(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per cost and configuration of full length: the cost, the expected accuracy, whether it is on the front.

    The costs are millions of multiply-adds and weights, and the study's own other objectives.

    Raises:
        NothingToDrawError: no trial has run its full length yet, or no costs of them are known.
    """
    ranked = study.places_of(trials)
    if not ranked:
        raise NothingToDrawError("no trial has run its full length yet")
    rows: Rows = []
    for name in dict.fromkeys(("mflops", "params", *objectives_of(study)[1:])):
        known = [place for place in ranked if costs_of(place.trial).get(name, 0) > 0]
        pair = (FIRST, name)
        rows += pareto(known, front(trials, known, pair, study.val_images), pair) if known else []
    if not rows:
        raise NothingToDrawError("the multiply-adds and weights of no trial are known")
    return rows


def draw_sizes(rows: Rows, path: Path, title: str) -> None:
    """Draws the accuracy against each cost, and those that no other beats with their intervals."""
    draw_pareto(rows, path, title)


def _scored(trials: Sequence[Trial]) -> list[Trial]:
    """The configurations with a score and parameters."""
    found = [trial for trial in proposed(trials) if trial.epochs and trial.params]
    if len(found) < FEWEST:
        raise NothingToDrawError(f"{len(found)} configurations with parameters have a score; {FEWEST} are needed")
    return found


def _plain(value: Any) -> Any:
    """A parameter's value as it goes into a table: numbers, truth values and texts as they are."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 14 else text[:13] + "…"
