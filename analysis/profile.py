"""The efficiency table of a configuration: how fast it trains and what memory it takes, and which setting to take.

What it says holds for speed and memory alone: see COMPARED.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tunelab.capacity import free_memory_mib
from tunelab.config import to_json
from tunelab.errors import InputError
from tunelab.files import write_atomically
from tunelab.study import write_csv
from tunelab.tuning.hardware import describe_hardware, describe_versions
from tunelab.tuning.probes import COMMAND
from tunelab.tuning.profile import Figures, Point, Setting, Subject, measure
from tunelab.tuning.progress import MeasuringLine, duration

from .plots import draw_by_batch_size, epoch_time, peak_memory
from .rank import describe_config
from .text import console, count

COMPARED = (
    "compared at equal epochs (equal images, but for those that fill no batch), for speed and memory alone: not at "
    "equal steps, nor at equal time to an accuracy; larger batches make fewer steps in an epoch, so the accuracy after "
    "as many epochs may differ"
)
SPREAD = 0.1
"""A gain in images per second up to this share may be chance, and changes no batch size; our choice."""
PLOTS = {
    "epoch_time.png": (epoch_time, "seconds per epoch", "how long an epoch takes"),
    "peak_memory.png": (peak_memory, "peak memory (MiB)", "how much memory a training takes"),
}
_COLUMNS = "device", "threads", "batch", "s/step", "s/epoch", "images/s", "epochs/h", "host MiB", "GPU MiB", "steps", ""


def profile(
    subject: Subject,
    settings: Sequence[Setting],
    seconds: float,
    folder: Path,
    command: Sequence[str] = COMMAND,
) -> dict[str, Any]:
    """Measures the settings one after another and returns what `profile.json` holds; progress goes to standard error.

    Writes `profile.csv`, `profile.json`, `epoch_time.png` and `peak_memory.png` into `folder`, in place of those of an
    earlier profile; the tables after each point, so that nothing is lost. Ctrl-C ends it with what was measured by
    then: `complete` is False.

    Args:
        subject: what is trained.
        settings: how, in the order of `tunelab.tuning.profile.plan`.
        seconds: how long each is trained.
        folder: where the files go; made if it is not there.
        command: what measures, for tests.

    Raises:
        InputError: the folder cannot be made, or not be written to.
    """
    content = _begin(subject, seconds, folder)
    points: list[Point] = []
    began = time.monotonic()
    try:
        with MeasuringLine(sys.stderr) as line:
            for number, setting in enumerate(settings, start=1):
                left = (time.monotonic() - began) / max(1, len(points)) * (len(settings) - len(points))
                said = f", about {duration(left)} left" if points else ""
                line.at_work(f"measuring {number} of {len(settings)}: {setting.describe()}{said}")
                points.append(measure(subject, setting, seconds, points, command))
                line.done(f"{number} of {len(settings)}: {describe_point(points[-1])}")
                content = _put(content, points, complete=len(points) == len(settings))
                _write_tables(folder, content)
    except KeyboardInterrupt:
        pass  # what there is by now is written below, and says that it is not all
    _write_tables(folder, content)
    _draw(folder, subject, points)
    return content


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per point, as in `profile.csv`: times in seconds, memory in MiB; None where there are no figures."""
    return [
        {
            "device": point.setting.device,
            "threads": point.setting.threads,
            "batch_size": point.setting.batch_size,
            "seconds_per_step": figures and figures.step,
            "seconds_per_epoch": figures and figures.epoch,
            "images_per_second": figures and figures.images_per_second,
            "epochs_per_hour": figures and 3600 / figures.epoch,
            "peak_host_mib": figures and figures.host_memory,
            "peak_device_mib": figures and figures.device_memory,
            "steps_timed": figures and figures.steps,
            "failed": point.failed,
            "note": point.note,
        }
        for point in points
        for figures in (point.figures,)
    ]


def recommend(points: Sequence[Point], own: int, images: int, free: float) -> dict[str, Any] | None:
    """The setting to take, with the reason; None if no point was measured within `free` MiB of memory.

    It is the fastest in images per second; of those that are within SPREAD of it the one whose batch size is nearest to
    the configuration's `own`, in doublings. Other batch sizes than its own are at most the training `images`.
    """
    found = [
        (point.setting, point.figures)
        for point in points
        if point.figures and point.figures.host_memory <= free and point.setting.batch_size <= max(own, images)
    ]
    if not found:
        return None
    fastest = max(found, key=_rate)
    level = [one for one in found if _rate(one) * (1 + SPREAD) >= _rate(fastest)]
    nearest = min(level, key=lambda one: (abs(math.log2(one[0].batch_size / own)), -_rate(one)))
    setting = nearest[0]
    return {
        "device": setting.device,
        "threads": setting.threads,
        "batch_size": setting.batch_size,
        "reason": _reason(nearest, fastest, [one for one in found if one[0].batch_size == own], own),
    }


def _rate(one: tuple[Setting, Figures]) -> float:
    return one[1].images_per_second


def _reason(
    chosen: tuple[Setting, Figures],
    fastest: tuple[Setting, Figures],
    with_own: Sequence[tuple[Setting, Figures]],
    own: int,
) -> str:
    """Why this one, in a sentence or two."""
    rate = _rate(chosen)
    said = f"{rate:.0f} images/s, "
    if chosen == fastest:
        said += "the fastest of what was measured"
    else:
        more = 100 * (_rate(fastest) / rate - 1)
        said += f"and {fastest[0].describe()} has {more:.0f}% more, which may be chance (up to {100 * SPREAD:.0f}%)"
    if chosen[0].batch_size == own:
        return f"{said}; the batch size is the configuration's own"
    if not with_own:
        return f"{said}; the configuration's own batch size of {own} has no figures"
    usual = max(with_own, key=_rate)
    gain = 100 * (rate / _rate(usual) - 1)
    return f"{said}; {gain:.0f}% more than {usual[0].describe()}, the configuration's own batch size"


def describe_point(point: Point) -> str:
    """A point in one line."""
    if point.figures is None:
        return f"{point.setting.describe()}: {point.failed}"
    found = point.figures
    device = "" if found.device_memory is None else f", {found.device_memory:.0f} MiB of the GPU"
    speed = f"{found.images_per_second:.0f} images/s, {found.epoch:.3g} s per epoch"
    return f"{point.setting.describe()}: {speed}, {found.host_memory:.0f} MiB{device}"


def print_profile(content: Mapping[str, Any]) -> None:
    """What `tunelab profile` says: what was measured, the table, the setting to take, and where the files are."""
    out = console()
    configuration, data = content["configuration"], content["data"]
    size = f"{count(configuration['stats'].get('params'))} parameters"
    height, width = data["image_size"]
    out.print(f"{configuration['name']}: {configuration['what']}; {size}", style="bold")
    out.print(
        f"data      {data['name']}, {height}x{width}x{data['channels']}, {data['counts']['train']} training and "
        f"{data['counts']['val']} validation images"
    )
    machine = content["machine"]
    out.print(
        f"machine   {machine['processor']}, {machine['cpus']} CPUs, {machine['memory_free_mib'] / 1024:.1f} GiB of "
        f"memory free, GPUs: {', '.join(machine['gpus']) or 'none'}"
    )
    if content["points"]:
        out.print(_table(content))
    chosen = content["recommended"]
    if chosen is not None:
        setting = Setting(chosen["device"], chosen["threads"], chosen["batch_size"])
        out.print(f"recommended: {setting.describe()}: {chosen['reason']}", style="bold")
    out.print(content["compared"])
    out.print(f"files: {content['folder']}")


def _table(content: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name not in ("device", "") else "left", overflow="fold")
    chosen = content["recommended"] or {}
    for row in content["points"]:
        setting = [row["device"], row["threads"], row["batch_size"]]
        same = setting == [chosen.get(name) for name in ("device", "threads", "batch_size")]
        remarks = ["recommended" if same else "", row["failed"], row["note"]]
        table.add_row(
            *[str(value) for value in setting],
            *[_cell(row[name]) for name in ("seconds_per_step", "seconds_per_epoch")],
            *[_whole(row[name]) for name in ("images_per_second", "epochs_per_hour", "peak_host_mib")],
            *[_whole(row[name]) for name in ("peak_device_mib", "steps_timed")],
            Text("; ".join(remark for remark in remarks if remark)),
        )
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _begin(subject: Subject, seconds: float, folder: Path) -> dict[str, Any]:
    """The content without any points, in a folder that can be written to and holds nothing of an earlier profile."""
    config = to_json(subject.config)
    about = {"name": subject.name, **subject.source, "what": describe_config(config), "stats": dict(subject.stats)}
    content = {
        "configuration": {**about, "config": config},
        "data": subject.info.to_json(),
        "machine": {**describe_hardware(), "memory_free_mib": round(free_memory_mib())},
        "versions": describe_versions(),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds_per_point": seconds,
        "folder": str(folder),
        "compared": COMPARED,
    }
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("profile.csv", *PLOTS):
            (folder / name).unlink(missing_ok=True)
    content = _put(content, [], complete=False)
    _write_tables(folder, content)
    return content


def _put(content: Mapping[str, Any], points: Sequence[Point], *, complete: bool) -> dict[str, Any]:
    """The content with these points, and what follows from them."""
    own, images = content["configuration"]["config"]["train"]["batch_size"], content["data"]["counts"]["train"]
    chosen = recommend(points, own, images, content["machine"]["memory_free_mib"])
    return {**content, "points": rows_of(points), "recommended": chosen, "complete": complete}


def _write_tables(folder: Path, content: Mapping[str, Any]) -> None:
    with _told(folder):
        write_atomically(folder / "profile.json", json.dumps(content, indent=2) + "\n")
        if content["points"]:
            write_csv(folder / "profile.csv", content["points"])


def _draw(folder: Path, subject: Subject, points: Sequence[Point]) -> None:
    """Draws the plots, if anything was measured."""
    for name, (data, label, title) in PLOTS.items():
        rows = data(points)
        if rows:
            with _told(folder):
                draw_by_batch_size(rows, folder / name, f"{subject.name}: {title}", label)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Around writing into `folder`: what goes wrong becomes one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder} cannot be written to ({reason}); --out names another folder") from error
