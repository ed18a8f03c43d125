"""How trainings share the machine or the cluster, by what was measured for an earlier study."""

from __future__ import annotations

import dataclasses

from tunelab.config import from_json
from tunelab.study import Study
from tunelab.tuning import calibrate, quota
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.hardware import count_gpus, describe_hardware, find_slots, usable_cpus
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.slots import Slots
from tunelab.tuning.spread import find_cluster_slots, spread


def slots_for(options: SearchOptions, like: Study | None, fleet: Fleet | None = None) -> Slots:
    """How a list of trainings shares the machine, or the cluster; what was measured for `like` is used again.

    Raises:
        InputError: the machine lacks what is asked for, or the memory that is allowed is too little.
    """
    if fleet is not None:
        return slots_on_fleet(like, calibration_of(like), options, fleet)
    slots = find_slots(options) if like is None else computing_like(find_slots(options), like)
    return quota.share_memory(slots, options.memory, needed(calibration_of(like), slots))


def slots_on_fleet(
    study: Study | None, measured: calibrate.Calibration | None, options: SearchOptions, fleet: Fleet
) -> Slots:
    """How a study goes on with a cluster: each trial as it was begun there, if it was."""
    slots = find_cluster_slots(options, fleet)
    if study is None or measured is None or measured.slots.device != slots.device:
        return spread(slots, options, fleet)
    slots = computing_like(slots, study)
    if "cluster" in study.info and options.cpus_per_trial is None:
        slots = dataclasses.replace(slots, cpus=measured.slots.cpus, gpus=measured.slots.gpus)
    return spread(slots, options, fleet, needed(measured, slots))


def calibration_of(study: Study | None) -> calibrate.Calibration | None:
    """What was measured when a study was begun, None without one or where nothing was."""
    plain = None if study is None else study.info.get("calibration")
    return None if plain is None else calibrate.Calibration.from_json(plain)


def needed(measured: calibrate.Calibration | None, slots: Slots) -> float:
    """The MiB of the machine's memory that a trial takes; 0 where that is not known."""
    if measured is None or slots.device != "cpu" or measured.slots.device != slots.device:
        return 0.0
    return calibrate.most_needed(measured.layouts)


def computing_like(slots: Slots, study: Study) -> Slots:
    """The slots with the precision and memory order of a study's; on another machine as they are."""
    plain, then, now = study.info.get("slots"), study.info["hardware"], describe_hardware()
    same = all(then.get(name) == now[name] for name in ("processor", "gpus"))
    if plain is None or plain["device"] != slots.device or not same:
        return slots
    measured = from_json(Slots, plain)
    return dataclasses.replace(slots, precision=measured.precision, channels_last=measured.channels_last)


def shares_alike(study: Study) -> bool:
    """True if this machine has as many processors and GPUs as the one that the study was begun on."""
    hardware = study.info["hardware"]
    return bool(hardware["cpus"] == usable_cpus() and len(hardware.get("gpus", ())) == count_gpus())
