"""Trains a list of configurations: what retraining, ablation and repeating a trial are made of.

One engine with the search: resume, progress, packing and the handling of faults are the same.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunelab.config import TrialConfig, to_json
from tunelab.files import require_no_links
from tunelab.study import Study
from tunelab.tuning.cluster_check import require_fit
from tunelab.tuning.execute import Plan, execute
from tunelab.tuning.hardware import describe_hardware, describe_versions
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.packing import pack, pack_team, still_open
from tunelab.tuning.preflight import make_check, require_same_data
from tunelab.tuning.prospect import first_proposals, forecast_of, open_data
from tunelab.tuning.sharing import calibration_of
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots
from tunelab.tuning.sources import FixedSource
from tunelab.tuning.stopping import NeverStop, StopAfter, Stopping
from tunelab.tuning.survey import survey


def run_configs(
    path: Path,
    configs: Sequence[TrialConfig],
    options: SearchOptions,
    *,
    kind: str,
    title: str,
    about: Mapping[str, Any],
    like: Study | None = None,
    compile: Literal["auto", "off"] = "off",
    compute: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    split: int = 1,
    show_progress: bool = True,
    site: Site | None = None,
    team: Slots | None = None,
) -> Study:
    """Trains a list of configurations to their full length, as a study in `path`; one that was begun goes on.

    As many are trained at once as is measured to be fastest and fits into memory.

    Args:
        path: the folder of the study.
        configs: what to train; entry n is trial n. A study that exists must have been begun with the same entries.
        options: how: `trials`, `sampler`, `scheduler` and limits are not used.
        kind: what the study is, e.g. "retrain".
        title: what the progress display says.
        about: further content of `study.json`.
        like: a study that the configurations come from; the data must be the same as its.
        compile: as `ComputeConfig` has it.
        compute: `precision` and `channels_last` of a ComputeConfig, in place of those of `like`, on any machine.
        stop_after: ends each training after so many epochs, with the schedule of its full length.
        split: in how many parts each batch is computed from the start.
        show_progress: shows the progress on standard error.
        site: where it runs; None: on this machine.
        team: the processes that train each configuration together, one after the other, as `find_team` gives it.

    Raises:
        InputError: the data is gone or has changed, or another process is writing the study.
        PausedError: a signal stopped it.
        TunelabError: it failed.
    """
    options = dataclasses.replace(options, trials=len(configs))
    site = survey(site or Site(), show_progress=show_progress)
    info = open_data(configs[0].data, show_progress)
    if like is not None:
        require_no_links(like.path)
        require_same_data(like, info)
    check = make_check(dataclasses.replace(options, max_params=None, max_mflops=None), info)
    source = FixedSource(configs, check, split)
    begun = Study.open(path) if (path / "study.json").exists() else None
    left = first_proposals(source, None, len(configs))
    if begun is not None:
        require_same_data(begun, info)
        left = still_open(begun, configs, left)
    if team is None:
        packing = pack(left, options, like, begun, site.fleet)
    else:
        packing = pack_team(team, left, options, like, begun)
    slots = dataclasses.replace(packing.slots, compile=compile, **(compute or {}))
    shared = {"slots": dataclasses.asdict(slots)}
    if packing.measured is not None:
        shared["calibration"] = packing.measured.to_json()
        if show_progress and left:
            print(packing.measured.reason, file=sys.stderr)
    if site.address is not None:
        require_fit(site, slots.device, path, configs[0].data, info.fingerprint, show_progress=show_progress)
    if begun is None:
        content = {
            "kind": kind,
            "options": to_json(options),
            "data": info.to_json(),
            "seed": options.seed,
            "versions": describe_versions(),
            "hardware": describe_hardware(),
            **shared,
            **about,
        }
        study = Study.create(path, content)
    else:
        study = begun
        if packing.again:
            study.update(lambda info: {**shared, "options": {**info["options"], "trials": options.trials}})
    forecast = forecast_of(configs, source, info, slots, packing.measured or calibration_of(like))
    stopping: Stopping = NeverStop() if stop_after is None else StopAfter(stop_after)
    plan = Plan(source, stopping, len(configs), options, title, show_progress, slots, forecast, site=site)
    return execute(study, plan)
