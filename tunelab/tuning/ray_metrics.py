"""The numbers of a search among Ray's metrics: how many trials, how good, how fast.

Ray offers them on its metrics endpoint, in the text format of Prometheus, with `ray_` before their names.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from tunelab.records import Trial, TrialStatus

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

_GAUGES = {
    "tunelab_best_accuracy_ratio": "The best accuracy, from 0 to 1, that any trial had after its last epoch.",
    "tunelab_trials": "Trials by their state.",
    "tunelab_images_per_second": "What the running trials train together, by the last epoch of each.",
}
_EPOCHS = "tunelab_epochs"  # Ray appends _total
_EVERY = 1.0  # seconds; Ray hands them on every ten, and no more often than this


class RayMetrics:
    """Tells Ray's metrics of the trials of a study: a listener of its engine.

    Args:
        study: its name, a tag of each metric.
        known: trials of earlier starts; their epochs are not counted again.
    """

    def __init__(self, study: str, known: Collection[Trial] = ()) -> None:
        self._study = study
        self._trials = {trial.number: trial for trial in known}
        self._running: set[int] = set()
        self._epochs = 0
        self._next = 0.0
        self._gauges: dict[str, Gauge] = {}
        self._counter: Counter | None = None

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        self._trials[trial.number] = trial
        self._running.add(trial.number)

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""
        self._epochs += 1

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost and will be handed out again."""
        self._running.discard(trial.number)

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        self._trials[trial.number] = trial
        self._running.discard(trial.number)

    def look(self) -> None:
        """Tells the numbers, once a second at most; is called as often as Ray's loop asks something."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self.tell()

    def tell(self) -> None:
        """Hands all numbers to Ray, which must run; it forgets a gauge that it is not told again and again."""
        if self._counter is None:
            self._counter = self._make()
        for state, count in self.states().items():
            self._gauges["tunelab_trials"].set(count, {"state": state})
        self._gauges["tunelab_images_per_second"].set(self.images_per_second())
        best = self.best_accuracy()
        if best is not None:
            self._gauges["tunelab_best_accuracy_ratio"].set(best)
        if self._epochs:
            self._counter.inc(self._epochs)
            self._epochs = 0

    def states(self) -> dict[str, int]:
        """How many trials are in each state, by its name in lower case, 0 included; one that waits is paused."""
        counts = {status.value.lower(): 0 for status in TrialStatus}
        for trial in self._trials.values():
            waits = trial.status is TrialStatus.RUNNING and trial.number not in self._running
            counts[(TrialStatus.PAUSED if waits else trial.status).value.lower()] += 1
        return counts

    def images_per_second(self) -> float:
        """The sum over the running trials; one in its first epoch counts nothing."""
        running = (self._trials[number] for number in self._running)
        return sum(
            trial.epochs[-1].images_per_second
            for trial in running
            if trial.epochs and trial.status is TrialStatus.RUNNING
        )

    def best_accuracy(self) -> float | None:
        """The best score of a last epoch; None before there is one."""
        return max((trial.score for trial in self._trials.values() if trial.score is not None), default=None)

    def _make(self) -> Counter:
        from ray.util.metrics import Counter, Gauge

        tags = {"study": self._study}
        for name, what in _GAUGES.items():
            more = ("state",) if name == "tunelab_trials" else ()
            self._gauges[name] = Gauge(name, what, tag_keys=("study", *more))
            self._gauges[name].set_default_tags(tags)
        counter = Counter(_EPOCHS, "Epochs that were trained since the search was started.", tag_keys=("study",))
        counter.set_default_tags(tags)
        return counter
