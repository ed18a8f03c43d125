"""How a search is spread over the nodes of a cluster: threads and GPUs of a trial, and trials at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tunelab.errors import InputError
from tunelab.tuning import quota
from tunelab.tuning.calibrate import Calibration
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.hardware import count_gpus, find_layouts, usable_cpus
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.roll_call import processor_name
from tunelab.tuning.slots import Slots, shares

_MANY = 1_000_000


def find_cluster_slots(options: SearchOptions, fleet: Fleet) -> Slots:
    """What a trial is given on a cluster, and how many run at once, if nothing is measured.

    With GPUs anywhere, trials run on those: one each unless `gpus_per_trial` says less. Else each has one processor, or
    more where there are fewer trials than processors, but never more than the smallest node has.

    Raises:
        InputError: the cluster lacks what is asked for.
    """
    on_gpus = [node for node in fleet.nodes if node.gpus and node.cpus]
    awaited = options.device == "cuda" and options.concurrent is not None  # nodes with GPUs that an autoscaler starts
    if options.device == "cuda" and not on_gpus and not awaited:
        raise InputError("--device cuda: no node of the cluster has a GPU; use --device cpu or auto")
    if (on_gpus or awaited) and options.device != "cpu":
        share = options.gpus_per_trial or 1.0
        if share > 1 and share != int(share):
            raise InputError(f"--gpus-per-trial {share:g} must be at most 1, or a whole number")
        each = [int(node.cpus // fits) for node in on_gpus if (fits := shares(node.gpus, share))]
        return spread(Slots(1, options.cpus_per_trial or max(1, min(each, default=1)), share, "cuda"), options, fleet)
    if options.gpus_per_trial is not None:
        raise InputError(f"--gpus-per-trial {options.gpus_per_trial:g}: there is no GPU to share; leave it out")
    cpus = [int(node.cpus) for node in fleet.nodes if node.cpus >= 1]
    usual = max(1, sum(cpus) // max(options.trials, options.concurrent or 1))
    per_trial = options.cpus_per_trial or min([usual, *cpus])
    return spread(Slots(1, per_trial, 0.0, "cpu"), options, fleet)


def spread(slots: Slots, options: SearchOptions, fleet: Fleet, needed: float = 0.0) -> Slots:
    """The slots with as many trials at once as the cluster carries, and what `--memory` leaves each for images.

    Args:
        slots: what a trial is given.
        options: `concurrent` is the most trials at once; `memory` what those of one node may take together.
        fleet: the nodes.
        needed: the MiB that the largest trial takes; 0 where that is not known.

    Raises:
        InputError: no node carries a trial.
    """
    most = quota.most_on_a_node(slots, options.memory, needed)
    held = fleet.capped(most)
    carried = held.carries(slots)
    if not carried and options.concurrent is None:
        has = ", ".join(f"{node.name} {node.cpus:g} and {node.gpus:g}" for node in fleet.nodes) or "there is none"
        wants = f"{slots.cpus} processor{'' if slots.cpus == 1 else 's'} and {slots.gpus:g} GPUs"
        raise InputError(
            f"no node of the cluster carries a trial, which takes {wants} (processors and GPUs of the nodes: {has}); "
            "with --concurrent the search waits for nodes to join"
        )
    at_once = max(1, min(carried, options.concurrent or carried, options.trials))
    busiest = max((node.carries(slots, most) for node in fleet.nodes), default=1)
    on_one = dataclasses.replace(slots, concurrent=max(1, busiest))
    shared = quota.share_memory(on_one, options.memory, needed)
    return dataclasses.replace(shared, concurrent=at_once)


def is_like_here(fleet: Fleet, slots: Slots) -> bool:
    """True if every node that carries a trial has the processors of this machine, which then speaks for them.

    For trials on GPUs it must have as many of those, too.
    """
    here = (processor_name(), usable_cpus(), count_gpus() if slots.gpus else 0)
    return all(
        (node.processor, int(node.cpus), int(node.gpus) if slots.gpus else 0) == here for node in fleet.working(slots)
    )


def layouts_here(options: SearchOptions, fleet: Fleet) -> list[Slots]:
    """What is worth measuring on this machine for a search on a cluster; none if this machine lacks the device.

    Where the nodes are like this machine that is every way to divide it. Else it is the usual trial alone, as many at
    once as there is room for here.

    Raises:
        InputError: the cluster lacks what is asked for.
    """
    usual = find_cluster_slots(options, fleet)
    gpus = count_gpus()
    if usual.device == "cuda" and not gpus:
        return []
    if is_like_here(fleet, usual):
        device: Literal["cpu", "cuda"] = "cuda" if usual.gpus else "cpu"
        alone = dataclasses.replace(options, device=device, concurrent=None, trials=max(_MANY, options.trials))
        return find_layouts(alone)
    threads = min(usual.cpus, usable_cpus())
    at_once = shares(gpus, usual.gpus) if usual.gpus else usable_cpus() // threads
    return [dataclasses.replace(usual, cpus=threads, concurrent=max(1, at_once), memory=None)]


def on_cluster(measured: Calibration, options: SearchOptions, fleet: Fleet, needed: float) -> Calibration:
    """What was measured here, for the cluster: its slots, and in words what is assumed of the nodes."""
    usual = find_cluster_slots(options, fleet)
    like = is_like_here(fleet, usual)
    cpus = measured.slots.cpus if like else usual.cpus
    slots = spread(dataclasses.replace(measured.slots, cpus=cpus), options, fleet, needed)
    most = quota.most_on_a_node(slots, options.memory, needed)
    said = [fleet.capped(most).describe(slots)]
    if not measured.layouts:
        said.append("nothing was measured, because this machine has no GPU: times are guesses until trials have run")
    elif not like:
        said.append("other machines than this one: each is taken to train as fast, until trials have run")
    return dataclasses.replace(measured, slots=slots, reason="; ".join([*said, measured.reason]))
