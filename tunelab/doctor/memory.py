"""Memory: what is free within all limits, swap, what was killed for it before, and /dev/shm for Ray's object store."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from tunelab.capacity import count_kills, describe_size, find_limit, free_memory_mib
from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.tuning.ray_home import OBJECT_STORE_BYTES

_FOR_RAY = 2**30  # bytes of the driver and Ray's own processes (our choice; 0.7 GiB were measured)
_PER_TRIAL = 2**29  # bytes of a process with torch and a small network (our choice; 0.3 to 0.5 GiB were measured)
_LEAST = 2**29  # bytes without which not even one trial starts (our choice)
_ADDRESSES = 16 * 2**30  # bytes of address space, most of it never used, that torch and Ray may ask for (our choice)
_FEWEST_ADDRESSES = 4 * 2**30  # bytes without which they do not start; with 8 GiB they did (our choice)
_PRESSED = 10.0  # percent of the last minute in which something waited for memory (our choice)


def find_free(usable: int, root: Path = Path("/")) -> list[MachineFinding]:
    """Memory that is free within the machine and the control groups, against one trial per processor."""
    free = free_memory_mib(root) * 2**20
    wanted = _FOR_RAY + usable * _PER_TRIAL
    limit = find_limit(root)
    said = f"{describe_size(free)} free" + ("" if limit is None else f", limit {describe_size(limit)} (control group)")
    if free < _LEAST:
        return [error("memory", said, "end other programs, or raise the container's limit (docker run --memory 8g)")]
    if free < wanted:
        fewer = max(1, int((free - _FOR_RAY) / _PER_TRIAL))
        said += f"; {usable} trials at once want about {describe_size(wanted)}"
        return [warning("memory", said, f"search with --concurrent {fewer}, or raise the limit")]
    return [ok("memory", said)]


def find_kills(root: Path = Path("/")) -> list[MachineFinding]:
    """Whether the kernel has killed processes of this process's own control group for memory."""
    killed = count_kills(root)
    if killed is None:
        return []
    if killed:
        said = f"{killed} processes of this container were killed for memory since it started"
        return [warning("killed for memory", said, "raise the container's limit, or search with a smaller --memory")]
    return [ok("killed for memory", "none in this container")]


def find_swap(root: Path = Path("/")) -> list[MachineFinding]:
    """Whether the machine swaps, waits for memory, or promises no more of it."""
    sizes = _sizes(root / "proc/meminfo")
    total, free = sizes.get("SwapTotal", 0), sizes.get("SwapFree", 0)
    pressure = _pressure(root / "proc/pressure/memory")
    said = f"{describe_size(total - free)} of {describe_size(total)} used" if total else "none"
    found = []
    if pressure > _PRESSED or (total and total - free > total / 2):
        said += f"; programs waited for memory in {pressure:.0f}% of the last minute"
        found.append(warning("swap", said, "end other programs; a search that swaps is many times slower"))
    else:
        found.append(ok("swap", said))
    if _text(root / "proc/sys/vm/overcommit_memory") == "2":
        left = sizes.get("CommitLimit", 0) - sizes.get("Committed_AS", 0)
        if left < _ADDRESSES:
            said = f"the kernel promises {describe_size(max(0, left))} more (vm.overcommit_memory is 2)"
            found.append(warning("promised memory", said, "sysctl vm.overcommit_memory=0"))
    return found


def find_address_space() -> list[MachineFinding]:
    """Whether this process's address space or data is limited, which torch and Ray outgrow without using it."""
    found = []
    for name, which, flag in (
        ("address space", resource.RLIMIT_AS, "-v"),
        ("data segment", resource.RLIMIT_DATA, "-d"),
    ):
        soft, _hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY and soft < _ADDRESSES:
            said = f"limited to {describe_size(soft)} (ulimit {flag})"
            judge = error if soft < _FEWEST_ADDRESSES else warning
            found.append(judge(name, said, f"ulimit {flag} unlimited"))
    return found


def find_shared_memory(
    folder: Path = Path("/dev/shm"), statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> list[MachineFinding]:
    """Whether Ray's object store fits into shared memory; elsewhere it lies on a disk, and Ray goes on, slower."""
    mend = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
    try:
        size = statvfs(folder)
    except OSError as wrong:
        return [error("shared memory", f"{folder}: {wrong.strerror}", f"mount -t tmpfs tmpfs {folder}, or {mend}")]
    free, total = size.f_bavail * size.f_frsize, size.f_blocks * size.f_frsize
    said = f"{folder} has {describe_size(free)} free of {describe_size(total)}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return [error("shared memory", f"{folder} cannot be written", f"chmod 1777 {folder}")]
    if free < OBJECT_STORE_BYTES:
        return [warning("shared memory", f"{said}; Ray wants {describe_size(OBJECT_STORE_BYTES)}", mend)]
    return [ok("shared memory", said)]


def _sizes(file: Path) -> dict[str, int]:
    """The lines of /proc/meminfo that are in kB, in bytes."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {one[0].rstrip(":"): int(one[1]) * 1024 for one in pairs if len(one) == 3 and one[1].isdigit()}


def _pressure(file: Path) -> float:
    """Percent of the last minute in which something waited; 0 where the kernel does not say."""
    for line in _text(file).splitlines():
        if line.startswith("some"):
            fields = dict(word.split("=") for word in line.split()[1:] if "=" in word)
            return float(fields.get("avg60", 0.0))
    return 0.0


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
