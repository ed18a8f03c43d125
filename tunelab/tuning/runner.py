"""Runs searches: from options to a study, and from an unfinished study to its end.

Everything that can be refused is refused before a folder is made: the space, the data, the limits, the room on the
disk. Retraining is the same engine on a fixed list of configurations (`run_configs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunelab.config import DataConfig, TrialConfig, from_json, to_json
from tunelab.data.cache import DataInfo, prepare
from tunelab.errors import InputError, TunelabError
from tunelab.journal import Journal
from tunelab.space import SearchSpace, load_space
from tunelab.study import Study
from tunelab.study import runs_dir as find_runs_dir
from tunelab.tuning import ray_tune
from tunelab.tuning.engine import Engine, Stopping
from tunelab.tuning.hardware import describe_hardware, describe_versions, find_slots
from tunelab.tuning.options import LIMITS, SearchOptions, seconds_until
from tunelab.tuning.preflight import (
    absolute_paths,
    check_room,
    make_check,
    make_source,
    new_path,
    require_same_data,
    try_space,
)
from tunelab.tuning.progress import DecodingBar, Progress, Silent
from tunelab.tuning.searcher import FixedSource, Source
from tunelab.tuning.stopping import NeverStop, SuccessiveHalving


class PausedError(TunelabError):
    """A search was stopped before its end and can be resumed; `study` is what there is of it."""

    def __init__(self, study: Study, halted: str, left: int) -> None:
        again = (
            f"`tunelab resume {study.path}` goes on" if study.info["kind"] == "search" else "the same command goes on"
        )
        super().__init__(f"stopped before the end ({halted}): {left} trials are left; {again}")
        self.study = study
        self.halted = halted
        self.exit_status = 130 if halted == "SIGINT" else 3


@dataclass(frozen=True)
class _Plan:
    """What `_execute` needs beside the study: where configurations come from, and how to run them."""

    source: Source
    stopping: Stopping
    total: int
    options: SearchOptions
    title: str
    ends: float | None
    show_progress: bool


def search(
    space: str,
    *,
    trials: int = 100,
    epochs: int = 30,
    data: str | DataConfig = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    limit_train: int | None = None,
    val_fraction: float = 0.15,
    skip_unreadable: bool = False,
    deadline: str | None = None,
    study: str | Path | None = None,
    runs_dir: str | Path | None = None,
    seed: int = 0,
    concurrent: int | None = None,
    cpus_per_trial: int | None = None,
    gpus_per_trial: float | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    sampler: Literal["tpe", "random"] = "tpe",
    scheduler: Literal["asha", "none"] = "asha",
    max_params: int | None = None,
    max_mflops: float | None = None,
    telemetry: Literal["off", "scalars"] = "scalars",
    progress: bool = True,
) -> Study:
    """Searches `space` and returns the study; the names are those of `tunelab search`.

    Args:
        space: a name, an entry point, or a path that ends in `.py` (its code is run).
        trials: how many configurations are tried.
        epochs: the full length of a trial.
        data: a data set's name, `folder:PATH`, `npz:PATH`, or a DataConfig in place of the data options.
        data_dir: where torchvision's data sets lie.
        download: allows a download.
        image_size: resizes the images to this many pixels.
        limit_train: keeps that many training images.
        val_fraction: the share held out for comparing trials, where the data has no such split.
        skip_unreadable: goes on when a file of a folder is not an image.
        deadline: pauses at a time of day (`07:30`) or after a length of time (`8h`).
        study: the folder to make; by default one inside `runs_dir` with the space's name and the time.
        runs_dir: the folder of studies; by default `TUNELAB_RUNS` or `runs`.
        seed: everything random derives from it.
        concurrent: trials at once; by default as many as the processors or GPUs carry.
        cpus_per_trial: threads of a trial.
        gpus_per_trial: the share of a GPU that a trial takes.
        device: where trials train.
        sampler: proposes configurations.
        scheduler: stops weak trials early, or none.
        max_params: refuses larger networks; by default 1 million weights on a CPU, 12 million on a GPU.
        max_mflops: refuses costlier networks (millions of multiply-adds per image); by default 40 or 1200.
        telemetry: what goes to TensorBoard.
        progress: shows the progress on standard error.

    Raises:
        InputError: something given cannot be used; nothing has been made then.
        PausedError: a signal stopped the search; it can be resumed. A deadline is no error.
        TunelabError: the search failed.
    """
    if not isinstance(data, DataConfig):
        data = from_json(
            DataConfig,
            {
                "name": data,
                "data_dir": data_dir,
                "download": download,
                "image_size": image_size,
                "limit_train": limit_train,
                "val_fraction": val_fraction,
                "skip_unreadable": skip_unreadable,
            },
        )
    options = from_json(
        SearchOptions,
        {
            "trials": trials,
            "epochs": epochs,
            "data": to_json(data),
            "seed": seed,
            "concurrent": concurrent,
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": gpus_per_trial,
            "device": device,
            "sampler": sampler,
            "scheduler": scheduler,
            "max_params": max_params,
            "max_mflops": max_mflops,
            "telemetry": telemetry,
        },
    )
    path = None if study is None else Path(study).expanduser()
    try:
        return start_search(space, options, path, runs_dir, deadline, show_progress=progress)
    except PausedError as paused:
        if paused.halted == "deadline":
            return paused.study
        raise


def start_search(
    space_name: str,
    options: SearchOptions,
    path: Path | None,
    runs: str | Path | None = None,
    deadline: str | None = None,
    *,
    show_progress: bool = True,
) -> Study:
    """A new study, searched to its end.

    Raises:
        InputError: something given cannot be used; nothing has been made then.
        PausedError: a signal or the deadline stopped the search.
        TunelabError: the search failed.
    """
    ends = _end_time(deadline)
    if path is not None and path.exists():
        raise InputError(f"the study {path} exists already; `tunelab resume {path}` goes on with it")
    space = load_space(space_name)
    slots = find_slots(options)
    max_params, max_mflops = LIMITS[slots.device]
    options = dataclasses.replace(
        options,
        data=absolute_paths(options.data),
        max_params=options.max_params or max_params,
        max_mflops=options.max_mflops or max_mflops,
    )
    info = _open_data(options.data, show_progress)
    try_space(space, options, info)
    has_baseline = make_source(space, options, info, options.seed, None).has_baseline
    if space.baselines and not has_baseline and show_progress:
        print(
            f"note: no baseline of the space {space.name!r} is within the limits; trial 0 is another", file=sys.stderr
        )
    path = path or new_path(find_runs_dir(runs), space.name)
    check_room(path, space, options, info)
    study = Study.create(
        path,
        {
            "kind": "search",
            "space": {"name": space.name, "source": space.source, "version": space.version},
            "options": to_json(options),
            "data": info.to_json(),
            "seed": options.seed,
            "versions": describe_versions(),
            "hardware": describe_hardware(),
            "slots": dataclasses.asdict(slots),
            "baseline": has_baseline,
        },
    )
    return _run_search(study, space, options, info, ends, show_progress)


def resume(
    study: str | Path | Study,
    *,
    deadline: str | None = None,
    concurrent: int | None = None,
    progress: bool = True,
) -> Study:
    """Goes on with a study that was stopped, and returns it at its end; a finished study is returned as it is.

    Args:
        study: the study or its folder.
        deadline: as for `search`.
        concurrent: trials at once; by default what the study was started with.
        progress: shows the progress on standard error.

    Raises:
        InputError: it is no search, its data or its space have changed, or another process is writing it.
        PausedError: a signal or the deadline stopped it again.
        TunelabError: the search failed.
    """
    opened = study if isinstance(study, Study) else Study.open(Path(study).expanduser())
    if opened.info["kind"] != "search":
        raise InputError(f"{opened.path} is a {opened.info['kind']}; the command that began it goes on with it")
    ends = _end_time(deadline)
    options = from_json(SearchOptions, opened.info["options"])
    if concurrent is not None:
        options = from_json(SearchOptions, {**to_json(options), "concurrent": concurrent})
    space = load_space(opened.info["space"]["source"])
    if space.version != opened.info["space"]["version"]:
        raise InputError(
            f"the space {space.name!r} is now version {space.version}; "
            f"{opened.path} was begun with version {opened.info['space']['version']}"
        )
    info = _open_data(options.data, progress)
    require_same_data(opened, info)
    return _run_search(opened, space, options, info, ends, progress)


def run_configs(
    path: Path,
    configs: Sequence[TrialConfig],
    options: SearchOptions,
    *,
    kind: str,
    title: str,
    about: Mapping[str, Any],
    like: Study | None = None,
    show_progress: bool = True,
) -> Study:
    """Trains a list of configurations to their full length, as a study in `path`; one that was begun goes on.

    Args:
        path: the folder of the study.
        configs: what to train; entry n is trial n. A study that exists must have been begun with the same entries.
        options: how: `trials`, `sampler`, `scheduler` and limits are not used.
        kind: what the study is, e.g. "retrain".
        title: what the progress display says.
        about: further content of `study.json`.
        like: a study that the configurations come from; the data must be the same as its.
        show_progress: shows the progress on standard error.

    Raises:
        InputError: the data is gone or has changed, or another process is writing the study.
        PausedError: a signal stopped it.
        TunelabError: it failed.
    """
    options = dataclasses.replace(options, trials=len(configs))
    info = _open_data(configs[0].data, show_progress)
    if like is not None:
        require_same_data(like, info)
    if (path / "study.json").exists():
        study = Study.open(path)
        require_same_data(study, info)
        for trial, config in zip(study.list_trials(), configs, strict=False):  # more or fewer of them than before
            if trial.config != to_json(config):
                raise InputError(
                    f"{path} was begun with another configuration of trial {trial.number}; remove it first"
                )
    else:
        study = Study.create(
            path,
            {
                "kind": kind,
                "options": to_json(options),
                "data": info.to_json(),
                "seed": options.seed,
                "versions": describe_versions(),
                "hardware": describe_hardware(),
                **about,
            },
        )
    source = FixedSource(configs, make_check(dataclasses.replace(options, max_params=None, max_mflops=None), info))
    return _execute(study, _Plan(source, NeverStop(), len(configs), options, title, None, show_progress))


def _open_data(config: DataConfig, show_progress: bool) -> DataInfo:
    """Decodes the data if it is not in the cache, and says what is worth knowing of it."""
    if not show_progress:
        return prepare(config)
    with DecodingBar(sys.stderr) as bar:
        info = prepare(config, bar)
    for note in info.notes:
        print(f"data: {note}", file=sys.stderr)
    return info


def _run_search(
    study: Study, space: SearchSpace, options: SearchOptions, info: DataInfo, ends: float | None, show_progress: bool
) -> Study:
    source = make_source(space, options, info, options.seed, study.path / "optuna.journal")
    stopping: Stopping = NeverStop()
    if options.scheduler == "asha":
        stopping = SuccessiveHalving(options.epochs, protected={0} if source.has_baseline else ())
    title = f"{space.name} on {info.name}: {options.trials} trials of {options.epochs} epochs -> {study.path}"
    return _execute(study, _Plan(source, stopping, options.trials, options, title, ends, show_progress))


def _execute(study: Study, plan: _Plan) -> Study:
    slots = find_slots(plan.options)
    journal = Journal.open(study.path)
    try:
        known = study.list_trials()
        shown: Progress | Silent = Silent()
        if plan.show_progress:
            shown = Progress(ray_tune.terminal(), plan.title, plan.total, slots.concurrent, known)
        engine = Engine(journal, known, plan.source, plan.stopping, plan.total, shown, plan.ends)
        if engine.unfinished and not engine.should_halt:
            with shown:
                ray_tune.run(
                    engine,
                    slots,
                    folder_of=study.trial_folder,
                    telemetry=plan.options.telemetry,
                    log=study.path / "ray.log",
                )
    finally:
        journal.close()
    if engine.error is not None:
        with contextlib.suppress(OSError):  # on a full disk, say, which is the error then
            study.write_tables()
        raise engine.error
    study.write_tables()
    if engine.unfinished:
        raise PausedError(study, engine.halted or "Ray ended the run", engine.unfinished)
    return study


def _end_time(deadline: str | None) -> float | None:
    """The deadline on the monotonic clock, which no change of the wall clock moves."""
    if deadline is None:
        return None
    return time.monotonic() + seconds_until(deadline, datetime.datetime.now().astimezone())
