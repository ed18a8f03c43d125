"""What searches that were killed have left: processes, temporary folders, and studies that go on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunelab.capacity import describe_size
from tunelab.doctor.findings import MachineFinding, ok, warning
from tunelab.errors import TunelabError
from tunelab.journal import is_locked
from tunelab.study import Study, list_studies

_LOOKED_AT = 20  # of the newest studies, so that it takes a moment (our choice)
_NAMED = 5
_RAY = ("raylet", "gcs_server")
_PROBE = "tunelab.training.probe"
_OWNERS = ("python", "tunelab", "pytest", *_RAY)
_HOLDER = re.compile(r"process (\d+) on (\S+)")


@dataclass(frozen=True)
class Seen:
    """A process of this user: its id, its parent's, its name and its command line."""

    pid: int
    parent: int
    name: str
    words: str
    state: str = "sleeping"


def processes() -> list[Seen]:
    """The processes that there are; those of other users are left out, but for their names as parents."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "name", "cmdline", "status"]):
        info = process.info
        words = " ".join(info["cmdline"] or ())
        found.append(Seen(info["pid"], info["ppid"] or 0, info["name"] or "", words, info["status"] or ""))
    return found


def find_processes(seen: Sequence[Seen]) -> list[MachineFinding]:
    """Processes of Ray and of measurements whose program is gone, and those that work."""
    by_id = {one.pid: one for one in seen}
    ray = [one for one in seen if one.name in _RAY or one.words.startswith("ray::")]
    probes = [one for one in seen if _PROBE in one.words]
    lost = [one for one in ray + probes if _is_lost(one, by_id)]
    lost_ids = {one.pid for one in lost}
    children = [one for one in ray if one.parent in lost_ids and one.pid not in lost_ids]
    dead = [one.pid for one in lost + children]
    name = "processes left"
    if dead:
        said = f"{len(dead)} of Ray or of a measurement without a program: {', '.join(map(str, dead[:10]))}"
        return [warning(name, said, f"kill -9 {' '.join(map(str, dead))}")]
    raylets = sum(one.name == "raylet" for one in ray)
    return [ok(name, "none" + (f"; {raylets} Ray at work for another program" if raylets else ""))]


def _is_lost(one: Seen, by_id: Mapping[int, Seen]) -> bool:
    """True if the process that started it is gone; Ray clusters, which stand alone by design, are not."""
    parent = by_id.get(one.parent)
    orphan = parent is None or not any(word in f"{parent.name} {parent.words}".lower() for word in _OWNERS)
    alone = one.name in _RAY and "/tunelab-" not in one.words
    return orphan and not alone


def find_folders(parent: Path, prefix: str, in_use: str) -> list[MachineFinding]:
    """Ray's folders of searches that were killed, in the temporary folder `parent`.

    Args:
        parent: the temporary folder.
        prefix: what their names begin with.
        in_use: the file in each that its search holds a lock on.
    """
    dead = [file.parent for file in sorted(parent.glob(f"{prefix}*/{in_use}")) if _is_abandoned(file)]
    if not dead:
        return [ok("temporary folders left", "none")]
    size = sum(_size(folder) for folder in dead)
    said = f"{len(dead)} of killed searches in {parent}, {describe_size(size)}"
    return [
        warning("temporary folders left", said, f"rm -r {' '.join(map(str, dead[:_NAMED]))} (the next search does)")
    ]


def _is_abandoned(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # gone, or of another user
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _size(folder: Path) -> int:
    """Bytes that a folder takes on the disk; what goes meanwhile counts for nothing."""
    total = 0
    for path, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(path, name).lstat().st_blocks * 512
    return total


def find_studies(runs_dir: Path, seen: Sequence[Seen]) -> list[MachineFinding]:
    """The newest studies of a folder that run, that stand still though they are locked, that can be resumed."""
    left_out: list[str] = []
    studies = list_studies(runs_dir, left_out)[:_LOOKED_AT] if runs_dir.is_dir() else []
    found, running, paused = [], [], []
    for study in studies:
        state = _state(study)
        if state == "running":
            running.append(study)
            found += _holder(study, seen)
        elif state == "open":
            paused.append(study)
        elif state != "closed":
            left_out.append(state)
    if paused:
        named = ", ".join(study.name for study in paused[:_NAMED])
        more = f" and {len(paused) - _NAMED} more" if len(paused) > _NAMED else ""
        found.append(ok("studies to go on with", f"{named}{more}: `tunelab resume {paused[0].path}` does it"))
    if left_out:
        mend = "restore the file from a copy, or move the folder away"
        found.append(warning("damaged studies", "; ".join(left_out[:_NAMED]), mend))
    if running:
        named = ", ".join(study.name for study in running[:_NAMED])
        mend = "wait for it, or give both fewer processors with --concurrent"
        found.append(warning("running studies", f"{named}: searches beside each other share the machine", mend))
    return found or [ok("studies", f"none is left half done in {runs_dir}")]


def _state(study: Study) -> str:
    """`running`, `open` if trials of a search did not end, `closed`, or what is wrong with its record."""
    try:
        if is_locked(study.path):
            return "running"
        is_open = study.info.get("kind") == "search" and any(not one.status.ended for one in study.list_trials())
    except (TunelabError, OSError) as wrong:
        return str(wrong)
    return "open" if is_open else "closed"


def _holder(study: Study, seen: Sequence[Seen]) -> list[MachineFinding]:
    """What is wrong with the process that holds a study's lock."""
    try:
        match = _HOLDER.match((study.path / "lock").read_text(errors="replace"))
    except OSError:
        return []
    if match is None:
        return []
    pid, host = int(match[1]), match[2]
    if host != socket.gethostname():
        said = f"{study.name} is held by process {pid} on {host}"
        return [warning("lock", said, f"ssh {host} kill {pid}, if that search is to end")]
    holder = next((one for one in seen if one.pid == pid), None)
    if holder is None:
        said = f"{study.name} is held by what process {pid}, which is gone, had started, or by a container"
        return [warning("lock", said, f"fuser -k {study.path / 'lock'}")]
    if holder.state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
        return [warning("lock", f"{study.name} is held by process {pid}, which is stopped", f"kill -CONT {pid}")]
    return []


def find_builds(cache: Path) -> list[MachineFinding]:
    """Half-decoded data sets that processes which were killed left in the cache."""
    dead = [folder for folder in sorted((cache / "data").glob(".*")) if folder.is_dir() and not _is_building(folder)]
    if not dead:
        return []
    said = f"{len(dead)} half-decoded data sets in {cache / 'data'}, {describe_size(sum(map(_size, dead)))}"
    return [warning("cache", said, f"rm -r {' '.join(map(str, _first(dead)))}")]


def _first(folders: Iterable[Path]) -> list[Path]:
    return list(folders)[:_NAMED]


def _is_building(folder: Path) -> bool:
    """True if a process decodes into it: its name is `.NAME-XXXXXXXX`, and NAME.lock is held then."""
    name = re.sub(r"(-damaged)?-[0-9a-f]{8}$", "", folder.name.removeprefix("."))
    lock = folder.parent / f"{name}.lock"
    return lock.exists() and not _is_abandoned(lock)
