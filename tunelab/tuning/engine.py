"""The search itself, without Ray: hands out configurations, records results, decides who goes on.

Everything is in the record before it is acted on: a proposal before it is handed out, a result before the decision it
leads to, an end before it is shown. A new engine on the same record goes on where a dead one was.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tunelab.errors import ExhaustedError, TunelabError
from tunelab.journal import Journal
from tunelab.noise import ended_early, full_length
from tunelab.records import EpochMetrics, Finding, Trial, TrialStatus
from tunelab.tuning.deadline import Deadline, Pace
from tunelab.tuning.listeners import Listener
from tunelab.tuning.losses import Failures, FewerBeside, Loss, Places, given_up, next_attempt
from tunelab.tuning.objectives import costs_of
from tunelab.tuning.repeats import NoRepeats, Repeats, once_more
from tunelab.tuning.sources import Source
from tunelab.tuning.stopping import Decision, Stopping
from tunelab.tuning.turns import Turns

_PROPOSED = ("arch_id", "params", "stats", "config", "origin", "repeat_of")
"""What the record is told of a trial when it is proposed."""
FAILURES = "failures"
"""Why a search in which trials fail is halted."""


class Engine:
    """One search. Every method is called by one thread.

    Args:
        journal: the record, open for writing.
        known: the trials that it holds already.
        source: where configurations come from.
        stopping: the rule that stops trials early.
        total: how many trials there are to be, repeats not counted.
        listener: is told of everything after it is recorded.
        deadline: when everything pauses.
        repeats: which configurations are trained again.
        pace: how long trials take, so that none is begun that the deadline would make useless.
        noise: the standard deviation between runs of one configuration after so many epochs; None: nothing is known.
        history: known trials that are no part of the search any more, each with the reason; they end, are not counted,
            and are not compared with others.
        in_full: trials of these origins run their full length whatever the rungs and their health say.
        grace: after so many epochs a trial ends of which nothing can come any more; None: none does.
        places: which trials may run beside each other.
    """

    def __init__(
        self,
        journal: Journal,
        known: list[Trial],
        source: Source,
        stopping: Stopping,
        total: int,
        listener: Listener,
        deadline: Deadline | None = None,
        *,
        repeats: Repeats | None = None,
        pace: Pace | None = None,
        noise: Callable[[Mapping[int, Trial], int], float] | None = None,
        history: Mapping[int, str] | None = None,
        in_full: Collection[str] = (),
        grace: int | None = None,
        places: Places | None = None,
    ) -> None:
        self.trials = {trial.number: trial for trial in known}
        self._current = {trial.number: trial for trial in known if trial.number not in (history or {})}
        self.halted = ""
        self.error: TunelabError | None = None
        self.exhausted = ""
        self._turns = Turns(journal, self._cannot_record)
        self._source = source
        self._stopping = stopping
        self._total = total
        self._listener = listener
        self._deadline = deadline or Deadline()
        self._repeats = repeats or NoRepeats()
        self._pace = pace
        self._noise = noise
        self._in_full = frozenset(in_full)
        self._grace = grace
        self.running: set[int] = set()
        self._paused: set[int] = set()
        self.begun = sum(trial.repeat_of is None for trial in self._current.values())
        self._ended = sum(trial.status.ended for trial in self._current.values())
        self._nothing_since = -1
        self._events = 0
        self._waiting = deque(trial.number for trial in self._current.values() if not trial.status.ended)
        self._failures = Failures(known)
        self._places = places or FewerBeside(sys.maxsize)
        self._held = ""
        self._restore(known, history or {})

    @property
    def unfinished(self) -> int:
        """How many trials have not ended yet, those not yet proposed and the repeats asked for included."""
        to_come = max(0, self._total - self.begun) + self._repeats.owed(self._current)
        return to_come + len(self._current) - self._ended

    @property
    def trials_left(self) -> int:
        """How many configurations have not ended yet, those not yet proposed included."""
        ended = sum(trial.status.ended for trial in self._current.values() if trial.repeat_of is None)
        return max(self.begun, self._total) - ended

    @property
    def has_work(self) -> bool:
        """True if there is anything to train: unfinished trials, or repeats of finalists."""
        return bool(self.unfinished) or self._repeats.late(self._current) is not None

    @property
    def should_halt(self) -> bool:
        """True when nothing more is to be started and the running trials are to pause."""
        if not self.halted and time.monotonic() > self._deadline.ends:
            self.halt("deadline")
        return bool(self.halted)

    @property
    def waits(self) -> bool:
        """True while trials are running, or held: there may be more to do then."""
        return bool(self.running or self._held) and not self.halted

    def halt(self, why: str) -> None:
        """Pauses everything; the first reason stays."""
        self.halted = self.halted or why

    def hold(self, why: str) -> None:
        """Hands out nothing new, for a reason; with "" it goes on. Running trials are not concerned."""
        self._held = why
        self._events += 1

    def next_trial(self) -> Trial | None:
        """The next trial to run, open ones of an earlier start first; None if there is none, or none yet (`waits`)."""
        if self.should_halt or self._held or self._events == self._nothing_since:
            return None
        trial = self._choose()
        while trial is not None and (why := self._places.refuses(trial)):
            self.end(trial.number, TrialStatus.FAILED, why)
            trial = None if self.halted else self._choose()
        if trial is not None and (self._comes_too_late(trial) or not self._has_place(trial)):
            self._waiting.appendleft(trial.number)
            trial = None
        if trial is None:
            if not self.running and self.error is None and self.has_work:
                self.halt("deadline")
            # Asked again and again while trials run: nothing changes until one of them reports.
            self._nothing_since = self._events if self.running else -1
            return None
        trial.status = TrialStatus.RUNNING
        self.running.add(trial.number)
        self._events += 1
        self._listener.started(trial)
        return trial

    def report(
        self,
        number: int,
        metrics: EpochMetrics,
        notes: Sequence[str] = (),
        findings: Sequence[Finding] = (),
        hopeless: str = "",
    ) -> bool:
        """Records an epoch, and the trial's notes and findings that are new; True if the trial goes on.

        `hopeless` says why nothing can come of it any more. An epoch that the record holds already changes nothing.
        """
        trial = self.trials[number]
        self._events += 1
        if trial.status.ended:
            return False
        if metrics.epoch <= len(trial.epochs):
            return not self._settle(trial, metrics.epoch)
        new = [note for note in notes if note not in trial.notes]
        told = {**({"notes": new} if new else {}), **self._take_findings(trial, findings)}
        with self._turns.turn():
            self._turns.record("result", trial, metrics=metrics.to_json(), **told)
            trial.epochs.append(metrics)
            self._turns.or_else(trial.epochs.pop)
            self._turns.then(lambda: self._has_reported(trial, metrics, new))
            if hopeless and self._may_give_up(trial):
                self.end(number, TrialStatus.DIVERGED, f"epoch {metrics.epoch}: {hopeless}")
                return False
            return not self._settle(trial, metrics.epoch)

    def end(self, number: int, status: TrialStatus, reason: str, findings: Sequence[Finding] = ()) -> None:
        """Records that a trial will not go on, and its findings that are new; a second call changes nothing."""
        trial = self.trials[number]
        self._events += 1
        if trial.status.ended:
            return
        told = self._take_findings(trial, findings)
        self._turns.record("ended", trial, status=status.value, reason=reason, **told)
        self._turns.then(lambda: self._has_ended(trial, status, reason))

    def lose(self, number: int, loss: Loss) -> None:
        """Records that a running trial's process is gone or cannot go on; it is handed out again, or has failed."""
        trial = self.trials[number]
        self._events += 1
        if number not in self.running or self.halted:  # what stops everything ends processes too
            return
        if loss.cause == "storage":
            self.halt(f"the trials' storage: {loss.why}")
            return
        retry = next_attempt(trial, loss)
        if retry is None:
            self.end(number, TrialStatus.FAILED, given_up(trial, loss))
            return
        self._turns.record("retried", trial, **retry.to_json())
        trial.retries.append(retry.to_json())
        trial.split = retry.split
        self.running.discard(number)
        self._waiting.appendleft(number)
        self._listener.retried(trial, retry.describe())

    def _has_reported(self, trial: Trial, metrics: EpochMetrics, notes: Sequence[str]) -> None:
        """What follows from an epoch that is in the record."""
        trial.notes += notes
        self._source.observe(trial.number, metrics.epoch, metrics.score)
        self._failures.trained()
        self._listener.reported(trial)

    def _has_ended(self, trial: Trial, status: TrialStatus, reason: str) -> None:
        """What follows from an end that is in the record."""
        number = trial.number
        trial.status, trial.reason = status, reason
        self._ended += number in self._current
        self._count_diverged(trial)
        self.running.discard(number)
        self._paused.discard(number)
        self._source.end(number, status, trial.score, costs_of(trial))
        self._listener.ended(trial)
        if (why := self._failures.ended(status, reason)) and self.error is None:
            self.error = TunelabError(why)
            self.halt(FAILURES)

    def _take_findings(self, trial: Trial, findings: Sequence[Finding]) -> dict[str, Any]:
        """What the record is told of those that it does not hold yet, which become the trial's."""
        new = trial.lacking(findings)
        trial.findings += new
        return {"findings": [finding.to_json() for finding in new]} if new else {}

    def _may_give_up(self, trial: Trial) -> bool:
        """True if a trial of which nothing can come is to end; one that is through has."""
        done = len(trial.epochs)
        in_full = trial.origin in self._in_full
        return self._grace is not None and self._grace <= done < full_length(trial) and not in_full

    def _choose(self) -> Trial | None:
        """What to train next, by what it is good for."""
        opened = self._next_waiting()
        if opened is not None or self.error is not None:
            return opened
        repeated = self._repeats.early(self._current)
        if repeated is None and time.monotonic() > self._deadline.race_begins:
            repeated = self._repeats.late(self._current)
        chosen = self._repeat(repeated) or self._promote()
        if chosen is not None:
            return chosen
        if any(self.trials[number].repeat_of is None for number in self._waiting):  # for more time than there is
            return None
        if self.begun < self._total:
            proposed = self._propose(len(self.trials))
            if proposed is not None or self.error is not None:
                return proposed
        if any(self.trials[number].repeat_of is None for number in self.running):
            return None
        with self._turns.turn():
            for number in sorted(self._paused):
                last = self.trials[number].decisions[-1]
                self.end(number, TrialStatus.STOPPED, f"epoch {last['epoch']}: {last['why']}")
        return self._repeat(self._repeats.late(self._current))

    def _next_waiting(self) -> Trial | None:
        """An open trial; one that the deadline leaves no time for does not keep others from going on."""
        for number in self._waiting:
            trial = self.trials[number]
            if not self._comes_too_late(trial):
                self._waiting.remove(number)
                return trial
        return None

    def _has_place(self, trial: Trial) -> bool:
        return not self.running or self._places.fits(trial, [self.trials[number] for number in sorted(self.running)])

    def _comes_too_late(self, trial: Trial) -> bool:
        return self._pace is not None and self._deadline.comes_before(trial, self._pace)

    def _settle(self, trial: Trial, epoch: int) -> bool:
        """Ends or pauses the trial if the epoch just recorded was its last or its rung says so; True if it did."""
        if epoch < len(trial.epochs):
            return False
        if epoch >= full_length(trial) or ended_early(trial):
            self.end(trial.number, TrialStatus.COMPLETED, ended_early(trial))
            return True
        if trial.repeat_of is not None:
            return False
        if not any(earlier["epoch"] == epoch for earlier in trial.decisions):
            last = trial.epochs[-1]
            decision = self._stopping.report(trial.number, epoch, last.score, last.loss, self._noise_at(epoch))
            if decision is None:
                return False
            if trial.origin in self._in_full:
                why = f"a trial of the {trial.origin} always runs its full length"
                decision = dataclasses.replace(decision, stop=False, pause=False, why=why)
            self._record(trial, decision)
        decided = trial.decisions[-1]
        if decided["stop"]:
            self.end(trial.number, TrialStatus.STOPPED, f"epoch {epoch}: {decided['why']}")
        elif decided.get("pause"):
            self._turns.then(lambda: self._pause(trial))
        return bool(decided["stop"] or decided.get("pause"))

    def _pause(self, trial: Trial) -> None:
        trial.status = TrialStatus.PAUSED
        self.running.discard(trial.number)
        self._paused.add(trial.number)

    def _noise_at(self, epoch: int) -> float:
        if self._noise is None or epoch not in self._stopping.rungs:
            return 0.0
        return self._noise(self.trials, epoch)

    def _record(self, trial: Trial, decision: Decision) -> None:
        self._turns.record("decision", trial, decision=decision.to_json())
        trial.decisions.append(decision.to_json())
        self._turns.or_else(trial.decisions.pop)

    def _promote(self) -> Trial | None:
        """A paused trial that has become one of the best of its rung."""
        found = self._stopping.promotable(self._paused) if self._paused else None
        if found is None:
            return None
        number, decision = found
        self._record(self.trials[number], dataclasses.replace(decision, noise=self._noise_at(decision.epoch)))
        self._paused.discard(number)
        return self.trials[number]

    def _propose(self, number: int) -> Trial | None:
        try:
            proposal = self._source.propose(number, self._current)
        except ExhaustedError as error:
            self._total, self.exhausted = self.begun, str(error)
            return None
        except TunelabError as error:
            self.error = error  # the running trials go on to their end
            return None
        trial = proposal.as_trial(number)
        self._add(trial)
        self.begun += 1
        return trial

    def _repeat(self, of: int | None) -> Trial | None:
        """The configuration of trial `of` once more, with another seed; None if the deadline leaves no time for it."""
        if of is None:
            return None
        before = sum(trial.repeat_of == of for trial in self.trials.values())
        trial = once_more(self.trials[of], len(self.trials), before)
        if self._comes_too_late(trial):
            return None
        self._add(trial)
        self._source.adopt(trial)
        return trial

    def _add(self, trial: Trial) -> None:
        more = {"split": trial.split} if trial.split > 1 else {}
        self._turns.record("proposed", trial, **{name: getattr(trial, name) for name in _PROPOSED}, **more)
        self.trials[trial.number] = self._current[trial.number] = trial

    def _cannot_record(self, error: TunelabError) -> None:
        self.error = error
        self.halt("the record cannot be written")

    def _count_diverged(self, trial: Trial) -> None:
        """A diverged trial is the worst at every rung, also where it did well before."""
        if trial.status is TrialStatus.DIVERGED and trial.repeat_of is None and trial.number in self._current:
            for rung in self._stopping.rungs:
                self._stopping.restore(trial.number, rung, 0.0, sys.float_info.max)

    def _restore(self, known: list[Trial], history: Mapping[int, str]) -> None:
        self._source.restore(known)
        for number, reason in history.items():
            self.end(number, TrialStatus.STOPPED, reason)
        for trial in self._current.values():
            for decision in trial.decisions:
                self._stopping.restore(trial.number, decision["epoch"], decision["score"], decision["loss"])
            self._count_diverged(trial)
        for trial in list(self._current.values()):
            if not trial.status.ended and trial.epochs:
                self._settle(trial, len(trial.epochs))
        self._waiting = deque(
            number for number in self._waiting if not self.trials[number].status.ended and number not in self._paused
        )
