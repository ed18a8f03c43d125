"""A folder's files in a store, and the manifest that says which objects they are.

The manifest is written after the objects that it names, and what it no longer names is removed after it: a folder that
is half copied is the one from before. With `plain` an object has the name of its file, for people who look at the
store; else its name holds the checksum, so that nothing is ever written over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunelab.files import make_private, open_file
from tunelab.stores.store import Store, StoreError

MANIFEST = "manifest.json"
FORMAT = 1
_ATTEMPTS = 3
_CHUNK = 2**20
_OF_A_PROCESS = ("lock", "alive", "reserve", "ray.log", "ray-dashboard.json")
_COARSEST = 2 * 10**9  # ns between two times that FAT can tell apart, which is the coarsest; others take 1 s to 1 ns


@dataclass(frozen=True)
class Entry:
    """A file as the manifest has it: the object that holds it, its size in bytes and its SHA-256."""

    object: str
    size: int
    sha256: str


class Tree:
    """The copy of a folder at a place in a store. One process writes it; `read` shows what others have written.

    `version` is a checksum of the manifest, "" where there is none.
    """

    def __init__(self, store: Store, *, plain: bool = False) -> None:
        self.files: dict[str, Entry] = {}
        self.version = ""
        self._store = store
        self._plain = plain
        self._seen: dict[str, tuple[tuple[int, int, int], str]] = {}

    def read(self) -> bool:
        """Reads the manifest; False if there is none.

        Raises:
            StoreError: the store does not answer, or the manifest is no manifest.
        """
        content = self._store.read(MANIFEST)
        self.files, self.version = {}, ""
        if content is None:
            return False
        try:
            plain = json.loads(content)
            if plain["format"] != FORMAT:
                raise ValueError(f"its format is {plain['format']!r}")
            found = {str(name): _entry(entry) for name, entry in plain["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"{self._store.location}/{MANIFEST} is damaged: {str(error)[:100]}") from None
        self.version = hashlib.sha256(content).hexdigest()
        self.files = {name: entry for name, entry in found.items() if _may_come(name) and _is_safe(entry.object)}
        return True

    def push(self, folder: Path, names: Collection[str], gone: Callable[[str], bool] = lambda name: False) -> None:
        """Brings these files of `folder` into the store; those that are as the manifest has them are not sent again.

        Args:
            folder: the local one.
            names: of files, below it.
            gone: says of a file that is in the store and not among `names` whether it is to go.

        Raises:
            StoreError: the store does not take it; what it had is as it was.
            OSError: a file cannot be read.
        """
        new = {name: entry for name, entry in self.files.items() if name in names or not gone(name)}
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):  # it was there a moment ago; the next time it is gone
                new[name] = self._push_file(folder / name, name, [*self.files.values(), *new.values()])
        self._write(new)

    def drop(self, gone: Callable[[str], bool]) -> None:
        """Removes files from the store."""
        self._write({name: entry for name, entry in self.files.items() if not gone(name)})

    def tidy(self) -> None:
        """Removes the objects that no manifest names: those of a process that was killed while it copied."""
        if self._plain:
            return
        named = {entry.object for entry in self.files.values()} | {MANIFEST}
        for name in self._store.names():
            if name not in named:
                self._store.remove(name)

    def pull(self, folder: Path, wanted: Callable[[str, Entry], bool] = lambda name, entry: True) -> list[str]:
        """Brings files from the store into `folder`, each whole or not at all; those that are there stay.

        A manifest that another process replaces meanwhile is read again.

        Returns:
            The files that are not in the store as the manifest has them.

        Raises:
            StoreError: the store does not answer.
            OSError: a file cannot be written.
        """
        for attempt in range(_ATTEMPTS):
            if attempt and not self.read():
                return []
            lacking = [
                name for name, entry in self.files.items() if wanted(name, entry) and not _is(folder, name, entry)
            ]
            failed = [name for name in lacking if not self._pull_file(folder / name, self.files[name])]
            if not failed:
                return []
        return failed

    def _push_file(self, path: Path, name: str, there: Collection[Entry]) -> Entry:
        with open_file(path) as file:
            found = os.fstat(file.fileno())
            mark = found.st_ino, found.st_size, found.st_mtime_ns
            settled = found.st_mtime_ns < time.time_ns() - _COARSEST  # else it may change again, and show nothing
            seen = self._seen.pop(name, None)
            sha256 = seen[1] if seen is not None and seen[0] == mark else digest(file, found.st_size)
            same = [entry for entry in there if entry.sha256 == sha256 and entry.size == found.st_size]
            entry = Entry(name if self._plain else _object_name(name, sha256), found.st_size, sha256)
            if same and not self._plain:
                entry = same[0]
            elif entry not in there:
                file.seek(0)
                self._store.upload(entry.object, file, found.st_size)
            if settled:
                self._seen[name] = mark, sha256
        return entry

    def _write(self, new: dict[str, Entry]) -> None:
        if new == self.files:
            return
        plain = {"format": FORMAT, "files": {name: asdict(entry) for name, entry in sorted(new.items())}}
        content = json.dumps(plain, indent=1).encode()
        self._store.write(MANIFEST, content)
        self.version = hashlib.sha256(content).hexdigest()
        before = {entry.object for entry in self.files.values()} - {entry.object for entry in new.values()}
        self.files = new
        for name in before:
            self._store.remove(name)

    def _pull_file(self, path: Path, entry: Entry) -> bool:
        """True if the file is there now, just as the manifest has it."""
        make_private(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w+b") as file:
                with contextlib.suppress(StoreError):
                    self._store.download(entry.object, file)
                file.flush()
                size = file.tell()
                file.seek(0)
                if size != entry.size or digest(file, size) != entry.sha256:
                    return False
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return True


def digest(file: BinaryIO, size: int) -> str:
    """The SHA-256 of the next `size` bytes of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, _CHUNK))):
        found.update(part)
        size -= len(part)
    return found.hexdigest()


def files_below(folder: Path, without: Collection[str] = ()) -> Iterator[str]:
    """The files below a folder, with slashes; no links, hidden or half-written ones, none of the names `without`."""
    for path, folders, names in os.walk(folder):
        inside = PurePosixPath(Path(path).relative_to(folder).as_posix())
        top = path == os.fspath(folder)
        folders[:] = [name for name in folders if not (name.startswith(".") or (top and name in without))]
        for name in names:
            hidden = name.startswith(".") or name.endswith(".tmp") or name in _OF_A_PROCESS or (top and name in without)
            if not hidden and not Path(path, name).is_symlink():
                yield str(inside / name)


def _entry(plain: dict[str, object]) -> Entry:
    name, size, sha256 = plain["object"], plain["size"], plain["sha256"]
    if not (isinstance(name, str) and type(size) is int and size >= 0 and isinstance(sha256, str)):
        raise ValueError("a file of it is none")
    return Entry(name, size, sha256)


def _may_come(name: str) -> bool:
    """True for a file that `files_below` would have sent: none that says that a process works here, say."""
    last = name.rpartition("/")[2].casefold()
    return _is_safe(name) and last not in _OF_A_PROCESS and not last.endswith(".tmp")


def _is_safe(name: str) -> bool:
    """True for a name that leads below the folder: somebody else may have written the manifest."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not any(part == "" or part.startswith(".") for part in parts)


def _object_name(name: str, sha256: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}.{sha256[:16]}{path.suffix}"))


def _is(folder: Path, name: str, entry: Entry) -> bool:
    """True if the local file is just so."""
    try:
        with open_file(folder / name) as file:
            return os.fstat(file.fileno()).st_size == entry.size and digest(file, entry.size) == entry.sha256
    except OSError:
        return False
