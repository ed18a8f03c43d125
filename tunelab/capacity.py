"""Amounts of memory: how they are written, how much there is left for new processes, and what a process holds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from tunelab.errors import InputError

_UNITS = {
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
_KILL_FILES = {1: "memory.oom_control", 2: "memory.events"}
_HELD = {"RssAnon:", "RssShmem:", "VmSwap:"}


def parse_size(text: str, name: str) -> int:
    """Bytes, from a number with a unit: `8GiB` and `8g` are 8 * 2**30, `500MB` is 500 * 10**6.

    Raises:
        InputError: it is no such text, or less than a byte; `name` says of what.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise InputError(f"{name} {text!r} is no amount of memory; write a number and a unit, as in 8GiB, 500MB or 8g")
    return size


def describe_size(size: float) -> str:
    """Bytes in words: `0.5 MiB`, `310 MiB`, from 1024 MiB on `1.5 GiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 1}f} MiB"


def free_memory_mib(root: Path = Path("/")) -> float:
    """Memory that new processes can have: what the machine has free, and what the container's limits leave.

    Pages of files that a container has read count as free, however often: the kernel gives them up, as it does those
    of the machine. Versions 1 and 2 of control groups are read, those of all parents included.
    """
    free = psutil.virtual_memory().available
    for group, version in control_groups("memory", root):
        left = _left_in(group, *_MEMORY_FILES[version])
        free = free if left is None else min(free, left)
    return float(max(0, free)) / 2**20


def all_memory_mib(root: Path = Path("/")) -> float:
    """Memory that the machine has, or the tightest control group allows."""
    limit = find_limit(root)
    total = psutil.virtual_memory().total
    return float(total if limit is None else min(total, limit)) / 2**20


def find_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest control group allows, None without a limit."""
    limits = []
    for group, version in control_groups("memory", root):
        try:
            text = (group / _MEMORY_FILES[version][0]).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:  # version 1 writes the largest number for none
            limits.append(int(text))
    return min(limits, default=None)


def count_kills(root: Path = Path("/"), *, anywhere: bool = False) -> int | None:
    """How many processes of this process's own control group the kernel has killed for memory; None if it is not said.

    Where it is not said of the group, it is of the whole machine if `anywhere`.
    """
    file = find_kill_count(root, anywhere=anywhere)
    return None if file is None else read_kill_count(file)


def find_kill_count(root: Path = Path("/"), *, anywhere: bool = False) -> Path | None:
    """The file that `count_kills` reads the number in; None if there is none."""
    files = [group / _KILL_FILES[version] for group, version in control_groups("memory", root)]
    candidates = (*files, root / "proc/vmstat") if anywhere else files
    return next((file for file in candidates if read_kill_count(file) is not None), None)


def read_kill_count(file: Path) -> int | None:
    """The number in a file of `find_kill_count`; None if it does not say it."""
    try:
        found = re.search(rb"^oom_kill +(\d+)$", file.read_bytes(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])


def held_mib(process: int, root: Path = Path("/")) -> float | None:
    """Memory that a process holds or has swapped out, its children not included; None if it is gone.

    Pages of files do not count: they are shared, and the kernel gives them up. Where it does not tell them apart they
    do.
    """
    try:
        lines = [line.split() for line in (root / f"proc/{process}/status").read_text().splitlines()]
    except FileNotFoundError:
        return _resident(process) if root == Path("/") else None
    except OSError:  # it is just ending
        return None
    parts = [int(line[1]) for line in lines if line and line[0] in _HELD]
    return sum(parts) / 2**10 if parts else _resident(process)


def children_of(process: int, root: Path = Path("/")) -> list[int]:
    """The numbers of the processes that a process has started, theirs not included."""
    found: list[int] = []
    try:
        for task in (root / f"proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:  # it has ended, or the kernel does not say
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(process).children()]
    return found


def _resident(process: int) -> float | None:
    try:
        return float(psutil.Process(process).memory_info().rss) / 2**20
    except psutil.Error:
        return None


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of this process's control groups for `controller`, and of their parents, each with its version.

    A folder may be missing: a container does not always see its own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base, version = root / "sys/fs/cgroup", 2
        if controllers:
            if controller not in controllers.split(","):
                continue
            base, version = base / controller, 1
        own = base / path.lstrip("/")
        for group in (own, *own.parents):
            if group == base.parent:
                break
            yield group, version


def _left_in(group: Path, limit: str, usage: str) -> int | None:
    """Bytes that a control group may still take; None if it has no limit, or there is no such group here."""
    try:
        most = (group / limit).read_text().strip()
        kept = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines() if " " in line)
        files = [
            sum(int(kept.get(f"{whose}{use}_file", 0)) for use in ("active", "inactive")) for whose in ("", "total_")
        ]
        return None if most == "max" else int(most) - int((group / usage).read_text()) + max(files)
    except (OSError, ValueError):
        return None
