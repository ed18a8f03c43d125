"""When a search is to pause, and what has to be known of trials to begin none in vain."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from tunelab.noise import full_length
from tunelab.records import Trial


class Pace(Protocol):
    """How long trials take; see tunelab.tuning.forecast."""

    def seconds(self, trial: Trial, epochs: int) -> float | None:
        """Expected seconds of so many epochs of this trial; None if nothing is known."""


@dataclass(frozen=True)
class Deadline:
    """When everything pauses, from when on only the finalists are trained, and when epochs that run are broken off.

    All are on the monotonic clock of this machine.
    """

    ends: float = math.inf
    race_begins: float = math.inf
    breaks_off: float = math.inf

    @classmethod
    def after(cls, seconds: float, race_share: float, grace: float = 0.0) -> Deadline:
        """So many seconds from now, the last share of them for the race; an epoch has `grace` seconds more to end."""
        now = time.monotonic()
        return cls(now + seconds, now + seconds * (1 - race_share), now + seconds + grace)

    def comes_before(self, trial: Trial, pace: Pace) -> bool:
        """True if it leaves no time for what makes a trial useful: an epoch, of a repeat all that it lacks."""
        if self.ends == math.inf:
            return False
        epochs = 1 if trial.repeat_of is None else full_length(trial) - len(trial.epochs)
        seconds = pace.seconds(trial, epochs)
        return seconds is not None and time.monotonic() + seconds > self.ends
