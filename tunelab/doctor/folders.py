"""Folders that a search writes into: room, files left, access, and what their file systems keep."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunelab.capacity import describe_size
from tunelab.doctor.findings import MachineFinding, error, ok, warning

FOREIGN = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p",
    "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs",
    "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph",
    "fuse.goofys", "fuse.juicefs",
)  # fmt: skip
"""File systems of another machine, whose locks and syncs are as good as that machine and the way there."""
_FLEETING = ("tmpfs", "ramfs")
_FEW_FILES = 10_000  # a trial makes about ten (our choice)
_SLOW = 0.5  # seconds that a sync may take; a search does several a second (our choice)
_RAY_FULL = 0.05  # of the disk: with less than this left Ray refuses to make objects (its own default)


@dataclass(frozen=True)
class Place:
    """A folder that a search writes into, which need not exist yet.

    `least` bytes must be free for a search to run, `wanted` ones for it to last. `kept`: what is in it is to survive a
    restart. `option` says how another one is named.
    """

    name: str
    folder: Path
    least: int
    wanted: int
    option: str
    kept: bool = True


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, of which type, with which options."""

    point: str
    kind: str
    options: frozenset[str]


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists.

    Raises:
        OSError: it cannot be looked at.
    """
    folder = folder.expanduser().absolute()
    for one in (folder, *folder.parents):
        try:
            one.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return one
    return Path("/")


def find_place(
    place: Place, mounts: Sequence[Mount], statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> list[MachineFinding]:
    """Whether a search can write into a folder, has room there, and finds again what it wrote."""
    try:
        there = existing(place.folder)
        size = statvfs(there)
    except OSError as wrong:
        return [error(place.name, f"{place.folder}: {wrong.strerror}", f"name another folder with {place.option}")]
    if not there.is_dir():
        return [error(place.name, f"{there} is a file", f"name another folder with {place.option}")]
    access = list(_access(place, there))
    if any(one.verdict == "error" for one in access):
        return access
    found = [*_room(place, there, size), *access, *_file_system(place, there, mounts)]
    if all(one.verdict == "ok" for one in found):
        return [ok(place.name, "; ".join(one.measured for one in found))]
    return [one for one in found if one.verdict != "ok"]


def _room(place: Place, there: Path, size: os.statvfs_result) -> Iterator[MachineFinding]:
    free = size.f_bavail * size.f_frsize
    said = f"{describe_size(free)} free in {place.folder}"
    mend = f"free some, or name another folder with {place.option}"
    if free < place.least:
        yield error(place.name, f"{said}; a search needs {describe_size(place.least)} at least", mend)
    elif free < place.wanted:
        yield warning(place.name, f"{said}; a long search may need {describe_size(place.wanted)}", mend)
    else:
        yield ok(place.name, said)
    if size.f_files and size.f_favail < _FEW_FILES:
        verdict = error if size.f_favail < 100 else warning
        said = f"{there} has room for {size.f_favail:,} more files of {size.f_files:,}"
        yield verdict(f"files in the {place.name}", said, "remove small files there (df -i shows which disk)")


def _access(place: Place, there: Path) -> Iterator[MachineFinding]:
    """Tries out what a record needs: write, lock, sync, rename."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".tunelab-doctor-", dir=there))
    except OSError as wrong:
        mend = f"chmod u+rwx {there}, or name another folder with {place.option}"
        if wrong.errno == errno.EROFS:
            mend = f"mount -o remount,rw, or name another folder with {place.option}"
        yield error(place.name, f"{there} cannot be written: {wrong.strerror}", mend)
        return
    try:
        begun = time.monotonic()
        exclusive = _try_out(scratch)
        took = time.monotonic() - begun
    except OSError as wrong:
        said = f"locks, syncs or names fail in {there}: {wrong.strerror}"
        yield error(place.name, said, f"name a folder on a local disk with {place.option}")
        return
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not exclusive:
        said = f"locks in {there} hold nobody off: two searches could write one study"
        yield warning(place.name, said, f"name a folder on a local disk with {place.option}")
    if took > _SLOW:
        said = f"a write that is on the disk took {took:.1f} s in {there}"
        yield warning(place.name, said, f"name a folder on a faster disk with {place.option}")


def _try_out(scratch: Path) -> bool:
    """Writes, syncs and renames a file; True if a lock on it keeps others off."""
    path = scratch / "new"
    with path.open("wb") as first, path.open("ab") as second:
        first.write(bytes(4096))
        first.flush()
        os.fsync(first.fileno())
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            exclusive = False
        except BlockingIOError:
            exclusive = True
    path.rename(scratch / "old")
    handle = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return exclusive


def _file_system(place: Place, there: Path, mounts: Sequence[Mount]) -> Iterator[MachineFinding]:
    mount = mount_of(there, mounts)
    if mount is None:
        return
    if mount.kind in FOREIGN:
        said = f"{there} is on {mount.kind}"
        if "soft" in mount.options:
            said += ", mounted soft: writes are lost while the server does not answer"
        elif mount.options & {"nolock", "local_lock=all", "local_lock=flock"}:
            said += ", whose locks hold on this machine only"
        else:
            said += ": locks and syncs are as good as its server"
        yield warning(place.name, said, f"name a folder on a local disk with {place.option}")
    elif place.kept and mount.kind in _FLEETING:
        said = f"{there} is in memory ({mount.kind}): all of it is gone after a restart"
        yield warning(place.name, said, f"name a folder on a disk with {place.option}")


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """What is mounted, as /proc tells it; nothing where it does not."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        own, system = left.split(), right.split()
        if len(own) >= 6 and len(system) >= 2:
            point = own[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            options = frozenset([*own[5].split(","), *(system[2].split(",") if len(system) > 2 else ())])
            found.append(Mount(point, system[0], options))
    return found


def mount_of(folder: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The file system that a folder lies on: the last mounted of the longest paths above it."""
    real = folder.resolve()
    above = [mount for mount in mounts if real == Path(mount.point) or Path(mount.point) in real.parents]
    return max(enumerate(above), key=lambda pair: (len(pair[1].point), pair[0]))[1] if above else None


def find_temporary(
    longest: int,
    parent: Callable[[], Path],
    mounts: Sequence[Mount],
    environ: Mapping[str, str],
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
) -> list[MachineFinding]:
    """Whether Ray's files fit into the temporary folder: room, path, and what may be run from there.

    Args:
        longest: characters of a folder's path that leave room for those of Ray's sockets.
        parent: gives the folder, as `ray_home.temporary_parent`.
        mounts: as `read_mounts` gives them.
        environ: variables.
        statvfs: of a folder, for tests.
    """
    name = "temporary folder"
    try:
        folder = parent()
    except FileNotFoundError:
        return [error(name, "no folder for temporary files can be written", "export TMPDIR=/a/folder/with/room")]
    found = find_place(Place(name, folder, 2**26, 2**30, "TMPDIR", kept=False), mounts, statvfs)
    given = environ.get("TMPDIR", "")
    if given and not os.access(given, os.W_OK | os.X_OK):
        found.append(warning(name, f"TMPDIR={given} cannot be written: {folder} is used", f"mkdir -p {given}"))
    if len(str(folder)) > longest:
        said = f"{folder} has {len(str(folder))} characters, more than the {longest} that Ray's sockets leave"
        found.append(error(name, said, "export TMPDIR=/tmp, or chmod 1777 /tmp"))
    try:
        size = statvfs(folder)
    except OSError:
        return found
    if size.f_blocks and size.f_bavail / size.f_blocks < _RAY_FULL:
        said = f"the disk of {folder} is {1 - size.f_bavail / size.f_blocks:.1%} full, at 95% Ray stops making objects"
        found.append(warning(name, said, f"free some (du -xhd1 {folder}), or export TMPDIR to another disk"))
    mount = mount_of(folder, mounts)
    if size.f_flag & getattr(os, "ST_NOEXEC", 0) or (mount is not None and "noexec" in mount.options):
        said = f"programs in {folder} do not run (noexec): best --retrain --compile has none of its compiled code"
        found.append(warning(name, said, "export TORCHINDUCTOR_CACHE_DIR=~/.cache/torchinductor"))
    return found


def find_home(environ: Mapping[str, str]) -> list[MachineFinding]:
    """Whether the home folder can be written, which the cache is in unless a variable says otherwise."""
    home = environ.get("HOME", "")
    if environ.get("TUNELAB_CACHE") or environ.get("XDG_CACHE_HOME"):
        return []
    mend = "export TUNELAB_CACHE=/a/folder/that/stays XDG_CACHE_HOME=/a/folder/that/stays"
    if not home:
        return [warning("home", "HOME is not set", mend)]
    try:
        with tempfile.TemporaryFile(prefix=".tunelab-doctor-", dir=home):
            return []
    except OSError as wrong:
        said = f"{home} cannot be written ({wrong.strerror}): decoded images and kernels go to the temporary folder"
        return [warning("home", said, mend)]
