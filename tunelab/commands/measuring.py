"""The command that measures: profile."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunelab.commands.studies import find_trial
from tunelab.errors import InputError, StoppedError, TunelabError
from tunelab.shared_options import (
    DATA_NAMES,
    JSON,
    RUNS_DIR,
    STUDY,
    FiniteRange,
    data_options,
    several,
    shared,
    take_data,
    words_given,
)

if TYPE_CHECKING:
    from tunelab.study import Study
    from tunelab.tuning.profile import Subject

_USUAL_SPACE = "arch"


@click.command()
@STUDY
@click.argument("trial", type=click.IntRange(min=0), required=False)
@click.option("--space", help="Measure the baseline of this space in place of a trial; no study is needed.")
@data_options
@click.option(
    "--batch-sizes",
    metavar="N,N,...",
    callback=several(click.IntRange(min=1, max=65_536)),
    help="Batch sizes, such as 32,128,512  [default: a quarter to four times the configuration's own]",
)
@click.option(
    "--threads",
    metavar="N,N,...",
    callback=several(click.IntRange(min=1)),
    help="Numbers of threads, such as 1,2  [default: 1 and all processors; with a GPU all]",
)
@click.option(
    "--device",
    metavar="NAME,...",
    multiple=True,
    callback=several(click.Choice(["cpu", "cuda"])),
    help="Devices, such as cpu,cuda; may be given several times  [default: cpu, and cuda where there is a GPU]",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0, max=600, min_open=True),
    default=3,
    show_default=True,
    help="How long each point trains, beside its start and its validation.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the tables and plots  [default: profile/trialN in the study, or ./profile-SPACE-DATA]",
)
@shared(RUNS_DIR, JSON)
def profile(
    study: Path | str | None,
    trial: int | None,
    space: str | None,
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    device: tuple[str, ...],
    seconds: float,
    out: Path | None,
    runs_dir: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the speed and memory of a TRIAL (by default the best) of STUDY (by default the newest).

    Each combination of device, threads and batch size trains in a process of its own, so that its peak memory is its
    own. There are no loader workers to choose: a training gathers and augments its images itself, with the same
    threads. The table holds for speed and memory, at equal epochs; it says nothing of accuracy.

    \b
    tunelab profile
    tunelab profile runs/arch-20261121-2330 7 --batch-sizes 64,128,256
    tunelab profile --space arch --data cifar10 --data-dir data --device cpu
    """
    from tunelab.study import list_studies
    from tunelab.tuning.profile import find_devices, find_threads, plan

    data = take_data(options)
    words = words_given(click.get_current_context(), DATA_NAMES)
    if space is not None and study is not None:
        raise InputError(f"--space {space} is measured without a study; leave out {study} or --space")
    if space is None and words:
        raise InputError(f"{' and '.join(words)} can only be used with --space; a trial has data of its own")
    devices = find_devices(device)
    per_device = find_threads(threads)
    if space is None and (study is not None or list_studies(runs_dir)):
        subject, folder = _trial(*find_trial(study, trial, runs_dir))
    else:
        subject, folder = _baseline(space, data, devices, runs_dir)
    settings = plan(subject, devices, per_device, batch_sizes)
    analysis = importlib.import_module("tunelab.analysis.profile")
    content = analysis.profile(subject, settings, seconds, out or folder)
    if as_json:
        click.echo(json.dumps(content))
    elif content["points"]:
        analysis.print_profile(content)
    _judge(content, len(settings))


def _trial(study: Study, number: int | None) -> tuple[Subject, Path]:
    """What to measure of a study, the best trial without a number, and the folder for it."""
    from tunelab.tuning.profile import trial_subject

    trial = study.best() if number is None else study.trial(number)
    if study.running:
        click.echo(f"note: {study.path} is running: what is measured beside it is slower than alone", err=True)
    return trial_subject(study, trial), study.path / "profile" / f"trial{trial.number:04d}"


def _baseline(
    space: str | None, data: Mapping[str, Any], devices: Sequence[str], runs_dir: Path
) -> tuple[Subject, Path]:
    """What to measure without a study, and the folder for it: as a search would begin, on a GPU if one is measured."""
    from tunelab.config import DataConfig, from_json
    from tunelab.tuning.profile import baseline_subject

    if space is None:
        space = _USUAL_SPACE
        click.echo(
            f"note: there is no study in {runs_dir}; this is the baseline of the space {space} on {data['name']} "
            "(--space and --data name others)",
            err=True,
        )
    device = "cuda" if "cuda" in devices else "cpu"
    subject = baseline_subject(space, from_json(DataConfig, data), device)
    images = Path(str(data["name"]).rpartition(":")[2]).stem
    return subject, Path(re.sub(r"[^\w.-]+", "-", f"profile-{Path(space).stem}-{images}"))


def _judge(content: Mapping[str, Any], asked: int) -> None:
    """Raises what the exit status comes from, if not all points that were asked for are there, or none has figures."""
    points = content["points"]
    if not content["complete"]:
        kept = f"; {content['folder']} has what was measured" if points else ""
        raise StoppedError(f"interrupted after {len(points)} of {asked} points{kept}")
    if all(point["failed"] for point in points):
        raise TunelabError(f"nothing could be measured: {points[0]['failed']}")
