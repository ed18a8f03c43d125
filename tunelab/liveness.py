"""Signs of life of the process that searches: a small file in the study's folder, renewed every few seconds.

It tells a search that works from one that hangs, also on another machine that shares the folder. On the same machine
its age is taken from the steady clock, which no change of the time of day moves.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunelab.files import read_json

FILE = "alive"
EVERY = 2.0
"""Seconds between two signs at least (our choice)."""
SILENT = 120.0
"""After so many seconds without one a search seems to hang (our choice)."""
_BYTES = 512  # of the file, always


@dataclass(frozen=True)
class Sign:
    """A sign of life: of which process on which machine (since which start of it), and when, by two clocks."""

    pid: int
    host: str
    boot: str
    steady: float
    time: float

    @property
    def age(self) -> float:
        """How many seconds ago it was given; those of a machine that was suspended count on other machines alone."""
        if self.boot and self.boot == this_boot():
            return max(0.0, time.monotonic() - self.steady)
        return max(0.0, time.time() - self.time)

    def to_json(self) -> dict[str, Any]:
        """Who gave it, how many seconds ago, and whether that is too long, as plain JSON values."""
        return {"process": self.pid, "host": self.host, "seconds": round(self.age, 1), "silent": self.silent}

    @property
    def silent(self) -> bool:
        """True if it is so old that the search seems to hang."""
        return self.age > SILENT

    def describe(self) -> str:
        """Who gave it and how long ago: "process 123 on host, last sign of life 3 s ago"."""
        hangs = ": it seems to hang" if self.silent else ""
        return f"process {self.pid} on {self.host}, last sign of life {_length(self.age)} ago{hangs}"

    def advice(self) -> str:
        """What to do about a search that seems to hang."""
        end = f"`kill {self.pid}`, or `kill -9 {self.pid}` if it stays"
        return f"end it on {self.host} with {end}; `tunelab resume` goes on"


class SignsOfLife:
    """Gives signs of life of this process for the study in a folder. A disk that takes none is no error."""

    def __init__(self, folder: Path) -> None:
        self._next = 0.0
        self._sign = Sign(os.getpid(), socket.gethostname(), this_boot(), 0.0, 0.0)
        self._file = -1
        self._path = folder / FILE

    def give(self) -> None:
        """Gives a sign, if the last one is more than `EVERY` seconds old."""
        now = time.monotonic()
        if now < self._next or self._file < 0:
            return
        self._next = now + EVERY
        sign = {**asdict(self._sign), "steady": round(now, 3), "time": round(time.time(), 3)}
        with contextlib.suppress(OSError):
            os.pwrite(self._file, json.dumps(sign).ljust(_BYTES).encode(), 0)

    @contextlib.contextmanager
    def given(self) -> Iterator[SignsOfLife]:
        """The first sign is given; at the end the file is gone."""
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is not waited for
            self._file = os.open(self._path, flags, 0o600)
        self.give()
        try:
            yield self
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                with contextlib.suppress(OSError):
                    self._path.unlink()


def last_sign(folder: Path) -> Sign | None:
    """The last sign of life of the search in a study's folder; None if there is none that can be read."""
    try:
        sign = Sign(**read_json(folder / FILE, _BYTES))
    except (OSError, ValueError, TypeError):
        return None
    known = type(sign.pid) is int and sign.pid > 1 and type(sign.steady) is type(sign.time) is float
    return sign if known and _is_name(sign.host) and _is_name(sign.boot) else None


def _is_name(value: object) -> bool:
    """True for what names a machine, or nothing: somebody else may have written the file."""
    return isinstance(value, str) and value.isprintable()


def this_boot() -> str:
    """Tells this start of this machine from others; "" where the system does not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
