"""Joins a Ray cluster that somebody else has started, for the time of a search."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunelab.errors import TunelabError, UnfitError
from tunelab.tuning.fleet import Fleet, fleet_of
from tunelab.tuning.ray_home import SETTINGS, Ports, first_line, settings, variables
from tunelab.tuning.roll_call import FAILED_START, LEFT_OUT, TRIES
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where a Ray job finds what it was submitted with."""
_OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
_PAUSE = 2.0  # seconds between two looks at the cluster's nodes; our choice


@contextlib.contextmanager
def joined(site: Site) -> Iterator[Ports]:
    """This process as a driver of the cluster at `site.address`; its actors are gone afterwards.

    Workers run the tunelab that runs here, whatever their nodes have. The variables are as before afterwards.

    Raises:
        UnfitError: the cluster does not answer.
        TunelabError: this process runs Ray already.
    """
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    if ray.is_initialized():
        raise TunelabError("this process runs Ray already; call ray.shutdown() before tunelab.search()")
    wanted = runtime_env(os.environ)

    def forget_token() -> None:
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    with contextlib.ExitStack() as stack:
        stack.callback(forget_token)
        stack.enter_context(variables(_variables(site)))
        forget_token()  # an earlier Ray of this process had one of its own
        for again in reversed(range(TRIES)):
            try:
                found = ray.init(
                    address=site.address, log_to_driver=False, logging_level=logging.WARNING, runtime_env=wanted
                )
                break
            except Exception as error:
                if not again or FAILED_START not in str(error):
                    raise UnfitError(f"the cluster {site.address} does not answer: {first_line(error)}") from error
        stack.callback(ray.shutdown)
        yield Ports(found.dashboard_url or "", "")


def _variables(site: Site) -> dict[str, str | None]:
    """Those of the environment while this process is a driver."""
    found: dict[str, str | None] = {**settings(dashboard=site.dashboard)}
    found["TUNE_MAX_PENDING_TRIALS_PG"] = "1000"  # as many as `Places` lets begin: they start beside each other
    if site.token:
        found["RAY_AUTH_MODE"] = site.token
    if os.environ.get(JOB):
        found[_OVERRIDE] = "1"
    return found


@contextlib.contextmanager
def tune_here(folder: Path) -> Iterator[None]:
    """Has Ray Tune decide in this process, where the record is, also if this process is a Ray client.

    A client's Tune would go to the cluster, where nothing of the search is; its actors can be led from here as well.
    For its own files it asks for the session of a node, which a client is not: they go to `folder`.
    """
    from ray._private import worker
    from ray.util import client

    known: Any = client.ray
    if not known.is_connected():
        yield
        return
    known.is_connected = lambda: False
    before = worker._global_node
    worker._global_node = SimpleNamespace(get_session_dir_path=lambda: str(folder / "session"))  # type: ignore[assignment]
    try:
        yield
    finally:
        worker._global_node = before
        del known.is_connected


def runtime_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """What Ray gives to workers: tunelab's settings and package, beside what a Ray job was submitted with.

    What the user asks for in the job wins.
    """
    package = Path(__file__).parents[1]
    theirs: dict[str, Any] = {}
    if environ.get(JOB):
        theirs = json.loads(environ[JOB]).get("runtime_env") or {}
    modules = [*theirs.get("py_modules", ()), str(package)]
    excluded = ["__pycache__/", *(f"/{folder}/" for folder in LEFT_OUT)]
    return {
        "env_vars": {**SETTINGS, **theirs.get("env_vars", {})},
        "py_modules": modules,
        "excludes": [*theirs.get("excludes", ()), *excluded],
    }


class Places:
    """How many trials the cluster carries just now: nodes that join count, and those that go count no more.

    Args:
        slots: what each trial is given; its `concurrent` is of no matter here.
        most: how many trials a node carries at most, None as many as it has resources for.
        cap: the most trials at once that are asked for. One more than there is room for then waits for a node, which
            an autoscaler sees. None: as many as there is room for.
    """

    def __init__(self, slots: Slots, most: int | None = None, cap: int | None = None) -> None:
        self.slots, self._most, self._cap = slots, most, cap
        self._seen, self._next = Fleet(()), 0.0

    def look(self) -> Fleet:
        """The nodes, as they were a moment ago at most."""
        import ray

        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            with contextlib.suppress(Exception):  # a head that does not answer just now: what was known stays
                told = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
                self._seen = fleet_of(told, self._most)
        return self._seen

    def count(self) -> int:
        """How many trials may run at once; one in any case."""
        carried = self.look().carries(self.slots)
        return max(1, carried if self._cap is None else min(self._cap, carried + 1))
