"""The driver's side of the mirror: the record goes into the store every few seconds, all else at the end.

The local study is the truth while a search runs. What the store refuses is told once, tried again, and ends nothing;
only a study that another machine has taken over pauses here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunelab.errors import InputError
from tunelab.journal import Journal
from tunelab.records import Trial
from tunelab.stores.copies import note, push_tree, require_ours, store_of
from tunelab.stores.lease import Lease, TakenOverError
from tunelab.stores.record import StoredRecord
from tunelab.stores.store import Store, StoreError, reason, within
from tunelab.stores.trees import Tree
from tunelab.stores.trials import CHECKPOINT, TrialCopy, is_marked
from tunelab.study import Study

if TYPE_CHECKING:
    from tunelab.tuning.engine import Engine

EVERY = 4.0
"""Seconds between two looks at the record (our choice)."""
SWEEP = 600.0
"""Seconds between two removals of checkpoints that are not kept (our choice)."""
PATIENCE = 60.0
"""Seconds that the end of a search waits for a store that does not answer (our choice)."""
_AT_WORK = 60.0  # seconds that the end waits for what is being sent; our choice
_LONGEST_PAUSE = 60.0


class StudyMirror:
    """Mirrors a study while it is searched; a listener, to know which trials were trained.

    Args:
        study: the local one.
        store: its place.
        journal: its record, open for writing.
        tell: takes a line about what does not work.
    """

    def __init__(self, study: Study, store: Store, journal: Journal, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.location = store.location
        self._study = study
        self._lease = Lease(store)
        self._store = store
        self._journal = journal
        self._file = study.path / "journal.jsonl"
        self._record: StoredRecord | None = None
        self._info = b""
        self._stays: dict[int, bool] = {}
        self._begun: set[int] = set()
        self._swept = time.monotonic()
        self._trouble = ""
        self._ending = threading.Event()
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    @property
    def lease(self) -> str:
        """The nonce of the lease under which it writes."""
        return self._lease.nonce

    def begin(self) -> None:
        """Tries the store, takes the lease, brings the store up to the study, and goes on with that in a thread.

        Raises:
            InputError: the store does not work, another process writes the study, or it has gone on elsewhere.
        """
        self._store.check()
        try:
            self._lease.take(self.tell)
            self._store = self._store.guarded(self._lease.require)
            record = StoredRecord(self._store)
            require_ours(record.relation(self._file), self._store, self._study.path)
            self._record = record
            self._push()
            push_tree(self._study.path, Tree(self._store, plain=True))
        except BaseException as error:
            with contextlib.suppress(StoreError):
                self._lease.release()
            if isinstance(error, StoreError):
                raise InputError(f"the store {error}; nothing was begun") from None
            raise
        self._thread.start()

    def look(self, engine: Engine, _temporary: Path) -> None:
        """Halts the engine if another machine goes on with the study."""
        if other := self._lease.taken_by():
            engine.halt(f"the study goes on elsewhere, by {other}")

    def cleared(self, number: int, stays: bool) -> None:
        """Takes note that a trial which has ended keeps no checkpoint, or its last and best ones."""
        self._stays[number] = stays

    def started(self, trial: Trial) -> None:
        """Takes note of it."""
        self._begun.add(trial.number)

    def reported(self, trial: Trial) -> None:
        """Nothing: the record says it."""

    def retried(self, trial: Trial, why: str) -> None:
        """Nothing: the record says it."""

    def ended(self, trial: Trial) -> None:
        """Nothing: the record says it."""

    def close(self) -> None:
        """Brings all into the store that is not there yet, and gives the lease back; that can fail, which is told."""
        if said := self._close():
            self.tell(said)

    def close_within(self, seconds: float) -> str:
        """As `close`, for a process that ends itself then: what of it did not work is returned, "" if all did."""
        self.tell = lambda what: None  # it is all in what is returned
        try:
            return within(seconds, self._close)
        except Exception:  # whatever it is, the process ends, and says so
            return self._lacks

    def _close(self) -> str:
        """What did not work; "" where another thread was at it, which is waited for."""
        with self._closing:
            if self._ending.is_set():
                return ""
            self._ending.set()
            try:
                if self._thread.is_alive():
                    self._thread.join(_AT_WORK)
                return self._end()
            except KeyboardInterrupt:  # nobody waits for a store that long
                self.tell(self._lacks)
                raise
            finally:
                self._lease.drop()

    @property
    def _lacks(self) -> str:
        return (
            f"the store {self.location} does not have all of it; the study here does, and "
            f"`tunelab resume {self._study.path}` brings it there"
        )

    def _end(self) -> str:
        if self._lease.taken_by():  # the engine was halted for it
            return ""
        end, pause = time.monotonic() + PATIENCE, 1.0
        while self._thread.is_alive() or not self._attempt(self._finish):
            if self._thread.is_alive() or time.monotonic() + pause > end:
                return self._lacks
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        other = self._lease.taken_by()
        return f"the study was taken over by {other}; the store keeps to that one" if other else ""

    def _run(self) -> None:
        pause = EVERY
        while not self._ending.wait(pause) and not self._lease.taken_by():
            pause = EVERY if self._attempt(self._go_on) else min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """True if it worked; what does not is told when it begins, and when it is over."""
        try:
            work()
        except TakenOverError:
            return True
        except Exception as error:  # whatever it is, the search does not depend on it
            why = str(error) if isinstance(error, StoreError) else f"{self.location}: {reason(error)}"
            if not self._trouble:
                self.tell(f"the store {why}; the search goes on, and it is tried again")
            self._trouble = why
            return False
        if self._trouble:
            self._trouble = ""
            self.tell(f"the store {self.location} takes what it is given again")
        return True

    def _go_on(self) -> None:
        self._lease.require()
        self._push()
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self._sweep()

    def _push(self) -> None:
        """Brings the record and `study.json` up to date."""
        assert self._record is not None, "begin() makes it"
        self._record.push(self._file, self._journal.end)
        info = (self._study.path / "study.json").read_bytes()
        if info != self._info:
            self._store.write("study.json", info)
            self._info = info

    def _sweep(self) -> set[int]:
        """Removes the checkpoints that are not kept; the numbers of the trials that have some left."""
        trials = self._store.child("trials")
        parts = [name.split("/", 1) for name in trials.names()]
        found = {int(part[0]) for part in parts if part[0].isdecimal() and part[-1].startswith(CHECKPOINT)}
        for number in sorted(found):
            if self._ending.is_set() and threading.current_thread() is self._thread:
                break  # the end does it all
            if self._stays.get(number) is False:
                self._copy_of(number).drop_checkpoints()
        return {number for number in found if self._stays.get(number) is not False}

    def _finish(self) -> None:
        self._push()
        for number in sorted(self._sweep() | self._begun):
            if number in self._begun and self._stays.get(number) is not False:
                self._copy_of(number).bring_together()
            elif not is_marked(self._study.trial_folder(number)):  # it was trained elsewhere
                self._copy_of(number).fetch()
        push_tree(self._study.path, Tree(self._store, plain=True))
        self._lease.release()

    def _copy_of(self, number: int) -> TrialCopy:
        folder = self._study.trial_folder(number)
        return TrialCopy(self._store.child("trials").child(folder.name), folder)


@contextlib.contextmanager
def mirrored(
    study: Study, journal: Journal, *, say_where: bool = True, has_work: Callable[[], bool] = lambda: True
) -> Iterator[StudyMirror | None]:
    """The mirror of a study that has a store, begun; at the end all of it is there. None for one that has none.

    Nor has one that cannot be begun, where the study has no work any more: that is told, and refuses nothing.

    Raises:
        InputError: as `StudyMirror.begin`.
    """
    location = store_of(study)
    if not location:
        yield None
        return
    if say_where:
        note(f"the study is mirrored to {location}")
    mirror = StudyMirror(study, Store.open(location), journal, note)
    try:
        mirror.begin()
    except InputError as error:
        if has_work():
            raise
        note(f"the search has ended, and the store was not looked after: {error}")
        yield None
        return
    try:
        yield mirror
    finally:
        mirror.tell = note
        mirror.close()
