"""What a node of a cluster tells of itself, and what is tried out there: the code that `nodes` sends along.

It runs where tunelab is missing or another one, too. What is at the top is sent by value, with the functions that
it calls of `capacity`, `files` and `roll_call`; psutil comes with Ray. Only `prepare` takes tunelab from the node.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.capacity import all_memory_mib, free_memory_mib
from tunelab.files import existing, free_bytes, free_files, wanted_root
from tunelab.tuning.roll_call import digest_of

BY_VALUE = ("tunelab.tuning.node_facts", "tunelab.tuning.roll_call", "tunelab.capacity", "tunelab.files")
"""The modules that are sent along; `tunelab.errors` is not: nothing here raises them."""
_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
_PATIENCE = 10.0  # seconds for nvidia-smi, which hangs where a GPU has fallen off the bus (our choice)
_REPEATS = 64  # of a token in its file: a block, which a disk that is full does not take (our choice)
_TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.device_count()]))"
_TORCH_PATIENCE = 120.0  # seconds for torch in a process of its own (our choice)
_STALE = 3.0  # seconds after which a file that was replaced is to be seen as it is (our choice)


def tell(packages: Sequence[str], folder: str, ray_folder: str = "") -> dict[str, Any]:
    """What this machine has, as plain JSON values.

    Args:
        packages: whose versions are told.
        folder: where the study is to be; it need not exist.
        ray_folder: where Ray's own files are; "" if that is not known.
    """
    gpus, problem = _gpus()
    places = {"study": folder, "temporary": _temporary(), "ray": ray_folder, "cache": str(wanted_root())}
    return {
        "user": f"{_user()} ({os.getuid()})",
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in packages},
        "tunelab": _tunelab(),
        "free_memory_mib": round(free_memory_mib()),
        "all_memory_mib": round(all_memory_mib()),
        "disks": {name: disk for name, place in places.items() if place and (disk := _disk(place))},
        "gpus": gpus,
        "gpu_problem": problem,
    }


def leave_token(folder: str, name: str, token: str) -> str:
    """Writes a token into a folder as trials write, and puts it on the disk; "" or what went wrong.

    That is "missing" where there is not even the folder above it, "another" where that is there without it, else the
    name of an error of the operating system.
    """
    try:
        if not Path(folder).is_dir():
            return "another" if Path(folder).parent.is_dir() else "missing"
        path = Path(folder) / name
        with path.with_suffix(".new").open("x") as file:
            file.write(token * _REPEATS)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".new").replace(path)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return ""


def unseen(folder: str, tokens: Mapping[str, str], patience: float = _STALE) -> list[str]:
    """The names of those files of a folder that do not hold their token, even after some seconds."""
    until = time.monotonic() + patience
    while True:
        found = [name for name, token in tokens.items() if not _holds(Path(folder) / name, token)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def prepare(data: Sequence[str], *, build: bool, with_gpus: bool) -> dict[str, Any]:
    """Loads what trains, and opens the data as a trial does.

    Args:
        data: the JSON of each `DataConfig`.
        build: images that are not decoded yet are decoded into the cache; else they are only looked for.
        with_gpus: torch is asked for GPUs, in a process of its own.

    Returns:
        `problem`, what went wrong while it was loaded; `data`, of each its `name` and its `fingerprint` ("" where it is
        not decoded yet) or its `problem`; `torch`: its version, that of its CUDA, how many GPUs it finds; or
        `torch_problem`.
    """
    found: dict[str, Any] = _ask_torch() if with_gpus else {}
    try:
        from tunelab.tuning import worker  # noqa: F401  # all that a trial needs
    except Exception as error:  # whatever packages that do not fit each other bring
        return {**found, "problem": _told(error)}
    return {**found, "data": [_open_data(one, build=build) for one in data]}


def _open_data(plain: str, *, build: bool) -> dict[str, str]:
    from tunelab.config import DataConfig, from_json
    from tunelab.data.cache import known, prepare
    from tunelab.data.datasets import find_dataset
    from tunelab.data.raw import Meter

    config = from_json(DataConfig, json.loads(plain))
    try:
        if build:
            return {"name": config.name, "fingerprint": prepare(config).fingerprint}
        decoded = known(config)
        if decoded is None:
            find_dataset(config).read(Meter(None))
        return {"name": config.name, "fingerprint": "" if decoded is None else decoded[1].fingerprint}
    except Exception as error:  # of damaged files, of disks
        return {"name": config.name, "problem": _told(error)}


class Visitor:
    """An actor of one node: its methods are the functions of this module."""

    def tell(self, packages: Sequence[str], folder: str) -> dict[str, Any]:
        """As `tell`."""
        return tell(packages, folder, _ray_folder())

    def now(self) -> float:
        """The clock of the day."""
        return time.time()

    def leave_token(self, folder: str, name: str, token: str) -> str:
        """As `leave_token`."""
        return leave_token(folder, name, token)

    def unseen(self, folder: str, tokens: Mapping[str, str]) -> list[str]:
        """As `unseen`."""
        return unseen(folder, tokens)

    def prepare(self, data: Sequence[str], build: bool, with_gpus: bool) -> dict[str, Any]:
        """As `prepare`."""
        return prepare(data, build=build, with_gpus=with_gpus)


def _told(error: Exception) -> str:
    """What an error says, in a line; those of tunelab as they are."""
    said = " ".join(str(error).split())[:500]
    return said if type(error).__module__ == "tunelab.errors" else f"{type(error).__name__}: {said}"


def _holds(file: Path, token: str) -> bool:
    try:
        return file.read_bytes() == token.encode() * _REPEATS
    except OSError:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return "user"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tunelab() -> dict[str, str] | None:
    """The version, digest and folder of tunelab; None if it is missing."""
    try:
        from tunelab import __version__

        found = importlib.util.find_spec("tunelab")
        folder = Path(str(found and found.origin)).parent
        return {"version": __version__, "digest": digest_of(folder), "folder": str(folder)}
    except (ImportError, OSError, ValueError):
        return None


def _temporary() -> str:
    with contextlib.suppress(OSError):
        return os.environ.get("TMPDIR") or tempfile.gettempdir()
    return "/tmp"


def _ray_folder() -> str:
    """Where Ray's own files of this node are."""
    with contextlib.suppress(Exception):  # it is Ray's own matter, and may change
        from ray._private import worker

        node: Any = worker._global_node
        return str(node.get_session_dir_path())
    return ""


def _disk(place: str) -> dict[str, Any] | None:
    """What is free where a folder is, or would be; None if that cannot be said."""
    try:
        there = existing(Path(place))
        free, files = free_bytes(there), free_files(there)
    except OSError:
        return None
    return {"folder": place, "free": free, "files": files}


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """The GPUs as nvidia-smi lists them, and what is wrong with it; "" too where there is none."""
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired):
        return [], "nvidia-smi does not answer"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return [], f"nvidia-smi fails: {said[0] if said else f'status {done.returncode}'}"
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    numbers = [(row[0], *(int(word) if word.isdigit() else None for word in row[1:3])) for row in rows if len(row) == 3]
    return [{"name": name, "total_mib": total, "free_mib": free} for name, total, free in numbers], ""


def _ask_torch() -> dict[str, Any]:
    """What torch finds where a process may use all GPUs, as a trial that has been given one."""
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _TORCH]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TORCH_PATIENCE, env=environ)
    except subprocess.TimeoutExpired:
        return {"torch_problem": f"torch did not answer within {_TORCH_PATIENCE:.0f} s"}
    lines, said = done.stdout.splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not lines:
        return {"torch_problem": said[-1][:300] if said else f"torch's process died with status {done.returncode}"}
    return {"torch": json.loads(lines[-1]), "torch_warning": said[-1][:300] if said else ""}
