"""Ends what a killed search would leave running; Ray's processes that were just starting wait a minute for it.

This file is run as a program of its own beside a search, by the standard library alone, and waits at a pipe whose other
end the search has: when that is closed without a word, the search was killed. Linux only, where /proc tells whose a
process is; elsewhere what is left ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

GRACE = 3.0
"""Seconds in which processes may end by themselves; most do, and write a last checkpoint (our choice)."""
_PATIENCE = 60.0  # seconds at most; our choice
_LOOK = 0.2  # seconds between two looks; our choice
_CLEAN = 5  # looks in a row that find nothing: a process that was being started has appeared by then; our choice
_DONE = b"done"
_TITLES = (b"ray::", b"ray-dashboard")
"""What the titles begin with that Ray's processes give themselves."""


@contextlib.contextmanager
def ended(folder: Path) -> Iterator[None]:
    """Around what is started with `folder` in its command line or environment: nothing of it outlives this process.

    The folder is removed too, if this process is killed.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    ) as process:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # somebody has killed it
                process.communicate(_DONE)


def find(folder: str) -> list[int]:
    """The processes of this user, but this one, that have the path of `folder` in their command line or environment.

    Ray's own write their titles over both; of those the files count that they have open.
    """
    processes = map(int, filter(str.isdigit, os.listdir("/proc")))  # noqa: PTH208  # names are all that is needed
    return [process for process in processes if process != os.getpid() and _names(process, folder)]


def _names(process: int, folder: str) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for what in ("cmdline", "environ"):
            content = Path(f"/proc/{process}/{what}").read_bytes()
            if folder.encode() in content:
                return True
            if what == "cmdline" and content.startswith(_TITLES) and _has_open(process, folder):
                return True
    return False


def _has_open(process: int, folder: str) -> bool:
    """True if the process has a file in the folder open."""
    files = Path(f"/proc/{process}/fd")
    return any(os.readlink(file).startswith(f"{folder}{os.sep}") for file in files.iterdir())  # noqa: PTH115  # quicker


def end(folder: str, grace: float = GRACE, patience: float = _PATIENCE) -> None:
    """Kills the processes of `folder` that do not end by themselves, and removes it."""
    begun, clean = time.monotonic(), 0
    while clean < _CLEAN and time.monotonic() < begun + patience:
        left = find(folder)
        clean = 0 if left else clean + 1
        if time.monotonic() > begun + grace:
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(_LOOK)
    shutil.rmtree(folder, ignore_errors=True)


def main(folder: str) -> None:
    """Waits for the end of the search, whatever it is told by signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != _DONE:
        end(folder)


if __name__ == "__main__":
    main(sys.argv[1])
