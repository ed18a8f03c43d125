"""Processors: how many there are to use, what takes them away, and whether threads would outnumber them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunelab.capacity import control_groups
from tunelab.doctor.findings import MachineFinding, ok, warning

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_BUSY = 0.25  # of the processors taken by other programs: worth a warning; our choice
_STOLEN = 0.1  # of the time that the processors are not given to this virtual machine; our choice
_NAMED = 3  # of the programs that take most


@dataclass(frozen=True)
class Moment:
    """What has been computed until now: seconds and name per process id, and of all processors together."""

    seconds: float
    programs: Mapping[int, tuple[str, float]]
    stolen: float
    total: float


def find_count(usable: int, root: Path = Path("/")) -> list[MachineFinding]:
    """How many processors there are, against the quota of this process's control groups.

    Args:
        usable: how many a search would use.
        root: of /proc and /sys.
    """
    present, allowed = os.cpu_count() or 1, _allowed()
    quota = find_quota(root)
    said = f"{usable} usable of {present}"
    if allowed < present:
        said += f", {allowed} allowed (affinity or cpuset)"
    if quota is not None:
        said += f", quota {quota:.3g} (control group)"
    if quota is not None and quota < usable - 0.5:
        fewer = max(1, int(quota))
        return [warning("processors", said, f"search with --concurrent {fewer} --cpus-per-trial 1, or raise the quota")]
    return [ok("processors", said)]


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the tightest control group gives, None without a limit."""
    quotas = [_quota(group, version) for group, version in control_groups("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path, version: int) -> float | None:
    try:
        if version == 2:
            most, period = (group / "cpu.max").read_text().split()
        else:
            most = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return None if most == "max" or int(most) <= 0 else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def find_threads(usable: int, environ: Mapping[str, str]) -> list[MachineFinding]:
    """Whether variables give each trial's libraries more threads than its share of the processors."""
    wrong, many = [], {}
    for name in THREAD_VARIABLES:
        value = environ.get(name)
        if value is None:
            continue
        first = value.split(",")[0].strip()
        if not first.isdigit() or int(first) < 1:
            wrong.append(f"{name}={value}")
        elif int(first) > 1:
            many[name] = int(first)
    if wrong:
        return [
            warning("threads", f"{', '.join(wrong)} is no number of threads", f"unset {wrong[0].partition('=')[0]}")
        ]
    most = max(many.values(), default=1)
    if most > usable or (usable > 1 and most > 1):
        said = ", ".join(f"{name}={value}" for name, value in many.items())
        said += f": with {usable} trials at once up to {most * usable} threads on {usable} processors"
        return [warning("threads", said, f"unset {' '.join(many)} (torch's own threads are set by the search)")]
    return [ok("threads", "no variable asks for more threads than a trial has processors")]


def moment() -> Moment:
    """What the processes have computed until now; those that end meanwhile are left out."""
    programs = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            programs[process.pid] = (process.info["name"] or "?", times.user + times.system)
    whole = psutil.cpu_times()
    return Moment(time.monotonic(), programs, getattr(whole, "steal", 0.0), sum(whole))


def find_load(before: Moment, after: Moment, usable: int, ours: frozenset[int] = frozenset()) -> list[MachineFinding]:
    """How much of the processors other programs take, between two moments.

    Args:
        before: a moment.
        after: a later one.
        usable: processors that a search would use.
        ours: ids of processes that do not count.
    """
    elapsed = max(after.seconds - before.seconds, 1e-3)
    rates = {
        pid: (seconds - before.programs[pid][1]) / elapsed
        for pid, (name, seconds) in after.programs.items()
        if pid not in ours and pid in before.programs and before.programs[pid][0] == name
    }
    busy = sum(rates.values())
    said = f"other programs take {busy:.1f} of {usable} processors"
    found = []
    if busy > _BUSY * usable:
        top = sorted(rates, key=lambda pid: -rates[pid])[:_NAMED]
        named = [f"{after.programs[pid][0]} {pid} ({rates[pid]:.1f})" for pid in top if rates[pid] > 0.05]
        left = max(1, int(usable - busy + 0.5))
        mend = f"end them, or search with --concurrent {left}; forecasts are too long meanwhile"
        found.append(warning("load", f"{said}: {', '.join(named)}", mend))
    else:
        found.append(ok("load", said))
    stolen = (after.stolen - before.stolen) / max(after.total - before.total, 1e-3)
    if stolen > _STOLEN:
        said = f"the host gives {stolen:.0%} of the processors' time to other virtual machines"
        found.append(warning("stolen time", said, "ask for processors of its own; all times vary meanwhile"))
    return found
