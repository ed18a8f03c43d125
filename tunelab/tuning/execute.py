"""One run of an engine on Ray, from what is planned to its end or a pause."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from tunelab.errors import InputError, StorageError, TunelabError
from tunelab.journal import Journal
from tunelab.liveness import SignsOfLife
from tunelab.records import Trial
from tunelab.study import Study, current, history
from tunelab.summary import write_summary
from tunelab.tuning import ray_tune
from tunelab.tuning.deadline import Deadline
from tunelab.tuning.engine import FAILURES, Engine
from tunelab.tuning.forecast import Forecast
from tunelab.tuning.guard import Guard
from tunelab.tuning.keeping import Keeper
from tunelab.tuning.listeners import Listener, Told
from tunelab.tuning.low_space import LowSpace
from tunelab.tuning.memory_guard import Limits, NodeLimits
from tunelab.tuning.memory_room import (
    ClusterRoom,
    MemoryRoom,
    cluster_memory,
    find_memory,
    limits_of,
    node_limits_of,
)
from tunelab.tuning.mirror import StudyMirror, mirrored
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.outposts import Outposts
from tunelab.tuning.progress import Progress, Silent
from tunelab.tuning.ray_cluster import Places
from tunelab.tuning.ray_home import terminal
from tunelab.tuning.ray_metrics import RayMetrics
from tunelab.tuning.repeats import NoRepeats, Race, Repeats
from tunelab.tuning.sessions import Sessions
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots
from tunelab.tuning.sources import Source
from tunelab.tuning.stopping import Stopping
from tunelab.tuning.testimony import MemoryWitness

_FAREWELL = 12.0  # seconds for a store where Ray is gone; 45 s have passed, and after 60 Ray ends this process


class PausedError(TunelabError):
    """A search was stopped before its end and can be resumed; `study` is what there is of it."""

    def __init__(self, study: Study, halted: str, trials: int) -> None:
        again = (
            f"`tunelab resume {study.path}` goes on" if study.info["kind"] == "search" else "the same command goes on"
        )
        left = f"{trials} trial{' is' if trials == 1 else 's are'} left"
        super().__init__(f"stopped before the end ({halted}): {left if trials else 'repeats are left'}; {again}")
        self.study = study
        self.halted = halted
        self.exit_status = 130 if halted == "SIGINT" else 3


@dataclass(frozen=True)
class Plan:
    """What `execute` needs beside the study: where configurations come from, and how to run them."""

    source: Source
    stopping: Stopping
    total: int
    options: SearchOptions
    title: str
    show_progress: bool
    slots: Slots
    forecast: Forecast
    deadline: Deadline = field(default_factory=Deadline)
    race: Race | None = None
    repeats: Repeats | None = None
    in_full: tuple[str, ...] = ()
    site: Site = field(default_factory=Site)


def execute(study: Study, plan: Plan) -> Study:
    """Runs what is planned, and returns the study at its end.

    Raises:
        PausedError: a signal or the deadline stopped it; it can be resumed.
        InputError: the space failed, or another process is writing the study.
        TunelabError: too many trials failed.
    """
    with contextlib.ExitStack() as mirroring:
        return _execute(study, plan, mirroring)


def _execute(study: Study, plan: Plan, mirroring: contextlib.ExitStack) -> Study:
    """As `execute`; at the end of `mirroring`, when all is written, the study is brought into its store."""
    kind = study.info["kind"]
    journal = Journal.open(study.path)
    life = SignsOfLife(study.path)
    try:
        known = study.list_trials()
        has_work = functools.partial(_has_work, study, plan, known)
        mirror = mirroring.enter_context(mirrored(study, journal, say_where=plan.show_progress, has_work=has_work))
        shown: Progress | Silent = Silent()
        if plan.show_progress:
            left = plan.forecast.time_left
            counted = current(study.info, known)
            shown = Progress(terminal(), plan.title, plan.total, counted, study.val_images, left)
        room, limits, places = _find_room(study, plan)
        outposts = None if plan.site.address is None else Outposts(plan.site.address)
        elsewhere = () if outposts is None else (outposts, outposts.take_word)
        witness = MemoryWitness(study.trial_folder, *elsewhere)
        listeners: list[Listener] = [plan.forecast, shown, room, witness]
        keep = plan.options.keep_weights if kind == "search" else None
        keeper = Keeper(study.trial_folder, keep, known, None if mirror is None else mirror.cleared)
        listeners.append(keeper)
        timeout = plan.options.trial_timeout if kind == "search" else None  # the winner in full takes longer
        guard = Guard(study.trial_folder, plan.forecast, timeout, life, terminal(), outposts)
        listeners.append(guard.watchdog)
        low_space = LowSpace(study.path, journal, plan.slots.concurrent, shown.say)
        listeners.append(low_space)
        looks: list[Callable[[Path], None]] = []
        if plan.site.dashboard:
            metrics = RayMetrics(study.name, known)
            listeners.append(metrics)
            looks.append(lambda _folder: metrics.look())
        if mirror is not None:
            mirror.tell = shown.say
            listeners.append(mirror)
        if plan.options.telemetry != "off":
            listeners.append(Sessions(study.path.name, study.trial_folder, known))
        engine = Engine(
            journal,
            known,
            plan.source,
            plan.stopping,
            plan.total,
            Told(*listeners),
            plan.deadline,
            repeats=plan.repeats or plan.race,
            pace=plan.forecast,
            noise=None if plan.race is None else plan.race.sd,
            history=history(study.info, known),
            in_full=plan.in_full,
            grace=plan.options.health_grace if plan.options.health else None,
            places=room,
        )
        if engine.has_work and not engine.should_halt:
            plan.forecast.begin()
            # One thread for the sampler's algebra: the trials have the processors, and threads that wait for each other
            # on busy ones take twice as long.
            guard.farewell = lambda why: _farewell(PausedError(study, why, engine.trials_left), mirror)
            with (
                shown,
                life.given(),
                threadpool_limits(1, "blas"),
                contextlib.suppress(StorageError),  # the engine has it
            ):
                ray_tune.run(
                    engine,
                    plan.slots,
                    folder_of=study.trial_folder,
                    telemetry=plan.options.telemetry,
                    stop_at=plan.deadline.breaks_off,
                    log=study.path / "ray.log",
                    guard=guard,
                    looks=[*(functools.partial(one.look, engine) for one in (low_space, mirror) if one), *looks],
                    witnesses=[witness],
                    limits=limits,
                    site=plan.site,
                    places=places,
                    request=room.request if isinstance(room, ClusterRoom) else None,
                    name=str(study.info["space"]["name"]) if kind == "search" else kind,
                    say=shown.say,
                    storage=None if mirror is None else mirror.location,
                    lease=None if mirror is None else mirror.lease,
                )
            keeper.close()
    finally:
        journal.close()
    _write_derived(study, plan)
    if isinstance(engine.error, StorageError):
        raise PausedError(study, str(engine.error), engine.trials_left)
    if engine.error is not None:
        raise _with_advice(engine.error, engine.halted == FAILURES, study)
    if engine.exhausted:
        study.update(lambda info: {"options": {**info["options"], "trials": engine.begun}})
        if plan.show_progress:
            print(f"note: {engine.exhausted}; the study has {engine.begun} trials", file=sys.stderr)
    if engine.unfinished or (engine.halted and engine.has_work):
        raise PausedError(study, engine.halted or "Ray ended the run", engine.trials_left)
    return study


def _find_room(study: Study, plan: Plan) -> tuple[MemoryRoom, Limits | NodeLimits, Places | None]:
    """Which trials fit beside each other and what their processes may hold, here or on a cluster; and its places."""
    fleet, bound = plan.site.fleet, plan.options.memory
    if fleet is None:
        memory, footprint = find_memory(study.info, plan.slots, bound)
        return MemoryRoom(plan.slots, memory, footprint), limits_of(plan.slots, memory), None
    memory, footprint = cluster_memory(study.info, plan.slots, fleet, bound)
    limits = node_limits_of(plan.slots, memory, bound)
    places = Places(plan.slots, limits.most, plan.options.concurrent)
    return ClusterRoom(plan.slots, memory, footprint, places.look), limits, places


def _has_work(study: Study, plan: Plan, known: Sequence[Trial]) -> bool:
    """True if an engine would have any, which it is too early to make: it may write into the record."""
    gone = history(study.info, known)
    own = {trial.number: trial for trial in known if trial.number not in gone}
    repeats = plan.repeats or plan.race or NoRepeats()
    begun = sum(trial.repeat_of is None for trial in own.values())
    owed = begun < plan.total or repeats.owed(own) or repeats.late(own) is not None
    return bool(owed) or not all(trial.status.ended for trial in own.values())


def _farewell(paused: PausedError, mirror: StudyMirror | None) -> str:
    """The last line of a search that Ray does not let end in order; before it the study is brought into its store."""
    lacking = "" if mirror is None else mirror.close_within(_FAREWELL)
    return f"{paused}; {lacking}" if lacking else str(paused)


def _with_advice(error: TunelabError, failures: bool, study: Study) -> TunelabError:
    """What ended a search, with what to do then; `failures` is true if it is that too many trials failed."""
    path = study.path
    again = f"`tunelab resume {path}` goes on" if study.info["kind"] == "search" else "the same command goes on"
    look = f"`tunelab show {path} TRIAL` and error.txt in the trial's folder tell more; " if failures else ""
    kind = InputError if isinstance(error, InputError) else TunelabError
    return kind(f"{error}; {look}when that is mended, {again}")


def _write_derived(study: Study, plan: Plan) -> None:
    """Writes the tables; where the disk does not take them that is said, and the record is what counts."""
    try:
        study.write_tables()
        write_summary(study)
    except OSError as error:
        if plan.show_progress:
            print(f"note: the tables of {study.path} are not up to date: {error.strerror or error}", file=sys.stderr)
