"""What stands on each node of a cluster during a search: it sees the trials there and has the hands for them.

An outpost is an actor without processors of its own. The folder of the beats is on its node, for this user alone, and
has a name that workers find by themselves. The next search there removes it where the outpost was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunelab.capacity import count_kills
from tunelab.training.pulse import Beat
from tunelab.tuning.machine import BUSY, Machine, Stacks, end_tree
from tunelab.tuning.memory_guard import Word, forget_word, read_word
from tunelab.tuning.ray_home import IN_USE, PREFIX, remove_abandoned

_JOB = "RAY_JOB_ID"
"""A variable in the environment of each of Ray's workers: whose it is. A cluster may have other people's too."""
_BEGINS = 300.0  # seconds until a process that beats for no trial may be the one that hangs (our choice)


@dataclass(frozen=True)
class Sight:
    """What an outpost sees: the beats of trials whose process lives there, and how many the kernel has killed."""

    beats: dict[int, Beat]
    kills: int


def beats_folder(where: str) -> Path:
    """The folder in which a trial beats: `where`, if that is a path; else this node's, of the search with this name.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    if Path(where).is_absolute():
        return Path(where)
    import ray

    return node_folder(where, ray.get_runtime_context().get_node_id())


def word_folder(beats: Path, number: int) -> Path:
    """Where the process of a trial writes of its memory if the driver cannot see the trial's folder."""
    return beats / f"{number:04d}"


def node_folder(search: str, node: str) -> Path:
    """The folder of a search on a node, in the temporary folder; it is made, for this user alone.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{search}-{node[:12]}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _claim(search: str, node: str) -> tuple[Path, int]:
    """The folder, and the locked file in it; another one, if another search took it for abandoned before that."""
    while True:
        folder = node_folder(search, node)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / IN_USE).exists():
                return folder, lock
            os.close(lock)


def family(job: str) -> list[psutil.Process]:
    """The processes that this node's Ray has started for a job, but this one."""
    found = []
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_JOB) == job:
                found.append(process)
    return found


class Outpost:
    """The actor. Its methods are called from the driver.

    Args:
        search: names the search.
        node: the number of the node that it stands on.
    """

    def __init__(self, search: str, node: str) -> None:
        remove_abandoned(Path(tempfile.gettempdir()))
        self._folder, self._lock = _claim(search, node)
        atexit.register(self.close)
        # While all processors are taken, on fewer nodes than before, say, a trial waits and no process is to blame;
        # least of all one that is just being started for another trial.
        self._machine = Machine(lambda: family(os.environ[_JOB]), BUSY, _BEGINS)
        self._machine.open(self._folder)

    def look(self, numbers: Sequence[int]) -> Sight:
        """What there is to be seen of these trials."""
        beats = self._machine.beats(numbers)
        seen = {number: beat for number, beat in beats.items() if beat is not None}
        return Sight(seen, count_kills(anywhere=True) or 0)

    def has_room(self) -> bool:
        """True if trials can beat there."""
        return self._machine.has_room()

    def take_stacks(self, number: int, beat: Beat) -> Stacks | None:
        """See `Machine`."""
        return self._machine.take_stacks(number, beat)

    def end(self, number: int, beat: Beat) -> bool:
        """See `Machine`."""
        return self._machine.end(number, beat)

    def take_word(self, number: int) -> Word | None:
        """What the process of a trial wrote of its memory here; told once."""
        folder = word_folder(self._folder, number)
        word = read_word(folder)
        forget_word(folder)
        return word

    def unknown(self, known: Collection[int]) -> list[int]:
        """The processes of this search's trials but the `known` ones."""
        return [process.pid for process in self._machine.unknown(known)]

    def end_unknown(self, known: Collection[int]) -> None:
        """Ends those."""
        for process in self._machine.unknown(known):
            end_tree(process)

    def close(self) -> None:
        """The search is over: its folder goes."""
        shutil.rmtree(self._folder, ignore_errors=True)
