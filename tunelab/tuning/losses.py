"""What becomes of a trial whose process is gone, and of a search in which trials fail."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from tunelab.records import Trial, TrialStatus

Cause = Literal["memory", "lost", "hung", "node", "storage"]

RETRIES: Mapping[Cause, int] = {"memory": 2, "lost": 2, "hung": 1, "node": 10, "storage": 0}
"""How often a trial goes on after each; counted over all starts of a search (our choice).

That a node goes, as one that may be taken back at any time does, is no fault of a trial.
"""
SMALLER = 4
"""Out of memory, a batch is computed in so many times as many parts (our choice)."""
FAILURES_IN_A_ROW = 5
"""So many failures of one kind without a success between them, or so many before the first, end a search."""
LATEST = 20
"""If more than half of so many trials failed, the search ends too (our choice)."""


@dataclass(frozen=True)
class Loss:
    """Why a trial's process is gone, or cannot go on: the kind, and one line with what is known."""

    cause: Cause
    why: str


class Witness(Protocol):
    """Who may know why the process of a trial is gone."""

    def testify(self, number: int) -> Loss | None:
        """Why the process of this trial is gone; None if this witness does not know."""


@dataclass(frozen=True)
class Retry:
    """One more attempt of a trial that was lost after `epoch` epochs.

    Each batch is computed in `split` parts; `fewer` is true if no more than half as many trials as otherwise are to
    run beside it and itself.
    """

    cause: Cause
    why: str
    epoch: int
    split: int = 1
    fewer: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """What happened and how the trial goes on, in one line."""
        how = f", with batches in {self.split} parts" if self.split > 1 else ""
        beside = " and fewer trials beside it" if self.fewer else ""
        begun = f"goes on after epoch {self.epoch}" if self.epoch else "begins again"
        return f"{_NAMES[self.cause]}: {self.why}; it {begun}{how}{beside}"


_NAMES: Mapping[Cause, str] = {
    "memory": "out of memory",
    "lost": "the trial's process died",
    "hung": "ended by the watchdog",
    "node": "a node was lost",
    "storage": "the trials' storage",
}


def testimony(witnesses: Iterable[Witness], number: int) -> Loss:
    """What the first witness says that knows why the process of a trial is gone."""
    found = (witness.testify(number) for witness in witnesses)
    return next((loss for loss in found if loss is not None), Loss("lost", "it was killed, or crashed"))


def next_attempt(trial: Trial, loss: Loss) -> Retry | None:
    """How a trial goes on after a loss; None if it was lost too often.

    Out of memory it does with smaller parts of its batches, the second time also beside fewer trials.
    """
    before = sum(retry["cause"] == loss.cause for retry in trial.retries)
    if before >= RETRIES[loss.cause]:
        return None
    memory = loss.cause == "memory"
    batch = int(trial.config["train"]["batch_size"])
    split = min(trial.split * SMALLER, batch) if memory else trial.split
    fewer = (memory and before > 0) or any(retry.get("fewer") for retry in trial.retries)
    return Retry(loss.cause, loss.why, len(trial.epochs), split, fewer)


def given_up(trial: Trial, loss: Loss) -> str:
    """Why a trial that was lost too often has failed."""
    times = 1 + sum(retry["cause"] == loss.cause for retry in trial.retries)
    return f"{_NAMES[loss.cause]} {times} times: {loss.why}" if times > 1 else f"{_NAMES[loss.cause]}: {loss.why}"


class Places(Protocol):
    """Whether there is a place for one more trial."""

    def fits(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """True if a trial can run beside these; it always can alone."""

    def refuses(self, trial: Trial) -> str:
        """Why a trial can never run here, whatever runs beside it; "" if it may."""


class FewerBeside:
    """A trial that ran out of memory twice has no more than half the places taken, its own included.

    Args:
        concurrent: how many trials run at once otherwise.
    """

    def __init__(self, concurrent: int) -> None:
        self._concurrent = concurrent

    def fits(self, trial: Trial, beside: Sequence[Trial]) -> bool:
        """True if none of them needs fewer beside it than there would be."""
        if not any(wants_fewer(one) for one in (trial, *beside)):
            return True
        return len(beside) < max(1, self._concurrent // 2)

    def refuses(self, trial: Trial) -> str:
        """Nothing is refused."""
        return ""


def wants_fewer(trial: Trial) -> bool:
    """True if a trial is to have fewer beside it than usual."""
    return bool(trial.retries) and bool(trial.retries[-1].get("fewer"))


class Failures:
    """Watches how trials end, and says when a search is to end because they fail.

    Args:
        known: the trials of earlier starts; their failures do not count any more, a success among them does.
    """

    def __init__(self, known: Iterable[Trial] = ()) -> None:
        self._causes: list[str] = []  # without a success since
        self._latest: deque[str] = deque(maxlen=LATEST)
        self._succeeded = any(trial.epochs for trial in known)

    def trained(self) -> None:
        """A trial has trained an epoch: something works."""
        self._succeeded = True

    def ended(self, status: TrialStatus, reason: str) -> str:
        """Why the search is to end after this end of a trial; "" if it is not."""
        cause = reason.partition(":")[0] if status is TrialStatus.FAILED else ""  # then come names and sizes
        self._latest.append(cause)
        if not cause:
            self._causes.clear()
            return ""
        self._causes.append(cause)
        last = self._causes[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and len(set(last)) == 1:
            return f"{FAILURES_IN_A_ROW} trials in a row failed with: {reason}"
        if len(last) == FAILURES_IN_A_ROW and not self._succeeded:
            return f"the first {FAILURES_IN_A_ROW} trials all failed, the last with: {reason}"
        failed = [one for one in self._latest if one]
        if len(self._latest) == LATEST and 2 * len(failed) > LATEST:
            commonest, times = Counter(failed).most_common(1)[0]
            return f"{len(failed)} of the last {LATEST} trials failed, {times} of them with: {commonest}"
        return ""
