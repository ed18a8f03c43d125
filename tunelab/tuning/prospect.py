"""What is known of a search before it starts: data and limits, how it will share the machine, how long it will take.

The same for a search that is only asked about (`--dry-run`), one that begins, and one that goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.capacity import free_memory_mib
from tunelab.config import DataConfig, TrialConfig, to_json
from tunelab.data.cache import DataInfo, prepare
from tunelab.errors import TunelabError
from tunelab.foreign import allow_space
from tunelab.patience import told_if_long
from tunelab.records import BY_MODEL, Trial
from tunelab.space import SearchSpace, load_space, require_base
from tunelab.study import Study
from tunelab.tuning import calibrate, compute, memory, quota
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.forecast import Forecast
from tunelab.tuning.grid import ORIGIN, by_hand
from tunelab.tuning.grid_files import find_grid
from tunelab.tuning.hardware import (
    count_gpus,
    find_layouts,
    find_slots,
)
from tunelab.tuning.model_sampler import FIRST_RANDOM, Earlier
from tunelab.tuning.options import GridRequest, SearchOptions, limits, seconds_until
from tunelab.tuning.preflight import absolute_paths, check_room, make_source, try_space
from tunelab.tuning.probes import Probes
from tunelab.tuning.progress import ImagesBar
from tunelab.tuning.repeats import Race
from tunelab.tuning.room import Needed, estimate
from tunelab.tuning.sharing import calibration_of, computing_like, needed, shares_alike, slots_on_fleet
from tunelab.tuning.simulation import Beside, Plan
from tunelab.tuning.slots import Slots
from tunelab.tuning.sources import Source
from tunelab.tuning.speed import Speed
from tunelab.tuning.spread import find_cluster_slots, layouts_here, on_cluster
from tunelab.tuning.stopping import FACTOR, rungs

DRAWS = 64
"""So many proposals stand for all; our choice."""
_LEARNING = 1.0
"""By so many standard deviations later trials are better than those drawn at random before. In ten searches on digits
half of the trials at a rung were among the best third of those that had come. Where a search begins with what is known
to be good they are not: with a portfolio of eight, ten searches trained 0.51 of the epochs of full length of what the
model proposed, and 0.52 of what came before."""
_THRIFT = 0.75
"""What the proposals of the model cost as a part of the ones before, which are drawn anywhere: it counts a trial's cost
against it. The median of nine searches on digits was 0.70 (0.56 to 1.5)."""
_MEASURES = (
    "note: it is being measured how fast trials train here, which takes longer than usual: the first search of a "
    "machine compiles kernels, and other programs may keep the processors busy"
)
_RAY_STARTS = 1.8  # starting Ray and a worker takes so many times longer again; median of ten searches on 2 busy CPUs
_USUAL_START = 4.0  # seconds that such a process takes; of a study without a calibration
_USUAL_TRIAL = 0.1  # seconds for building a trial, likewise
_STOP_SECONDS = 2.5  # from the last end to the end of everything; measured on 2 CPUs
_TRIAL_SECONDS = 0.05  # of a trial beside its training, on its way through Ray; measured on 2 CPUs


@dataclass(frozen=True)
class Prospect:
    """A search that could begin.

    `has_baseline` says whether trial 0 is the space's baseline. `earlier` are the studies that it begins with, `first`
    what of theirs is tried first, as in `study.json`.
    """

    space: SearchSpace
    options: SearchOptions
    info: DataInfo
    has_baseline: bool
    earlier: list[Earlier]
    first: list[dict[str, Any]]
    calibration: calibrate.Calibration
    forecast: Forecast
    needed: Needed

    @property
    def slots(self) -> Slots:
        """How many trials run at once, and with what."""
        return self.calibration.slots

    def describe(self, seconds: float | None, deadline: str | None) -> list[str]:
        """The forecast, the way to share the machine and the room; `seconds` are left until `deadline`."""
        forecast = f"forecast: {self.forecast.describe(seconds, deadline or '')}"
        return [forecast, self.calibration.reason, self.needed.describe()]

    def to_json(self, seconds: float | None = None) -> dict[str, Any]:
        """The forecast as plain JSON values; with the seconds until a deadline also what fits until then."""
        found = {**self.forecast.to_json(), "bytes_needed": self.needed.to_json()}
        if seconds is not None:
            found["seconds_until_deadline"] = round(seconds, 1)
            found["trials_that_fit"] = self.forecast.what_fits(seconds)
            found["epochs_that_fit"] = self.forecast.epochs_that_fit(seconds)
        return found


def look_ahead(
    space_name: str,
    options: SearchOptions,
    show_progress: bool,
    grid: GridRequest | None = None,
    path: Path | None = None,
    fleet: Fleet | None = None,
) -> Prospect:
    """Refuses what cannot work, opens the data, measures how fast trials train, and forecasts.

    Args:
        space_name: as `load_space` takes it.
        options: what is asked for.
        show_progress: says on standard error what is worth knowing of the data.
        grid: trials by hand.
        path: where the study is to be made, which is refused if there is no room; None if none is made.
        fleet: the nodes of the cluster that it is to run on; None: it is this machine.

    Raises:
        InputError: something given cannot be used.
        TunelabError: no trial could be measured.
    """
    space = load_space(space_name, options.base_config)
    if space.source.endswith(".py"):
        allow_space(Path(space.source))
    require_base(space)
    at_least = options.trials
    if grid is not None:  # a file that is none is refused before anything takes time
        at_least = max(at_least, 1 + options.repeat * len(find_grid(grid.source, space).entries))
    asked = dataclasses.replace(options, trials=at_least)
    layouts = find_layouts(asked) if fleet is None else layouts_here(asked, fleet)
    unmeasured = None if layouts or fleet is None else find_cluster_slots(asked, fleet)
    device = layouts[0].device if unmeasured is None else unmeasured.device
    params, mflops = limits(options, device)
    options = dataclasses.replace(options, data=absolute_paths(options.data), max_params=params, max_mflops=mflops)
    gpus = count_gpus() if device == "cuda" else 0
    limit = quota.capped(free_memory_mib(), options.memory, device)
    layouts = calibrate.startable(layouts, limit, gpus) if unmeasured is None else []
    with Probes(calibrate.processes_for(layouts, gpus) if layouts else 0) as probes:  # start while the data is opened
        info = open_data(options.data, show_progress)
        try_space(space, options, info)
        earlier, first = memory.recall(space, options, info)
        if grid is not None:
            options, given_first = by_hand(grid, space, options, info, show_progress=show_progress)
            first = [*given_first, *first]
        given = [(str(one["origin"]), dict(one["params"])) for one in first]
        source = make_source(space, options, info, options.seed, None, first=given, earlier=earlier)
        if space.baselines and not source.has_baseline and show_progress:
            print(
                f"note: no baseline of the space {space.name!r} is within the limits; trial 0 is another",
                file=sys.stderr,
            )
        has_baseline = source.has_baseline
        trials = first_proposals(source, make_race(options, info, has_baseline), min(DRAWS, options.trials))
        samples = [calibrate.Sample.of(trial.config, trial.stats) for trial in trials if trial.repeat_of is None]
        if path is not None:
            at_once = [slots.concurrent for slots in (*layouts, unmeasured) if slots is not None]
            check_room(path, estimate(trials, options, max(at_once)))
        if unmeasured is None:
            with told_if_long(_MEASURES) if show_progress else contextlib.nullcontext():
                choice = compute.choose(
                    space, info, samples, layouts[0], probes, gpus, streamed=options.memory is not None
                )
                layouts = [compute.apply(choice, slots) for slots in layouts]
                measured = calibrate.calibrate(samples, layouts, probes, limit, gpus, options.memory)
            if choice.images:
                measured = dataclasses.replace(measured, reason=f"{measured.reason}; {choice.reason}")
        else:
            measured = calibrate.Calibration(unmeasured, (), (), _USUAL_START, _USUAL_TRIAL, 0.0, "one trial on a GPU")
    if fleet is not None:
        measured = on_cluster(measured, options, fleet, needed(measured, measured.slots))
    in_full = grid is not None and grid.in_full
    forecast = _forecast(options, info, measured, measured.slots, trials, 0 if has_baseline else None, in_full)
    room = estimate(trials, options, measured.slots.concurrent)
    return Prospect(space, options, info, has_baseline, earlier, first, measured, forecast, room)


def forecast_search(
    space_name: str,
    options: SearchOptions,
    deadline: str | None = None,
    grid: GridRequest | None = None,
    fleet: Fleet | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """How long a search would take and what fits until the deadline, in words and as JSON values; nothing is made.

    Raises:
        InputError: something given cannot be used.
        TunelabError: no trial could be measured.
    """
    ends = end_time(deadline)
    ahead = look_ahead(space_name, options, show_progress=True, grid=grid, fleet=fleet)
    found = {**ahead.to_json(seconds_to(ends)), "calibration": ahead.calibration.to_json()}
    return ahead.describe(seconds_to(ends), deadline), found


def look_on(
    study: Study,
    source: Source,
    options: SearchOptions,
    info: DataInfo,
    known: Collection[Trial],
    baseline: int | None,
    *,
    again: bool = True,
    fleet: Fleet | None = None,
) -> tuple[Slots, Forecast]:
    """How a search that was begun shares the machine from now on, and the forecast of the rest of it.

    What was measured at its begin is used again; on another machine, and where nothing was measured, the usual slots.
    There are never more trials at once than the free memory, or what the options allow of it, carries, as far as it was
    measured.

    Args:
        study: what there is of it.
        source: draws as it will, asked for no other purpose: it is told of nothing.
        options: those from now on.
        info: its data.
        known: all its trials, to learn from.
        baseline: the number of the trial that is the baseline, if there is one.
        again: the machine is to be shared as before; else as `options` say now.
        fleet: the nodes of the cluster that it goes on with; None: this machine.
    """
    measured = calibration_of(study)
    slots = find_slots(options) if fleet is None else slots_on_fleet(study, measured, options, fleet)
    if fleet is None and measured is not None and measured.slots.device == slots.device:
        same = shares_alike(study) and "cluster" not in study.info
        if again and same:
            slots = dataclasses.replace(measured.slots, precision="auto", channels_last=True)
        elif same and options.cpus_per_trial is None:  # as many threads in all
            threads = measured.slots.concurrent * measured.slots.cpus // slots.concurrent
            slots = dataclasses.replace(slots, cpus=max(1, threads))
        limit = quota.capped(free_memory_mib(), options.memory, slots.device)
        slots = computing_like(slots, study)
        slots = calibrate.within(slots, measured, limit, count_gpus() if slots.device == "cuda" else 0)
    if fleet is None:
        slots = quota.share_memory(slots, options.memory, needed(measured, slots))
    race = make_race(options, info, baseline is not None)
    trials = first_proposals(source, race, min(DRAWS, options.trials))
    in_full = bool(study.info.get("grid_in_full"))
    forecast = _forecast(options, info, measured, slots, trials, baseline, in_full)
    forecast.learn(known)
    return slots, forecast


def forecast_of(
    configs: Sequence[TrialConfig],
    source: Source,
    info: DataInfo,
    slots: Slots,
    measured: calibrate.Calibration | None,
) -> Forecast:
    """The forecast of a list of trainings, from what was measured of them or for the study that they come from."""
    trials = first_proposals(source, None, min(DRAWS, len(configs)))
    plan = Plan(len(configs), configs[0].train.epochs, slots.concurrent, beside=_beside(measured))
    return Forecast(_speed(measured, info, slots), plan, trials)


def make_race(options: SearchOptions, info: DataInfo, has_baseline: bool, number: int = 0) -> Race:
    """The repeats of a search; `number` is that of its baseline."""
    val_images = info.counts["val"]
    return Race(options.race, options.trials, options.epochs, val_images, baseline=has_baseline, number=number)


def first_proposals(source: Source, race: Race | None, count: int) -> list[Trial]:
    """The trials that a search would begin with if none of them ever ended, repeats included.

    Without earlier studies a sampler draws its first proposals at random, so that these are the very ones.

    Raises:
        TunelabError: there is not even one.
    """
    trials: dict[int, Trial] = {}
    while sum(trial.repeat_of is None for trial in trials.values()) < count:
        number = len(trials)
        repeated = race.early(trials) if race is not None else None
        if repeated is not None:
            trials[number] = dataclasses.replace(trials[repeated], number=number, repeat_of=repeated)
            continue
        try:
            made = source.propose(number, trials)
        except TunelabError:
            if not trials:
                raise
            break  # a space of few configurations: the search will say so when it comes to it
        trials[number] = Trial(
            number, to_json(made.config), dict(made.params), stats=dict(made.stats), origin=made.origin
        )
    return list(trials.values())


def seconds_to(ends: float | None) -> float | None:
    """Seconds left until a time on the monotonic clock."""
    return None if ends is None else max(0.0, ends - time.monotonic())


def end_time(deadline: str | None) -> float | None:
    """The deadline on the monotonic clock, which no change of the wall clock moves."""
    if deadline is None:
        return None
    return time.monotonic() + seconds_until(deadline, datetime.datetime.now())


def open_data(config: DataConfig, show_progress: bool) -> DataInfo:
    """Decodes the data if it is not in the cache, and says what is worth knowing of it."""
    if not show_progress:
        return prepare(config)
    with ImagesBar(sys.stderr, "decoding images") as bar:
        info = prepare(config, bar)
    for note in info.notes:
        print(f"data: {note}", file=sys.stderr)
    return info


def _forecast(
    options: SearchOptions,
    info: DataInfo,
    measured: calibrate.Calibration | None,
    slots: Slots,
    trials: Sequence[Trial],
    baseline: int | None,
    grid_in_full: bool,
) -> Forecast:
    draws = [trial for trial in trials if trial.repeat_of is None]
    plan = Plan(
        trials=options.trials,
        epochs=options.epochs,
        concurrent=slots.concurrent,
        rungs=rungs if options.scheduler != "none" else _no_rungs,
        factor=FACTOR,
        least=FACTOR,
        baseline=baseline,
        repeats=sum(trial.repeat_of is not None for trial in trials),
        final_share=options.race,
        beside=_beside(measured),
        learning=_learning(options, draws),
        thrift=_THRIFT,
        by_model=_by_model(options, draws),
        in_full=(ORIGIN,) if grid_in_full else (),
        again=(options.repeat - 1) * sum(trial.origin == ORIGIN for trial in draws),
    )
    return Forecast(_speed(measured, info, slots), plan, draws, options.seed)


def _by_model(options: SearchOptions, draws: Sequence[Trial]) -> int:
    """The number of the first proposal of the model that is not among `draws`; 0 if there is none."""
    origins = [trial.origin for trial in draws]
    if options.sampler != BY_MODEL or BY_MODEL in origins:
        return 0
    return max(FIRST_RANDOM, sum(origin != "random" for origin in origins))


def _learning(options: SearchOptions, draws: Sequence[Trial]) -> float:
    """How much better later trials are: the less, the more of the first ones are known to be good."""
    if options.sampler == "random":
        return 0.0
    known = sum(trial.origin not in ("random", options.sampler) for trial in draws)
    return _LEARNING * max(0.0, 1.0 - known / FIRST_RANDOM)


def _no_rungs(_epochs: int) -> tuple[int, ...]:
    return ()


def _beside(measured: calibrate.Calibration | None) -> Beside:
    start = _USUAL_START if measured is None else measured.start
    trial = _USUAL_TRIAL if measured is None else measured.trial
    stop = _STOP_SECONDS * max(1.0, start / _USUAL_START)  # a machine that is busy otherwise is slow at both
    return Beside(start * (1 + _RAY_STARTS), stop, trial + _TRIAL_SECONDS, worker=start)


def _speed(measured: calibrate.Calibration | None, info: DataInfo, slots: Slots) -> Speed:
    points = () if measured is None else measured.points
    return Speed(points, info.counts["train"], info.counts["val"], slots.device)
