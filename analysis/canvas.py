"""What all drawings share: figures without a window, colours, axes in plain numbers, and which trials are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunelab.records import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Item = TypeVar("Item")
Rows = list[dict[str, Any]]

COLOURS = {
    "completed": "#0072b2",
    "stopped": "#e69f00",
    "paused": "#009e73",
    "running": "#56b4e9",
    "diverged": "#d55e00",
    "failed": "#cc79a7",
}
"""A colour per status, from the palette of Okabe & Ito (Color Universal Design, 2008), which the colour-blind can read.
"""
SERIES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#444444")
"""Colours of other lines, from the same palette, its yellow darkened for a white ground."""
STYLE: Any = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.titlesize": 10.0,
    "figure.titlesize": 12.0,
    "text.usetex": False,
    "path.simplify": True,
}
WIDE = 20.0
"""Positive values that lie further apart than this are drawn on a logarithmic axis; our choice."""
_DPI = 120


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of so many inches and its panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save(figure: Figure, path: Path, title: str) -> None:
    """Writes a figure with its heading to a PNG file."""
    figure.suptitle(title, wrap=True)
    figure.savefig(path, dpi=_DPI)


def is_wide(values: Iterable[float]) -> bool:
    """True if the values want a logarithmic axis: positive, far apart, and most of them near the lower end."""
    found = sorted(values)
    return bool(found) and found[0] > 0 and found[-1] > WIDE * found[0] and found[-1] > 4 * found[len(found) // 2]


def log_axis(axis: Any, fine: float = 30.0) -> None:
    """Makes an axis logarithmic, labelled with plain numbers: 0.01, 0.1, 20, 50k.

    Args:
        axis: of a panel that has been drawn in.
        fine: up to this ratio of its ends it is labelled at 1, 2 and 5, else at powers of ten alone.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < fine * low else (1.0,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _place: short_number(value)))


def short_number(value: float) -> str:
    """A number for an axis: 0.05, 300, 20k, 1.5M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def whole_numbers(axis: Any) -> None:
    """Puts the ticks of an axis on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, integer=True))


def percents(values: Iterable[float]) -> list[float]:
    """Shares as percentages."""
    return [100 * value for value in values]


def thin(items: Sequence[Item], most: int, height: Callable[[Item], float]) -> list[Item]:
    """At most so many of a long sequence, in their order, that a line through them looks like one through all.

    The first and the last, and of each of equal parts the highest and the lowest, so that no peak is lost.
    """
    if len(items) <= most:
        return list(items)
    parts = max(1, (most - 2) // 2)
    kept = {0, len(items) - 1}
    for part in range(parts):
        places = range(part * len(items) // parts, (part + 1) * len(items) // parts)
        kept |= {pick(places, key=lambda place: height(items[place])) for pick in (min, max)}
    return [items[place] for place in sorted(kept)]


def sample(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most so many trials, in their order: the best third of them, and of the others evenly many.

    The best are those of full length with the highest scores, then those of the others.
    """
    if len(trials) <= most:
        return list(trials)
    order = sorted(trials, key=lambda one: (one.status.value == "COMPLETED", one.score or 0.0), reverse=True)
    best = order[: most // 3]
    kept = {trial.number for trial in best}
    others = [trial for trial in trials if trial.number not in kept]
    room = most - len(best)
    kept |= {others[place * len(others) // room].number for place in range(room)}
    return [trial for trial in trials if trial.number in kept]
