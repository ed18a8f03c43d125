"""The networks of the best trials as block diagrams."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import NothingToDrawError
from tunelab.records import Trial
from tunelab.study import Study

from .canvas import Rows, new_figure, save

TOP = 5
"""So many networks are drawn (our choice)."""
_FILLS = {"basic": "#cfe6f5", "bottleneck": "#fbe3b5", "inception": "#c9ecdf"}
_OTHER = "#eeeeee"
_BOX = (0.86, 0.62)  # of a place of 1 by 1

Size = tuple[int, int]


def networks(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per part of the best networks: stem, blocks, head, each with its width, stride and resolution after it.

    A network that several configurations have comes once, with the best of them. `rank` counts the ranking, or the
    highest scores so far where no trial has run its full length yet. `branch` is 0 for what all branches share.
    `height` and `wide` are the pixels of the maps that come out of a part.

    Raises:
        NothingToDrawError: no trial has a score yet, or the networks are of a family that has no drawing.
    """
    ranked = [(place.trial, place.standing.expected) for place in study.places_of(trials)]
    if not ranked:
        scored = sorted((trial for trial in trials if trial.epochs), key=lambda trial: -(trial.score or 0.0))
        ranked = [(trial, trial.score or 0.0) for trial in scored]
    if not ranked:
        raise NothingToDrawError("no trial has ended an epoch yet")
    best: dict[str, tuple[int, Trial, float]] = {}
    for rank, (trial, score) in enumerate(ranked, start=1):
        best.setdefault(trial.arch_id, (rank, trial, score))
    data = study.info.get("data", {})
    height, wide = data.get("image_size", (0, 0))
    classes = len(data.get("classes", ()))
    rows = [
        {"rank": rank, "trial": trial.number, "score": score, **part}
        for rank, trial, score in list(best.values())[:TOP]
        for part in parts(trial.config.get("arch", {}), (height, wide), classes)
    ]
    if not rows:
        raise NothingToDrawError("the networks are of a family that has no drawing")
    return rows


def parts(arch: Mapping[str, Any], size: Size, classes: int) -> Iterator[dict[str, Any]]:
    """The parts of a network from its description as JSON; none of a family that is not known."""
    if "branches" in arch:
        yield from _blocks(arch, size, classes)
    elif "pooling" in arch:
        yield from _lenet(arch, size, classes)
    elif "hidden" in arch:
        for place, width in enumerate(arch["hidden"]):
            yield _part(0, place, "dense", width, 1, None)
        yield _part(0, len(arch["hidden"]), "classifier", classes, 1, None)


def _part(branch: int, place: int, kind: str, width: int, stride: int, size: Size | None) -> dict[str, Any]:
    height, wide = size or (None, None)
    place_of = {"branch": branch, "place": place, "kind": kind, "width": width, "stride": stride}
    return {**place_of, "height": height, "wide": wide}


def _blocks(arch: Mapping[str, Any], size: Size, classes: int) -> Iterator[dict[str, Any]]:
    stem = arch["stem"]
    yield _part(0, 0, f"stem {stem['kernel']}x{stem['kernel']}", stem["width"], 1, size)
    if stem["pool"]:
        size = _after(size, 2)
        yield _part(0, 1, "max pool", stem["width"], 2, size)
    first = 2 if stem["pool"] else 1
    for number, branch in enumerate(arch["branches"], start=1):
        inside = size
        for place, block in enumerate(branch, start=first):
            inside = _after(inside, block["stride"])
            kind = f"basic x{block['convs']}" if block["kind"] == "basic" else block["kind"]
            yield _part(number, place, kind, block["width"], block["stride"], inside)
    last = first + max(len(branch) for branch in arch["branches"])
    yield _part(0, last, "classifier", classes, 1, None)


def _lenet(arch: Mapping[str, Any], size: Size, classes: int) -> Iterator[dict[str, Any]]:
    """LeNet-5 looks at a field of 32x32 pixels, in the middle of which smaller images stand (LeCun et al. 1998)."""
    pool = f"{arch['pooling']} pool"
    maps = [("conv 5x5", 6, 1, 28), (pool, 6, 2, 14), ("conv 5x5", 16, 1, 10), (pool, 16, 2, 5)]
    for place, (kind, width, stride, side) in enumerate(maps):
        yield _part(0, place, kind, width, stride, (side, side))
    for place, (kind, width) in enumerate((("dense", 120), ("dense", 84), ("classifier", classes)), start=len(maps)):
        yield _part(0, place, kind, width, 1, None)


def _after(size: Size, stride: int) -> Size:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def draw_networks(rows: Rows, path: Path, title: str) -> None:
    """Draws a diagram per network, left to right; branches lie above each other, a halving has a thick left edge."""
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    nets = [[row for row in rows if row["rank"] == rank] for rank in ranks]
    longest = max(row["place"] for row in rows) + 1
    lanes = [max(1, *(row["branch"] for row in net)) for net in nets]
    figure, _ = new_figure(max(6.0, 0.88 * longest + 0.4), sum(0.4 + 0.82 * count for count in lanes) + 0.5)
    figure.clear()
    grid = figure.add_gridspec(len(nets), 1, height_ratios=[0.4 + 0.82 * count for count in lanes])
    for place, (net, count) in enumerate(zip(nets, lanes, strict=True)):
        panel = figure.add_subplot(grid[place])
        panel.set_axis_off()
        panel.set(xlim=(-0.55, longest - 0.4), ylim=(count - 0.55, -0.45))
        head = net[0]
        panel.set_title(f"{head['rank']}. trial {head['trial']}, {100 * head['score']:.1f}%", loc="left")
        _draw_network(panel, net, count)
    save(figure, path, title)


def _draw_network(panel: Any, net: Rows, lanes: int) -> None:
    middle = (lanes - 1) / 2
    shared = [row for row in net if row["branch"] == 0]
    numbers = sorted({row["branch"] for row in net} - {0})
    head = shared.pop()
    for row in shared:
        _draw_part(panel, row, (row["place"], middle))
    ends = []
    for number in numbers or [0]:
        height = middle if number == 0 else number - 1
        chain = [row for row in net if row["branch"] == number] if number else []
        points = [(row["place"], middle) for row in shared] + [(row["place"], height) for row in chain]
        ends.append(points[-1])
        panel.plot(*zip(*points, strict=True), color="#666666", linewidth=1.2, zorder=1)
        for row in chain:
            _draw_part(panel, row, (row["place"], height))
    for end in ends:
        panel.plot((end[0], head["place"]), (end[1], middle), color="#666666", linewidth=1.2, zorder=1)
    joined = f"sum of {len(numbers)}\n" if len(numbers) > 1 else ""
    _draw_part(panel, {**head, "kind": joined + head["kind"]}, (head["place"], middle))


def _draw_part(panel: Any, row: Mapping[str, Any], point: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    wide, high = _BOX
    left, top = point[0] - wide / 2, point[1] - high / 2
    fill = _FILLS.get(row["kind"].partition(" ")[0], _OTHER)
    box = FancyBboxPatch(
        (left, top), wide, high, "round,pad=0,rounding_size=0.06",
        facecolor=fill, edgecolor="#444444", linewidth=0.8, zorder=2,
    )  # fmt: skip
    panel.add_patch(box)
    if row["stride"] == 2:
        panel.plot((left, left), (top + 0.05, top + high - 0.05), color="#d55e00", linewidth=4, zorder=3)
    resolution = "" if row["height"] is None else f"\n{row['height']}x{row['wide']}"
    halving = ", /2" if row["stride"] == 2 else ""
    panel.text(
        point[0] + 0.02, point[1], f"{row['kind']}\n{row['width']}{halving}{resolution}",
        fontsize=7.5, ha="center", va="center", zorder=4, linespacing=1.15,
    )  # fmt: skip
