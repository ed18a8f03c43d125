"""Where Ray lives while a search runs: its start and end, its private folder, its settings and its words.

Ray's own files live in a private temporary folder and are thrown away.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tunelab.capacity import describe_size
from tunelab.errors import InputError, TunelabError
from tunelab.files import existing, free_bytes, free_files
from tunelab.tuning import survivors
from tunelab.tuning.slots import Slots

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # Ray's own, 2, is what the end of each training waits for
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # Ray's own, 60, is too little on a busy machine
    "RAY_prestart_worker_first_driver": "0",  # else one starts for each processor, and no trial is given it
    "RAY_worker_niceness": "0",  # Ray's own, 15, lets anything else that runs take the trials' time from them
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_WITH_DASHBOARD = {"RAY_enable_metrics_collection": "1"}
_SET_BY_RAY = ("PYTHONBREAKPOINT", "RAY_AUTH_MODE")  # in this process, when it starts or is joined
_FOR_A_DASHBOARD = ("start_monitor", "start_log_monitor", "start_api_server")
"""They start what serves a dashboard, a growing cluster and prints alone, each for 0.6 to 1.1 s of a processor."""
TOKEN = "token"
"""The file in Ray's folder, this user's alone, that holds what Ray asks everybody for who wants to use it."""
_TOKEN = secrets.token_hex(32)  # one for the whole process, which keeps the first that it read
PREFIX = "tunelab-"
IN_USE = "in-use"
LONGEST_TEMPORARY = 20  # characters; Ray appends up to 85, and the path of a socket ends at 107
ROOM_BYTES = 64 * 2**20
"""Ray's files of a search: 2 to 4 MB, and logs that grow (our choice)."""
LEAST_BYTES = 2**20
"""With less Ray's files were too many for the folder, whatever Ray says (our choice)."""
_FILES = 200  # that can still be made there; our choice
OBJECT_STORE_BYTES = 80 * 2**20  # nothing but short texts goes through it; Ray's least is 75 MiB


@dataclass(frozen=True)
class Ports:
    """Where Ray's dashboard is ("HOST:PORT", "" without one), and where its metrics can be read."""

    dashboard: str
    metrics: str


@contextlib.contextmanager
def private_folder(study: Path | None = None) -> Iterator[Path]:
    """As `claimed_folder` where there is room, after those of searches that were killed are gone.

    Raises:
        InputError: there is no place for it.
        OSError: it cannot be made.
    """
    for parent in _candidates(study):
        remove_abandoned(parent)
    with claimed_folder(find_parent(study)) as folder:
        yield folder


@contextlib.contextmanager
def claimed_folder(parent: Path | None = None) -> Iterator[Path]:
    """A short path that only this user can enter: Ray opens its own folder to all, and sockets need short paths.

    It is in `parent`, by default in the temporary folder, and gone afterwards; the next search removes those of
    processes that were killed.

    Raises:
        OSError: it cannot be made.
    """
    folder, lock = _claim(parent or temporary_parent())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _claim(parent: Path) -> tuple[Path, int]:
    """A new folder, and the locked file in it; another one, if another search took it for abandoned before that."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / IN_USE).exists():
                return folder, lock
            os.close(lock)


def temporary_parent() -> Path:
    """The temporary folder, or /tmp where the path of a socket in it would be too long.

    Raises:
        FileNotFoundError: no temporary folder can be written.
    """
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= LONGEST_TEMPORARY or not os.access("/tmp", os.W_OK) else "/tmp")


def find_parent(study: Path | None = None) -> Path:
    """Where Ray's files go: the temporary folder, or else /tmp, /dev/shm or the study itself.

    Args:
        study: its folder, which need not exist yet; None: it is no place for them.

    Raises:
        InputError: none of them is short enough, can be written and has room.
    """
    reasons = []
    for folder in _candidates(study):
        if len(str(folder)) > LONGEST_TEMPORARY:
            why = f"has more than the {LONGEST_TEMPORARY} characters that sockets leave"
        else:
            why = lacks(folder, ROOM_BYTES)
        if not why:
            return folder
        reasons.append(f"{folder} {why}")
    raise InputError(f"there is no place for Ray's files: {', '.join(reasons)}; TMPDIR names another")


def lacks(folder: Path, least: int) -> str:
    """What a folder lacks for temporary files of so many bytes, such as "cannot be written"; "" if nothing."""
    there = existing(folder)
    try:
        if not os.access(there, os.W_OK | os.X_OK):
            return "cannot be written"
        free, files = free_bytes(there), free_files(there)
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    if free < least:
        return f"has {describe_size(free)} free, {describe_size(least)} are needed"
    return f"has room for {files} more files" if files is not None and files < _FILES else ""


def _candidates(study: Path | None) -> list[Path]:
    """Where Ray's files may go, the usual place first."""
    found = [Path("/tmp"), Path("/dev/shm")]  # a private folder in them
    with contextlib.suppress(FileNotFoundError):
        found.insert(0, Path(tempfile.gettempdir()))
    if study is not None:
        found.append(study.absolute())
    return list(dict.fromkeys(found))


def rehearse(folder: Path, log: Path, patience: float) -> tuple[float, float]:
    """Starts Ray as a search on processors does, has it run a task in a process of its own, and stops it.

    Args:
        folder: an empty one for Ray's files, this user's alone, with a short path.
        log: where everything goes that Ray writes to the terminal.
        patience: seconds that the task may take.

    Returns:
        Seconds until the task had run, and seconds of the end.

    Raises:
        TunelabError: Ray does not start, or runs no task.
    """
    slots = Slots(concurrent=1, cpus=1, gpus=0.0, device="cpu")
    begun = time.monotonic()
    with survivors.ended(folder), environment(folder), quiet(log):
        with started(slots, folder):
            import ray

            try:
                ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=patience)
            except Exception as error:
                raise TunelabError(f"Ray runs no task: {first_line(error)}") from error
            ran = time.monotonic()
        return ran - begun, time.monotonic() - ran


def remove_abandoned(parent: Path) -> None:
    """Removes the folders of this user's searches that were killed: whose lock nobody holds, and empty ones."""
    for folder in parent.glob(PREFIX + "?" * 8):  # as `_claim` makes them
        with contextlib.suppress(OSError):  # in use, or of another user
            folder.rmdir()
    for in_use in parent.glob(f"{PREFIX}*/{IN_USE}"):
        with contextlib.suppress(OSError):  # held, of another user, or gone already
            lock = os.open(in_use, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(in_use.parent)
            finally:
                os.close(lock)


def settings(*, dashboard: bool = False) -> dict[str, str]:
    """Ray's settings; without a dashboard Ray collects no metrics."""
    return {**SETTINGS, **(_WITH_DASHBOARD if dashboard else {})}


@contextlib.contextmanager
def environment(folder: Path, *, dashboard: bool = False) -> Iterator[None]:
    """Ray's settings, and a token without which nobody reaches it; the variables are as before afterwards.

    Where the usual place has no room for temporary files, those of Ray's processes go to `folder` too.
    """
    wanted: dict[str, str | None] = {**settings(dashboard=dashboard)}
    usual = _candidates(None)[0]
    if folder.parent != usual and lacks(usual, ROOM_BYTES):
        wanted["TMPDIR"] = str(folder)
    token = folder / TOKEN
    token.touch(mode=0o600)
    token.write_text(_TOKEN, encoding="utf-8")
    wanted |= {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None}  # Ray turns its token on for a cluster of its own
    with variables({**wanted, "RAY_AUTH_TOKEN_PATH": str(token)}):
        yield


@contextlib.contextmanager
def variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """These variables of the environment, None for one that is not there; afterwards they are as before.

    So are those that Ray sets by itself. Nobody else's are touched: the space may have set some meanwhile.
    """
    before = {name: os.environ.get(name) for name in (*wanted, *_SET_BY_RAY)}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def started(slots: Slots, folder: Path, *, dashboard: bool = False) -> Iterator[Ports]:
    """Ray, with its files in `folder`; it is gone afterwards. It listens on the loopback interface alone.

    With `dashboard` Ray's is there too, at port 8265 or the next one that is free; else none of its programs.

    Raises:
        TunelabError: it does not start, or this process runs it already.
    """
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled

    if ray.is_initialized():
        raise TunelabError("this process runs Ray already; call ray.shutdown() before tunelab.search()")
    AuthenticationTokenLoader.instance().reset_cache()  # of a Ray that the process ran before, or may run afterwards
    mask = os.umask(0o077)
    try:
        try:
            with _sessions_of_their_own(), _loopback_alone(), _without(() if dashboard else _FOR_A_DASHBOARD):
                found = ray.init(
                    address="local",
                    num_cpus=slots.concurrent * slots.processes * slots.cpus,
                    include_dashboard=dashboard,
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    configure_logging=True,
                    logging_level=logging.WARNING,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(folder / "ray"),
                    num_gpus=0 if slots.device == "cpu" else None,
                )
        except Exception as error:
            raise TunelabError(f"Ray does not start: {first_line(error)}") from error
        finally:
            os.umask(mask)
        metrics = found.address_info["metrics_export_port"]  # type: ignore[attr-defined]  # of Ray's own, not a client's
        yield Ports(found.dashboard_url or "", f"127.0.0.1:{metrics}")
    finally:
        ray.shutdown()
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """What a batch system or a closed terminal sends to the driver's whole group does not end Ray under it.

    Ray itself keeps nothing but Ctrl-C from its processes. Where they do not end with the driver by the kernel's doing,
    which is on Linux alone, they are found by their group and stay in it.
    """
    from ray._private import services

    if sys.platform != "linux" or not hasattr(services, "ConsolePopen"):
        yield
        return
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]


@contextlib.contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    """A Ray that is started meanwhile leaves out the programs that these methods of its node start."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in names if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda _node, *_given, **_more: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """A Ray that is started meanwhile takes 127.0.0.1 for this machine's address, and listens on it alone.

    Ray does so by itself on macOS and Windows; elsewhere all its processes listen on every interface. The switch is
    read when Ray is imported, and by the processes that it starts.
    """
    from ray._private import ray_constants

    variable, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(variable)
    os.environ[variable] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(variable)
        if given is not None:
            os.environ[variable] = given


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Sends everything that is written to the process's standard output and error to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as stream:
        for target in (1, 2):
            os.dup2(stream.fileno(), target)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, target)
            os.close(saved)


def terminal() -> TextIO:
    """Standard error as it is now, for a display that goes on while everything else is sent to a file."""
    try:
        if sys.stderr.fileno() == 2:
            return os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    except (OSError, ValueError):
        pass  # not a file: a notebook's or a test's own object, which the redirection does not touch
    return sys.stderr


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
