"""Who writes a study in a store: one process, which renews its lease; one that is silent for long has lost it.

How old a lease is is told by the store's clock where it has one: those of two machines may differ.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass

import psutil

from tunelab.journal import StudyLockedError
from tunelab.liveness import this_boot
from tunelab.stores.store import Store, StoreError

NAME = "lease.json"
EVERY = 20.0
"""Seconds between two renewals (our choice)."""
STALE = 120.0
"""After so many seconds without one the lease may be taken over (our choice)."""
_TRUSTED = STALE / 2  # seconds after a renewal in which nobody else can have the lease; what is begun then ends in time
_CLAIMS = "lease"
_ATTEMPTS = 5  # to take it, where others want it too (our choice)
_SETTLES = 2.0  # seconds at most until the next; each waits for another time (our choice)
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


class TakenOverError(StoreError):
    """Another process goes on with the study: nothing more is written to its store by this one."""


class Lease:
    """The lease of the study at a place in a store. From `take` to `release` a thread of its own renews it."""

    def __init__(self, store: Store) -> None:
        self._taken_by = ""
        self._store = store
        own = psutil.Process()
        self._own = Holder(uuid.uuid4().hex, own.pid, own.create_time(), socket.gethostname(), this_boot(), 0.0)
        self._renewed = 0.0  # when the last renewal that worked began
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def nonce(self) -> str:
        """Tells this lease from all others."""
        return self._own.nonce

    def take(self, tell: Callable[[str], None]) -> None:
        """Takes the lease; from one that is gone, which `tell` is told. Of several that want it none or one gets it.

        Raises:
            StudyLockedError: another process holds it, or takes it at this moment; the message says which.
            StoreError: the store does not answer.
        """
        require_free(self._store, tell, self._own)
        for _ in range(_ATTEMPTS):
            if self._claim():
                self._over.clear()
                threading.Thread(target=self._keep, name="lease", daemon=True).start()
                return
            time.sleep(random.uniform(0.0, _SETTLES))
        raise StudyLockedError(f"the study {self._store.location} is being taken by another process at this moment")

    def require(self) -> None:
        """Passes while this process holds the lease; one that was not renewed for long is renewed first.

        Raises:
            TakenOverError: another process has taken it.
            StoreError: it may have been taken, but the store does not answer.
        """
        if self._is_due():
            with self._lock:
                if self._is_due():  # not renewed while this waited
                    self._renew()
        if self._taken_by:
            raise TakenOverError(f"{self._store.location}: the study was taken over by {self._taken_by}")

    def taken_by(self) -> str:
        """Which other process has taken it; "" if none has, as far as is known."""
        return self._taken_by

    def drop(self) -> None:
        """Renews it no more: after `STALE` seconds others may take it over."""
        self._over.set()

    def release(self) -> None:
        """Gives the lease back, unless another has taken it."""
        self.drop()
        with self._lock:
            holder = holder_of(self._store)
            if holder is not None and holder.nonce == self.nonce:
                self._store.remove(NAME)

    def _claim(self) -> bool:
        """Makes the lease this process's; False if another process is about to do so too.

        Each writes a claim with a name of its own, then looks for claims of others, then for a lease: of two, one at
        least sees the other's claim, or what came of it. No clock has a part in that, if nobody takes as long as a
        claim counts.
        """
        claims, own, began = self._store.child(_CLAIMS), f"{self.nonce}.json", _clock()
        claims.write(own, self._content())
        try:
            if any(name != own and not _is_left(claims, name, own, self._own) for name in claims.names()):
                return False
            require_free(self._store, lambda what: None, self._own)
            if _clock() - began > _TRUSTED:
                return False
            return self._write(_clock())
        finally:
            claims.remove(own)

    def _is_due(self) -> bool:
        return not self._taken_by and _clock() - self._renewed > _TRUSTED

    def _keep(self) -> None:
        """Renews the lease until it is over, whatever else this process is doing; what fails is tried again soon."""
        pause = EVERY
        while not self._over.wait(pause):
            with self._lock:
                if self._over.is_set() or self._taken_by:
                    return
                try:
                    self._renew()
                    pause = EVERY
                except Exception:  # `require` tells it, when it matters
                    pause = EVERY / 4

    def _renew(self) -> None:
        """Renews the lease, or finds that it is lost; then nothing is written."""
        began = _clock()
        holder = holder_of(self._store)
        if holder is None and began - self._renewed > STALE:
            self._taken_by = "a process that has ended since"  # it was free for others that long
        elif holder is not None and holder.nonce != self.nonce:
            self._taken_by = holder.describe(age_of(self._store, holder))
        elif _clock() - began > _TRUSTED:  # this machine was asleep, say
            raise StoreError(f"{self._store.location}: it answers too late to renew the lease")
        elif not self._write(began):
            self._taken_by = "a process that may have gone on while this one was asleep"

    def _write(self, began: float) -> bool:
        """Writes the lease, which is free or this process's since `began`; False if it may be another's by now.

        No store compares before it writes over: where this machine fell asleep in between, what was written goes, and
        whoever has the lease writes it again.
        """
        self._store.write(NAME, self._content())
        if _clock() - began > STALE:
            self._store.remove(NAME)
            return False
        self._renewed = began
        return True

    def _content(self) -> bytes:
        return json.dumps({**asdict(self._own), "time": round(time.time(), 3)}).encode()


class WorkersLease:
    """The lease of a driver, as its workers see it: they write under it too, and do not renew it.

    Args:
        store: the study's place.
        nonce: of that lease.
    """

    def __init__(self, store: Store, nonce: str) -> None:
        self._store, self._nonce = store, nonce
        self._seen = -math.inf

    def require(self) -> None:
        """Passes while the driver holds it; it is looked at every `EVERY` seconds at most.

        Raises:
            TakenOverError: another process has taken it, or had it.
            StoreError: the store does not answer.
        """
        now = _clock()
        if now - self._seen <= EVERY:
            return
        holder = holder_of(self._store)
        if holder is None or holder.nonce != self._nonce:
            other = "a process that has ended since" if holder is None else f"process {holder.process} on {holder.host}"
            raise TakenOverError(f"{self._store.location}: the study was taken over by {other}")
        self._seen = now


def require_free(store: Store, tell: Callable[[str], None], own: Holder | None = None) -> None:
    """Passes if nobody else holds the lease at this place; `tell` is told of one that is gone.

    Raises:
        StudyLockedError: another process holds it.
        StoreError: the store does not answer.
    """
    holder = holder_of(store)
    if holder is None or (own is not None and _same(holder, own)):
        return
    age = age_of(store, holder)
    if not is_gone(holder, age):
        raise StudyLockedError(_refusal(store, holder, age))
    if own is not None:
        tell(f"the study is taken over from {holder.describe(age)}")


def holder_of(store: Store, name: str = NAME) -> Holder | None:
    """Who holds the lease at this place; None if nobody does."""
    content = store.read(name, _BYTES)
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


def _is_left(claims: Store, name: str, own_name: str, own: Holder) -> bool:
    """True for a claim of a process that ended before it got the lease, and for one of this process."""
    holder = holder_of(claims, name)
    if holder is None or _same(holder, own):
        return True
    then, now = claims.written(name), claims.written(own_name)
    age = time.time() - holder.time if then is None or now is None else (now - then).total_seconds()
    if age <= STALE and not is_gone(holder, age):
        return False
    claims.remove(name)
    return True


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


def _clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one: a lease does not wait for it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
