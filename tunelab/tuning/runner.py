"""Runs searches: from options to a study, and from an unfinished study to its end.

Everything that can be refused is refused before a folder is made: the space, the data, the limits, the room on the
disk. Retraining is the same engine on a fixed list of configurations (`run_configs`).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tunelab.config import DataConfig, Telemetry, from_json, to_json
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError
from tunelab.files import is_vacant
from tunelab.journal import Journal
from tunelab.locations import folder as folder_of
from tunelab.locations import parse
from tunelab.space import SearchSpace
from tunelab.stores.copies import fetch_to_go_on, note, require_new
from tunelab.study import Study, current, describe_taken, proposed
from tunelab.study import runs_dir as find_runs_dir
from tunelab.supervision import tell
from tunelab.tuning.cluster_check import require_fit
from tunelab.tuning.deadline import Deadline
from tunelab.tuning.execute import PausedError, Plan, execute
from tunelab.tuning.forecast import Forecast
from tunelab.tuning.grid import ORIGIN as GRID
from tunelab.tuning.hardware import describe_hardware, describe_versions
from tunelab.tuning.lineage import Begun, again_of, baseline_number, carry_over, reopen, study_source
from tunelab.tuning.memory import choose_data, find_base, find_studies
from tunelab.tuning.memory import write as write_earlier
from tunelab.tuning.options import GridRequest, SearchOptions, fill_in, timeout_of
from tunelab.tuning.preflight import new_path
from tunelab.tuning.prospect import (
    end_time,
    look_ahead,
    look_on,
    make_race,
    seconds_to,
)
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots
from tunelab.tuning.stopping import NeverStop, Stopping, SuccessiveHalving
from tunelab.tuning.survey import survey

_EPOCH_GRACE = 10.0  # seconds that are left for an epoch to end before a deadline, at most; our choice


def search(
    space: str,
    *,
    trials: int | None = None,
    epochs: int = 30,
    data: str | DataConfig | None = None,
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
    memory: str | int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    sampler: Literal["model", "tpe", "gp", "random"] = "model",
    scheduler: Literal["asha", "promote", "none"] | None = None,
    race: float | None = None,
    grid: str | Path | None = None,
    repeat: int = 1,
    objective: Sequence[str] = ("val_accuracy",),
    warm_start: str | Path | Sequence[str | Path] = (),
    from_study: str | Path | None = None,
    from_trial: int | None = None,
    max_params: int | None = None,
    max_mflops: float | None = None,
    telemetry: Telemetry = "scalars",
    health: bool = True,
    health_grace: int = 3,
    keep_weights: int | None = 10,
    trial_timeout: str | float | None = None,
    address: str | None = None,
    dashboard: bool = False,
    storage: str | None = None,
    progress: bool = True,
) -> Study:
    """Searches `space` and returns the study; the names are those of `tunelab search`.

    Args:
        space: a name, an entry point, or a path that ends in `.py` (its code is run).
        trials: how many configurations are tried; by default 100, or those of `grid`.
        epochs: the full length of a trial.
        data: a data set's name, `folder:PATH`, `npz:PATH`, or a DataConfig in place of the data options; by default
            `digits`, or what `from_study` was trained on.
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
        memory: the most of the machine's memory that all trials together take, in bytes or as a text such as `8GiB`.
        device: where trials train.
        sampler: proposes configurations: tunelab's model of all trials, Optuna's TPE or GP, or luck (random).
        scheduler: stops weak trials early (asha, the default), pauses them and goes on with those that become good
            (promote), or does neither (none). Trials of `grid` are stopped only if this is given.
        race: the share of the time in which the finalists are trained again with other seeds; by default 0.2, with
            `grid` 0.
        grid: trials given by hand: the name of a grid that the space has, or a YAML or JSON file with a list of
            mappings, or one mapping to lists of values.
        repeat: trains each configuration of `grid` so often, with different seeds.
        objective: what is to be good: `val_accuracy` first, by which trials are stopped early, then any of `params`,
            `mflops` and `seconds`, of which less is better.
        warm_start: earlier studies, on other data too, whose best configurations come first.
        from_study: the study whose best network a space such as `recipe` begins with, on its data.
        from_trial: another trial of `from_study`.
        max_params: refuses larger networks; by default 1 million weights on a CPU, 12 million on a GPU.
        max_mflops: refuses costlier networks (millions of multiply-adds per image); by default 40 or 1200.
        telemetry: what every trial writes for TensorBoard: nothing ("off"), the numbers of its epochs ("scalars"), or
            also histograms, pictures and the graph of the network ("full").
        health: ends trials of which nothing can come any more; what is found wrong is recorded in any case.
        health_grace: after so many epochs it may be ended for that; numbers that are not finite end it at once.
        keep_weights: of how many ended trials the checkpoints are kept, the best ones; None: of all.
        trial_timeout: ends a trial that takes longer from when it begins or goes on, in seconds or as a text such as
            `2h`; by default one that takes 20 times as long as forecast, and at least an hour. It is retried once.
        address: the Ray cluster to run on ("auto", "HOST:PORT", "ray://HOST:PORT"); by default this machine alone.
        dashboard: shows Ray's dashboard while it runs, to this machine alone.
        storage: the URI of an object store, such as `s3://bucket/prefix`, that the study is mirrored to while it runs;
            a path is the same as `runs_dir`.
        progress: shows the progress on standard error.

    Raises:
        InputError: something given cannot be used; nothing has been made then.
        PausedError: a signal stopped the search; it can be resumed. A deadline is no error.
        TunelabError: the search failed.
    """
    base = find_base(from_study, from_trial, runs_dir)
    if not isinstance(data, DataConfig):
        taken: dict[str, Any] = {"data_dir": data_dir, "download": download, "image_size": image_size}
        taken |= {"limit_train": limit_train, "val_fraction": val_fraction, "skip_unreadable": skip_unreadable}
        data = choose_data(data, taken, base)
    values, request = fill_in(
        {
            "trials": trials,
            "epochs": epochs,
            "data": to_json(data),
            "seed": seed,
            "concurrent": concurrent,
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": gpus_per_trial,
            "memory": memory,
            "device": device,
            "sampler": sampler,
            "scheduler": scheduler,
            "race": race,
            "warm_start": warm_start,
            "max_params": max_params,
            "max_mflops": max_mflops,
            "telemetry": telemetry,
            "health": health,
            "health_grace": health_grace,
            "keep_weights": keep_weights,
            "trial_timeout": timeout_of(trial_timeout),
            "repeat": repeat,
            "objective": list(objective),
        },
        grid,
    )
    earlier = find_studies(warm_start, runs_dir)
    options = from_json(SearchOptions, {**values, "warm_start": earlier, "base": base})
    path = None if study is None else folder_of(study, "study")
    try:
        site = Site(address, dashboard)
        return start_search(
            space, options, path, runs_dir, deadline, grid=request, show_progress=progress, site=site, storage=storage
        )
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
    grid: GridRequest | None = None,
    show_progress: bool = True,
    site: Site | None = None,
    storage: str | None = None,
) -> Study:
    """A new study, searched to its end; the arguments are as `search` takes them.

    Raises:
        InputError: something given cannot be used; nothing has been made then.
        PausedError: a signal or the deadline stopped the search.
        TunelabError: the search failed.
    """
    ends = end_time(deadline)
    stored = None if storage is None else parse(storage)
    if isinstance(stored, Path):
        path, runs, stored = _in_folder(stored, path), stored, None
    if path is not None and not is_vacant(path, "study.json"):
        raise InputError(describe_taken(path))
    folder = folder_of(find_runs_dir(runs), "the folder of studies")
    if stored is not None:
        require_new(stored, None if path is None else path.name)
    site = survey(site or Site(), show_progress=show_progress)
    ahead = look_ahead(space_name, options, show_progress, grid, path or folder / "study", site.fleet)
    space, options, info = ahead.space, ahead.options, ahead.info
    if path is None:
        path = new_path(folder, space.name)
        if stored is not None:
            require_new(stored, path.name)
    if site.address is not None:
        asked: dict[str, Any] = {"mirrored": stored is not None, "show_progress": show_progress}
        require_fit(site, ahead.slots.device, path, options.data, info.fingerprint, ahead.needed.study, **asked)
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
            "slots": dataclasses.asdict(ahead.slots),
            "baseline": ahead.has_baseline,
            "calibration": ahead.calibration.to_json(),
            "forecast": ahead.to_json(seconds_to(ends)),
            "first": ahead.first,
            "grid_in_full": grid is None or grid.in_full,
            **({} if site.fleet is None else {"cluster": site.fleet.to_json()}),
            **({} if stored is None else {"storage": f"{stored}/{path.name}"}),
        },
    )
    write_earlier(study.path, ahead.earlier)
    if show_progress:
        print(*ahead.describe(seconds_to(ends), deadline), sep="\n", file=sys.stderr)
    return _run_search(study, space, options, info, ends, show_progress, ahead.slots, ahead.forecast, site)


def _in_folder(folder: Path, path: Path | None) -> Path | None:
    """The folder of a study in a --storage that is a path: the name alone may be given.

    Raises:
        InputError: another folder is given.
    """
    if path is not None and path.parent not in (Path(), folder):
        raise InputError(
            f"--storage {folder} and --study {path} name two places; give one, or the name alone in --study"
        )
    return None if path is None else folder / path.name


def resume(
    study: str | Path | Study,
    *,
    deadline: str | None = None,
    concurrent: int | None = None,
    trial_timeout: str | float | None = None,
    address: str | None = None,
    dashboard: bool = False,
    progress: bool = True,
) -> Study:
    """Goes on with a study that was stopped, and returns it at its end; a finished study is returned as it is.

    If the space's version has changed, trials that the new one still draws are taken over, the others become history.

    Args:
        study: the study, its folder, or its URI in an object store, from where it comes into the folder of studies.
        deadline: as for `search`.
        concurrent: trials at once; by default what the study was started with.
        trial_timeout: as for `search`; by default what the study was started with.
        address: as for `search`; wherever the study was started.
        dashboard: as for `search`.
        progress: shows the progress on standard error.

    Raises:
        InputError: it is no search, its data has changed, or another process is writing it.
        PausedError: a signal or the deadline stopped it again.
        TunelabError: the search failed.
    """
    end_time(deadline)  # refused before anything is changed
    site = Site(address, dashboard)
    timeout = timeout_of(trial_timeout)
    if isinstance(study, str) and isinstance(location := parse(study, "the study"), str):
        study = fetch_to_go_on(location, find_runs_dir(), note)
    begun = reopen(study, progress)
    carry_over(begun, progress)
    if timeout is not None:
        begun.study.update(lambda info: {"options": {**info["options"], "trial_timeout": timeout}})
        begun = dataclasses.replace(begun, options=dataclasses.replace(begun.options, trial_timeout=timeout))
    return go_on(begun, deadline, concurrent, show_progress=progress, site=site)


def go_on(
    begun: Begun, deadline: str | None, concurrent: int | None, *, show_progress: bool, site: Site | None = None
) -> Study:
    """As `resume`, with a study that has been opened."""
    ends = end_time(deadline)
    study, options = begun.study, begun.options
    if concurrent is not None:
        options = from_json(SearchOptions, {**to_json(options), "concurrent": concurrent})
    Journal.open(study.path).close()  # refused at once if another process writes it
    site = survey(site or Site(), show_progress=show_progress)
    known = study.list_trials()
    source = study_source(study, begun.space, options, begun.info, known)
    baseline = baseline_number(study.info, known, source)
    slots, forecast = look_on(
        study, source, options, begun.info, known, baseline, again=concurrent is None, fleet=site.fleet
    )
    if site.address is not None:
        asked: dict[str, Any] = {"mirrored": "storage" in study.info, "show_progress": show_progress}
        require_fit(site, slots.device, study.path, options.data, begun.info.fingerprint, **asked)
    counted = current(study.info, known)
    ended = sum(trial.status.ended for trial in counted if trial.repeat_of is None)
    if show_progress and ended < max(options.trials, len(proposed(counted))):
        print(f"forecast: {forecast.describe(seconds_to(ends), deadline or '', counted)}", file=sys.stderr)
    return _run_search(study, begun.space, options, begun.info, ends, show_progress, slots, forecast, site)


def _run_search(
    study: Study,
    space: SearchSpace,
    options: SearchOptions,
    info: DataInfo,
    ends: float | None,
    show_progress: bool,
    slots: Slots,
    forecast: Forecast,
    site: Site,
) -> Study:
    tell(study=str(study.path.absolute()))
    known = study.list_trials()
    source = study_source(study, space, options, info, known, study.path / "optuna.journal")
    baseline = baseline_number(study.info, known, source)
    stopping: Stopping = NeverStop()
    if options.scheduler != "none":
        protected = () if baseline is None else {baseline}
        stopping = SuccessiveHalving(options.epochs, protected, promote=options.scheduler == "promote")
    race = make_race(options, info, baseline is not None, baseline or 0)
    again = again_of(study, options.repeat, source, race)
    deadline = Deadline()
    if ends is not None:
        left = ends - time.monotonic()
        # A worker answers after its epoch, which it breaks off when no time is left.
        stop = forecast.plan.beside.stop + min(_EPOCH_GRACE, forecast.epoch_seconds)
        grace = max(0.0, min(stop, left / 20) - forecast.plan.beside.stop)
        deadline = Deadline.after(left - min(stop, left / 20), options.race, grace)
    title = f"{space.name} on {info.name}: {options.trials} trials of {options.epochs} epochs -> {study.path}"
    in_full = (GRID,) if study.info.get("grid_in_full") else ()
    plan = Plan(
        source,
        stopping,
        options.trials,
        options,
        title,
        show_progress,
        slots,
        forecast,
        deadline,
        race,
        again,
        in_full,
        site,
    )
    return execute(study, plan)
