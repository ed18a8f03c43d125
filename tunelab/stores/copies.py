"""A study in a store as a folder of this machine: to look at, or to go on with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunelab.credentials import hide
from tunelab.errors import InputError
from tunelab.files import cache_root, make_private, write_atomically
from tunelab.journal import Journal, is_locked
from tunelab.liveness import Sign
from tunelab.locations import name_of, parse
from tunelab.stores.lease import Lease, age_of, holder_of, is_gone, require_free
from tunelab.stores.record import Relation, StoredRecord, pull_record
from tunelab.stores.store import Store, StoreError
from tunelab.stores.trees import Tree, files_below
from tunelab.study import Study

NOT_MIRRORED = ("trials", "study.json", "journal.jsonl", "optuna.journal")
"""What is no part of a study's own tree in a store: it has a place of its own there, or can be made anew."""
_SMALL = 2 * 2**20
"""Bytes of a file that is fetched to look at a study: tables and what came of retraining, not models (our choice)."""
_NAMED = 3  # files that could not be fetched (our choice)


class Mirrored(Study):
    """A study as its store has it, at `location`. It is running while its lease is renewed, wherever that is."""

    location: str
    sign: Sign | None = None

    @property
    def place(self) -> str:
        """The URI: its folder is a copy in the cache."""
        return self.location

    @property
    def called(self) -> str:
        """The URI: no folder of studies has its name."""
        return self.location

    @property
    def running(self) -> bool:
        """True while a process searches."""
        return self.sign is not None

    def sign_of_life(self) -> Sign | None:
        """The last renewal of its lease; None if nobody searches."""
        return self.sign


def fetch_to_read(location: str) -> Mirrored:
    """The study at this URI, its small files in a folder of the cache; nothing is written to the store.

    Raises:
        InputError: there is no study, or it cannot be read.
    """
    store = Store.open(location)
    root = cache_root()[0] / "stores" / hashlib.sha256(location.encode()).hexdigest()[:16]
    folder = root / name_of(location)
    make_private(folder)
    try:
        info = _read_info(store)
        pull_record(store, folder / "journal.jsonl")
        tree = Tree(store, plain=True)
        if tree.read():
            lacking = tree.pull(folder, lambda name, entry: _is_own(name) and entry.size <= _SMALL)
            _tell_lacking(store, lacking, note)
        write_atomically(folder / "study.json", info)
        holder = holder_of(store)
        age = 0.0 if holder is None else age_of(store, holder, by_store=False)
    except StoreError as error:
        raise InputError(f"the study in {error}") from None
    except OSError as error:
        raise InputError(f"the study {location} cannot be copied to {folder}: {error.strerror or error}") from error
    study = Mirrored.open(folder)
    found = Mirrored(study.path, study.info)
    found.location = location
    if holder is not None and not is_gone(holder, age):
        found.sign = Sign(holder.process, holder.host, "", 0.0, time.time() - age)
    return found


def fetch_to_go_on(location: str, runs: Path, tell: Callable[[str], None]) -> Path:
    """The folder, inside `runs`, of the study at this URI, brought up to what the store has; trials are fetched later.

    A folder that was fetched before, or in which the study was begun, is brought up to it too, or left as it is where
    it has more. `tell` takes a line about what is amiss with the copy.

    Raises:
        InputError: there is no study, the store cannot be used, another process writes the study, or something else is
            in the folder.
    """
    store = Store.open(location)
    folder = runs / name_of(location)
    try:
        info = _read_info(store)
        store.check()
        require_free(store, tell)
        if not (folder / "study.json").exists():
            _fetch_new(store, info, folder, tell)
        else:
            _fetch_again(store, info, folder, tell)
    except StoreError as error:
        raise InputError(f"the study in {error}") from None
    except OSError as error:
        raise InputError(f"the study {location} cannot be copied to {folder}: {error.strerror or error}") from error
    return folder


@contextlib.contextmanager
def _told(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        reasons.append(str(error))


def require_new(location: str, name: str | None) -> None:
    """Passes if the store works, and has no study of this name, which it can have, below its place.

    Raises:
        InputError: it does not, or has.
    """
    if name is not None:
        place_in(location, name)
    store = Store.open(location)
    store.check()
    try:
        taken = name is not None and store.child(name).read("study.json") is not None
    except StoreError as error:
        raise InputError(f"the store {error}") from None
    if taken:
        raise InputError(
            f"the study {location}/{name} exists already; `tunelab resume {location}/{name}` goes on with it"
        )


def place_in(location: str, name: str) -> str:
    """The URI of the study `name` below a place in a store.

    Raises:
        InputError: no URI can have that name: it has a #, say, or leads elsewhere.
    """
    found = parse(f"{location}/{name}", "a study called")
    if found != f"{location}/{name}":
        raise InputError(f"no study in {location} can be called {name!r}")
    return f"{location}/{name}"


def studies_in(location: str, left_out: list[str]) -> Iterator[Mirrored]:
    """The studies directly below a place in a store; the reasons why others cannot be read go to `left_out`.

    Raises:
        InputError: the store cannot be read.
    """
    store = Store.open(location)
    try:
        names = store.folders()
        found = [name for name in names if store.child(name).read("study.json") is not None]
    except StoreError as error:
        raise InputError(f"the store {error}") from None
    for name in found:
        with _told(left_out):
            yield fetch_to_read(place_in(location, name))


def push_rest(study: Study) -> None:
    """Brings what a command has left in a study into the study's store, if it has one and nobody searches.

    What cannot be brought there is told on standard error: the local study is the truth.
    """
    if isinstance(study, Mirrored) or study.running:  # the search does it at its end
        return
    try:
        if location := store_of(study):
            push_all(study, Store.open(location))
    except (StoreError, InputError) as error:
        note(f"the store does not have what was written now: {error}")


def note(what: str) -> None:
    """Says something on standard error that is no error."""
    print(f"note: {hide(what)}", file=sys.stderr)


def store_of(study: Study) -> str:
    """Where a study is mirrored to; "" if it is not.

    Raises:
        InputError: `study.json`, which somebody else may have written, names something that is no store.
    """
    text = study.info.get("storage", "")
    location = parse(text, f"the store that {study.path / 'study.json'} names,") if text else ""
    if isinstance(location, Path):
        raise InputError(f"{study.path / 'study.json'} names {location} as its store, which is none")
    return location


def push_all(study: Study, store: Store) -> None:
    """Brings `study.json`, the record and the study's own files into the store; not the trials' folders.

    Raises:
        StudyLockedError: another process writes it, here or elsewhere.
        InputError: the store has another record, or more of it.
        StoreError: the store does not answer.
    """
    lease = Lease(store)
    lease.take(lambda what: None)
    store = store.guarded(lease.require)
    try:
        journal = Journal.open(study.path)
        try:
            record = StoredRecord(store)
            require_ours(record.relation(study.path / "journal.jsonl"), store, study.path)
            record.push(study.path / "journal.jsonl", journal.end)
            store.write("study.json", (study.path / "study.json").read_bytes())
            push_tree(study.path, Tree(store, plain=True))
        finally:
            journal.close()
    finally:
        lease.release()


def push_tree(folder: Path, tree: Tree) -> None:
    """Brings the study's own files into the store: tables, report, retraining; files that are gone here stay there."""
    tree.read()
    tree.push(folder, list(files_below(folder, NOT_MIRRORED)))


def require_ours(relation: Relation, store: Store, folder: Path) -> None:
    """Passes if the local record goes on from that in the store.

    Raises:
        InputError: the study has gone on elsewhere.
    """
    if relation == "behind":
        raise InputError(
            f"the study {store.location} went on elsewhere and has more than {folder}; "
            f"`tunelab resume {store.location}` fetches it"
        )
    if relation == "apart":
        raise InputError(
            f"the record in {folder} and that in {store.location} have gone different ways; move the folder away, and "
            f"`tunelab resume {store.location}` goes on with the one in the store"
        )


def _fetch_new(store: Store, info: bytes, folder: Path, tell: Callable[[str], None]) -> None:
    """Makes the folder, whole or not at all."""
    if folder.exists():
        raise InputError(f"{folder} exists already and is no study; --runs-dir names another folder of studies")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:100]}-"))
    try:
        pull_record(store, new / "journal.jsonl")
        _pull_tree(store, new, tell)
        write_atomically(new / "study.json", info)
        Study.open(new)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _fetch_again(store: Store, info: bytes, folder: Path, tell: Callable[[str], None]) -> None:
    local = Study.open(folder)
    if local.info.get("storage") != store.location or local.info.get("created") != json.loads(info).get("created"):
        raise InputError(f"{folder} is another study of this name; --runs-dir names another folder of studies")
    if is_locked(folder):
        raise InputError(f"the study {folder} is being written by a process of this machine; stop that one first")
    Journal.open(folder).close()  # cuts off what a killed process has left of a line
    relation = StoredRecord(store).relation(folder / "journal.jsonl")
    if relation == "apart":
        require_ours(relation, store, folder)
    if relation == "behind":
        pull_record(store, folder / "journal.jsonl")
        _pull_tree(store, folder, tell)
        write_atomically(folder / "study.json", info)


def _pull_tree(store: Store, folder: Path, tell: Callable[[str], None]) -> None:
    tree = Tree(store, plain=True)
    if tree.read():
        _tell_lacking(store, tree.pull(folder, lambda name, entry: _is_own(name)), tell)


def _tell_lacking(store: Store, names: list[str], tell: Callable[[str], None]) -> None:
    """Tells which files could not be fetched: the record has all that counts, so this ends nothing."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        shown = ", ".join(names[:_NAMED])
        tell(f"{store.location} does not have {shown}{more} as its manifest says; left out")


def _is_own(name: str) -> bool:
    return name.partition("/")[0].casefold() not in NOT_MIRRORED


def _read_info(store: Store) -> bytes:
    """The content of `study.json`, which is a mapping.

    Raises:
        InputError: there is none.
    """
    content = store.read("study.json")
    if content is None:
        raise InputError(f"there is no study in {store.location}; `tunelab list --storage URI` names those there are")
    try:
        info: Any = json.loads(content)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise InputError(f"{store.location}/study.json is no study's")
    return content
