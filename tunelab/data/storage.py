"""Where decoded data lies on the disk, and how it is written there: the cache folder, its locks, `.npy` files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tunelab.errors import InputError, TunelabError

_NPY_HEADER = 128  # bytes, a multiple of 64 as the format asks
_SPARE = 16 * 2**20  # bytes left free beside what a build needs (our choice)


def cache_root() -> tuple[Path, str]:
    """The folder of the cache, made if missing, and a note ("" where it is the usual one).

    It is `TUNELAB_CACHE`, else `XDG_CACHE_HOME/tunelab`, else `~/.cache/tunelab`; where that cannot be written, a
    folder of this user's in the temporary folder.

    Raises:
        TunelabError: neither can be written.
    """
    wanted = _wanted_root()
    if _writable(wanted):
        return wanted, ""
    private = Path(tempfile.gettempdir()) / f"tunelab-cache-{os.getuid()}"
    if not _writable(private) or private.is_symlink() or private.stat().st_uid != os.getuid():
        raise TunelabError(f"neither {wanted} nor {private} can be written; set TUNELAB_CACHE to a folder")
    return private, f"{wanted} cannot be written, so the decoded images are in {private}"


def _wanted_root() -> Path:
    own, shared = os.environ.get("TUNELAB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser().absolute()
    return (Path(shared) if shared else Path.home() / ".cache") / "tunelab"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it; a lock dies with its owner. The file itself stays.

    Raises:
        TunelabError: the file system has no locks.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise TunelabError(f"{path} cannot be locked ({error}); set TUNELAB_CACHE to a local folder") from error
        yield


@contextlib.contextmanager
def room_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" from the operating system into one sentence that names `folder`.

    Raises:
        InputError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"no room left in {folder}; free some, or set TUNELAB_CACHE to another folder") from error


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin writing `needed` bytes where they do not fit, with 16 MiB to spare.

    Raises:
        InputError: there is less room, with both numbers of bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise InputError(
            f"the decoded images need {needed + _SPARE:,} bytes and {folder} has {free:,} free; "
            "free some, or set TUNELAB_CACHE to another folder"
        )


class NpyWriter:
    """Writes a `.npy` file row by row, without knowing how many rows come; `digest` is the sha256 of the rows.

    The format is numpy's version 1.0: magic, header length, a Python literal padded to 128 bytes, then the data.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype[np.uint8] | np.dtype[np.int64]) -> None:
        self.rows = 0
        self._row_shape, self._dtype = row_shape, dtype
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self._file.write(bytes(_NPY_HEADER))

    def append(self, rows: NDArray[np.uint8] | NDArray[np.int64]) -> None:
        """Add rows, an array (k, *row_shape)."""
        assert rows.shape[1:] == self._row_shape
        assert rows.dtype == self._dtype
        data = np.ascontiguousarray(rows).data
        self._hash.update(data)
        self._file.write(data)
        self.rows += len(rows)

    @property
    def digest(self) -> str:
        """The sha256 of all rows so far, as hex digits."""
        return self._hash.hexdigest()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._file.close()

    def _finish(self) -> None:
        shape = (self.rows, *self._row_shape)
        header = repr({"descr": self._dtype.str, "fortran_order": False, "shape": shape}).encode("latin1")
        room = _NPY_HEADER - 11
        assert len(header) <= room
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", room + 1) + header.ljust(room) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
