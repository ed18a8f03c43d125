"""What the system allows a process: open files, processes, sizes of files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path

import psutil

from tunelab.capacity import control_groups, describe_size
from tunelab.doctor.findings import MachineFinding, error, ok, warning

_FILES_PER_PROCESS = 64  # descriptors that Ray's processes hold for each worker (our choice)
_FILES = 512  # of the driver and Ray without workers (our choice)
_FILES_FOR_RAY = 128  # Ray started with 200 when it was tried (our choice)
_TASKS = 200  # threads of Ray's own processes (our choice; 100 to 150 were counted)
_TASKS_PER_TRIAL = 60  # threads of a worker (our choice; 30 to 50 were counted)
_FILE_BYTES = 2**30  # checkpoints and decoded images are single files (our choice)


def find_open_files(usable: int) -> list[MachineFinding]:
    """Whether a process may open as many files as Ray's do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES + usable * _FILES_PER_PROCESS
    said = f"{_words(soft)} (at most {_words(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return [ok("open files", said)]
    raised = max(4096, wanted)
    within = hard == resource.RLIM_INFINITY or hard >= raised
    mend = f"ulimit -n {raised}" if within else f"raise nofile to {raised} in /etc/security/limits.conf and log in anew"
    said += f"; {usable} trials at once want {wanted}"
    return [(error if soft < _FILES_FOR_RAY else warning)("open files", said, mend)]


def find_processes(usable: int, *, used: int | None = None, root: Path = Path("/")) -> list[MachineFinding]:
    """Whether there is room for the processes and threads of a search, within ulimit and control groups.

    Args:
        usable: trials at once.
        used: threads that this user has now; None: they are counted.
        root: of /proc and /sys.
    """
    wanted = _TASKS + usable * _TASKS_PER_TRIAL
    found = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.getuid() != 0:  # root is not held to it
        used = count_threads() if used is None else used
        said = f"{soft - used} more allowed ({soft} by ulimit -u, {used} used)"
        mend = (
            f"ulimit -u {used + 2 * wanted}"
            if hard in (resource.RLIM_INFINITY,) or hard >= used + wanted
            else (f"raise nproc to {used + 2 * wanted} in /etc/security/limits.conf and log in anew")
        )
        found.append(_judge("processes", soft - used, wanted, said, mend))
    for group, _version in control_groups("pids", root):
        try:
            most, current = (group / "pids.max").read_text().strip(), int((group / "pids.current").read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            said = f"{int(most) - current} more allowed ({most} by the control group, {current} used)"
            mend = "raise the container's limit (docker run --pids-limit -1)"
            found.append(_judge("processes of the container", int(most) - current, wanted, said, mend))
            break
    return found or [ok("processes", "no limit")]


def _judge(name: str, left: int, wanted: int, said: str, mend: str) -> MachineFinding:
    if left >= wanted:
        return ok(name, said)
    return (error if left < _TASKS / 2 else warning)(name, f"{said}; a search wants about {wanted}", mend)


def count_threads(processes: Iterable[psutil.Process] | None = None) -> int:
    """Threads of all processes of this user, which is what the limit on processes counts."""
    total = 0
    for process in psutil.process_iter() if processes is None else processes:
        with contextlib.suppress(psutil.Error):  # it has ended
            total += process.num_threads() if process.uids().real == os.getuid() else 0
    return total


def find_file_size() -> list[MachineFinding]:
    """Whether files are limited to a size that a checkpoint or decoded images may pass."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY or soft >= _FILE_BYTES:
        return []
    said = f"files end at {describe_size(soft)} (ulimit -f)"
    return [(error if soft < 2**26 else warning)("size of files", said, "ulimit -f unlimited")]


def _words(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
