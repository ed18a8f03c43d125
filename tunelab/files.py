"""Writing files so that a reader, a killed process and a power cut never see half of one; room; the cache's folder.

And reading files that somebody else may have made: what is no file is not waited for, what is too long is not read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from tunelab.errors import InputError, TunelabError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that are over when somebody removes files."""
MOST_JSON = 32 * 2**20
"""Bytes of JSON that are read at most, unless something else is said: it can take ten times that (our choice)."""


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading; a pipe, a device or a folder of that name is refused, and never waited for.

    Raises:
        OSError: there is no such file, or it is none.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a zero byte, or half a character: such a name comes from a file, not from a shell
        raise FileNotFoundError(errno.ENOENT, f"no file can have this name ({error})", repr(path)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
    return os.fdopen(handle, "rb")


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        OSError: there is no such file, it is longer, or it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: as `read_file`.
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(read_file(path, most).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_no_links(folder: Path) -> None:
    """Passes if nothing in a folder that is to be written in leads out of it.

    Whoever made the folder could have a file of this user's be written over by such a link.

    Raises:
        InputError: a link does; it is named.
    """
    inside = f"{os.path.realpath(folder)}{os.sep}"
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:  # it is gone meanwhile, or closed to this user: nothing is written in it
            continue
        for entry in entries:
            if entry.is_symlink():
                if not os.path.realpath(entry.path).startswith(inside):
                    raise InputError(
                        f"{entry.path} is a link that leads out of {folder}, and what is written there would go with "
                        "it; remove the link, or put what it leads to in its place"
                    )
            elif entry.is_dir():
                waiting.append(entry.path)


def note_on(folder: Path) -> str:
    """What is to be said of a folder that others than this user can change, in one line; "" if none can."""
    try:
        found = folder.stat()
    except OSError:
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"{folder} belongs to another user (number {found.st_uid}); nothing in it is run, but it may be made up"
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return f"{folder} can be written by every user of this machine; `chmod o-w {folder}` mends that"
    return ""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a small file so that `path` is absent, old or complete, even after a power cut.

    Raises:
        OSError: it could not be written; `path` is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_vacant(path: Path, name: str) -> bool:
    """True if nothing is there, or a folder with no more than a killed `write_atomically` of a file `name` leaves.

    Raises:
        OSError: it cannot be looked at.
    """
    if not os.path.lexists(path):
        return True
    return path.is_dir() and all(file.name.startswith(f".{name}-") for file in path.iterdir())


def make_private(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for this user alone; what there is stays as it is."""
    if folder.is_dir():
        return
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk: a new or renamed file can be lost in a power cut without."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    path = folder.absolute()
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def free_bytes(folder: Path) -> int:
    """What this user can still write to the file system of a folder; `sys.maxsize` where that does not say what it has.

    Raises:
        OSError: it cannot be asked.
    """
    found = os.statvfs(folder)
    if not found.f_blocks:  # some in user space and on networks: all their numbers are 0
        return sys.maxsize
    return found.f_bavail * found.f_frsize


def free_files(folder: Path) -> int | None:
    """How many files can still be made there; None where the file system does not count them.

    Raises:
        OSError: it cannot be asked.
    """
    found = os.statvfs(folder)
    return found.f_favail if found.f_files else None


def cache_root() -> tuple[Path, str]:
    """The folder of the cache, made if missing, and a note ("" where it is the usual one).

    It is `TUNELAB_CACHE`, else `XDG_CACHE_HOME/tunelab`, else `~/.cache/tunelab`; where that cannot be written, a
    folder of this user's in the temporary folder.

    Raises:
        TunelabError: neither can be written.
    """
    wanted = wanted_root()
    if _writable(wanted):
        return wanted, ""
    private = private_root()
    if not _writable(private) or private.is_symlink() or private.stat().st_uid != os.getuid():
        raise TunelabError(f"neither {wanted} nor {private} can be written; set TUNELAB_CACHE to a folder")
    return private, f"{wanted} cannot be written, so the decoded images are in {private}"


def private_root() -> Path:
    """The folder that the cache is in where the wanted one cannot be written."""
    return Path(tempfile.gettempdir()) / f"tunelab-cache-{os.getuid()}"


def wanted_root() -> Path:
    """The folder that the cache is to be in, which may be missing or closed to this user."""
    own, shared = os.environ.get("TUNELAB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser().absolute()
    return (Path(shared) if shared else Path.home() / ".cache") / "tunelab"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def make_vacant(folder: Path, known: str) -> None:
    """Makes a folder for this user alone, in place of one that `is_vacant`; that is taken where it cannot be replaced.

    Raises:
        OSError: it cannot be made, or something is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and is_vacant(folder, known):
        for left in folder.iterdir():
            left.unlink()
        try:
            folder.rmdir()
        except OSError:  # something is mounted there, or the folder above is closed to this user: a container's, say
            with contextlib.suppress(OSError):  # it is another user's, who lets this one write
                folder.chmod(0o700)
            return
    folder.mkdir(mode=0o700)
