"""The record of a study: JSON lines with a checksum, on the disk before anything acts on them.

One process writes, under a lock that a dead process does not keep; any number read. A last line that a crash cut off or
garbled never counted, and is removed by the next writer; damage anywhere else is an error, never a guess. A small file
beside it holds room on the disk, which is given back when the disk is full, so that what was trained is recorded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import socket
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from tunelab.errors import InputError, StorageError
from tunelab.files import NO_ROOM, open_file, require_no_links, sync_folder

RESERVE = "reserve"
RESERVE_BYTES = 128 * 1024
"""Room for some 300 epochs: those of the trials that run while the disk is full (our choice)."""
_WRITE_ATTEMPTS = 10
_LOCK_ATTEMPTS = 10
_BATCH = 1000
"""Lines are parsed so many at a time, which saves time and keeps equal names once (our choice)."""
_CRC_END = len('{"crc":"00000000",')
_LONGEST = 64 * 2**20
"""Bytes of a line at most: those of a search have a few thousand (our choice)."""


class StudyLockedError(InputError):
    """Another process is writing this study."""


def encode(event: Mapping[str, Any]) -> bytes:
    """One line of the record: the event as JSON, preceded by the CRC-32 of the rest.

    Raises:
        ValueError: the event holds a number that is not finite; a record of NaN could not be read elsewhere.
    """
    body = json.dumps(event, separators=(",", ":"), allow_nan=False)[1:].encode()
    return b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any] | None:
    """The event of a whole line, None if the line is torn or damaged."""
    body = _checked(line)
    if body is None:
        return None
    try:
        event: dict[str, Any] = json.loads(b"{" + body)
    except (ValueError, RecursionError):
        return None
    return event


def _checked(line: bytes) -> bytes | None:
    """What follows the checksum of a line, None if it does not fit."""
    body = line[_CRC_END:].rstrip(b"\n")
    return body if line[:_CRC_END] == b'{"crc":"%08x",' % zlib.crc32(body) else None


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events in order; a cut-off last line is left out.

    Raises:
        InputError: a line other than the last is damaged; the message names it. Or one that fits its checksum is no
            event: no crash makes such a line. Or the file cannot be read, or is none.
    """
    try:
        stream = open_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with stream:
        batch: list[bytes] = []
        for number, line in enumerate(_lines(stream, path), start=1):
            body = _checked(line) if line.endswith(b"\n") else None
            if body is not None:
                batch.append(body)
                if len(batch) == _BATCH:
                    yield from _events(batch, path)
                    batch = []
            elif line.endswith(b"\n") and stream.read(1):  # a line without its end is the last, or being written
                yield from _events(batch, path)
                raise _damaged(path, number)
        yield from _events(batch, path)


def _lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a record; one that no search writes is not read to its end."""
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST), b""), start=1):
        if len(line) == _LONGEST:
            raise _damaged(path, number, f"has more than {_LONGEST:,} bytes")
        yield line


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Around the reading of a record: no search for cycles, of which it makes none, among ever more objects.

    Nor is there one right after it: what was made counts as old at once. It is looked through when all old objects are.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            if not gc.get_freeze_count():  # what somebody else has frozen stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _events(batch: list[bytes], path: Path) -> list[dict[str, Any]]:
    """The events of lines whose checksums fit, read in one go."""
    if not batch:
        return []
    text = b"[{" + b",{".join(batch) + b"]"
    events: list[dict[str, Any]]
    try:
        # Three times as fast as json's: most of the time that it takes to read a large study is spent here.
        with contextlib.suppress(ValueError):
            events = from_json(text, cache_strings="keys")
            return events
        events = json.loads(text)  # it also reads half characters, as Python has them for the bytes of odd file names
    except (ValueError, RecursionError):
        raise InputError(f"{path} holds a line that is no event; restore the file from a copy to go on") from None
    return events


def _damaged(path: Path, number: int, how: str = "is damaged") -> InputError:
    return InputError(f"{path}, line {number} {how}; restore the file from a copy to go on")


class Journal:
    """The one writer of a record. Made by `Journal.open`; closing it gives the lock back.

    `end` is how many bytes of the record are on the disk for good: whole lines, which are never taken back.
    """

    def __init__(self, path: Path, file: int, lock: int) -> None:
        self._path = path
        self._file = file
        self._lock = lock
        self.end = os.fstat(file).st_size
        self._reserve = path.with_name(RESERVE)
        self._broken = ""

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Locks the study in `folder` and repairs a cut-off last line.

        Raises:
            StudyLockedError: another process holds the lock; the message names it.
            InputError: nothing can be written there, the record is damaged before its last line, or a link or no file
                is in its place.
        """
        opened: list[int] = []
        path = folder / "journal.jsonl"
        if path.exists():  # it was begun, here or elsewhere
            require_no_links(folder)
        try:
            lock = _take_lock(folder / "lock")
            opened.append(lock)
            file = _open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            opened.append(file)
            _cut_torn_tail(path, file)
            sync_folder(folder)
        except BaseException as error:
            for descriptor in opened:
                os.close(descriptor)
            if isinstance(error, OSError):
                raise InputError(f"the study {folder} cannot be written: {error.strerror}") from error
            raise
        return cls(path, file, lock)

    def append(self, *events: Mapping[str, Any]) -> None:
        """Puts events on the disk in one write: when this returns, they survive a power cut.

        A crash meanwhile leaves the first of them, or none. Where the disk is full, what `reserve` held is given back
        first.

        Raises:
            StorageError: the disk is full or gone. The record is then as it was before.
        """
        lines = b"".join(map(encode, events))
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                self._write(lines)
            except OSError as error:
                if error.errno in NO_ROOM and attempt + 1 < _WRITE_ATTEMPTS and self._give_back(attempt):
                    continue
                why = f"the record {self._path} cannot be written: {error.strerror or error}"
                raise StorageError(why) from error
            return

    def reserve(self) -> bool:
        """Takes room on the disk that `append` gives back when there is no other; True if it is there."""
        try:
            if self._reserve.stat().st_size >= RESERVE_BYTES:
                return True
        except FileNotFoundError:
            pass
        except OSError:
            return False
        try:
            file = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(file, 0, RESERVE_BYTES)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            return error.errno not in NO_ROOM  # a file system that cannot hold room has none of it to give back
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        """Closes the file and gives the lock back, and what was held in reserve."""
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)
        for descriptor in (self._file, self._lock):
            with contextlib.suppress(OSError):  # a file system that is gone may say so once more
                os.close(descriptor)
        self._file = self._lock = -1  # a second call must not close what has their numbers by then

    def _write(self, lines: bytes) -> None:
        """Writes whole lines to the disk, or leaves the record as it was."""
        if self._broken:
            raise OSError(errno.EIO, self._broken)
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, lines)
            while written < len(lines):
                written += os.write(self._file, lines[written:])
            os.fsync(self._file)
            self.end = end + len(lines)
        except OSError as error:
            try:
                os.ftruncate(self._file, end)
            except OSError:  # what there is of them is judged by the next writer; nothing may follow it
                self._broken = error.strerror or str(error)
            raise

    def _give_back(self, attempt: int) -> bool:
        """Gives the reserve back; True if it is worth trying again.

        Another process may have the room for a moment, in which it finds that it is too little for what it writes.
        """
        if attempt == 0:
            try:
                self._reserve.unlink()
            except OSError:
                return False
        else:
            time.sleep(0.1)
        return True


def _open_own(path: Path, flags: int) -> int:
    """Opens a file of a study that is written in place: a link could lead to any file, and a pipe is waited for.

    Raises:
        OSError: it cannot be opened.
        InputError: a link or something else is there.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InputError(f"{path} cannot be opened: it is no file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} cannot be opened: it is no file")
    return descriptor


def is_locked(folder: Path) -> bool:
    """True while some process writes the study in `folder`."""
    try:
        descriptor = _open_own(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{folder / 'lock'} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _take_lock(path: Path) -> int:
    descriptor = _open_own(path, os.O_RDWR | os.O_CREAT)
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt + 1 < _LOCK_ATTEMPTS:
                time.sleep(0.05)  # a reader that asks whether the study runs holds the lock for a moment
    else:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise StudyLockedError(f"the study {path.parent} is being written by {holder}; stop that one first")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _cut_torn_tail(path: Path, file: int) -> None:
    good = 0
    with path.open("rb") as stream:
        for number, line in enumerate(_lines(stream, path), start=1):
            if line.endswith(b"\n") and decode(line) is not None:
                good += len(line)
            elif stream.read(1):
                raise _damaged(path, number)
    if good != os.fstat(file).st_size:
        os.ftruncate(file, good)
        os.fsync(file)
