"""Data in one numpy archive: `npz:PATH`."""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tunelab.capacity import free_memory_mib
from tunelab.config import DataConfig
from tunelab.data.raw import (
    CHUNK_BYTES,
    ArrayImages,
    Found,
    Images,
    Meter,
    Pixels,
    Raw,
    Rows,
    chunk_length,
    resize_all,
    size_of,
)  # fmt: skip
from tunelab.errors import InputError, brief

# Per layout, the keys of each split's images and labels. The second is MedMNIST's, the third that of Keras.
_LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {"train": ("images", "labels")},
    {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")},
    {split: (f"x_{split}", f"y_{split}") for split in ("train", "val", "test")},
)
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)
_MOST_IMAGES = 100_000_000
"""In an archive, at most: their labels alone take 800 MB (our choice)."""
_LARGEST_SIDE = 16_384
"""Pixels; 1 GB of memory for one image in four channels (our choice)."""
_MOST_NAMES = 64 * 2**20  # bytes of the names of classes; our choice
_LONGEST_HEAD = 10_000  # bytes; numpy's own limit, which it looks at when it has read them
_LAYOUTS_TEXT = "images and labels, or train_images and train_labels, or x_train and y_train"


def find(config: DataConfig, path: str) -> Found:
    """The numpy archive at `path`; it is never unpickled.

    Raises:
        InputError: there is no such file, it is no archive, or its keys are not those of images and labels.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise InputError(f"there is no file {file} (data set {config.name!r})")
    keys = _keys(file)
    layout = _layout(file, keys)
    stat = file.stat()
    key = {"path": str(file), "bytes": stat.st_size, "mtime": stat.st_mtime_ns}
    return Found(key, tuple(layout), lambda meter: _read(file, layout, "classes" in keys, config.image_size, meter))


def _keys(file: Path) -> set[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (*_DAMAGE, ValueError) as error:
        raise InputError(f"{file} is not a numpy archive that can be read ({error})") from error


def _layout(file: Path, keys: set[str]) -> dict[str, tuple[str, str]]:
    found = [layout for layout in _LAYOUTS if keys.intersection(layout["train"])]
    if len(found) != 1:
        state = "more than one" if found else "none"
        names = brief(", ".join(sorted(keys)) or "nothing")
        raise InputError(f"{file} must have one of: {_LAYOUTS_TEXT}; it has {state} (it holds {names})")
    layout = {split: pair for split, pair in found[0].items() if keys.intersection(pair)}
    for pair in layout.values():
        for key in pair:
            if key not in keys:
                raise InputError(f"{file} has {(set(pair) - {key}).pop()} but no {key}")
    return layout


@dataclass(frozen=True)
class ArchiveImages:
    """Images that are a member of an archive, uint8 of `shape` (N, H, W, C), read from its begin on when asked for.

    They are never in memory all together. Where their size is not `size` (H, W), they are resized on the way out.
    """

    file: Path
    member: str
    shape: tuple[int, ...]
    labels: Rows
    size: tuple[int, int]

    def chunks(self, rows: Rows, meter: Meter) -> Iterator[tuple[Pixels, Rows]]:
        """As `Images.chunks`; the rows must ascend.

        Raises:
            InputError: the archive is damaged.
        """
        stored = (self.shape[1], self.shape[2])
        step = min(chunk_length(stored, self.shape[3]), chunk_length(self.size, self.shape[3]))
        row_bytes, at = math.prod(self.shape[1:]), 0
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as stream:
                _read_head(stream)
                for start in range(0, len(rows), step):
                    some = rows[start : start + step]
                    pixels = np.empty((len(some), *self.shape[1:]), dtype=np.uint8)
                    for place, row in enumerate(some.tolist()):
                        _skip(stream, (row - at) * row_bytes)
                        pixels[place].reshape(-1)[:] = np.frombuffer(_exactly(stream, row_bytes), dtype=np.uint8)
                        at = row + 1
                    meter.advance(len(some))
                    yield resize_all(pixels, self.size), some
                _skip(stream, (self.shape[0] - at) * row_bytes)  # at its end the checksum of the whole is compared
        except _DAMAGE as error:
            raise InputError(f"{self.file} is damaged ({type(error).__name__}: {error})") from error


def _skip(stream: IO[bytes], size: int) -> None:
    while size:
        size -= len(_exactly(stream, min(size, CHUNK_BYTES)))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it ends too early")
    return content


def _read_head(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and type of the array that comes."""
    version = np.lib.format.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    length = _exactly(stream, width)
    if int.from_bytes(length, "little") > _LONGEST_HEAD:
        raise ValueError(f"its head has {int.from_bytes(length, 'little'):,} bytes")
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    head: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(
        io.BytesIO(length + _exactly(stream, int.from_bytes(length, "little")))
    )
    if not all(type(side) is int and side >= 0 for side in head[0]):
        raise ValueError(f"its shape is {head[0]}")
    return head


@dataclass(frozen=True)
class _Part:
    """The images of a split as they lie in an archive, and their labels. `whole`: they are in memory."""

    member: str
    shape: tuple[int, ...]
    labels: Rows
    whole: Pixels | None

    def images(self, file: Path, size: tuple[int, int]) -> Images:
        if self.whole is not None:
            return ArrayImages(self.whole, self.labels, size)
        return ArchiveImages(file, self.member, self.shape, self.labels, size)


def _read(
    file: Path, layout: dict[str, tuple[str, str]], has_classes: bool, image_size: int | None, meter: Meter
) -> Raw:
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {split: _split(file, archive, pair) for split, pair in layout.items()}
            names = _array(file, archive, "classes", _MOST_NAMES) if has_classes else None
    except _DAMAGE as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    shapes = {part.shape[1:] for part in parts.values()}
    if len(shapes) > 1:
        raise InputError(f"{file}: the splits have images of different shapes: {', '.join(map(str, sorted(shapes)))}")
    highest = max(int(part.labels.max()) for part in parts.values())
    if highest >= len(parts["train"].labels):  # also keeps a stray huge label from asking for as much memory
        raise InputError(f"{file}: labels must number the classes 0, 1, 2, ...; there is a {highest}")
    classes = _classes(file, names, highest)
    height, width, channels = parts["train"].shape[1:]
    size, notes = size_of((height, width), image_size)
    meter.start(sum(len(part.labels) for part in parts.values()))
    return Raw(classes, size, channels, {split: part.images(file, size) for split, part in parts.items()}, notes)


def _array(file: Path, archive: zipfile.ZipFile, key: str, most: int) -> np.ndarray[Any, Any]:
    """A member whole, if it takes at most so many bytes; it is never unpickled."""
    shape, _, dtype, begin = _head_of(file, archive, key)
    needed = math.prod(shape) * dtype.itemsize
    if needed > most:
        raise InputError(f"{file}: {key} takes {needed:,} bytes; it can take {most:,}")
    if archive.getinfo(_member(archive, key)).file_size < begin + needed:
        raise EOFError(f"{key} ends too early")
    try:
        with archive.open(_member(archive, key)) as stream:
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
    except (ValueError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(f"{file}: {key} cannot be read ({error})") from error


def _member(archive: zipfile.ZipFile, key: str) -> str:
    return f"{key}.npy" if f"{key}.npy" in archive.namelist() else key


def _head_of(file: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order and type of a member, and where its values begin."""
    try:
        with archive.open(_member(archive, key)) as stream:
            shape, in_fortran_order, dtype = _read_head(stream)
            begin = stream.tell()
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{file}: {key} cannot be read ({error})") from error
    if dtype.hasobject:
        raise InputError(f"{file}: {key} cannot be read (it holds Python objects)")
    return shape, in_fortran_order, dtype, begin


def _split(file: Path, archive: zipfile.ZipFile, pair: tuple[str, str]) -> _Part:
    shape, in_fortran_order, dtype, begin = _head_of(file, archive, pair[0])
    if dtype != np.uint8:
        raise InputError(f"{file}: {pair[0]} must be uint8 (0 to 255), not {dtype}")
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or not 1 <= shape[3] <= 4 or 0 in shape:
        raise InputError(f"{file}: {pair[0]} must be (N, H, W) or (N, H, W, C) with C from 1 to 4, not {shape}")
    if max(shape[1:3]) > _LARGEST_SIDE or shape[0] > _MOST_IMAGES:
        raise InputError(
            f"{file}: {pair[0]} is {shape}; allowed are {_MOST_IMAGES:,} images of {_LARGEST_SIDE}x{_LARGEST_SIDE}"
        )
    member = _member(archive, pair[0])
    if archive.getinfo(member).file_size < begin + math.prod(shape):
        raise EOFError(f"{pair[0]} ends too early")
    # In that order the parts of an image lie all over the array.
    free = int(free_memory_mib() * 2**20 / 2)
    whole = _array(file, archive, pair[0], free).reshape(shape) if in_fortran_order else None
    return _Part(member, shape, _labels(file, archive, pair, shape[0]), whole)


def _labels(file: Path, archive: zipfile.ZipFile, pair: tuple[str, str], images: int) -> Rows:
    shape = _head_of(file, archive, pair[1])[0]
    if shape not in ((images,), (images, 1)):
        raise InputError(f"{file}: {pair[1]} must be ({images},), one per image, not {shape}")
    labels = _array(file, archive, pair[1], 64 + 16 * images)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{file}: {pair[1]} must be integers from 0, not {labels.dtype}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.min() < 0:
        raise InputError(f"{file}: {pair[1]} must number the classes 0, 1, 2, ...; it has {labels.min()}")
    found: Rows = labels.astype(np.int64)
    return found


def _classes(file: Path, names: np.ndarray[Any, Any] | None, highest: int) -> tuple[str, ...]:
    if names is None:
        classes = tuple(str(number) for number in range(highest + 1))
    elif names.ndim == 1 and names.dtype.kind in "US":
        classes = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
    else:
        raise InputError(f"{file}: classes must be one row of names, not {names.dtype} {names.shape}")
    if highest >= len(classes):
        raise InputError(f"{file}: a label is {highest}, but classes has {len(classes)} names")
    if len(set(classes)) < len(classes):
        raise InputError(f"{file}: classes has a name twice")
    if len(classes) < 2:
        raise InputError(f"{file} has a single class; at least 2 are needed")
    return classes
