"""The search itself, without Ray: hands out configurations, records results, decides who goes on.

Everything is in the record before it is acted on: a proposal before it is handed out, a result before the decision it
leads to, an end before it is shown. A new engine on the same record goes on where a dead one was.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, Protocol

from tunelab.config import arch_id, to_json
from tunelab.errors import TunelabError
from tunelab.journal import Journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.searcher import Source
from tunelab.tuning.stopping import Decision

FAILURES_IN_A_ROW = 5
"""So many failures of one kind, without a success between them, end a search (our choice)."""


class Stopping(Protocol):
    """The rule that stops trials early; see tunelab.tuning.stopping."""

    def report(self, number: int, epoch: int, score: float, loss: float) -> Decision | None:
        """Takes a score; a decision where the epoch is a rung."""

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Puts back a score from before a restart."""


class Listener(Protocol):
    """Who wants to know what happens, to show it."""

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""


class Engine:
    """One search. Every method is called by one thread.

    Args:
        journal: the record, open for writing.
        known: the trials that it holds already.
        source: where configurations come from.
        stopping: the rule that stops trials early.
        total: how many trials there are to be.
        listener: is told of everything after it is recorded.
        ends: when everything pauses, on the monotonic clock; None for never.
    """

    def __init__(
        self,
        journal: Journal,
        known: list[Trial],
        source: Source,
        stopping: Stopping,
        total: int,
        listener: Listener,
        ends: float | None = None,
    ) -> None:
        self.trials = {trial.number: trial for trial in known}
        self.halted = ""
        self.error: TunelabError | None = None
        self._journal = journal
        self._source = source
        self._stopping = stopping
        self._total = total
        self._listener = listener
        self._ends = math.inf if ends is None else ends
        self._waiting = deque(trial.number for trial in known if not trial.status.ended)
        self._causes: list[str] = []
        self._restore(known)

    @property
    def unfinished(self) -> int:
        """How many trials have not ended yet, those not yet proposed included."""
        return max(self._total, len(self.trials)) - sum(trial.status.ended for trial in self.trials.values())

    @property
    def should_halt(self) -> bool:
        """True when nothing more is to be started and the running trials are to pause."""
        if not self.halted and time.monotonic() > self._ends:
            self.halt("deadline")
        return bool(self.halted)

    def halt(self, why: str) -> None:
        """Pauses everything; the first reason stays."""
        self.halted = self.halted or why

    def next_trial(self) -> Trial | None:
        """The next trial to run, open ones of an earlier start first; None if there is none."""
        if self.should_halt:
            return None
        if self._waiting:
            trial = self.trials[self._waiting.popleft()]
            trial.status = TrialStatus.RUNNING
        elif len(self.trials) < self._total and self.error is None:
            proposed = self._propose(len(self.trials))
            if proposed is None:
                return None
            trial = proposed
        else:
            return None
        self._listener.started(trial)
        return trial

    def report(self, number: int, metrics: EpochMetrics) -> bool:
        """Records an epoch; True if the trial goes on. An epoch that the record holds already changes nothing."""
        trial = self.trials[number]
        if trial.status.ended:
            return False
        if metrics.epoch <= len(trial.epochs):
            return not self._settle(trial, metrics.epoch)
        self._append("result", trial, metrics=metrics.to_json())
        trial.epochs.append(metrics)
        self._source.observe(number, metrics.epoch, metrics.score)
        self._listener.reported(trial)
        return not self._settle(trial, metrics.epoch)

    def end(self, number: int, status: TrialStatus, reason: str) -> None:
        """Records that a trial will not go on; a second call changes nothing."""
        trial = self.trials[number]
        if trial.status.ended:
            return
        self._append("ended", trial, status=status.value, reason=reason)
        trial.status = status
        trial.reason = reason
        self._source.end(number, status, trial.score)
        self._listener.ended(trial)
        self._watch_failures(status, reason)

    def _settle(self, trial: Trial, epoch: int) -> bool:
        """Ends the trial if the epoch just recorded was its last or its rung says so; True if it ended."""
        if epoch < len(trial.epochs):
            return False
        if epoch >= int(trial.config["train"]["epochs"]):
            self.end(trial.number, TrialStatus.COMPLETED, "")
            return True
        last = trial.epochs[-1]
        decision = self._stopping.report(trial.number, epoch, last.score, last.loss)
        if decision is None:
            return False
        if not any(earlier["epoch"] == epoch for earlier in trial.decisions):
            self._append("decision", trial, decision=decision.to_json())
            trial.decisions.append(decision.to_json())
        if trial.decisions[-1]["stop"]:
            self.end(trial.number, TrialStatus.STOPPED, f"epoch {epoch}: {trial.decisions[-1]['why']}")
            return True
        return False

    def _propose(self, number: int) -> Trial | None:
        try:
            proposal = self._source.propose(number)
        except TunelabError as error:
            self.error = error  # the running trials go on to their end
            return None
        trial = Trial(
            number=number,
            config=to_json(proposal.config),
            params=dict(proposal.params),
            stats=dict(proposal.stats),
            arch_id=arch_id(proposal.config.arch),
        )
        self._append(
            "proposed", trial, arch_id=trial.arch_id, params=trial.params, stats=trial.stats, config=trial.config
        )
        self.trials[number] = trial
        return trial

    def _append(self, event: str, trial: Trial, **content: Any) -> None:
        try:
            self._journal.append({"event": event, "trial": trial.number, "time": round(time.time(), 3), **content})
        except TunelabError as error:
            self.error = error
            self.halt("the record cannot be written")
            raise

    def _watch_failures(self, status: TrialStatus, reason: str) -> None:
        if status is not TrialStatus.FAILED:
            self._causes.clear()
            return
        self._causes.append(reason.partition(":")[0])  # what follows names files and sizes, which differ
        last = self._causes[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and len(set(last)) == 1:
            self.error = TunelabError(f"{FAILURES_IN_A_ROW} trials in a row failed with: {reason}")
            self.halt("failures")

    def _restore(self, known: list[Trial]) -> None:
        self._source.restore(known)
        for trial in known:
            for decision in trial.decisions:
                self._stopping.restore(trial.number, decision["epoch"], decision["score"], decision["loss"])
        for trial in known:
            if not trial.status.ended and trial.epochs:
                self._settle(trial, len(trial.epochs))
        self._waiting = deque(number for number in self._waiting if not self.trials[number].status.ended)
