"""The TensorBoard events of a trial: a scalar for each field of `EpochMetrics` and epoch, as `SECTION/field`.

Events are written with tensorboard's record writer: unlike its SummaryWriter and torch's, it starts no thread for each
trial, and never imports TensorFlow where that is installed.

In a folder there may be several files, one for each start of the training. TensorBoard reads them in the order of the
times in their names, and one that begins with a SessionLog voids what those before it say of its step and later.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from tunelab.files import make_private
from tunelab.records import EpochMetrics

SCALAR_EPOCHS = 1000
"""Of about so many epochs the scalars are written: as many as TensorBoard shows of a curve (`--samples_per_plugin`)."""

SECTIONS = {
    "accuracy": ("train_accuracy", "val_accuracy"),
    "loss": ("train_loss", "val_loss"),
    "optimisation": ("lr", "effective_lr", "weight_norm", "grad_norm", "update_ratio"),
    "speed": ("seconds", "images_per_second", "peak_memory_mib"),
}
"""The numbers of `EpochMetrics` that TensorBoard shows together. What a trial is judged by comes first in its order,
which is the alphabet's: its table shows the first five fields unless it is told otherwise."""

_TAGS = {field: f"{section}/{field}" for section, fields in SECTIONS.items() for field in fields}
_PREFIX = "events.out.tfevents."
_MARK = _TAGS["train_loss"]  # what each epoch has a scalar of
_HEADER, _CHECK = struct.Struct("<QI"), 4  # of a record: its length and a checksum before it, a checksum after it


def is_shown(epoch: int, epochs: int, most: int) -> bool:
    """True if `epoch` is one of those that are shown of a training of `epochs`.

    They are the multiples of a number that leaves at most `most` of them, the powers of 2 and the last: at most `most`
    + log2(epochs) + 2. With `most` 0 the powers of 2 and the last.
    """
    if epoch >= epochs or epoch & (epoch - 1) == 0:
        return True
    return most > 0 and epoch % -(-epochs // most) == 0


class EventWriter:
    """Appends events to a new file in `folder`; each call hands them to the operating system.

    Every method raises an OSError where the disk is full, say.
    """

    def __init__(self, folder: Path, first_step: int):
        """Open a new file; what earlier files say of `first_step` and later is void (TensorBoard leaves it out)."""
        make_private(folder)
        self._file = (folder / _file_name(folder)).open("ab")
        self._records = RecordWriter(self._file)
        self._records.write(_version().SerializeToString())
        log = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=first_step, session_log=log))

    def write(self, metrics: EpochMetrics) -> None:
        """Write the numbers of one epoch."""
        measured = {**metrics.to_json(), "effective_lr": metrics.effective_lr}
        found = {tag: measured[field] for field, tag in _TAGS.items() if measured.get(field) is not None}
        self.add(metrics.epoch, [Summary.Value(tag=tag, simple_value=value) for tag, value in found.items()])

    def add(self, step: int, values: Sequence[Summary.Value]) -> None:
        """Write summaries of one step."""
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def add_graph(self, graph: GraphDef) -> None:
        """Write the graph of a network."""
        self._write(Event(wall_time=time.time(), graph_def=graph.SerializeToString()))

    def close(self) -> None:
        """Close the file, also where what is left cannot be written."""
        try:
            self._records.close()
        finally:
            with contextlib.suppress(OSError):
                self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


def write_aside(folder: Path, kind: str, values: Iterable[Summary.Value]) -> None:
    """Writes summaries of step 0 into a file of their own, which ends with `.kind` and is there whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    make_private(folder)
    content = io.BytesIO()
    records = RecordWriter(content)
    records.write(_version().SerializeToString())
    records.write(Event(wall_time=time.time(), summary=Summary(value=values)).SerializeToString())
    path = folder / f"{_file_name(folder)}.{kind}"
    temporary = folder / f".{kind}.tmp"  # no name that TensorBoard would read
    temporary.write_bytes(content.getvalue())
    temporary.replace(path)


def has_aside(folder: Path, kind: str) -> bool:
    """True if `write_aside` has written a file of this kind."""
    return any(folder.glob(f"{_PREFIX}*.{kind}"))


def recorded_epochs(folder: Path) -> set[int]:
    """The epochs whose scalars TensorBoard finds in `folder`; of a file that is damaged, those before the damage."""
    found: set[int] = set()
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        for event in _events(path):
            if event.session_log.status == SessionLog.START:
                found = {epoch for epoch in found if epoch < event.step}
            if any(value.tag == _MARK for value in event.summary.value):
                found.add(event.step)
    return found


def bytes_in(folder: Path) -> int:
    """The bytes of all event files in `folder`."""
    return sum(path.stat().st_size for path in folder.glob(f"{_PREFIX}*"))


def _events(path: Path) -> Iterator[Event]:
    """The events of a file, as far as it is whole; the checksums are not looked at."""
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            content = file.read(length)
            if len(content) < length or len(file.read(_CHECK)) < _CHECK:
                return
            try:
                yield Event.FromString(content)
            except ValueError:  # protobuf's DecodeError is one
                return


def _version() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _file_name(folder: Path) -> str:
    """A name with the time in seconds, later than that of every file in `folder`."""
    stamps = [path.name.removeprefix(_PREFIX).split(".")[0] for path in folder.glob(f"{_PREFIX}*")]
    stamp = max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
    return f"{_PREFIX}{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
