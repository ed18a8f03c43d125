"""TensorBoard scalars of a trial, one for each field of `EpochMetrics` and epoch, under the field's name.

Events are written with tensorboard's record writer: unlike its SummaryWriter and torch's, it starts no thread for each
trial, and never imports TensorFlow where that is installed.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from tunelab.records import EpochMetrics

_PREFIX = "events.out.tfevents."


class EventWriter:
    """Appends scalars to a new event file in `folder`."""

    def __init__(self, folder: Path, first_step: int):
        """Open a new file; what earlier files say of `first_step` and later is void (TensorBoard leaves it out)."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_PREFIX}{_next_stamp(folder):010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, metrics: EpochMetrics) -> None:
        """Write the numbers of one epoch, and hand them to the operating system."""
        measured = {**metrics.to_json(), "effective_lr": metrics.effective_lr}
        scalars = {name: value for name, value in measured.items() if name != "epoch" and value is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=metrics.epoch, summary=Summary(value=values)))
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def _next_stamp(folder: Path) -> int:
    """The time in seconds, but later than that of every file in `folder`: TensorBoard reads them in this order."""
    stamps = [path.name.removeprefix(_PREFIX).split(".")[0] for path in folder.glob(f"{_PREFIX}*")]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
