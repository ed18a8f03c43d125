"""How many bytes a search will need, before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tunelab.capacity import describe_size
from tunelab.records import Trial
from tunelab.tuning.options import SearchOptions

_SPARE = 100 * 2**20  # that the study is not to leave the disk full; our choice
_WRITTEN = 4  # checkpoints of a trial that runs: last, previous, best, and the one that is being written
_KEPT = 2  # of one that has ended: last and best, which may be one file
_MOMENTS = {"sgd": 1}
_MOST_MOMENTS = 2  # of Adam and its like, per weight
_CHECKPOINT_REST = 40_000  # bytes of a checkpoint beside the numbers: names and the form of the file; measured
_CHECKPOINT_EPOCH = 110  # bytes of the history, per epoch
_RECORD_EPOCH = 1_000  # journal.jsonl 440, Optuna's journal 150, and the tables, per epoch; measured
_RECORD_TRIAL = 16_000  # the proposal in all of these, and the template; measured on the space `arch`
_EVENTS: Mapping[str, tuple[int, int]] = {"off": (0, 0), "scalars": (345, 6_000), "full": (345, 3 * 2**20)}
"""Bytes of TensorBoard's events, per epoch and per trial. Full telemetry of four blocks on digits is 650 kB; of larger
networks and images more, and never much more than 16 MiB."""
_STOPPED = 0.6  # of all epochs at most are trained where weak trials are stopped early: 0.51 in ten searches on digits


def checkpoint_bytes(trial: Trial) -> int:
    """The size of a checkpoint of this trial: float32 weights, moments and average, and its history."""
    train = trial.config.get("train", {})
    copies = 1 + _MOMENTS.get(str(train.get("optimizer", "")), _MOST_MOMENTS) + bool(train.get("averaging"))
    if train.get("stages"):
        copies = 1 + _MOST_MOMENTS + bool(train.get("averaging"))
    epochs = int(train.get("epochs", 0))
    return int(trial.stats.get("params", 0)) * 4 * copies + _CHECKPOINT_REST + _CHECKPOINT_EPOCH * epochs


@dataclass(frozen=True)
class Needed:
    """Bytes that a search needs in its study: of checkpoints while trials run, of those kept, of events, of the record.

    `kept_trials` is of how many the checkpoints are kept.
    """

    live: int
    kept: int
    kept_trials: int
    events: int
    record: int

    @property
    def study(self) -> int:
        """All of it, and what is to be left then."""
        return self.live + self.kept + self.events + self.record + _SPARE

    def describe(self) -> str:
        """In words."""
        parts = {
            "checkpoints of running trials": self.live,
            f"of the best {self.kept_trials}": self.kept,
            "events": self.events,
            "record": self.record,
            "to spare": _SPARE,
        }
        said = ", ".join(f"{name} {describe_size(size)}" for name, size in parts.items() if size)
        return f"space: about {describe_size(self.study)} in the study ({said})"

    def to_json(self) -> dict[str, int]:
        """As plain JSON values."""
        return {
            "study": self.study,
            "live": self.live,
            "kept": self.kept,
            "events": self.events,
            "record": self.record,
        }


def estimate(draws: Collection[Trial], options: SearchOptions, concurrent: int) -> Needed:
    """What a search needs, as if all its networks were as large as the largest of `draws`."""
    trainings = options.trials * options.repeat / (1 - options.race)  # those of the race are in full: rather fewer
    epochs = trainings * options.epochs * (1.0 if options.scheduler == "none" else _STOPPED)
    size = max((checkpoint_bytes(trial) for trial in draws), default=0)
    waiting = trainings if options.scheduler == "promote" else 0  # paused ones keep theirs
    kept = trainings if options.keep_weights is None else min(options.keep_weights, trainings)
    per_epoch, per_trial = _EVENTS[options.telemetry]
    return Needed(
        live=int(size * (concurrent * _WRITTEN + max(0.0, waiting - kept) * _KEPT)),
        kept=int(size * kept * _KEPT),
        kept_trials=int(kept),
        events=int(epochs * per_epoch + trainings * per_trial),
        record=int(epochs * _RECORD_EPOCH + trainings * _RECORD_TRIAL),
    )
