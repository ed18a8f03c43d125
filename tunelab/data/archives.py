"""Data in one numpy archive: `npz:PATH`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from tunelab.config import DataConfig
from tunelab.data.raw import Found, Meter, Pixels, Raw, Rows, raw_from_arrays
from tunelab.errors import InputError

# Per layout, the keys of each split's images and labels. The second is MedMNIST's, the third that of Keras.
_LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {"train": ("images", "labels")},
    {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")},
    {split: (f"x_{split}", f"y_{split}") for split in ("train", "val", "test")},
)
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
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{file} is not a numpy archive that can be read ({error})") from error


def _layout(file: Path, keys: set[str]) -> dict[str, tuple[str, str]]:
    found = [layout for layout in _LAYOUTS if keys.intersection(layout["train"])]
    if len(found) != 1:
        state = "more than one" if found else "none"
        names = ", ".join(sorted(keys)) or "nothing"
        raise InputError(f"{file} must have one of: {_LAYOUTS_TEXT}; it has {state} (it holds {names})")
    layout = {split: pair for split, pair in found[0].items() if keys.intersection(pair)}
    for pair in layout.values():
        for key in pair:
            if key not in keys:
                raise InputError(f"{file} has {(set(pair) - {key}).pop()} but no {key}")
    return layout


def _read(
    file: Path, layout: dict[str, tuple[str, str]], has_classes: bool, image_size: int | None, meter: Meter
) -> Raw:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {split: _split(file, archive, pair) for split, pair in layout.items()}
            names = _array(file, archive, "classes") if has_classes else None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    shapes = {pixels.shape[1:] for pixels, _ in arrays.values()}
    if len(shapes) > 1:
        raise InputError(f"{file}: the splits have images of different shapes: {', '.join(map(str, sorted(shapes)))}")
    highest = max(int(labels.max()) for _, labels in arrays.values())
    if highest >= len(arrays["train"][1]):  # also keeps a stray huge label from asking for as much memory
        raise InputError(f"{file}: labels must number the classes 0, 1, 2, ...; there is a {highest}")
    return raw_from_arrays(_classes(file, names, highest), arrays, image_size, meter)


def _array(file: Path, archive: NpzFile, key: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(archive[key])
    except (ValueError, SyntaxError) as error:  # an object array, which only a pickle can hold, or a broken header
        raise InputError(f"{file}: {key} cannot be read ({error})") from error


def _split(file: Path, archive: NpzFile, pair: tuple[str, str]) -> tuple[Pixels, Rows]:
    images, labels = (_array(file, archive, key) for key in pair)
    if images.dtype != np.uint8:
        raise InputError(f"{file}: {pair[0]} must be uint8 (0 to 255), not {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[3] <= 4 or 0 in images.shape:
        raise InputError(f"{file}: {pair[0]} must be (N, H, W) or (N, H, W, C) with C from 1 to 4, not {images.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{file}: {pair[1]} must be integers from 0, not {labels.dtype}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise InputError(f"{file}: {pair[1]} must be ({len(images)},), one per image, not {labels.shape}")
    if labels.min() < 0:
        raise InputError(f"{file}: {pair[1]} must number the classes 0, 1, 2, ...; it has {labels.min()}")
    return images, labels.astype(np.int64)


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
