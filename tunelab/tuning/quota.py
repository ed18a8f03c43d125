"""What `--memory` leaves: for a search, for each of its trials, and for the images that a trial holds."""

from __future__ import annotations

import dataclasses
import math

from tunelab.capacity import describe_size
from tunelab.errors import InputError
from tunelab.tuning.slots import Slots

RAY_MIB = 800.0
"""What Ray's own processes hold; measured."""
PROCESS_MIB = {"cpu": 300.0, "cuda": 900.0}
"""What a process holds that has loaded torch; measured."""
_ANY = 1_000_000  # trials at once: more than fit anywhere
WORKER_MIB = 170.0
"""What a trial's process holds beside what is measured of it in a process of its own: Ray and TensorBoard; measured."""


def capped(free: float, memory: int | None, device: str) -> float:
    """What a search may take of `free` MiB, Ray included, where its trials may take `memory` bytes (None: all of it).

    Raises:
        InputError: not even a process without a network fits into `memory`.
    """
    if memory is None:
        return free
    least = PROCESS_MIB[device] + WORKER_MIB
    if memory < least * 2**20:
        raise _too_small(memory, least, "a trial takes before it has a network")
    return min(free, memory / 2**20 + RAY_MIB)


def share_memory(slots: Slots, memory: int | None, needed: float) -> Slots:
    """The slots with only so many trials at once as fit into `memory` bytes, and what that leaves each for images.

    Args:
        slots: how the machine would be shared otherwise.
        memory: what all trials may take; None changes nothing.
        needed: the MiB that the largest trial takes without images, Ray included; 0 where that was not measured, as on
            a GPU, whose own memory is measured in its place. It is then what a trial takes without a network.

    Raises:
        InputError: not one trial fits.
    """
    if memory is None:
        return slots
    needed = needed or PROCESS_MIB[slots.device] + WORKER_MIB
    fits = int(memory / 2**20 // needed)
    if not fits:
        raise _too_small(memory, needed, "the largest trial of this search takes")
    concurrent = min(slots.concurrent, fits)
    return dataclasses.replace(slots, concurrent=concurrent, memory=int(memory // concurrent - needed * 2**20))


def most_on_a_node(slots: Slots, memory: int | None, needed: float) -> int | None:
    """How many trials fit into `memory` bytes of one node of a cluster; None without a bound.

    Raises:
        InputError: not one trial fits.
    """
    if memory is None:
        return None
    alone = dataclasses.replace(slots, concurrent=_ANY, memory=None)
    return share_memory(alone, memory, needed).concurrent


def in_words(slots: Slots) -> str:
    """What is left for images, as a further part of a sentence; "" where there is no bound."""
    if slots.memory is None:
        return ""
    return f"; {describe_size(slots.memory)} {'each ' if slots.concurrent > 1 else ''}left for images"


def _too_small(memory: int, needed: float, of_what: str) -> InputError:
    given, least = int(memory // 2**20), math.ceil(needed)
    return InputError(f"--memory: {given} MiB is too little, {of_what} {least} MiB; give at least {least}MiB")
