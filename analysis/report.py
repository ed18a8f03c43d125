"""The report of a study: a folder of pictures and tables, and one page that needs nothing but itself."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunelab import __version__
from tunelab.errors import InputError
from tunelab.files import require_no_links, sync_folder
from tunelab.records import Trial
from tunelab.study import Study, current, describe_counts

from .advice import recommend
from .diagnose import diagnose_study
from .diagnose_text import name_trials
from .gallery import PLOTS, collect, draw, table
from .page import build, to_csv
from .rank import summary
from .retrain_plots import retrainings
from .study_plots import duration
from .text import describe_ties

TOP = 20
PAGE = "index.html"
_OF_RETRAINING = ("full_curve", "confusion", "classes", "mistakes")
_TOLD = ("concurrent", "device", "sampler", "scheduler", "race", "max_params", "max_mflops", "objective", "warm_start")


def write_report(study: Study, out: Path | None = None) -> dict[str, Any]:
    """Writes the report of a study and says what was written, what was left out and why, and what is recommended.

    `index.html` holds everything; beside it lies a PNG and a CSV file for each plot. Each file appears whole, the page
    last; plots of an earlier report that cannot be drawn any more are removed. It may be called while the study runs.

    Args:
        study: what it is about.
        out: the folder, made if it is not there; None is `report` inside the study.

    Raises:
        InputError: the folder cannot be written.
        TunelabError: the record is damaged before its last line.
    """
    folder = study.path / "report" if out is None else out
    if out is None:
        require_no_links(study.path)
    with _staging(folder) as staging:
        content = gather(study, staging)
        (staging / PAGE).write_text(build(content), encoding="utf-8", errors="backslashreplace")
        files = sorted(staging.iterdir(), key=lambda file: file.name == PAGE)
        for file in files:
            file.replace(folder / file.name)
        written = {file.name for file in files}
        for name in (f"{plot}.{kind}" for plot in PLOTS for kind in ("png", "csv")):
            if name not in written:
                (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
    return {
        "study": study.place,
        "folder": str(folder),
        "page": str(folder / PAGE),
        "files": [str(folder / file.name) for file in files],
        "left_out": content["left_out"],
        "recommendations": content["recommendations"],
    }


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` that is filled unseen and removed at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
    try:
        yield staging
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def gather(study: Study, staging: Path) -> dict[str, Any]:
    """What the page shows, as plain data and pictures; the pictures and tables are written into `staging`."""
    shown = summary(study, TOP)
    trials = study.list_trials()
    counted = current(study.info, trials)
    found, left_out = collect(study, counted)
    figures = [_figure(name, rows, staging) for name, rows in found.items()]
    for figure in figures:
        (staging / f"{figure['name']}.csv").write_text(figure["csv"], encoding="utf-8", errors="backslashreplace")
    first = shown["ranking"][0] if shown["ranking"] else None
    return {
        "study": study.name,
        "sentence": describe_study(study, counted, shown),
        "ties": describe_ties(first["trial"], shown["tied"], shown["noise"], shown["compared"]) if first else "",
        "new_data": shown.get("new_data"),
        "winner": next((trial.params for trial in trials if first and trial.number == first["trial"]), {}),
        "ranking": shown["ranking"],
        "ranked": len(study.places_of(trials)),
        "recommendations": recommend(study, counted, shown),
        "health": _health(study),
        "figures": figures,
        "left_out": {PLOTS[name][2]: reason for name, reason in left_out.items()},
        "retrainings": [_retraining(path, metrics) for path, metrics in retrainings(study)],
        "about": _about(study, trials, counted),
        "made": f"Made by tunelab {__version__} on {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z} from the "
        f"record of {study.place}.",
    }


def _health(study: Study) -> list[dict[str, Any]]:
    """The findings of all trials as rows of the page."""
    return [
        {
            "finding": row["finding"] + (" (remark)" if row["remark"] else ""),
            "trials": name_trials(row["trials"]),
            "for example": row["example"],
            "what to do": row["suggestion"],
        }
        for row in diagnose_study(study)["findings"]
    ]


def _figure(name: str, rows: list[dict[str, Any]], staging: Path) -> dict[str, Any]:
    _, _, title, words, caption = PLOTS[name]
    file = staging / f"{name}.png"
    legend = draw(name, rows, file, title)
    plain = table(rows)
    return {
        "name": name,
        "group": "retrain" if name in _OF_RETRAINING else "search",
        "title": title,
        "words": words(rows),
        "caption": caption,
        "legend": legend,
        "png": file.read_bytes(),
        "rows": plain,
        "csv": to_csv(plain),
    }


def describe_study(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> str:
    """The study in a sentence or two."""
    info = study.info
    data, space = info.get("data", {}), info.get("space", {}).get("name", info.get("kind", "?"))
    height, width = data.get("image_size", (0, 0))
    counts = data.get("counts", {})
    hours = sum(metrics.seconds for trial in trials for metrics in trial.epochs) / 3600
    state = " The search is running; this is how it stood when the report was made." if shown["running"] else ""
    return (
        f"{shown['trials']} of {shown['asked']} configurations of the space {space} were tried on "
        f"{data.get('name', '?')} ({height}x{width} pixels, {len(data.get('classes', ()))} classes; "
        f"{counts.get('train', 0):,} training and {counts.get('val', 0):,} validation images), for up to "
        f"{info['options'].get('epochs', '?')} epochs: {describe_counts(trials)}; {duration(hours)} of training in "
        f"all.{state}"
    )


def _retraining(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A retraining as a row of the page, as far as its `metrics.json` tells."""
    spread, interval = metrics.get("test_accuracy_std"), metrics.get("test_interval") or {}
    low, high = metrics.get("search_low"), metrics.get("search_high")
    together = metrics.get("ensemble") or {}
    return {
        "folder": folder.name,
        "trial": metrics.get("trial"),
        "epochs": metrics.get("epochs"),
        "trained on": metrics.get("trained_on"),
        "seeds": len(metrics.get("seeds", ())),
        "test accuracy": _share(metrics["test_accuracy"]) + (f" ± {100 * spread:.1f}" if spread else ""),
        "95% interval": _span(interval.get("low"), interval.get("high")),
        "ensemble": _share(together.get("accuracy")),
        "the search measured": _share(metrics.get("search_val_accuracy")),
        "the search expected": _span(low, high),
        "test images": metrics.get("test_images"),
        "read before": metrics.get("test_reads_before"),
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _span(low: float | None, high: float | None) -> str:
    """An interval in percent, a dash where it is not known; no accuracy lies outside 0 to 100%."""
    return "–" if low is None or high is None else f"{100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}%"


def _about(study: Study, trials: Sequence[Trial], counted: Sequence[Trial]) -> dict[str, Any]:
    """What the study was made with, as terms and texts."""
    info = study.info
    told: dict[str, Any] = {"folder": study.place, "created": str(info.get("created", "?"))}
    told |= {name: info["options"][name] for name in _TOLD if info["options"].get(name) not in (None, [])}
    hardware = info.get("hardware", {})
    machine = [str(hardware.get("processor", "?")), f"{hardware.get('cpus', '?')} CPUs", *hardware.get("gpus", ())]
    told["machine"] = ", ".join(machine)
    told["data fingerprint"] = str(info.get("data", {}).get("fingerprint", "?"))
    told["seed"] = info.get("seed")
    told |= {name: str(version) for name, version in info.get("versions", {}).items()}
    if len(counted) < len(trials):
        told["left out"] = f"{len(trials) - len(counted)} trials from before the study was changed"
    return told
