"""What a training keeps in its folder: checkpoints to go on from, and events for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from tunelab.config import Telemetry
from tunelab.errors import InputError
from tunelab.records import EpochMetrics
from tunelab.training import checkpoint
from tunelab.training.saver import AT_ONCE, Room, Saver

if TYPE_CHECKING:
    from tunelab.training.observe import Observer
    from tunelab.training.telemetry import EventWriter

_UNWRITTEN = "events for TensorBoard could not be written"


class TrialFolder:
    """The folder of one training. Without a path nothing is kept.

    Args:
        path: where `checkpoint/` and `events/` go; nothing is written before the first epoch ends.
        telemetry: "scalars" writes TensorBoard events of the epochs' numbers, "full" also histograms, pictures and
            the graph of the network.
        epochs: of the whole training; of thousands not each has its numbers written.
        notes: takes what went wrong with the events: no training ends of that.
        room: what is done while the disk has no room for a checkpoint.

    Raises:
        InputError: `telemetry` is unknown.
    """

    def __init__(
        self, path: Path | None, telemetry: Telemetry, epochs: int, notes: list[str], room: Room = AT_ONCE
    ) -> None:
        if telemetry not in get_args(Telemetry):
            raise InputError(f"telemetry {telemetry!r} is unknown; allowed are off, scalars and full")
        self.path = path
        self._notes = notes
        self._telemetry = telemetry
        self._with_events = path is not None and telemetry != "off"
        self._epochs = epochs
        self._events: EventWriter | None = None
        self._untold: EpochMetrics | None = None
        self._next_step = 0
        self._saver = Saver(room)
        self._last_is_good = True

    def checkpoints(
        self, device: torch.device
    ) -> Iterator[tuple[Path, checkpoint.Checkpoint | checkpoint.CheckpointError]]:
        """The checkpoints to go on from: the last one, the previous one, the best; of one that cannot be read, why.

        What a killed process left half-written is removed first, and one that is being written is waited for.

        Raises:
            OSError: what was being written could not be.
        """
        self.wait()
        if self.path is None:
            return
        folder = self.path / "checkpoint"
        checkpoint.remove_leftovers(folder)
        for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST):
            self._last_is_good = name == checkpoint.LAST  # asked for another one, it was passed over
            path = folder / name
            try:
                yield path, checkpoint.load(path, device)
            except FileNotFoundError:
                if name == checkpoint.LAST and (folder / checkpoint.BEST).exists():  # the first epoch makes both
                    yield path, checkpoint.CheckpointError("it is missing")
            except checkpoint.CheckpointError as error:
                yield path, error

    def save(self, state: checkpoint.Checkpoint, *, best: bool, wait: bool) -> None:
        """Save `state` as `Saver.save` does; a last one that was passed over does not become the previous one."""
        if self.path is not None:
            self._saver.save(self.path / "checkpoint", state, best=best, wait=wait, previous=self._last_is_good)
            self._last_is_good = True

    def wait(self) -> None:
        """Return when no checkpoint is being written any more; raises as `Saver.wait` does."""
        self._saver.wait()

    def close(self, *, ended: bool) -> None:
        """As `wait`, with a last attempt where the disk has no room; one that has `ended` keeps no previous one."""
        self._saver.close()
        if self.path is not None and ended:
            with contextlib.suppress(OSError):
                checkpoint.discard(self.path / "checkpoint", previous_only=True)

    def check(self) -> None:
        """Raise what `wait` would, if it is known already."""
        self._saver.check()

    def observers(self) -> tuple[Observer, ...]:
        """Those that write more than numbers."""
        if self.path is None or self._telemetry != "full":
            return ()
        from tunelab.training.full_telemetry import FullTelemetry

        return (FullTelemetry(self.path / "events", self.write_events, self._notes),)

    def go_on_after(self, metrics: EpochMetrics) -> None:
        """The training goes on after this epoch: what the files say of later ones is void.

        A process that was killed just after it wrote the checkpoint has not recorded its epoch, which is done now.
        """
        if self.path is None or not self._with_events:
            return
        from tunelab.training.telemetry import recorded_epochs

        told = False
        with contextlib.suppress(OSError):  # then it cannot be written either, which is said there
            told = metrics.epoch in recorded_epochs(self.path / "events")
        self._next_step = metrics.epoch + told
        if not told:
            self._tell(metrics)

    def record(self, metrics: EpochMetrics) -> None:
        """Write the numbers of an epoch, of a long training of some, and of the last before `close_events`."""
        if not self._with_events:
            return
        from tunelab.training.telemetry import SCALAR_EPOCHS, is_shown

        self._untold = metrics
        if is_shown(metrics.epoch, self._epochs, SCALAR_EPOCHS):
            self._tell(metrics)

    def write_events(self, step: int, write: Callable[[EventWriter], None]) -> None:
        """Lets `write` add events of `step`; without events this does nothing. What the disk refuses is noted once."""
        if self.path is None or not self._with_events:
            return
        try:
            if self._events is None:
                from tunelab.training.telemetry import EventWriter  # 0.2 s, and not needed with telemetry "off"

                self._events = EventWriter(self.path / "events", self._next_step)
            write(self._events)
            self._next_step = max(self._next_step, step + 1)
        except OSError as error:
            self._close_file()
            if not any(note.startswith(_UNWRITTEN) for note in self._notes):
                self._notes.append(f"{_UNWRITTEN} at epoch {step}: {error.strerror or error}")

    def close_events(self) -> None:
        """Close the event file; the next epoch begins another."""
        if self._untold is not None:
            self._tell(self._untold)
        self._close_file()
        self._next_step, self._untold = 0, None

    def _tell(self, metrics: EpochMetrics) -> None:
        self._untold = None
        self.write_events(metrics.epoch, lambda events: events.write(metrics))

    def _close_file(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(OSError):
                events.close()
