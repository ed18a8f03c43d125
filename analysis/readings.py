"""When the test images of a study were read: each reading is on the disk before it is made, so that none is forgotten.

`test_reads.jsonl` in the study has one line for each. A choice among trainings by their test accuracies is biased, so
later readings say how many there were before.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import InputError, TunelabError
from tunelab.files import read_file, read_json, sync_folder
from tunelab.study import Study

FILE = "test_reads.jsonl"
_MOST_BYTES = 16 * 2**20  # of the file: a reading has 150 bytes; our choice
_NAMED = 5  # so many readings are told one by one; our choice


def record(study: Study, folder: Path, trial: int, trainings: int) -> dict[str, Any]:
    """Puts down that the test images are going to be read now; what was written is on the disk when this returns.

    Args:
        study: whose test images they are.
        folder: of the trainings that are scored, inside the study.
        trial: the number of the trial that was trained in full.
        trainings: how many are scored.

    Raises:
        TunelabError: it cannot be written; the test images must not be read then.
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    reading = {"time": now, "folder": folder.name, "trial": trial, "trainings": trainings}
    path = study.path / FILE
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o600)
        try:
            size = os.fstat(handle).st_size
            torn = size and os.pread(handle, 1, size - 1) != b"\n"  # its process was killed before it read anything
            os.write(handle, (b"\n" if torn else b"") + json.dumps(reading).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(study.path)
    except OSError as error:
        raise TunelabError(f"{path} cannot be written, so the test images are not read: {error.strerror}") from error
    return reading


def earlier(study: Study) -> list[dict[str, Any]]:
    """The readings so far, oldest first, as `record` wrote them.

    A retraining from before there was a record of them counts by its `metrics.json`: with the time of that file.
    """
    recorded = list(_recorded(study.path / FILE))
    known = {reading["folder"] for reading in recorded}
    older = [_from_metrics(file) for file in study.path.glob("retrain-*/metrics.json") if file.parent.name not in known]
    return sorted([*older, *recorded], key=lambda reading: datetime.datetime.fromisoformat(reading["time"]))


def count_trainings(readings: Sequence[Mapping[str, Any]]) -> int:
    """How many trainings were scored on the test images in these readings."""
    return sum(int(reading["trainings"]) for reading in readings)


def describe(readings: Sequence[Mapping[str, Any]]) -> str:
    """How often, when and of which trials the test images were read, in one sentence; "" if they were not."""
    if not readings:
        return ""
    named = [
        f"{str(reading['time']).replace('T', ' ')[:16]} (trial {reading['trial']}, {_trainings(reading['trainings'])})"
        for reading in readings[-_NAMED:]
    ]
    more = [f"{len(readings) - _NAMED} earlier ones"] if len(readings) > _NAMED else []
    times = "once" if len(readings) == 1 else f"{len(readings)} times"
    return f"the test images of this study had been read {times} before: {', '.join([*more, *named])}"


def _trainings(number: int) -> str:
    return "1 training" if number == 1 else f"{number} trainings"


def _recorded(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; one that is torn was of a process that was killed before it read anything."""
    try:
        content = read_file(path, _MOST_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for line in content.splitlines():
        reading = _parsed(line)
        if reading is not None:
            yield reading


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        reading = json.loads(line)
        zone = datetime.datetime.fromisoformat(reading["time"]).tzinfo
        whole = type(reading["trainings"]) is int and type(reading["trial"]) is int
        known = zone is not None and whole and isinstance(reading["folder"], str)
        return {name: reading[name] for name in ("time", "folder", "trial", "trainings")} if known else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _from_metrics(file: Path) -> dict[str, Any]:
    made = datetime.datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    try:
        metrics = read_json(file)
        trial, trainings = metrics["trial"], len(metrics["seeds"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged: that there was a reading is all that is known
        trial, trainings = "unknown", 1
    return {"time": made, "folder": file.parent.name, "trial": trial, "trainings": trainings}
