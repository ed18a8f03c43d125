"""Who writes a study in a store: one process, which renews its lease; one that is silent for long has lost it.

How old a lease is is told by the store's clock where it has one: those of two machines may differ.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass

import psutil

from tunelab.journal import StudyLockedError
from tunelab.liveness import this_boot
from tunelab.stores.store import Store

NAME = "lease.json"
EVERY = 20.0
"""Seconds between two renewals (our choice)."""
STALE = 120.0
"""After so many seconds without one the lease may be taken over (our choice)."""
_SETTLES = 0.5  # seconds after which the one of two that came first at the same time is seen to be gone
_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: which process, since when it runs, on which machine; `time` is of that machine's clock."""

    nonce: str
    process: int
    started: float
    host: str
    boot: str
    time: float

    def describe(self, age: float) -> str:
        """In words: "process 123 on host, last sign of life 3 s ago"."""
        return f"process {self.process} on {self.host}, last sign of life {age:.0f} s ago"


class Lease:
    """The lease of the study at a place in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        own = psutil.Process()
        self._own = Holder(uuid.uuid4().hex, own.pid, own.create_time(), socket.gethostname(), this_boot(), 0.0)

    def take(self, tell: Callable[[str], None]) -> None:
        """Takes the lease; from one that is gone, which `tell` is told.

        Raises:
            StudyLockedError: another process holds it; the message says which.
            StoreError: the store does not answer.
        """
        require_free(self._store, tell, self._own)
        self._write()
        time.sleep(_SETTLES)
        holder = holder_of(self._store)
        if holder is not None and holder.nonce != self._own.nonce:
            raise StudyLockedError(_refusal(self._store, holder, 0.0))

    def renew(self) -> str:
        """Renews the lease; if another has taken it, who that is, and nothing is written."""
        holder = holder_of(self._store)
        if holder is not None and holder.nonce != self._own.nonce:
            return holder.describe(age_of(self._store, holder))
        self._write()
        return ""

    def release(self) -> None:
        """Gives the lease back, unless another has taken it."""
        holder = holder_of(self._store)
        if holder is not None and holder.nonce == self._own.nonce:
            self._store.remove(NAME)

    def _write(self) -> None:
        content = {**asdict(self._own), "time": round(time.time(), 3)}
        self._store.write(NAME, json.dumps(content).encode())


def require_free(store: Store, tell: Callable[[str], None], own: Holder | None = None) -> None:
    """Passes if nobody else holds the lease at this place; `tell` is told of one that is gone.

    Raises:
        StudyLockedError: another process holds it.
        StoreError: the store does not answer.
    """
    holder = holder_of(store)
    if holder is None or (own is not None and _same(holder, own)):
        return
    age = age_of(store, holder, by_store=own is not None)
    if not is_gone(holder, age):
        raise StudyLockedError(_refusal(store, holder, age))
    if own is not None:
        tell(f"the study is taken over from {holder.describe(age)}")


def holder_of(store: Store) -> Holder | None:
    """Who holds the lease at this place; None if nobody does."""
    content = store.read(NAME, _BYTES)
    if content is None:
        return None
    try:
        holder = Holder(**json.loads(content))
        kinds = [type(value) for value in astuple(holder)]
        known = kinds == [str, int, float, str, str, float] and f"{holder.host}{holder.boot}".isprintable()
    except (ValueError, TypeError, RecursionError):
        known = False
    return holder if known else Holder("", 0, 0.0, "a machine that is not named", "", 0.0)


def age_of(store: Store, holder: Holder, *, by_store: bool = True) -> float:
    """Seconds since a lease was renewed: `by_store` by the store's clock, for which an object is written."""
    written = store.written(NAME)
    if written is None:
        return max(0.0, time.time() - holder.time)
    now = _now(store) if by_store else datetime.datetime.now(datetime.timezone.utc)
    return max(0.0, (now - written).total_seconds())


def is_gone(holder: Holder, age: float) -> bool:
    """True if a lease may be taken over: its process has ended, or been silent for long."""
    if holder.boot and holder.boot == this_boot() and holder.host == socket.gethostname():
        try:
            return bool(abs(psutil.Process(holder.process).create_time() - holder.started) > 1.0)
        except (psutil.Error, ValueError, OverflowError):
            return True
    return age > STALE


def _same(holder: Holder, own: Holder) -> bool:
    """True for a lease of this process, which forgot it in an error."""
    return (holder.boot, holder.host, holder.process, holder.started) == (own.boot, own.host, own.process, own.started)


def _refusal(store: Store, holder: Holder, age: float) -> str:
    return (
        f"the study {store.location} is being written by {holder.describe(age)}; stop that one first, or try again in "
        f"{max(1.0, STALE - age):.0f} s if its machine is gone"
    )


def _now(store: Store) -> datetime.datetime:
    """What the store's clock shows, as the time of an object that is written for that; else this machine's."""
    name = f".tunelab-clock-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    store.write(name, b"1")
    try:
        return store.written(name) or datetime.datetime.now(datetime.timezone.utc)
    finally:
        store.remove(name)
