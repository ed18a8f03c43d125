"""Runs an engine on Ray Tune, from Ray's start to its end.

Every start is a new `Tuner`: `Tuner.restore` can silently lose a search.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import CustomSpec, TrialConfig, from_json
from tunelab.errors import TunelabError, UnfitError
from tunelab.foreign import lend
from tunelab.ray_address import RayAddress, told
from tunelab.records import Trial
from tunelab.tuning import ray_train, survivors
from tunelab.tuning.engine import Engine
from tunelab.tuning.guard import Guard
from tunelab.tuning.losses import Witness
from tunelab.tuning.memory_guard import Limits, NodeLimits
from tunelab.tuning.ray_cluster import Places, joined, tune_here
from tunelab.tuning.ray_errors import Shortages
from tunelab.tuning.ray_home import (
    LEAST_BYTES,
    TOKEN,
    Ports,
    environment,
    first_line,
    lacks,
    private_folder,
    quiet,
    started,
)
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots

MEMORY = "node_memory"
"""In a worker's config: the bytes of its node's memory that are reserved for it."""


def run(
    engine: Engine,
    slots: Slots,
    *,
    folder_of: Callable[[int], Path],
    telemetry: str,
    log: Path,
    stop_at: float = math.inf,
    witnesses: Sequence[Witness] = (),
    guard: Guard | None = None,
    looks: Sequence[Callable[[Path], None]] = (),
    limits: Limits | NodeLimits | None = None,
    site: Site | None = None,
    places: Places | None = None,
    request: Callable[[Trial], int] | None = None,
    name: str = "trial",
    say: Callable[[str], None] = lambda line: None,
    storage: str | None = None,
    lease: str | None = None,
) -> None:
    """Runs `engine` until every trial has ended or it halts; Ray is gone when this returns.

    SIGINT, SIGTERM and SIGHUP halt the engine (`engine.halted` names the signal); a second signal ends the process.

    Args:
        engine: what decides.
        slots: trials at once and their resources.
        folder_of: from a trial's number to its folder.
        telemetry: as `Trainer` takes it.
        log: where everything goes that Ray writes to the terminal.
        stop_at: when workers break their epochs off, on the monotonic clock.
        witnesses: are asked why the process of a trial is gone.
        guard: watches over it all.
        looks: are called with Ray's folder again and again, each second at least.
        limits: what the processes of the trials may hold; None leaves them alone.
        site: where Ray is; None: it is started here.
        places: how many trials a cluster carries; None: `slots` says it.
        request: the bytes of a node's memory that a trial is to have.
        name: comes before the number of a trial in the names that Ray and the system show of its process.
        say: shows a line to the person who started it.
        storage: the place of the study in its store, if it has one.
        lease: the nonce of the lease that this process has there.

    Raises:
        InputError: there is no place for Ray's files.
        UnfitError: the cluster does not answer, and there is no `guard` that would pause the search.
        TunelabError: Ray does not start, or ends the search by itself; its log is named.
    """
    site = site or Site()
    settings = {
        "device": slots.device,
        "threads": slots.cpus,
        "telemetry": telemetry,
        "memory": slots.memory,
        "compute": slots.compute,
        "stop_at": stop_at,
        "storage": storage,
        "lease": lease,
        "limits": None if limits is None else limits.to_json(),
        "name": name,
    }
    with (
        private_folder(log.parent) as folder,
        survivors.ended(folder),
        environment(folder, dashboard=site.dashboard) if site.address is None else contextlib.nullcontext(),
        quiet(log),
        _signals(engine, at_once=True),
    ):
        try:
            from tunelab.tuning.ray_pieces import bridge

            with contextlib.ExitStack() as stack:
                if guard is not None:
                    settings |= guard.settings(folder)
                    stack.enter_context(guard.over(engine, folder))
                    witnesses = (*guard.witnesses, *witnesses)
                local = site.address is None
                up = started(slots, folder, dashboard=site.dashboard) if local else joined(site)
                ports = stack.enter_context(up)
                if site.dashboard:
                    stack.enter_context(_shown(ports, log.parent, folder / TOKEN if local else None, say))
                if guard is not None:
                    stack.enter_context(guard.up())
                shortages = Shortages()
                stack.enter_context(shortages.contained())
                stack.enter_context(_signals(engine))
                witnesses = (*witnesses, shortages)
                asked = functools.partial(_look, guard, looks, folder)
                if slots.processes > 1:
                    ray_train.fit(engine, slots, folder, folder_of, settings, witnesses, asked)
                else:
                    count = None if places is None else places.count
                    more = None if places is None else functools.partial(_more_for, request, stop_at)
                    key = stack.enter_context(bridge(engine, folder_of, settings, witnesses, asked, count, more))
                    _fit(key, slots, folder, on_cluster=places is not None)
        except UnfitError as error:  # the cluster that was looked at just now
            if guard is None:
                raise
            guard.give_up(str(error))
        except TunelabError:
            raise
        except (KeyboardInterrupt, SystemExit):  # while Ray started or ended; it answers SIGTERM with SystemExit itself
            engine.halt("SIGTERM")
        except Exception as error:
            if engine.error is None and (why := lacks(folder, LEAST_BYTES)):
                engine.halt(f"Ray's temporary folder {folder.parent} {why}")
            elif engine.error is None and not (guard is not None and guard.ray_is_lost):
                raise TunelabError(f"Ray ended the search: {first_line(error)}; see {log}") from error


def _more_for(request: Callable[[Trial], int] | None, stop_at: float, trial: Trial) -> dict[str, Any]:
    """What a worker on another machine needs to know of its trial besides; its monotonic clock is another."""
    more: dict[str, Any] = {MEMORY: 0 if request is None else request(trial)}
    if math.isfinite(stop_at):
        more["stop_time"] = time.time() + stop_at - time.monotonic()
    arch = from_json(TrialConfig, trial.config).arch
    return {**more, "code": json.dumps(lend(arch))} if isinstance(arch, CustomSpec) else more


def _bundle(cpus: int, gpus: float, config: Mapping[str, Any]) -> Any:
    """What Ray is to reserve for a trial."""
    from ray.tune import PlacementGroupFactory

    wanted = {"CPU": float(cpus), "GPU": gpus, "memory": float(config.get(MEMORY, 0))}
    return PlacementGroupFactory([{name: amount for name, amount in wanted.items() if amount}])


def _fit(key: str, slots: Slots, folder: Path, *, on_cluster: bool) -> None:
    with tune_here(folder):
        _tuner(key, slots, folder, on_cluster=on_cluster).fit()


def _tuner(key: str, slots: Slots, folder: Path, *, on_cluster: bool) -> Any:
    from ray import tune

    from tunelab.tuning.ray_pieces import EngineCallback, EngineScheduler, EngineSearcher, EngineStopper
    from tunelab.tuning.worker import TrialWorker

    return tune.Tuner(
        tune.with_resources(TrialWorker, functools.partial(_bundle, slots.cpus, slots.gpus)),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the searcher says when it is over
            max_concurrent_trials=None if on_cluster else slots.concurrent,  # there the searcher counts the places
            reuse_actors=True,
            search_alg=EngineSearcher(key),
            scheduler=EngineScheduler(key),
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder / "tune"),
            verbose=0,
            stop=EngineStopper(key),
            callbacks=[EngineCallback(key)],
            failure_config=tune.FailureConfig(max_failures=0),  # the engine says what is tried again
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


@contextlib.contextmanager
def _shown(ports: Ports, study: Path, token: Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Says where Ray's dashboard is, and leaves word of it in the study's folder while it is there."""
    if not ports.dashboard:
        say("note: this Ray cluster has no dashboard")
        yield
        return
    address = RayAddress(ports.dashboard, ports.metrics, "" if token is None else str(token), os.getpid())
    say(address.describe())
    with told(study, address):
        yield


def _look(guard: Guard | None, looks: Sequence[Callable[[Path], None]], folder: Path) -> None:
    if guard is not None:
        guard.ask()
    for look in looks:
        look(folder)


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config.get('number', 0):04d}-{trial.trial_id}"


@contextlib.contextmanager
def _signals(engine: Engine, *, at_once: bool = False) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP halts the engine, the second ends the process at once.

    The second is the kernel's to carry out: Ray may be in a call of C for seconds, in which no handler of Python runs.
    With `at_once` the first raises KeyboardInterrupt too. A signal that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    seen = False

    def stop(number: int, _frame: object) -> None:
        nonlocal seen
        seen = True
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        engine.halt(signal.Signals(number).name)
        if at_once:
            raise KeyboardInterrupt

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in caught if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if at_once or not seen:  # else the second still ends it, while Ray is brought to its end
                signal.signal(number, handler)
