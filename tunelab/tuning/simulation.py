"""A search played through with random luck, to see how long it takes; plain arithmetic.

Known are the seconds per epoch of each configuration, roughly, the slots, and the rungs at which the best of those that
come go on. How good a trial is, is drawn, and looks a little different at each rung. That matters: the first that come
to a high rung were hardly chosen, later ones were, so that more than a third of them go on there.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_RUNG_NOISE = 0.7  # of a score at a rung, in standard deviations of what trials differ by: a correlation of 2/3; ours
_EXCUSES = (
    1.0,
    2.0,
)  # so many weak trials of earlier searches went on, and so many did not; on digits, where it varies
_NORMAL = statistics.NormalDist()


@dataclass(frozen=True)
class Beside:
    """Seconds beside training: until the first trial trains, after the last one has ended, and of each trial.

    `worker` is what another process takes to start, where one was given up while nothing was left for it.
    """

    start: float = 10.0
    stop: float = 2.0
    trial: float = 0.15
    worker: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a search is going to do.

    `trials` configurations are tried, `concurrent` at once, with a full length of `epochs`. `rungs` leads from a full
    length to the epochs at which trials are compared (none in a study of fixed configurations); one in `factor` goes
    on, and all while fewer than `least` have come. The trial numbered `baseline`, which is the first that the search
    draws, always runs its full length, and is trained again `repeats` times early. `final_share` of the time that the
    trials take goes to trainings of the best at the end, when all others have ended. Trials of an origin in `in_full`
    run their full length too, and `again` times one of them is trained once more. By `learning` standard deviations
    later trials are better than the first, and from the one numbered `by_model` on they cost `thrift` times as much.
    """

    trials: int
    epochs: int
    concurrent: int
    rungs: Callable[[int], Sequence[int]] = lambda epochs: ()
    factor: int = 3
    least: int = 3
    baseline: int | None = None
    repeats: int = 0
    final_share: float = 0.0
    beside: Beside = Beside()
    in_full: tuple[str, ...] = ()
    again: int = 0
    learning: float = 0.0
    thrift: float = 1.0
    by_model: int = 0


@dataclass(frozen=True)
class Job:
    """A training to be played.

    An epoch takes `seconds`, the median, with `spread` the standard deviation of its logarithm; `done` epochs are
    behind it, and `overhead` seconds are added to the rest (negative for what has passed of the present epoch).
    `quality` is in standard deviations, None for a trial of which nothing is known but its `promise`, the mean. One
    with `full` always runs its full length, and counts among the rivals of others if it is `ranked`.
    """

    seconds: float
    spread: float
    full: bool
    overhead: float
    done: int = 0
    quality: float | None = None
    promise: float = 0.0
    ranked: bool = True


@dataclass
class Rungs:
    """Who has come to each rung, and how many went on there although they were not among the best.

    `values` are what the trials showed at a rung, in standard deviations, in ascending order. Of the `weak` trials at
    rungs, which were not among the best, `excused` went on, because the gap was within the noise; `excuse` is the
    chance of it in one play.
    """

    factor: int
    least: int
    values: dict[int, list[float]] = field(default_factory=dict)
    weak: int = 0
    excused: int = 0
    excuse: float = 0.0

    def goes_on(self, rung: int, value: float, luck: random.Random) -> bool:
        """Whether a trial that shows `value` at `rung` goes on; from now on it is a rival of others."""
        values = self.values.setdefault(rung, [])
        bisect.insort(values, value)
        come = len(values)
        if come < self.least or come - bisect.bisect_right(values, value) < math.ceil(come / self.factor):
            return True
        return luck.random() < self.excuse

    def learn(self, decisions: Iterable[Mapping[str, Any]]) -> float | None:
        """Takes the recorded decisions of a trial; how good it is in standard deviations, None without decisions.

        Of several decisions at one rung the last one counts.
        """
        value: float | None = None
        for rung, decision in {int(decision["epoch"]): decision for decision in decisions}.items():
            rank, rivals = int(decision["rank"]), int(decision["rivals"])
            if value is None:
                value = _NORMAL.inv_cdf(1 - (min(rank, rivals) - 0.5) / rivals)
            bisect.insort(self.values.setdefault(rung, []), value)
            if rivals >= self.least and rank > int(decision["places"]):
                self.weak += 1
                self.excused += not decision["stop"] and not decision.get("pause", False)
        return None if value is None else value / (1 + _RUNG_NOISE**2)  # the rest of it was luck

    def for_play(self, luck: random.Random) -> Rungs:
        """Another one that counts on from here, with a chance of excuses as it may be (a beta distribution)."""
        yes, no = _EXCUSES
        excuse = luck.betavariate(yes + self.excused, no + self.weak - self.excused)
        return replace(self, excuse=excuse, values={rung: list(values) for rung, values in self.values.items()})


class Play:
    """One play: jobs on slots, in order. Afterwards `end` is when the last one ended, in seconds from its start."""

    def __init__(self, jobs: Iterator[Job], plan: Plan, rungs: Rungs, luck: random.Random) -> None:
        self.end = 0.0
        self.starts: list[float] = []
        self.spent = 0.0
        self.completed: list[float] = []
        self._jobs = jobs
        self._plan = plan
        self._stops = (*(rung for rung in plan.rungs(plan.epochs) if rung < plan.epochs), plan.epochs)
        self._rungs = rungs
        self._luck = luck
        self._events: list[tuple[float, int, float, int, Job, float]] = []  # when, which, seconds per epoch, done, ...
        self._run()

    def _run(self) -> None:
        for _ in range(self._plan.concurrent):
            self._begin(0.0)
        while self._events:
            at, which, each, done, job, quality = heapq.heappop(self._events)
            self.end = at
            if done >= self._plan.epochs:
                self.completed.append(each)
            elif self._goes_on(done, job, quality):
                self._until_next_stop(at, which, each, done, job, quality)
                continue
            self._begin(at)

    def _begin(self, at: float) -> None:
        job = next(self._jobs, None)
        if job is None:
            return
        self.starts.append(at)
        each = job.seconds * math.exp(self._luck.gauss(0.0, job.spread))
        quality = self._luck.gauss(job.promise, 1.0) if job.quality is None else job.quality
        self.spent += each * job.done
        self._until_next_stop(at + job.overhead, len(self.starts), each, job.done, job, quality)

    def _until_next_stop(self, at: float, which: int, each: float, done: int, job: Job, quality: float) -> None:
        stop = next((stop for stop in self._stops if stop > done), self._plan.epochs)
        self.spent += each * (stop - done)
        heapq.heappush(self._events, (max(0.0, at + each * (stop - done)), which, each, stop, job, quality))

    def _goes_on(self, rung: int, job: Job, quality: float) -> bool:
        if not job.ranked:
            return True
        return self._rungs.goes_on(rung, quality + self._luck.gauss(0.0, _RUNG_NOISE), self._luck) or job.full


def finals(play: Play, plan: Plan, spent: float, held: int, completed: Sequence[float]) -> float:
    """Seconds of the trainings at the end, after a play.

    Args:
        play: of the trials.
        plan: what it was played by.
        spent: the seconds of all epochs before the play, repeats not counted.
        held: how many of these trainings there have been.
        completed: seconds per epoch of the trials of full length before the play.
    """
    each = [*completed, *play.completed]
    if not plan.final_share or len(each) < 2:
        return 0.0
    full = sum(each) / len(each) * plan.epochs + plan.beside.trial
    runs = round((spent + play.spent) * plan.final_share / (1 - plan.final_share) / full) - held
    return max(0, math.ceil(runs / plan.concurrent)) * full + (plan.beside.worker if runs > 1 < plan.concurrent else 0)
