from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tunelab.journal import StudyLockedError
from tunelab.liveness import this_boot
from tunelab.stores import lease as lease_module
from tunelab.stores import store as store_module
from tunelab.stores.lease import NAME, STALE, Holder, Lease, TakenOverError, age_of, holder_of, is_gone, require_free
from tunelab.stores.store import Store, StoreError


@dataclasses.dataclass
class Clock:
    """What a clock shows."""

    now: float


@pytest.fixture
def lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    """One of this process, which nobody renews."""
    monkeypatch.setattr(lease_module, "EVERY", 600.0)
    made = Lease(store)
    yield made
    made.drop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, which stands still."""
    made = Clock(lease_module._clock())
    monkeypatch.setattr(lease_module, "_clock", lambda: made.now)
    return made


def other(**changes: object) -> Holder:
    """A process of another machine, since now."""
    return dataclasses.replace(Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0), **changes)  # type: ignore[arg-type]


def write(store: Store, holder: Holder) -> None:
    store.write(NAME, json.dumps(dataclasses.asdict(holder)).encode())


def test_a_lease_is_taken_renewed_and_given_back(store: Store, lease: Lease, clock: Clock) -> None:
    told: list[str] = []
    lease.take(told.append)
    holder = holder_of(store)
    assert holder is not None
    assert (holder.process, holder.boot, holder.nonce) == (os.getpid(), this_boot(), lease.nonce)
    assert store.names().keys() == {NAME}, "no claim is left"
    lease.require()
    assert holder_of(store) == holder, "it was renewed a moment ago"
    clock.now += STALE
    lease.require()
    renewed = holder_of(store)
    assert renewed is not None
    assert renewed.time > holder.time
    assert age_of(store, holder) < 60
    lease.release()
    assert store.names() == {}
    assert told == []


def test_a_lease_is_renewed_whatever_its_process_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one big file is on its way, say; and once it is given back it is not renewed any more."""
    monkeypatch.setattr(lease_module, "EVERY", 0.01)
    written: list[str] = []
    write = Store.write

    def fail_now_and_then(self: Store, name: str, content: bytes) -> None:
        written.append(name)
        if len(written) % 3 == 0:
            raise StoreError("not now")
        write(self, name, content)

    lease = Lease(store)
    lease.take(lambda what: None)
    monkeypatch.setattr(Store, "write", fail_now_and_then)
    end = time.monotonic() + 200
    while written.count(NAME) < 9:
        assert time.monotonic() < end, written
        time.sleep(0.01)
    monkeypatch.setattr(Store, "write", write)
    lease.release()
    assert store.names() == {}
    assert lease.taken_by() == ""


def test_the_lease_of_a_living_process_elsewhere_is_respected(store: Store) -> None:
    write(store, other())
    with pytest.raises(
        StudyLockedError, match=r"process 4711 on elsewhere, last sign of life \d+ s ago; stop that one"
    ):
        Lease(store).take(lambda what: None)
    with pytest.raises(StudyLockedError):
        require_free(store, lambda what: None)
    assert holder_of(store) == other()


def test_the_lease_of_a_silent_process_is_taken_over(
    store: Store, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, other())
    then = store.written(NAME)
    assert then is not None
    monkeypatch.setattr(lease_module, "_now", lambda store: then + datetime.timedelta(seconds=STALE + 5))
    told: list[str] = []
    lease.take(told.append)
    assert told == ["the study is taken over from process 4711 on elsewhere, last sign of life 125 s ago"]


def test_how_old_a_lease_is_is_told_by_the_stores_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by whoever wants to know before it takes the lease: the clock of this machine may be wrong."""
    write(store, other())
    hours = 3600.0

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Wrong:
            return cls.fromtimestamp(time.time() + 5 * hours, tz)

    monkeypatch.setattr(lease_module.datetime, "datetime", Wrong)
    with pytest.raises(StudyLockedError, match="process 4711 on elsewhere"):
        require_free(store, lambda what: None)


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store, lease: Lease) -> None:
    own = lease._own
    for dead in (dataclasses.replace(own, process=2**22 + 1), dataclasses.replace(own, process=1, started=1.0)):
        assert is_gone(dead, 0.0)
    parent = psutil.Process().parent()
    assert parent is not None
    assert not is_gone(dataclasses.replace(own, process=parent.pid, started=parent.create_time()), 10 * STALE)
    write(store, dataclasses.replace(own, nonce="forgotten", process=2**22 + 1))
    told: list[str] = []
    lease.take(told.append)
    assert len(told) == 1


def test_a_lease_that_this_process_forgot_is_its_own(store: Store, lease: Lease) -> None:
    forgotten = Lease(store)
    forgotten.take(lambda what: None)
    forgotten.drop()
    told: list[str] = []
    lease.take(told.append)
    assert told == []


def of_another_process(store: Store) -> Lease:
    """A lease as another process of this machine, which lives, would have it."""
    parent = psutil.Process().parent()
    assert parent is not None
    lease = Lease(store)
    lease._own = dataclasses.replace(lease._own, process=parent.pid, started=parent.create_time())
    return lease


def taken(lease: Lease) -> bool:
    try:
        lease.take(lambda what: None)
    except StudyLockedError:
        return False
    return True


@pytest.mark.parametrize("when", range(7))
def test_of_two_that_want_a_free_lease_one_gets_it_at_most(
    store: Store, lease: Lease, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Before its request `when` the first is held up for as long as the other takes; nobody waits for anything."""
    monkeypatch.setattr(lease_module, "_SETTLES", 0.0)
    other, asked, results = of_another_process(store), [], []
    ask = Store._ask

    def held_up(self: Store, work: Callable[[], object], seconds: float | None = None) -> object:
        asked.append(work)
        if len(asked) == when + 1:
            monkeypatch.setattr(Store, "_ask", ask)
            results.append(taken(other))
        return ask(self, work, seconds)

    monkeypatch.setattr(Store, "_ask", held_up)
    results.insert(0, taken(lease))
    monkeypatch.setattr(Store, "_ask", ask)
    if len(results) == 1:
        results.append(taken(other))
    other.drop()
    holder = holder_of(store)
    assert sum(results) == 1
    assert holder is not None
    assert holder.nonce == (lease.nonce if results[0] else other.nonce)
    assert store.names().keys() == {NAME}


def test_who_takes_too_long_to_take_it_begins_again(
    store: Store, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim may count no more by then."""
    monkeypatch.setattr(lease_module, "_SETTLES", 0.0)
    names, late = Store.names, [STALE, 0.0]

    def slowly(self: Store) -> dict[str, int]:
        found = names(self)
        clock.now += late.pop(0)
        return found

    monkeypatch.setattr(Store, "names", slowly)
    lease.take(lambda what: None)
    assert late == []


def test_a_claim_that_was_left_behind_is_cleared_away(store: Store, lease: Lease) -> None:
    dead = dataclasses.replace(lease._own, nonce="dead", process=2**22 + 1)
    store.write("lease/dead.json", json.dumps(dataclasses.asdict(dead)).encode())
    lease.take(lambda what: None)
    assert store.names().keys() == {NAME}


def test_a_claim_of_a_living_process_elsewhere_is_waited_for(
    store: Store, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_SETTLES", 0.0)
    store.write("lease/abc.json", json.dumps(dataclasses.asdict(other())).encode())
    with pytest.raises(StudyLockedError, match="is being taken by another process at this moment"):
        lease.take(lambda what: None)
    assert store.names().keys() == {"lease/abc.json"}
    written, claims = Store.written, []

    def long_ago(self: Store, name: str) -> datetime.datetime | None:
        claims.append(name)
        found = written(self, name)
        return found and found - datetime.timedelta(seconds=STALE + 5) * (name == "abc.json")

    monkeypatch.setattr(Store, "written", long_ago)
    lease.take(lambda what: None)
    assert "abc.json" in claims, "by the store's clock"
    assert store.names().keys() == {NAME}


def test_who_has_lost_the_lease_writes_nothing_more(store: Store, lease: Lease, clock: Clock) -> None:
    lease.take(lambda what: None)
    guarded = store.guarded(lease.require)
    guarded.child("a").write("b", b"1")
    clock.now += STALE + 1
    write(store, other())
    for attempt in (
        lambda: guarded.write("a/b", b"2"),
        lambda: guarded.child("a").remove("b"),
        lambda: guarded.upload("a/b", io.BytesIO(b"2"), 1),
    ):
        with pytest.raises(TakenOverError, match="was taken over by process 4711 on elsewhere"):
            attempt()
    assert store.read("a/b") == b"1"
    assert lease.taken_by().startswith("process 4711 on elsewhere")
    lease.release()
    assert holder_of(store) == other()


def test_a_lease_that_others_have_had_and_given_back_is_lost(store: Store, lease: Lease, clock: Clock) -> None:
    lease.take(lambda what: None)
    clock.now += STALE / 2 + 1
    store.remove(NAME)
    lease.require()
    assert holder_of(store) is not None, "nobody else can have had it; somebody has cleared up"
    clock.now += STALE + 1
    store.remove(NAME)
    with pytest.raises(TakenOverError, match="a process that has ended since"):
        lease.require()
    assert store.names() == {}


def test_who_was_asleep_while_it_renewed_looks_again(
    store: Store, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.take(lambda what: None)
    before = holder_of(store)
    clock.now += STALE
    read = Store.read

    def late(self: Store, name: str, most: int) -> bytes | None:
        found = read(self, name, most)
        clock.now += STALE
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", late)
        with pytest.raises(StoreError, match="it answers too late to renew the lease"):
            lease.require()
    assert holder_of(store) == before
    lease.require()


@pytest.mark.parametrize("holds", [True, False])
def test_who_was_asleep_while_the_lease_was_written_leaves_it_to_others(
    store: Store, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    """What is written when the machine wakes up comes after whoever took the study over."""
    if holds:
        lease.take(lambda what: None)
        clock.now += STALE
    put = Store.write

    def late(self: Store, name: str, content: bytes) -> None:
        if name == NAME:
            clock.now += STALE + 1
            put(self, name, json.dumps(dataclasses.asdict(other())).encode())
        put(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", late)
        if holds:
            with pytest.raises(TakenOverError, match="while this one was asleep"):
                lease.require()
        else:
            monkeypatch.setattr(lease_module, "_ATTEMPTS", 1)
            monkeypatch.setattr(lease_module, "_SETTLES", 0.0)
            with pytest.raises(StudyLockedError):
                lease.take(lambda what: None)
    assert holder_of(store) is None, "whoever has it writes it again"
    assert bool(lease.taken_by()) is holds


def test_a_large_file_that_is_on_its_way_when_the_lease_is_lost_does_not_arrive(
    store: Store, lease: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BLOCK", 4)
    lease.take(lambda what: None)
    store.write("a", b"theirs")

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            clock.now += STALE
            write(store, other())
            return super().read(size)

    with pytest.raises(TakenOverError):
        store.guarded(lease.require).upload("a", Slow(b"012345678"), 9)
    assert store.read("a") == b"theirs"


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"nonce": 3}', "[" * 2000, '{"host": "a\\nb"}'])
def test_what_is_no_lease_is_told_as_one_that_nobody_renews(store: Store, content: str) -> None:
    store.write(NAME, content.encode())
    holder = holder_of(store)
    assert holder is not None
    assert holder.host == "a machine that is not named"
    assert is_gone(holder, STALE + 1)
