"""How a list of trainings, such as the seeds of a retraining, shares the machine: measured where there is a choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunelab.capacity import describe_size, free_memory_mib
from tunelab.config import TrialConfig, from_json, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.records import Trial
from tunelab.study import Study
from tunelab.tuning import calibrate, quota
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.hardware import count_gpus, find_layouts
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.probes import Probes
from tunelab.tuning.sharing import calibration_of, computing_like, needed, shares_alike, slots_for
from tunelab.tuning.slots import Slots


@dataclass(frozen=True)
class Packing:
    """How a list of trainings shares the machine.

    `measured` is what that was chosen by, None if there was nothing to choose; `again` says that it was chosen anew.
    """

    slots: Slots
    measured: calibrate.Calibration | None = None
    again: bool = False


def pack(
    trials: Sequence[Trial],
    options: SearchOptions,
    like: Study | None,
    begun: Study | None,
    fleet: Fleet | None = None,
) -> Packing:
    """How trainings that are to be run in full share the machine: as many at once as are fastest and fit into memory.

    What a list that was begun was measured to be is kept on the same machine, so that its trainings go on with as many
    threads as they began with; unless there are now more of them.

    Args:
        trials: those that have not ended, with the stats of their networks.
        options: how to train; `trials` is how many there are in all.
        like: the study that the configurations come from.
        begun: the study that they are trained in, if it was begun.
        fleet: the nodes of the cluster that carries them, on which nothing is measured; None: this machine.

    Raises:
        InputError: the machine lacks what is asked for, or the memory that is allowed is too little.
    """
    now = dataclasses.replace(options, trials=max(1, len(trials)))
    usual = slots_for(now, like, fleet)
    if fleet is not None:
        return Packing(usual)
    if begun is not None:
        usual = computing_like(usual, begun)
        before = begun.info.get("slots")
        same = before is not None and before["device"] == usual.device and before.get("processes", 1) == 1
        same = same and shares_alike(begun)
        if not trials or (same and begun.info["options"]["trials"] == options.trials):
            return _as_begun(usual, begun, options) if same else Packing(usual)
    layouts = [
        dataclasses.replace(slots, precision=usual.precision, channels_last=usual.channels_last)
        for slots in find_layouts(now)
    ]
    if len(layouts) == 1:
        return Packing(usual, again=begun is not None)
    try:
        return dataclasses.replace(_fastest(trials, layouts, options), again=begun is not None)
    except InputError:
        raise
    except TunelabError:  # nothing could be measured: the trainings will say why
        return Packing(usual)


def pack_team(
    team: Slots, trials: Sequence[Trial], options: SearchOptions, like: Study | None, begun: Study | None
) -> Packing:
    """How one training after the other has the machine, each by several processes that are given what `team` says.

    The rest is as in `pack`. Where nothing is left to train, the record keeps by how many processes that was done.

    Raises:
        InputError: the memory that is allowed is too little.
    """
    study = begun or like
    slots = team if study is None else computing_like(team, study)
    alike = dataclasses.replace(slots, concurrent=team.processes)  # each opens the data for itself, as trials do
    shared = quota.share_memory(alike, options.memory, needed(calibration_of(like), alike))
    if shared.concurrent < team.processes:
        given = describe_size(options.memory or 0)
        raise InputError(
            f"--memory: {given} is too little for {team.processes} processes that train together; "
            f"there is room for {shared.concurrent}"
        )
    return Packing(dataclasses.replace(slots, memory=shared.memory), again=begun is not None and bool(trials))


def still_open(study: Study, configs: Sequence[TrialConfig], trials: list[Trial]) -> list[Trial]:
    """Those of a list of trainings that have not ended in the study that they are trained in.

    Raises:
        InputError: it was begun with other configurations.
    """
    known = study.list_trials()
    for trial, config in zip(known, configs, strict=False):  # more or fewer of them than before
        if trial.config != to_json(config):
            raise InputError(
                f"{study.path} was begun with another configuration of trial {trial.number}; remove it first"
            )
    ended = {trial.number for trial in known if trial.status.ended}
    return [trial for trial in trials if trial.number not in ended]


def filled(slots: Slots, trainings: int) -> float:
    """The share of the slots that trainings of equal length keep busy: 3 in 2 slots leave a quarter of them empty."""
    return trainings / (math.ceil(trainings / slots.concurrent) * slots.concurrent)


def _as_begun(usual: Slots, begun: Study, options: SearchOptions) -> Packing:
    """As a list of trainings was begun, with no more at once than fit into the memory that is free now."""
    slots = from_json(Slots, begun.info["slots"])
    slots = dataclasses.replace(slots, precision=usual.precision, channels_last=usual.channels_last, memory=None)
    measured = calibration_of(begun)
    if measured is not None:
        limit = quota.capped(free_memory_mib(), options.memory, slots.device)
        slots = calibrate.within(slots, measured, limit, count_gpus() if slots.device == "cuda" else 0)
    return Packing(quota.share_memory(slots, options.memory, needed(measured, slots)), measured)


def _fastest(trials: Sequence[Trial], layouts: Sequence[Slots], options: SearchOptions) -> Packing:
    """Measures the layouts on these trials, and takes the one that is through with them first."""
    gpus = count_gpus() if layouts[0].device == "cuda" else 0
    limit = quota.capped(free_memory_mib(), options.memory, layouts[0].device)
    layouts = calibrate.startable(layouts, limit, gpus)
    samples = [calibrate.Sample.of(trial.config, trial.stats) for trial in trials]
    with Probes(calibrate.processes_for(layouts, gpus)) as probes:
        found = calibrate.calibrate(samples, layouts, probes, limit, gpus, options.memory)
    worth = [dataclasses.replace(one, images=one.images * filled(one.slots, len(trials))) for one in found.layouts]
    chosen = calibrate.choose(worth, found.limit, max(gpus, 1))
    slots = quota.share_memory(chosen, options.memory, needed(found, chosen))
    reason = calibrate.explain(chosen, worth, found.limit, max(gpus, 1)) + quota.in_words(slots)
    points = tuple(
        dataclasses.replace(point, step=point.step * _slower(chosen, found), val_image=None) for point in found.points
    )
    return Packing(slots, dataclasses.replace(found, slots=slots, reason=reason, points=points))


def _slower(chosen: Slots, found: calibrate.Calibration) -> float:
    """How many times as long a step takes with these slots as with those that the points were measured with."""
    each = {one.slots: one.images / one.slots.concurrent for one in found.layouts if one.images}
    return each[found.slots] / each[chosen] if {found.slots, chosen} <= each.keys() else 1.0
