"""What a training keeps in its folder: checkpoints to go on from, and events for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tunelab.errors import InputError
from tunelab.records import EpochMetrics
from tunelab.training import checkpoint
from tunelab.training.saver import Saver

if TYPE_CHECKING:
    from tunelab.training.telemetry import EventWriter

Telemetry = Literal["off", "scalars"]


class TrialFolder:
    """The folder of one training. Without a path nothing is kept.

    Args:
        path: where `checkpoint/` and `events/` go; nothing is written before the first epoch ends.
        telemetry: "scalars" writes TensorBoard events.

    Raises:
        InputError: `telemetry` is unknown.
    """

    def __init__(self, path: Path | None, telemetry: Telemetry) -> None:
        if telemetry not in ("off", "scalars"):
            raise InputError(f"telemetry {telemetry!r} is unknown; allowed are off and scalars")
        self.path = path
        self._with_events = telemetry == "scalars"
        self._events: EventWriter | None = None
        self._saver = Saver()

    def checkpoints(
        self, device: torch.device
    ) -> Iterator[tuple[Path, checkpoint.Checkpoint | checkpoint.CheckpointError]]:
        """The checkpoints to go on from, the last one first; in place of one that cannot be read, why.

        What a killed process left half-written is removed first, and one that is being written is waited for.

        Raises:
            OSError: what was being written could not be.
        """
        self.wait()
        if self.path is None:
            return
        checkpoint.remove_leftovers(self.path / "checkpoint")
        for name in (checkpoint.LAST, checkpoint.BEST):
            path = self.path / "checkpoint" / name
            try:
                yield path, checkpoint.load(path, device)
            except FileNotFoundError:
                continue
            except checkpoint.CheckpointError as error:
                yield path, error

    def save(self, state: checkpoint.Checkpoint, *, best: bool, wait: bool) -> None:
        """Save `state` as `Saver.save` does."""
        if self.path is not None:
            self._saver.save(self.path / "checkpoint", state, best=best, wait=wait)

    def wait(self) -> None:
        """Return when no checkpoint is being written any more; raises as `Saver.wait` does."""
        self._saver.wait()

    def check(self) -> None:
        """Raise what `wait` would, if it is known already."""
        self._saver.check()

    def record(self, metrics: EpochMetrics, first_step: int = 0) -> None:
        """Write the events of an epoch; what earlier files say of `first_step` and later is void."""
        if self.path is None or not self._with_events:
            return
        if self._events is None:
            from tunelab.training.telemetry import EventWriter  # 0.2 s, and not needed with telemetry "off"

            self._events = EventWriter(self.path / "events", first_step)
        self._events.write(metrics)

    def close_events(self) -> None:
        """Close the event file; the next epoch begins another."""
        if self._events is not None:
            self._events.close()
            self._events = None
