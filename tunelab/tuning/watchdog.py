"""Sees to it that no trial hangs unnoticed: looks at the beats of their processes, and ends those that stand still.

A process is ended with all that it started, after the stacks of its threads were written to `stacks.txt` in the trial's
folder. Time in which the watchdog itself did not run, because the machine was suspended, say, is nobody's fault and
does not count.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunelab.files import make_private
from tunelab.noise import full_length
from tunelab.records import Trial, TrialStatus
from tunelab.training.pulse import LEAST_SECONDS, PAUSE_SECONDS, WITHOUT_END, Beat
from tunelab.tuning.deadline import Pace
from tunelab.tuning.losses import Loss
from tunelab.tuning.machine import Machine, Stacks

STACKS = "stacks.txt"
LIMITS_VARIABLE = "TUNELAB_TEST_LIMITS"
"""An environment variable for tests: a JSON mapping of fields of `Limits` to seconds."""
_TIMES_FORECAST = 20
"""A trial that takes so many times as long as forecast is ended (our choice)."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds (all our choice).

    `least` and `pause` are those of `tunelab.training.pulse.Pulse`. `begin`: until the process of a trial that was
    handed out beats. `trial`: a bound on the time of a trial is never less, unless it was asked for. `ray`: between two
    questions of Ray's loop. `head`: without an answer of a cluster's head; it may be started again meanwhile. `end`:
    until Ray is through with stopping; it ends this process after 60 s without its head. `look`: between two looks.
    `driver`: between two signs of life of a supervised search.
    """

    least: float = LEAST_SECONDS
    pause: float = PAUSE_SECONDS
    begin: float = 900.0
    trial: float = 3600.0
    ray: float = 120.0
    head: float = 15.0
    end: float = 30.0
    look: float = 1.0
    driver: float = 300.0

    @classmethod
    def usual(cls) -> Limits:
        """Those above, with what the environment variable for tests says."""
        return cls(**json.loads(os.environ.get(LIMITS_VARIABLE, "{}")))


class Looker(Protocol):
    """Looks for something that goes wrong, again and again."""

    def look(self, watched: float) -> None:
        """Looks; `watched` are the seconds since the last look in which this process ran."""


class Reach(Protocol):
    """The machines on which trials run, as a watchdog needs them: this one (`Machine`), or those of a cluster."""

    def forget(self, number: int) -> None:
        """What a trial beat before is gone: its process may train another trial by now."""

    def beats(self, numbers: Collection[int]) -> dict[int, Beat | None]:
        """The last beat of each trial whose process lives, None where none does; without those of which none knows."""

    def has_room(self) -> bool:
        """True if beats can be written; where they cannot, silence says nothing."""

    def take_stacks(self, number: int, beat: Beat) -> Stacks | None:
        """What the process that beats tells of its threads; None if it is gone."""

    def end(self, number: int, beat: Beat) -> bool:
        """Ends the process that beats for a trial, with all that it has started; False if it is gone."""

    def end_unknown(self, known: Mapping[int, Beat], note: Callable[[], None]) -> None:
        """Ends the processes of trials that beat for none of the `known` ones; calls `note` first if there are any."""


@contextlib.contextmanager
def patrol(lookers: Sequence[Looker], seconds: float) -> Iterator[None]:
    """A thread in which each of `lookers` looks every so many seconds. What one raises goes to standard error."""
    over = threading.Event()

    def go() -> None:
        last = time.monotonic()
        while not over.wait(seconds):
            now = time.monotonic()
            watched, last = min(now - last, 2 * seconds), now
            for looker in lookers:
                _look(looker, watched)

    thread = threading.Thread(target=go, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _look(looker: Looker, watched: float) -> None:
    try:
        looker.look(watched)
    except Exception:
        traceback.print_exc()


@dataclass
class _Watched:
    """A trial that was handed out: what is known of its process, and for how long nothing was heard of it."""

    trial: Trial
    bound: float
    why_bound: str
    told: tuple[int, int] | None = None  # process and number of its last beat
    silent: float = 0.0
    spent: float = 0.0
    reported: bool = False


class Watchdog:
    """Watches the trials of a search: a listener of its engine, and a witness of what it did.

    Args:
        folder_of: from a trial's number to its folder.
        pace: how long trials take; None: nothing is known.
        timeout: the longest that a trial may take from when its process begins with it or goes on with it, in seconds;
            None: 20 times as long as forecast, and at least an hour.
        asked: counts the questions that Ray's loop has put so far: as long as it puts none, no trial can begin.
        limits: how long anything else may take.
        reach: the machines on which the trials run; None: this one.
    """

    def __init__(
        self,
        folder_of: Callable[[int], Path],
        pace: Pace | None,
        *,
        timeout: float | None = None,
        asked: Callable[[], int] = lambda: 0,
        limits: Limits | None = None,
        reach: Reach | None = None,
    ) -> None:
        self._reach: Reach = reach or Machine()
        self.limits = limits or Limits.usual()
        self._folder_of, self._pace, self._timeout, self._asked = folder_of, pace, timeout, asked
        self._trials: dict[int, _Watched] = {}
        self._losses: dict[int, Loss] = {}
        self._last_asked = -1

    def started(self, trial: Trial) -> None:
        """A trial was handed out. What it beat before is gone: its process may train another trial by now."""
        self._losses.pop(trial.number, None)
        self._reach.forget(trial.number)
        self._trials[trial.number] = _Watched(trial, *self._bound(trial))

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch: its process has begun, whether it beats or had no room to."""
        if trial.number in self._trials:
            self._trials[trial.number].reported = True

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost; it is watched again when it is handed out."""
        self._trials.pop(trial.number, None)

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        self._trials.pop(trial.number, None)

    def testify(self, number: int) -> Loss | None:
        """Why this watchdog ended the process of a trial; None if it did not."""
        return self._losses.pop(number, None)

    def look(self, watched: float) -> None:
        """Ends trials that have been silent for too long, or take too long; see `Looker`."""
        asked = self._asked()
        alive, self._last_asked = asked != self._last_asked, asked
        known = list(self._trials.items())
        beats = self._reach.beats([number for number, one in known if one.trial.status is not TrialStatus.PAUSED])
        for number, beat in beats.items():
            trial = self._trials.get(number)
            if trial is None or number in self._losses:
                continue
            if beat is not None and beat.phase not in WITHOUT_END:
                trial.spent += watched
            why = self._silence(trial, beat, watched, alive)
            if not why and trial.spent > trial.bound:
                why = f"it has taken {describe(trial.spent)}, {trial.why_bound}"
            if not why:
                continue
            trial.silent = 0.0
            if beat is None:
                self._end_unknown(number, why, beats)
            else:
                self._end(number, beat, why)

    def _bound(self, trial: Trial) -> tuple[float, str]:
        """How long a trial may take, and why that is too long."""
        if self._timeout is not None:
            return self._timeout, f"longer than --trial-timeout allows ({describe(self._timeout)})"
        expected = None
        if self._pace is not None:
            expected = self._pace.seconds(trial, full_length(trial) - len(trial.epochs))
        if expected is None:
            return float("inf"), ""
        bound = max(self.limits.trial, _TIMES_FORECAST * expected)
        return bound, f"longer than the limit of {describe(bound)}, where {describe(expected)} were forecast"

    def _silence(self, trial: _Watched, beat: Beat | None, watched: float, alive: bool) -> str:
        """Why the trial has been silent for too long; "" if it has not."""
        if beat is None:
            trial.silent += watched if alive else 0.0
            if trial.silent > self.limits.begin and not trial.reported and self._reach.has_room():
                return f"no process has begun with it for {describe(trial.silent)}"
            return ""
        if (beat.pid, beat.count) != trial.told:
            trial.told, trial.silent = (beat.pid, beat.count), 0.0
            return ""
        if not beat.limit:
            return ""
        trial.silent += watched
        if trial.silent <= beat.limit:
            return ""
        what = "no step" if beat.phase in ("training", "validating", "averaging") else "no sign of life"
        median = f", median {describe(beat.median)}" if beat.median else ""
        return f"{what} for {describe(trial.silent)} (limit {describe(beat.limit)}{median}) in {beat.phase}"

    def _end(self, number: int, beat: Beat, why: str) -> None:
        """Ends the process that beats for a trial."""
        stacks = self._reach.take_stacks(number, beat)
        if stacks is None:
            return
        self._losses[number] = Loss("hung", f"{why}; {stacks.lacking or self._keep(stacks, number, beat, why)}")
        if not self._reach.end(number, beat):
            self._losses.pop(number, None)

    def _keep(self, stacks: Stacks, number: int, beat: Beat, why: str) -> str:
        """Puts the stacks of a process into the trial's folder; what is to be said of them."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        head = f"trial {number}, process {beat.pid} on {stacks.host}, {now}: {why}\n\n"
        folder = self._folder_of(number)
        try:
            make_private(folder)
            (folder / STACKS).write_text(head + stacks.text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            return f"its stacks could not be written: {error.strerror or error}"
        return f"see {folder.parent.name}/{folder.name}/{STACKS}"

    def _end_unknown(self, number: int, why: str, beats: dict[int, Beat | None]) -> None:
        """Ends the processes of Ray that begin with no trial which beats: one of them has this one.

        Where there is none, as while Ray starts it, it is waited for as long again.
        """
        known = {other: beat for other, beat in beats.items() if beat is not None and other != number}
        self._reach.end_unknown(known, lambda: self._losses.update({number: Loss("hung", why)}))


def describe(seconds: float) -> str:
    """A length of time for a line of text: "0.25 s", "93 s", "2.5 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
