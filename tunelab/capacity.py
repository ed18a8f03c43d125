"""Amounts of memory: how they are written, and how much there is left for new processes."""

from __future__ import annotations

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

    Pages of files that a container has read count as free: the kernel gives them up. Versions 1 and 2 of control
    groups are read, those of all parents included.
    """
    free = psutil.virtual_memory().available
    for group, version in control_groups("memory", root):
        left = _left_in(group, *_MEMORY_FILES[version])
        free = free if left is None else min(free, left)
    return float(max(0, free)) / 2**20


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
        kept = [line.partition(" ") for line in (group / "memory.stat").read_text().splitlines()]
        files = [int(value) for name, _, value in kept if name in ("inactive_file", "total_inactive_file")]
        return None if most == "max" else int(most) - int((group / usage).read_text()) + max(files, default=0)
    except (OSError, ValueError):
        return None
