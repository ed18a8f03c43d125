from __future__ import annotations

import dataclasses
import datetime
import json
import os

import psutil
import pytest

from tunelab.journal import StudyLockedError
from tunelab.liveness import this_boot
from tunelab.stores import lease as lease_module
from tunelab.stores.lease import NAME, STALE, Holder, Lease, age_of, holder_of, is_gone, require_free
from tunelab.stores.store import Store


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_SETTLES", 0.0)


def other(**changes: object) -> Holder:
    """A process of another machine, since now."""
    return dataclasses.replace(Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0), **changes)  # type: ignore[arg-type]


def write(store: Store, holder: Holder) -> None:
    store.write(NAME, json.dumps(dataclasses.asdict(holder)).encode())


def test_a_lease_is_taken_renewed_and_given_back(store: Store) -> None:
    lease, told = Lease(store), []
    lease.take(told.append)
    holder = holder_of(store)
    assert holder is not None
    assert (holder.process, holder.boot) == (os.getpid(), this_boot())
    assert lease.renew() == ""
    assert age_of(store, holder) < 60
    lease.release()
    assert store.names() == {}
    assert told == []


def test_the_lease_of_a_living_process_elsewhere_is_respected(store: Store) -> None:
    write(store, other())
    with pytest.raises(
        StudyLockedError, match=r"process 4711 on elsewhere, last sign of life \d+ s ago; stop that one"
    ):
        Lease(store).take(lambda what: None)
    with pytest.raises(StudyLockedError):
        require_free(store, lambda what: None)
    assert holder_of(store) == other()


def test_the_lease_of_a_silent_process_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, other())
    then = store.written(NAME)
    assert then is not None
    monkeypatch.setattr(lease_module, "_now", lambda store: then + datetime.timedelta(seconds=STALE + 5))
    told: list[str] = []
    Lease(store).take(told.append)
    assert told == ["the study is taken over from process 4711 on elsewhere, last sign of life 125 s ago"]


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    lease = Lease(store)
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


def test_a_lease_that_this_process_forgot_is_its_own(store: Store) -> None:
    Lease(store).take(lambda what: None)
    told: list[str] = []
    Lease(store).take(told.append)
    assert told == []


def test_of_two_at_the_same_moment_one_gets_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(store)
    monkeypatch.setattr(lease_module.time, "sleep", lambda seconds: write(store, other()))
    with pytest.raises(StudyLockedError, match="process 4711 on elsewhere"):
        lease.take(lambda what: None)


def test_who_has_lost_the_lease_leaves_it_alone(store: Store) -> None:
    lease = Lease(store)
    lease.take(lambda what: None)
    write(store, other())
    assert lease.renew().startswith("process 4711 on elsewhere")
    lease.release()
    assert holder_of(store) == other()


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"nonce": 3}', "[" * 2000, '{"host": "a\\nb"}'])
def test_what_is_no_lease_is_told_as_one_that_nobody_renews(store: Store, content: str) -> None:
    store.write(NAME, content.encode())
    holder = holder_of(store)
    assert holder is not None
    assert holder.host == "a machine that is not named"
    assert is_gone(holder, STALE + 1)
