"""How long a search takes, and what fits into a length of time: the search played many times over with random luck.

What goes into a play are the seconds per epoch of each configuration (`tunelab.tuning.speed`), the slots and the rungs
(`tunelab.tuning.simulation`). A range holds the middle 80% of the plays. While the search runs, what has happened
replaces what was supposed: the seconds of epochs, and the shares that go on.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunelab.records import BY_MODEL, Trial, TrialStatus
from tunelab.tuning.simulation import Job, Plan, Play, Rungs, finals
from tunelab.tuning.speed import Load, Speed, load_of

COVERAGE = 0.8
"""The share of searches that end within the range; our choice."""
_PLAYED = 400  # of longer searches so many trials are played, and the rest follows from the second half of them
_PLAYS = 100
_FEWER_PLAYS = 40  # where many questions are asked of them
_OWN_SPREAD = 0.05  # standard deviation of log(real / expected) of a trial whose own epochs are known; our choice
_LEARNT_AFTER = 15  # trials; our choice
_THRIFT_WEIGHT = 10  # the usual thrift of the model counts as so many of its proposals; our choice
_THRIFT_SPREAD = 0.35
"""Standard deviation of the logarithm of what the model's proposals cost, between searches: measured on digits, where
it went for networks of half the usual cost, or of nearly twice."""
_REPEATS_FROM = 3  # the first trial is repeated after so many others have begun
_START_SPREAD = 0.2  # standard deviation of log(real / expected) of what is no training; our choice


@dataclass(frozen=True)
class Range:
    """A length of time in seconds: it ends between `low` and `high` in 80% of cases, `expected` is the middle."""

    low: float
    expected: float
    high: float


class Forecast:
    """What a search needs, before it starts and while it runs; a listener of the engine, and its `Pace`.

    Args:
        speed: predicts the seconds of an epoch.
        plan: what the search is going to do.
        draws: the first proposals, in order, repeats left out; later ones are drawn from among them.
        seed: of the plays, so that equal questions have equal answers.
    """

    def __init__(self, speed: Speed, plan: Plan, draws: Sequence[Trial], seed: int = 0) -> None:
        self.speed = speed
        self.plan = plan
        self._draws = [(load_of(trial.config, trial.stats), trial.origin in plan.in_full) for trial in draws]
        self._seed = seed
        self._began: float | None = None
        self._reports = False
        self._since: dict[int, float] = {}
        self._kept: tuple[float, float, Range] | None = None

    # Before the start.

    def total(
        self,
        trials: int | None = None,
        epochs: int | None = None,
        known: Collection[Trial] = (),
        plays: int = _PLAYS,
    ) -> Range:
        """How long the search takes, or what is left of it, or one of another number of trials or full length."""
        plan = replace(self.plan, trials=trials or self.plan.trials, epochs=epochs or self.plan.epochs)
        return self._play(plan, known, plan.beside.start, plays)

    def what_fits(self, seconds: float, known: Collection[Trial] = ()) -> int:
        """How many further trials end within `seconds` in half of the cases; at most as many as planned."""
        begun = sum(trial.repeat_of is None for trial in known)

        def fits(more: int) -> bool:
            return self.total(begun + more, None, known, _FEWER_PLAYS).expected <= seconds

        return _largest(self.plan.trials - begun, fits)

    def epochs_that_fit(self, seconds: float, trials: int | None = None) -> int:
        """The full length with which so many trials end within `seconds` in half of the cases; 0 if none does."""

        def fits(epochs: int) -> bool:
            return self.total(trials, epochs, (), _FEWER_PLAYS).expected <= seconds

        return _largest(self.plan.epochs, fits)

    def describe(self, seconds: float | None = None, deadline: str = "", known: Collection[Trial] = ()) -> str:
        """The forecast in one sentence; with the seconds until a deadline also what fits, and what to change."""
        needed = self.total(known=known)
        ended = sum(trial.status.ended for trial in known if trial.repeat_of is None)
        trials = self.plan.trials - ended
        said = f"{_trials(trials)}{' more' if ended else ''} need{'s' if trials == 1 else ''} {span(needed)}"
        if seconds is None:
            return said
        said += f"; until {deadline} there are" if ":" in deadline else "; there are"
        said += f" {length(seconds)}: "
        if needed.high <= seconds:
            return said + ("it fits" if trials == 1 else "all of them fit")
        if needed.expected <= seconds:
            return said + "likely to fit, not certain"
        open_trials = sum(not trial.status.ended for trial in known if trial.repeat_of is None)
        said += _trials(self.what_fits(seconds, known) + open_trials)
        epochs = 0 if known else self.epochs_that_fit(seconds)
        return said + (f", or {trials} with --epochs {epochs}" if epochs else "")

    def to_json(self) -> dict[str, Any]:
        """The forecast before the start as plain JSON values: seconds, and when it was made (seconds since 1970)."""
        needed = self.total()
        return {
            "trials": self.plan.trials,
            "epochs": self.plan.epochs,
            "concurrent": self.plan.concurrent,
            "low": round(needed.low, 1),
            "expected": round(needed.expected, 1),
            "high": round(needed.high, 1),
            "coverage": COVERAGE,
            "start": round(self.plan.beside.start, 1),
            "made": round(time.time(), 1),
        }

    # While it runs.

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        self._since[trial.number] = time.monotonic()

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""
        self._reports = True
        self._since[trial.number] = time.monotonic()
        self.speed.observe(trial.number, load_of(trial.config, trial.stats), trial.epochs[-1].seconds)

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost: what it took since its last epoch tells nothing."""
        self._since.pop(trial.number, None)

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        self._since.pop(trial.number, None)

    def learn(self, trials: Iterable[Trial]) -> None:
        """Takes the epochs of an earlier start."""
        for trial in trials:
            for metrics in trial.epochs:
                self.speed.observe(trial.number, load_of(trial.config, trial.stats), metrics.seconds)

    def seconds(self, trial: Trial, epochs: int) -> float:
        """The mean of the seconds that so many further epochs of a trial may take (the engine's `Pace`)."""
        own = self._own(trial)
        if own is not None:
            return own * epochs + (0.0 if trial.epochs else self.plan.beside.trial)
        load = load_of(trial.config, trial.stats)
        spread = self.speed.spread(load)
        return self.plan.beside.trial + epochs * self.speed.predict(load) * math.exp(spread**2 / 2)

    def _own(self, trial: Trial) -> float | None:
        """Seconds of an epoch of the trial, or of the one that it repeats, where there was one."""
        own = self.speed.own(trial.number)
        return own if own is not None or trial.repeat_of is None else self.speed.own(trial.repeat_of)

    @property
    def epoch_seconds(self) -> float:
        """Of a usual epoch, before the start."""
        return statistics.median(self.speed.predict(load) for load, _ in self._draws)

    def begin(self) -> None:
        """The search starts now."""
        self._began = time.monotonic()

    def time_left(self, trials: Collection[Trial]) -> Range:
        """How much longer it takes, given all trials so far; a recent answer is given again, less the time since.

        So that asking often costs nothing, 2% of the time at most goes into answers.
        """
        now = time.monotonic()
        if self._kept is not None:
            made, cost, kept = self._kept
            if now - made < max(2.0, 50 * cost):
                gone = now - made
                return Range(*(max(0.0, part - gone) for part in (kept.low, kept.expected, kept.high)))
        start = 0.0
        if not self._reports:
            start = max(0.0, self.plan.beside.start - (0.0 if self._began is None else now - self._began))
        found = self._play(self.plan, list(trials), start, _PLAYS)
        self._kept = (now, time.monotonic() - now, found)
        return found

    # A play.

    def _play(self, plan: Plan, known: Collection[Trial], start: float, plays: int) -> Range:
        """Plays what is left of the search many times."""
        rungs = Rungs(plan.factor, plan.least)
        qualities = {trial.number: rungs.learn(trial.decisions) for trial in known if trial.repeat_of is None}
        open_jobs, draws = self._open_jobs(known, qualities), [self._job(load, full) for load, full in self._draws]
        begun = sum(trial.repeat_of is None for trial in known)
        new = max(0, plan.trials - begun)
        baseline_again = sum(trial.repeat_of == plan.baseline for trial in known)
        repeats = max(0, plan.repeats - baseline_again)
        again = max(0, plan.again - sum(trial.repeat_of is not None for trial in known) + baseline_again)
        plan = replace(plan, thrift=self._thrift(plan, known))
        luck = random.Random(self._seed)
        played = min(new, _PLAYED)
        found = []
        for _ in range(max(10, min(plays, 20_000 // (played + 1)))):
            jobs = itertools.chain(
                open_jobs,
                _new_jobs(self._with_luck(plan, known, luck), draws, range(begun, begun + played), repeats, luck),
                _again(draws, again, luck),
            )
            play = Play(jobs, plan, rungs.for_play(luck), luck)
            if new > played:
                _lengthen(play, new - played)
            training = play.end + self._finals(plan, known, play)
            training *= math.exp(luck.gauss(0.0, self.speed.shift_spread))
            found.append(training + (start + plan.beside.stop) * math.exp(luck.gauss(0.0, _START_SPREAD)))
        found.sort()
        quantiles = ((1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2)
        return Range(*(found[round(part * (len(found) - 1))] for part in quantiles))

    def _open_jobs(self, known: Iterable[Trial], qualities: Mapping[int, float | None]) -> list[Job]:
        """The rest of the trials that have begun and go on."""
        now, jobs = time.monotonic(), []
        for trial in known:
            if not _goes_on(trial):
                continue
            load, own = load_of(trial.config, trial.stats), self._own(trial)
            seconds = self.speed.predict(load) if own is None else own
            spread = self.speed.spread(load) if own is None else _OWN_SPREAD
            gone = min(now - self._since.get(trial.number, now), 0.9 * seconds)
            repeat = trial.repeat_of is not None
            full = repeat or trial.number == self.plan.baseline or trial.origin in self.plan.in_full
            quality = qualities.get(trial.number)
            jobs.append(Job(seconds, spread, full, -gone, len(trial.epochs), quality, ranked=not repeat))
        return jobs

    def _job(self, load: Load, full: bool) -> Job:
        return Job(self.speed.predict(load), self.speed.spread(load), full, self.plan.beside.trial)

    def _thrift(self, plan: Plan, known: Iterable[Trial]) -> float:
        """What a proposal of the model costs as a part of one drawn anywhere, as seen so far."""
        seen = [load_of(trial.config, trial.stats) for trial in known if trial.origin == BY_MODEL]
        if not seen:
            return plan.thrift
        usual = sum(self.speed.predict(load) for load, _ in self._draws) / len(self._draws)
        parts = sum(self.speed.predict(load) for load in seen) / usual
        return (_THRIFT_WEIGHT * plan.thrift + parts) / (_THRIFT_WEIGHT + len(seen))

    def _with_luck(self, plan: Plan, known: Collection[Trial], luck: random.Random) -> Plan:
        """The plan of one play, in which the model goes for cheap networks or for dear ones."""
        seen = sum(trial.origin == BY_MODEL for trial in known)
        spread = _THRIFT_SPREAD * math.sqrt(_THRIFT_WEIGHT / (_THRIFT_WEIGHT + seen))
        return replace(plan, thrift=plan.thrift * math.exp(luck.gauss(0.0, spread))) if plan.by_model else plan

    def _finals(self, plan: Plan, known: Iterable[Trial], play: Play) -> float:
        spent, held, completed = 0.0, 0, []
        for trial in known:
            took = sum(metrics.seconds for metrics in trial.epochs)
            if trial.repeat_of is None:
                spent += 0.0 if _goes_on(trial) else took  # those that go on are in the play
                if trial.status is TrialStatus.COMPLETED:
                    completed.append(took / len(trial.epochs))
            elif trial.repeat_of != plan.baseline:
                held += 1
        return finals(play, plan, spent, held, completed)


def _new_jobs(plan: Plan, draws: Sequence[Job], numbers: range, repeats: int, luck: random.Random) -> Iterator[Job]:
    """The trials that have not begun, and the early repeats of the baseline, which is the first."""
    for number in numbers:
        by_model = 0 < plan.by_model <= number
        job = draws[number] if number < len(draws) and not by_model else luck.choice(draws)
        job = replace(job, seconds=job.seconds * plan.thrift) if by_model else job
        promise = plan.learning * min(1.0, number / _LEARNT_AFTER)
        yield replace(job, full=job.full or (number == 0 and plan.baseline is not None), promise=promise)
        if repeats and number >= _REPEATS_FROM:
            repeats -= 1
            yield replace(draws[0], full=True, spread=_OWN_SPREAD, ranked=False)


def _again(draws: Sequence[Job], count: int, luck: random.Random) -> Iterator[Job]:
    """Further trainings of those that run in full by their origin."""
    full = [job for job in draws if job.full]
    return (replace(luck.choice(full), ranked=False) for _ in range(count if full else 0))


def _lengthen(play: Play, trials: int) -> None:
    """Adds so many trials, each as long as those of the second half."""
    half = len(play.starts) // 2
    each = (play.starts[-1] - play.starts[half]) / (len(play.starts) - 1 - half)
    play.spent *= 1 + trials * each / play.end
    play.end += trials * each


def _goes_on(trial: Trial) -> bool:
    """True if the trial is under way, or was before an interrupt; one that waits at a rung may never go on."""
    at_rung = bool(trial.decisions) and bool(trial.decisions[-1].get("pause"))
    return trial.status is TrialStatus.RUNNING or (trial.status is TrialStatus.PAUSED and not at_rung)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, 0 if none does, by halving."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"


_UNITS = ((5400.0, 3600.0, "h"), (90.0, 60.0, "min"), (0.0, 1.0, "s"))


def _unit(seconds: float) -> tuple[float, str]:
    return next((unit, name) for least, unit, name in _UNITS if seconds >= least)


def _number(value: float, name: str) -> str:
    return f"{value:.0f}" if name == "s" or value >= 100 else f"{value:.1f}"


def length(seconds: float) -> str:
    """A length of time in one unit: 45 s, 12.5 min, 8 h."""
    unit, name = _unit(seconds)
    return f"{_number(seconds / unit, name).removesuffix('.0')} {name}"


def span(found: Range) -> str:
    """A range in one unit: 11.2 h (9.8 to 13.0)."""
    unit, name = _unit(found.expected)
    low, expected, high = (_number(part / unit, name) for part in (found.low, found.expected, found.high))
    return f"{expected} {name} ({low} to {high})"
