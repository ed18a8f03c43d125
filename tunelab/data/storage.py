"""Where decoded data lies on the disk, and how it is written and read: the cache folder, its locks, `.npy` files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tunelab.errors import InputError, TunelabError

_NPY_HEADER = 128  # bytes, a multiple of 64 as the format asks
_SPARE = 16 * 2**20  # bytes left free beside what a build needs (our choice)


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


class NpyReader:
    """Reads rows of `.npy` files, all of one shape and numbered from one file to the next, without mapping the files.

    Nothing but what is asked for is held in the memory of the process: read rows stay in the kernel's cache alone. For
    batches in random order reading is also several times faster than a memory map where the kernel has to fetch them
    from the disk, once it has been told what comes (`advise`); where it has them, it takes 2 microseconds a row.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is no `.npy` file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        heads = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        assert all(head.flags.c_contiguous and head.shape[1:] == heads[0].shape[1:] for head in heads)
        self.row_shape: tuple[int, ...] = heads[0].shape[1:]
        self.row_bytes = int(heads[0].itemsize * np.prod(self.row_shape, dtype=np.int64))
        self._paths = list(paths)
        self._offsets = [int(head.offset) for head in heads]
        self._ends = np.cumsum([len(head) for head in heads])
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        weakref.finalize(self, _close, self._files)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Fills `out`, uint8 (n, *row_shape), with `rows` (n,), in that order; several threads may read at once.

        Raises:
            TunelabError: a file has become shorter.
            OSError: a file cannot be read.
        """
        flat = memoryview(out.reshape(-1))  # type: ignore[arg-type]
        done = 0
        for file, offset, size in self._runs(rows):
            end = done + size
            while done < end:
                got = os.preadv(self._files[file], [flat[done:end]], offset + size - (end - done))
                if not got:
                    raise TunelabError(f"{self._paths[file]} has become shorter while it was in use")
                done += got

    def advise(self, rows: NDArray[np.int64]) -> None:
        """Tells the kernel that `rows` will be read soon, so that it fetches them from the disk meanwhile."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for file, offset, size in self._runs(rows):
                os.posix_fadvise(self._files[file], offset, size, os.POSIX_FADV_WILLNEED)

    def _runs(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """File, offset and bytes of each run of rows that lie one after another."""
        files = np.searchsorted(self._ends, rows, side="right")
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(files) != 0)) + 1
        begins, ends = [0, *cuts.tolist()], [*cuts.tolist(), len(rows)]
        for begin, end in zip(begins, ends, strict=True) if len(rows) else ():
            file = int(files[begin])
            row = int(rows[begin]) - (int(self._ends[file - 1]) if file else 0)
            yield file, self._offsets[file] + row * self.row_bytes, (end - begin) * self.row_bytes


def read_ahead(path: Path) -> None:
    """Tells the kernel that all of a file will be read soon, which is faster than to fetch it page by page."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
