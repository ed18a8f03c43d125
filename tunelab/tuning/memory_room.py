"""The memory that a search has for its trials: which of them fit beside each other, and what their processes may hold.

What a trial will take is predicted from the measurements before the search, and corrected by what its trials took.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunelab.capacity import all_memory_mib, describe_size, free_memory_mib
from tunelab.records import Trial
from tunelab.tuning.calibrate import Calibration, most_needed
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.footprint import Footprint
from tunelab.tuning.losses import RETRIES, SMALLER, FewerBeside
from tunelab.tuning.memory_guard import Limits, NodeLimits, limits_beside
from tunelab.tuning.quota import PROCESS_MIB, RAY_MIB, WORKER_MIB, capped, most_on_a_node
from tunelab.tuning.slots import Slots
from tunelab.tuning.speed import load_of

_ENOUGH = 3  # trials after which what they took corrects the predictions; our choice
_CORRECTION = (0.8, 1.5)  # it does so within these bounds; our choice
_OWN = 0.25  # of what was predicted, of a trial that was measured itself: on small images it takes far less; our choice
_STEP_MIB = 512.0  # the least memory that a trial asks a node for; our choice
_MOST_PARTS = SMALLER ** RETRIES["memory"]


@dataclass(frozen=True)
class Memory:
    """What there is for the trials of a search, in MiB: `host` for all, `device` on each of `devices` GPUs.

    `largest` is what the largest trial takes of the host, 0 where that was not measured. `bound` is true if the user
    has set a bound on `host`. `images` are those of the images that processes share, which count as held by each.
    `whole` is what one trial could have of the host if no other program ran, 0 where that is not known.
    """

    host: float
    largest: float = 0.0
    bound: bool = False
    device: float = 0.0
    devices: int = 0
    images: float = 0.0
    whole: float = 0.0


Found = tuple[Memory, Footprint | None]


class MemoryRoom:
    """Says whether there is room for a trial beside others, and learns from what trials take: it is a listener too.

    Args:
        slots: how the machine is shared.
        memory: what there is.
        footprint: what trials take; None predicts nothing.
    """

    def __init__(self, slots: Slots, memory: Memory, footprint: Footprint | None = None) -> None:
        self._fewer = FewerBeside(slots.concurrent)
        self._memory = memory
        self._footprint = footprint
        on_device = slots.device == "cuda"
        self._one = memory.device if on_device else memory.host
        self._all = self._one * max(1, memory.devices) if on_device else self._one
        self._most = self._one if on_device else max(memory.host, memory.whole)
        most = memory.host if slots.memory is None else slots.memory / 2**20
        self._shared = 0.0 if on_device or memory.images > most else memory.images  # larger ones are streamed
        self._took: dict[int, float] = {}  # as a part of what was predicted
        self._sorted: list[float] = []  # the same, in order

    def fits(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """True if a trial can run beside these; it always can alone."""
        if not beside:
            return True
        if not self._fewer.fits(trial, beside):
            return False
        return self._footprint is None or sum(self.predict(one) for one in (trial, *beside)) <= self._all

    def refuses(self, trial: Trial) -> str:
        """Why a trial can never run here, not even alone, in parts and without other programs; "" if it may."""
        if self._footprint is None or self._most <= 0:
            return ""
        load = load_of(trial.config, trial.stats)
        least = self._footprint.at_least(load, _params(trial), _MOST_PARTS)
        if least <= self._most:
            return ""
        needs, there = describe_size(least * 2**20), describe_size(self._most * 2**20)
        return f"too large for the memory: it takes at least {needs} with batches in {_MOST_PARTS} parts, of {there}"

    def predict(self, trial: Trial) -> float:
        """What a trial will take, in MiB; 0 where nothing is known."""
        if self._footprint is None:
            return 0.0
        known = self._took.get(trial.number)
        return self._plain(trial) * (self._correction() if known is None else max(_OWN, known))

    def started(self, trial: Trial) -> None:
        """Nothing: what it takes is not known yet."""

    def reported(self, trial: Trial) -> None:
        """Learns what a trial has taken."""
        if self._footprint is not None:
            peak = max(metrics.peak_memory_mib for metrics in trial.epochs)
            self._note(trial.number, max(0.0, peak - self._shared) / self._plain(trial))

    def retried(self, trial: Trial, why: str) -> None:
        """What it took in larger parts says nothing of smaller ones."""
        self._note(trial.number, None)

    def ended(self, trial: Trial) -> None:
        """Nothing: what it took stays known."""

    def _note(self, number: int, took: float | None) -> None:
        """Keeps what a trial took, or forgets it."""
        before = self._took.pop(number, None)
        if before is not None:
            del self._sorted[bisect.bisect_left(self._sorted, before)]
        if took is not None:
            self._took[number] = took
            bisect.insort(self._sorted, took)

    def _plain(self, trial: Trial) -> float:
        assert self._footprint is not None
        return max(1.0, self._footprint.predict(load_of(trial.config, trial.stats), _params(trial), trial.split))

    def _correction(self) -> float:
        if len(self._took) < _ENOUGH:
            return 1.0
        middle = self._sorted[(len(self._sorted) - 1) // 2 : len(self._sorted) // 2 + 1]
        return min(_CORRECTION[1], max(_CORRECTION[0], statistics.fmean(middle)))


class ClusterRoom(MemoryRoom):
    """The same on a cluster: each trial asks Ray for the memory that it needs, and is placed where there is as much.

    Args:
        slots: what a trial is given.
        memory: what the largest node has.
        footprint: as `MemoryRoom` takes it.
        fleet: the nodes as they are now.
    """

    def __init__(self, slots: Slots, memory: Memory, footprint: Footprint | None, fleet: Callable[[], Fleet]) -> None:
        super().__init__(slots, memory, footprint)
        self._slots, self._fleet = slots, fleet

    def fits(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """True if the nodes carry the trial beside these; it always can alone."""
        if not beside:
            return True
        if not self._fewer.fits(trial, beside):
            return False
        return self._fleet().packs(self._slots, [self.request(one) for one in (trial, *beside)])

    def request(self, trial: Trial) -> int:
        """The bytes of a node's memory that a trial asks for; 0 on GPUs, and where nothing is known.

        They are rounded up, so that a process can be used for one trial after another.
        """
        if self._slots.device != "cpu" or not self.predict(trial):
            return 0
        asked = _STEP_MIB
        while asked < self.predict(trial):
            asked *= 1.5 if math.log2(asked).is_integer() else 4 / 3  # 512, 768, 1024, 1536, 2048 ...
        largest = max((node.memory for node in self._fleet().working(self._slots)), default=0.0)
        return int(min(asked * 2**20, largest or asked * 2**20))


def cluster_memory(info: Mapping[str, Any], slots: Slots, fleet: Fleet, memory: int | None) -> Found:
    """As `find_memory`, where trials run on the nodes of a cluster: what its largest node has.

    Args:
        info: the content of `study.json`.
        slots: what a trial is given.
        fleet: the nodes.
        memory: bytes that all trials of a node may take; None is what it has.
    """
    here, footprint = find_memory(info, slots, None)
    host = max((node.memory for node in fleet.working(slots)), default=0.0) / 2**20
    if memory is not None:
        host = min(host, memory / 2**20)
    return replace(here, host=host, whole=host, bound=memory is not None), footprint


def find_memory(info: Mapping[str, Any], slots: Slots, memory: int | None) -> Found:
    """What there is now for the trials of a study, and what they take as it was measured when it was begun.

    Args:
        info: the content of `study.json`.
        slots: how the machine is shared.
        memory: bytes that all trials may take; None is what is free.
    """
    plain = info.get("calibration")
    measured = None if plain is None else Calibration.from_json(plain)
    if measured is not None and measured.slots.device != slots.device:
        measured = None
    images = info["data"]
    pixels = images["image_size"][0] * images["image_size"][1] * images["channels"]
    found = Memory(
        host=max(0.0, capped(free_memory_mib(), memory, slots.device) - RAY_MIB),
        bound=memory is not None,
        images=pixels * (images["counts"]["train"] + images["counts"]["val"]) / 2**20,
        whole=max(0.0, capped(all_memory_mib(), memory, slots.device) - RAY_MIB),
    )
    if measured is None:
        return found, None
    if slots.device == "cuda":
        gpus = len(info["hardware"].get("gpus", ()))
        return replace(found, device=measured.limit, devices=gpus), measured.footprint
    return replace(found, largest=most_needed(measured.layouts)), measured.footprint


def limits_of(slots: Slots, memory: Memory) -> Limits:
    """What each process of a trial may hold on this machine."""
    return limits_beside(memory.host, slots.concurrent * slots.processes, _usual(slots, memory), bound=memory.bound)


def node_limits_of(slots: Slots, memory: Memory, bound: int | None) -> NodeLimits:
    """What each process of a trial may hold on a node of a cluster, of which trials may take `bound` bytes."""
    most = most_on_a_node(slots, bound, memory.largest)
    return NodeLimits(_usual(slots, memory), slots.cpus, slots.gpus, most, None if bound is None else bound / 2**20)


def _usual(slots: Slots, memory: Memory) -> float:
    return max(memory.largest, PROCESS_MIB[slots.device] + WORKER_MIB)


def _params(trial: Trial) -> float:
    stats: Mapping[str, float] = trial.stats
    return float(stats.get("params", 0))
