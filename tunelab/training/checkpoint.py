"""The checkpoints of a trial: complete or absent, whatever kills the process, and never trusted unread.

`FOLDER/checkpoint/last.pt` is the state after the last epoch, `previous.pt` after the one before it, in case that the
last one is damaged, and `best.pt` after the one with the best score. They hold tensors, numbers and strings only, and
are read without running code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import math
import operator
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from tunelab.config import TrialConfig, arch_id, config_id
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError, TunelabError
from tunelab.files import make_private, sync_folder
from tunelab.models.network import build_network
from tunelab.records import EpochMetrics

FORMAT = 2
_READ = (1, FORMAT)
"""In format 1 the history is a list of dictionaries, which took 30 ms to write for each 2,000 epochs in it."""
LAST = "last.pt"
PREVIOUS = "previous.pt"
BEST = "best.pt"
_TEMPORARY = ".tmp"
_DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)  # what zipfile and torch.load were seen to raise, or are documented to raise, on a file with wrong bytes


class CheckpointError(TunelabError):
    """A checkpoint is damaged, or of another configuration; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after an epoch. `model`, `optimizer` and `scaler`, of float16, are state dictionaries.

    `averaged`, of `tunelab.training.averaging`, has that of the average of weights as `network`; it is what was
    evaluated then. It is empty where nothing is averaged.
    """

    config_id: str
    arch_id: str
    seed: int
    data: str
    history: list[EpochMetrics]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any] = field(default_factory=dict)
    averaged: Mapping[str, Any] = field(default_factory=dict)


def capture(
    config: TrialConfig,
    info: DataInfo,
    history: list[EpochMetrics],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Mapping[str, Any] | None = None,
    averaged: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The state of a training as it stands; the tensors are those of `model` and `optimizer`, not copies."""
    return Checkpoint(
        config_id=config_id(config),
        arch_id=arch_id(config.arch),
        seed=config.seed,
        data=info.fingerprint,
        history=list(history),
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler=scaler or {},
        averaged=averaged or {},
    )


def restore(
    checkpoint: Checkpoint,
    config: TrialConfig,
    info: DataInfo,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[EpochMetrics]:
    """Put the state in `checkpoint` into `model` and `optimizer`; its history.

    Raises:
        CheckpointError: it is of another configuration, seed or data, or does not fit. In the latter case `model` and
            `optimizer` may be changed already.
    """
    for name, found, wanted in (
        ("configuration", checkpoint.config_id, config_id(config)),
        ("seed", checkpoint.seed, config.seed),
        ("data", checkpoint.data, info.fingerprint),
    ):
        if found != wanted:
            raise CheckpointError(f"it is of another {name} ({found}, not {wanted})")
    try:
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(dict(checkpoint.optimizer))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"it does not fit the network: {str(error).splitlines()[-1].strip()}") from error
    return list(checkpoint.history)


def save(folder: Path, checkpoint: Checkpoint, *, best: bool, previous: bool = True) -> None:
    """Make `checkpoint` the last one in `folder`, and with `best` the best one too; see `write`.

    Raises:
        OSError: it could not be written (no room, say); the old last one is as it was.
    """
    content = to_bytes(checkpoint)
    write(folder, claim(folder), content, best=best, previous=previous)


def to_bytes(checkpoint: Checkpoint) -> io.BytesIO:
    """The content of a checkpoint's file, a copy of all tensors."""
    buffer = io.BytesIO()  # torch.save itself answers a full disk with errors of several kinds
    torch.save(_to_plain(checkpoint), buffer)
    return buffer


def claim(folder: Path) -> BinaryIO:
    """The file for `write`, empty; `remove_leftovers` waits until it is closed, and so does the next claim.

    Raises:
        OSError: it could not be made.
    """
    make_private(folder)
    path = folder / (LAST + _TEMPORARY)
    while True:
        file = path.open("ab")  # another process may be writing it: nothing is cut off before it is locked
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # no locks on this file system: nobody waits
            break
        if _is_named(file, path):
            if os.fstat(file.fileno()).st_nlink < 2:
                break
            path.unlink()  # it has become the best one already: whoever wrote it was killed there
        file.close()  # meanwhile it became a checkpoint, or was removed
    if os.fstat(file.fileno()).st_size:
        file.truncate(0)
    return file


def write(folder: Path, file: BinaryIO, content: io.BytesIO, *, best: bool, previous: bool = True) -> None:
    """Make `content` the last checkpoint in `folder`, and with `best` the best one too; closes `file`.

    The new file is complete on the disk before it takes the place of the old one. The best one is a second name of the
    same file where the file system has hard links, else a copy; it comes first, so that a process killed between the
    two repeats an epoch and does not forget a best one. Then the old last one becomes the previous one, by a second
    name too; without hard links it is renamed, and for a moment there is a previous one and no last one. All the names
    are put on the disk together.

    Args:
        folder: where the checkpoints are.
        file: from `claim`.
        content: from `to_bytes`.
        best: whether it is the best one so far.
        previous: whether the old last one is good, and becomes the previous one; else that stays as it is.

    Raises:
        OSError: it could not be written (no room, say); the old last one is as it was, if only as the previous one.
    """
    new, last = folder / (LAST + _TEMPORARY), folder / LAST
    with file:
        try:
            _write(file, content.getbuffer())
            if best:
                _name_best(new, folder / BEST)
            if previous:
                _name_previous(last, folder / PREVIOUS)
            new.replace(last)
            sync_folder(folder)
        except OSError:
            _remove_temporaries(folder)
            raise


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint in `path`, its tensors on `device`.

    Every byte is compared with its checksum first, because `torch.load` does not notice a changed one.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or not a checkpoint of tunelab.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {changed} is wrong")
        return _from_plain(torch.load(path, map_location=device, weights_only=True))
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error


def settle(folder: Path) -> None:
    """Return when no checkpoint is being written in `folder`, or at once where there are no locks."""
    with contextlib.suppress(OSError), (folder / (LAST + _TEMPORARY)).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`; what is still being written is waited for."""
    with contextlib.ExitStack() as stack:  # locked until it is gone, so that nobody begins to write it
        with contextlib.suppress(OSError):  # no such file, no locks
            file = stack.enter_context((folder / (LAST + _TEMPORARY)).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
        _remove_temporaries(folder)


def discard(folder: Path, *, previous_only: bool) -> bool:
    """Remove the checkpoints in `folder` of a training that has ended, or the previous one alone.

    Returns:
        False if one is being written; then all of them are there still.

    Raises:
        OSError: one cannot be removed.
    """
    if not folder.is_dir():
        return True
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / (LAST + _TEMPORARY)).open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no such file, no locks
            pass
        for name in (PREVIOUS,) if previous_only else (PREVIOUS, LAST, BEST):
            (folder / name).unlink(missing_ok=True)
        _remove_temporaries(folder)
    if not previous_only:
        with contextlib.suppress(OSError):  # it is gone, or holds what is not tunelab's
            folder.rmdir()
    return True


def load_model(config: TrialConfig, path: Path, info: DataInfo, device: torch.device | str = "cpu") -> nn.Module:
    """The trained network in the checkpoint `path`, in evaluation mode on `device`: the average, if there is one.

    Raises:
        InputError: there is no such file, or it holds another network than `config` describes.
        CheckpointError: the file is damaged.
    """
    try:
        checkpoint = load(path, device)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no checkpoint {path}; a search keeps those of its best trials alone (--keep-weights)"
        ) from error
    if checkpoint.arch_id != arch_id(config.arch):
        raise InputError(f"{path} holds the network {checkpoint.arch_id}, not {arch_id(config.arch)}")
    model = build_network(config.arch, info.channels, len(info.classes), info.image_size)
    try:
        model.load_state_dict(checkpoint.averaged.get("network", checkpoint.model))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} was not trained on images like these: {reason}") from error
    return model.to(device).eval()


def _to_plain(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "config_id": checkpoint.config_id,
        "arch_id": checkpoint.arch_id,
        "seed": checkpoint.seed,
        "data": checkpoint.data,
        "history": _history_to_plain(checkpoint.history),
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "scaler": dict(checkpoint.scaler),
        "averaged": dict(checkpoint.averaged),
    }


def _from_plain(plain: dict[str, Any]) -> Checkpoint:
    if plain["format"] not in _READ:
        raise ValueError(f"its format is {plain['format']}, this tunelab reads {' and '.join(map(str, _READ))}")
    listed = plain["format"] == 1
    history = [EpochMetrics(**epoch) for epoch in plain["history"]] if listed else _history_of(plain["history"])
    fields = {name: plain[name] for name in ("config_id", "arch_id", "seed", "data", "model", "optimizer")}
    later = {name: plain.get(name, {}) for name in ("scaler", "averaged")}  # older files lack them
    return Checkpoint(history=history, **fields, **later)


def _history_to_plain(history: Sequence[EpochMetrics]) -> dict[str, Any]:
    """The names of the numbers of an epoch, and a row of them for each; what was not measured is NaN."""
    names = [field.name for field in dataclasses.fields(EpochMetrics)]
    row = operator.attrgetter(*names)
    numbers = [math.nan if value is None else value for metrics in history for value in row(metrics)]
    return {"names": names, "numbers": torch.tensor(numbers, dtype=torch.float64).reshape(len(history), len(names))}


def _history_of(plain: Mapping[str, Any]) -> list[EpochMetrics]:
    names = plain["names"]
    rows = [[None if math.isnan(value) else value for value in row] for row in plain["numbers"].tolist()]
    epochs = [dict(zip(names, row, strict=True)) for row in rows]
    return [EpochMetrics(**{**numbers, "epoch": int(numbers["epoch"])}) for numbers in epochs]


def _is_named(file: BinaryIO, path: Path) -> bool:
    """True if `path` is the name of this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _name_best(source: Path, target: Path) -> None:
    new = target.with_name(target.name + _TEMPORARY)
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(source)
    except OSError:  # no hard links on this file system
        with new.open("wb") as file:
            _write(file, source.read_bytes())
    new.replace(target)


def _name_previous(source: Path, target: Path) -> None:
    new = target.with_name(target.name + _TEMPORARY)
    new.unlink(missing_ok=True)
    if not source.exists():  # the first epoch, or somebody removed it
        return
    try:
        new.hardlink_to(source)
    except OSError:  # no hard links on this file system
        source.replace(target)
    else:
        new.replace(target)
        new.unlink(missing_ok=True)  # two names of one file stay two: it was killed here and went on from that file


def _remove_temporaries(folder: Path) -> None:
    for path in folder.glob(f"*{_TEMPORARY}"):
        path.unlink(missing_ok=True)
