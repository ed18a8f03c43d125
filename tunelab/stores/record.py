"""The record of a study in a store: segments, each of which says which bytes of the record it is, and their checksum.

Object stores cannot append. A new segment takes in those before it that are not larger: there are few, whatever the
length of the record, and each byte is written again as often as its segment doubles.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from tunelab.files import sync_folder
from tunelab.stores.lease import TakenOverError
from tunelab.stores.store import Store, StoreError

FOLDER = "journal"
LARGEST = 8 * 2**20
"""Bytes of a segment at most, unless a single line is longer (our choice)."""
_NAME = re.compile(r"(\d{15})-(\d{15})-([0-9a-f]{32})\.jsonl")
_LONGEST = 256 * 2**20
_ATTEMPTS = 5
Relation = Literal["behind", "equal", "ahead", "apart"]


@dataclass(frozen=True)
class Segment:
    """The bytes of the record from `begin` to before `end`; `digest` begins their SHA-256."""

    begin: int
    end: int
    digest: str

    @property
    def name(self) -> str:
        """The name of the object."""
        return f"{self.begin:015d}-{self.end:015d}-{self.digest}.jsonl"


class GoneError(StoreError):
    """A segment is gone: the process that writes the record has merged it with others since it was listed."""


def pull_record(store: Store, path: Path) -> None:
    """Brings the local record up to that at a place in a store, whoever writes there; see `StoredRecord.pull`.

    A local one that is not behind is replaced. Without a record in the store nothing is written.
    """
    for attempt in range(_ATTEMPTS):
        record = StoredRecord(store)
        try:
            if record.end:
                record.pull(path)
        except GoneError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return


def digest_of(content: bytes) -> str:
    """The first half of the SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


class StoredRecord:
    """The segments of a record below `store`, as they were when this was made, and since changed by it alone.

    Raises:
        StoreError: the store does not answer, or a segment is missing between others.
    """

    def __init__(self, store: Store) -> None:
        self._store = store.child(FOLDER)
        self._segments, self._others = _chain(self._store)

    @property
    def end(self) -> int:
        """How many bytes of the record are in the store."""
        return self._segments[-1].end if self._segments else 0

    def relation(self, path: Path) -> Relation:
        """How the local record stands to this one: it has less, the same, more, or something else.

        Raises:
            StoreError: what is to be compared cannot be fetched.
        """
        if not path.exists():
            return "behind" if self._segments else "equal"
        size = path.stat().st_size
        with path.open("rb") as file:
            for segment in self._segments:
                own = file.read(segment.end - segment.begin)
                if len(own) == segment.end - segment.begin:
                    if digest_of(own) != segment.digest:
                        return "apart"
                    continue
                return "behind" if self._fetch(segment).startswith(own) else "apart"
        return "equal" if size == self.end else "ahead"

    def push(self, path: Path, end: int) -> None:
        """Brings the store up to the first `end` bytes of the local record, which are whole lines."""
        with path.open("rb") as file:
            while self.end < end:
                self._push_segment(file, end)
        self._tidy()

    def _push_segment(self, file: BinaryIO, end: int) -> None:
        kept = list(self._segments)
        begin = self.end
        taken: list[Segment] = []
        while kept and kept[-1].end - kept[-1].begin <= end - begin and end - kept[-1].begin <= LARGEST:
            taken.append(kept.pop())
            begin = taken[-1].begin
        file.seek(begin)
        content = file.read(min(end - begin, LARGEST))
        if len(content) < end - begin:  # cut at the end of a line
            content = content[: content.rfind(b"\n") + 1] or content + file.readline()
        if not content:
            raise StoreError(f"{self._store.location}: the local record is shorter than it was")
        new = Segment(begin, begin + len(content), digest_of(content))
        self._store.write(new.name, content)
        self._keep_mine(new)
        self._segments = [*kept, new]
        self._others += taken

    def _keep_mine(self, new: Segment) -> None:
        """Removes what was just written if another process has the study by now: its own would count for nothing."""
        try:
            self._store.require_mine()
        except TakenOverError:
            self._store.unguarded().remove(new.name)
            raise

    def _tidy(self) -> None:
        """Removes the segments that a larger one has taken in."""
        while self._others:
            self._store.remove(self._others[-1].name)
            self._others.pop()

    def pull(self, path: Path) -> None:
        """Appends to the local record, which is behind or missing, what it lacks; it is the old one or whole.

        Raises:
            StoreError: a segment cannot be fetched, or is damaged.
            OSError: it cannot be written.
        """
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                for segment in self._segments:
                    file.write(_own(path, segment) or self._fetch(segment))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def _fetch(self, segment: Segment) -> bytes:
        content = self._store.read(segment.name, _LONGEST)
        if content is None:
            raise GoneError(f"{self._store.location}/{segment.name} is gone")
        if digest_of(content) != segment.digest:
            raise StoreError(f"{self._store.location}/{segment.name} is damaged")
        return content


def _own(path: Path, segment: Segment) -> bytes:
    """The bytes of a segment as the local record has them; empty if it does not have all of them just so."""
    try:
        with path.open("rb") as file:
            file.seek(segment.begin)
            content = file.read(segment.end - segment.begin)
    except FileNotFoundError:
        return b""
    return content if digest_of(content) == segment.digest else b""


def _chain(store: Store) -> tuple[list[Segment], list[Segment]]:
    """The segments that make up the record, in order, and those that larger ones have taken in."""
    found: dict[int, list[Segment]] = {}
    for name in store.names():
        if match := _NAME.fullmatch(name):
            segment = Segment(int(match[1]), int(match[2]), match[3])
            found.setdefault(segment.begin, []).append(segment)
    chain: list[Segment] = []
    end = 0
    while end in found:
        chain.append(max(found[end], key=lambda one: one.end))
        if chain[-1].end <= end:
            raise StoreError(f"{store.location}/{chain[-1].name} is no part of a record")
        end = chain[-1].end
    others = [one for several in found.values() for one in several if one not in chain]
    if any(one.end > end for one in others):
        raise StoreError(f"{store.location}: the record lacks what comes after its first {end} bytes")
    return chain, others
