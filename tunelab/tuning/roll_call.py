"""Asks each node of a Ray cluster what it has: a program of its own, so that it can be given up.

What runs on a node is sent there as code and needs neither tunelab nor torch: they are what is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEFT_OUT = ("analysis", "search_spaces")
"""Folders of an installed tunelab that no worker needs."""
FAILED_START = "Initialization failure from server"
"""What a head says whose process for a client did not start.

Of Ray 2.60 about every fifth does not where the head has a dashboard: it ends in gRPC's own handlers of fork(), which
GRPC_ENABLE_FORK_SUPPORT=0 on the head leaves out.
"""
_GLANCE = 0.5  # seconds between two looks at whether the cluster has answered; our choice
TRIES = 4
"""How often a client tries to join: with a fifth of all starts failing, one of 600 does not (our choice)."""


def digest_of(package: Path) -> str:
    """A hash of what a worker runs of tunelab's package in the folder `package`."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        if name.parts[0] not in LEFT_OUT:
            digest.update(f"{name.as_posix()}\n".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def processor_name() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe_node(packages: Sequence[str]) -> dict[str, Any]:
    """What this process finds on its machine.

    Args:
        packages: distributions whose versions are told; None stands for one that is not there.
    """
    found = importlib.util.find_spec("tunelab")
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in packages},
        "tunelab": "" if folder is None else digest_of(folder),
        "tunelab_version": _version("tunelab"),
        "processor": processor_name(),
        "models": _gpu_models(),
    }


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _gpu_models() -> list[str]:
    """The names of this machine's GPUs, as their driver has them."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()] if asked.returncode == 0 else []


def resolve(address: str) -> str:
    """The address of the cluster that "auto" stands for: RAY_ADDRESS, or what `ray start` has started here.

    Raises:
        ValueError: there is none, there are several, or another user says where it is.
    """
    if address != "auto":
        return address
    if (named := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        return named
    from ray._private import services, utils

    noted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if noted.exists() and noted.stat().st_uid not in (os.getuid(), 0):
        raise ValueError(f"{noted} was written by another user and is not believed; give HOST:PORT")
    running: list[str] = sorted(services.find_gcs_addresses())  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
    known: str = utils.read_ray_address() or ""
    if known and (known in running or not running):
        return known
    if len(running) > 1:
        raise ValueError(f"several Ray clusters run on this machine: {', '.join(running)}; give one of them")
    if not running:
        raise ValueError("no Ray cluster runs on this machine; `ray start --head` starts one, or give HOST:PORT")
    return running[0]


def call(
    address: str, packages: Sequence[str], patience: float, connected: threading.Event, *, with_token: bool
) -> dict[str, Any]:
    """What all nodes of the cluster at `address` say.

    Args:
        address: as Ray takes it, not "auto".
        packages: as `describe_node` takes them.
        patience: seconds that the nodes may take.
        connected: is set when the cluster has answered.
        with_token: a token that is found is used, as Ray does for a cluster that runs on this machine.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if with_token:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one, what comes next ends this process
    if "://" not in address:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

        GcsClient(address=address).get_all_node_info()  # says at once what ray.init() says after many attempts
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    connected.set()
    ray.cloudpickle.register_pickle_by_value(sys.modules[describe_node.__module__])  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
    asked = {}
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(describe_node).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[node["NodeID"]] = task.remote(list(packages))
    ends = time.monotonic() + patience
    told = []
    for node in alive:
        try:
            says = ray.get(asked[node["NodeID"]], timeout=max(0.1, ends - time.monotonic()))
        except Exception as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            says = {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
        told.append({**{key: node[key] for key in ("NodeID", "NodeManagerAddress", "Resources", "Alive")}, **says})
    if any("error" in one for one in told):  # of a node that has just gone, nothing need be told
        now = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
        left = {node["NodeID"] for node in now if node["Alive"]}
        told = [one for one in told if one["NodeID"] in left]
    return {"nodes": told, "token": os.environ.get("RAY_AUTH_MODE", "")}


def _handled(thread: threading.Thread) -> str:
    """What the error says that a thread handles just now; "" if none."""
    found: Any = sys._current_exceptions().get(thread.ident or 0)
    error = found[1] if isinstance(found, tuple) else found  # a tuple until Python 3.11
    return str(error or "")


def main() -> None:
    """Reads the arguments of `call` as JSON from standard input, and writes what it gives, or an error, as JSON.

    `connect` are the seconds in which the cluster is to answer at all.
    """
    answer = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no part of it
    given, connected = json.load(sys.stdin), threading.Event()
    address = given["address"]

    def tell(found: dict[str, Any]) -> None:
        os.write(answer, json.dumps({**found, "address": address}).encode())
        os._exit(0)  # Ray's own farewell takes seconds, and what is asked for has been told

    def watch() -> None:
        ends = time.monotonic() + given["connect"]
        while not connected.wait(_GLANCE):
            if FAILED_START in (said := _handled(threading.main_thread())):  # then Ray says farewell for 30 s or more
                tell({"error": "ConnectionAbortedError", "said": said})
            if time.monotonic() > ends:
                tell({"error": "TimeoutError", "said": f"no answer within {given['connect']:g} s"})

    try:
        address = resolve(address)
        import ray  # noqa: F401  # its import is not the cluster's to answer for

        threading.Thread(target=watch, daemon=True).start()
        auto = given["address"] == "auto"
        tell(call(address, given["packages"], given["patience"], connected, with_token=auto))
    except Exception as error:
        tell({"error": type(error).__name__, "said": f"{error}\n{error.__cause__ or ''}"})
