"""Images decoded once per machine into memory-mapped files that all processes share, and what is known about them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunelab.config import DataConfig
from tunelab.data.build import FORMAT, Decoded, build, file_names, read_description
from tunelab.data.datasets import find_dataset
from tunelab.data.raw import Found, Pixels, Progress, Rows
from tunelab.data.splits import STATS_VERSION, Division, channel_stats, divide
from tunelab.data.storage import NpyReader, exclusive, room_errors
from tunelab.files import cache_root, make_private, write_atomically

AS_THEY_ARE = (0.0, 1 / 255)
"""The mean and the deviation with which normalised pixels are what they were before, 0 to 255."""


@dataclass(frozen=True)
class DataInfo:
    """What a network and a study need to know of a data set.

    `image_size` is (H, W). `counts` are the images in "train", "val" and "test" as the config divides them ("val" is 0
    where it is trained on). `fingerprint` is the first 16 hex digits of a sha256 over class names, image shape and the
    decoded images and labels of all splits, the test split included: equal fingerprints mean equal data and equal test.
    `mean` and `std` are per channel, of the training images without val, scaled to [0, 1]; or `AS_THEY_ARE`.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    classes: tuple[str, ...]
    counts: dict[str, int]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


@dataclass(frozen=True)
class Cached:
    """A decoded data set on the disk, and the division of its train file."""

    folder: Path
    decoded: Decoded
    division: Division
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str

    def images(self, split: str) -> Pixels:
        """The images of a split's file, uint8 (N, H, W, C), memory-mapped; writing to them changes no file."""
        mapped: Pixels = np.load(self.image_file(split), mmap_mode="c", allow_pickle=False)
        return mapped

    def image_file(self, split: str) -> Path:
        """The file of a split's images."""
        return self.folder / file_names(split)[0]

    def labels(self, split: str) -> Rows:
        """The labels of a split's file, int64 (N,)."""
        loaded: Rows = np.load(self.folder / file_names(split)[1], allow_pickle=False)
        return loaded


_opened: dict[tuple[DataConfig, Path, Path], Cached] = {}  # so that a trial looks through the source's files once


def prepare(config: DataConfig, progress: Progress | None = None) -> DataInfo:
    """Decode the data set into the cache, unless it is there, and say what is known about it.

    Several processes may call this at once: one decodes, the others wait. `progress(done, total)` counts images while
    they are decoded. Where to: `tunelab.files.cache_root`.

    Raises:
        InputError: the data set is unknown, missing, damaged or too small, or there is no room to decode it.
        TunelabError: a download failed, or there is no folder that can be written.
    """
    cached = _open(config, progress)
    rows = cached.decoded.rows
    own_val = rows.get("val", 0)
    train, val = len(cached.division.train), own_val if cached.division.val is None else len(cached.division.val)
    if config.train_on == "train+val":
        train, val = train + val, 0
    mean, std = (
        (cached.mean, cached.std) if config.normalise else [(part,) * cached.decoded.channels for part in AS_THEY_ARE]
    )
    return DataInfo(
        name=config.name,
        image_size=cached.decoded.image_size,
        channels=cached.decoded.channels,
        classes=cached.decoded.classes,
        counts={"train": train, "val": val, "test": rows["test"]},
        fingerprint=cached.decoded.fingerprint,
        mean=mean,
        std=std,
        notes=(*cached.decoded.notes, *([cached.note] if cached.note else [])),
    )


def opened(config: DataConfig, split: str) -> Cached:
    """The cache of a data set: what this process prepared last, if the files of `split` are whole, else made now."""
    cached = _opened.get(_process_key(config))
    if cached is None or not _whole(cached.folder, cached.decoded, split):
        cached = _open(config, None, also=split)
    return cached


def known(config: DataConfig) -> tuple[Path, Decoded] | None:
    """Where a data set is decoded and what of it, None where it is not decoded yet: nothing is made.

    Raises:
        InputError: the data set is unknown, missing or damaged.
        TunelabError: there is no folder for the cache.
    """
    folder = cache_root()[0] / "data" / _folder_name(find_dataset(config), config)
    decoded = _usable(folder, "test")
    return None if decoded is None else (folder, decoded)


def decoded_images(config: DataConfig, split: str) -> Pixels | None:
    """The images of a split's file as `Cached.images`, None where they are not decoded yet: nothing is made.

    Raises:
        InputError: the data set is unknown, missing or damaged.
        TunelabError: there is no folder for the cache.
    """
    folder = cache_root()[0] / "data" / _folder_name(find_dataset(config), config)
    decoded = _usable(folder, split)
    if decoded is None or split not in decoded.rows:
        return None
    mapped: Pixels = np.load(folder / file_names(split)[0], mmap_mode="r", allow_pickle=False)
    return mapped


def _process_key(config: DataConfig) -> tuple[DataConfig, Path, Path]:
    return config, cache_root()[0], Path.cwd()


def _open(config: DataConfig, progress: Progress | None, also: str = "train") -> Cached:
    root, note = cache_root()
    found = find_dataset(config)
    folder = root / "data" / _folder_name(found, config)
    make_private(folder.parent)
    decoded = _usable(folder, also)
    if decoded is None:
        with room_errors(root), exclusive(folder.parent / f"{folder.name}.lock"):
            decoded = _usable(folder, also) or build(found, config, folder, progress)
    cached = _divided(folder, decoded, config, note)
    _opened[_process_key(config)] = cached
    return cached


def _folder_name(found: Found, config: DataConfig) -> str:
    key = {"format": FORMAT, "kind": config.name.partition(":")[0], "image_size": config.image_size, **found.key}
    if "test" not in found.splits:
        key["test_fraction"] = config.test_fraction
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    readable = re.sub(r"[^a-z0-9]+", "-", config.name.lower())[-40:].strip("-")
    return f"{readable}-{digest}"


def _usable(folder: Path, also: str) -> Decoded | None:
    """What is in the cache, if the files for a search are whole, and those of the split `also`. Nothing is opened."""
    decoded = read_description(folder)
    if decoded is None:
        return None
    needed = ({"train", "val"} & set(decoded.rows)) | {also if also in decoded.rows else "train"}
    return decoded if all(_whole(folder, decoded, split) for split in needed) else None


def _whole(folder: Path, decoded: Decoded, split: str) -> bool:
    names = file_names(split if split in decoded.rows else "train")
    try:
        return all((folder / name).stat().st_size == decoded.sizes[name] for name in names)
    except FileNotFoundError:
        return False


def _divided(folder: Path, decoded: Decoded, config: DataConfig, note: str) -> Cached:
    """The cache with its division, which is made once per set of options and kept beside the images."""
    has_val = "val" in decoded.rows
    key = [STATS_VERSION, config.limit_train, *([] if has_val else [config.val_fraction]), config.split_seed]
    file = folder / f"split-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as kept:
            division = Division(kept["train"], kept.get("val"))
            return Cached(folder, decoded, division, tuple(kept["mean"].tolist()), tuple(kept["std"].tolist()), note)
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        pass  # not there yet, or damaged: made below
    cached = Cached(folder, decoded, Division(np.arange(0), None), (), (), note)
    division = divide(cached.labels("train"), decoded.classes, has_val, config)
    mean, std = channel_stats(NpyReader([cached.image_file("train")]), division.train)
    val = {} if division.val is None else {"val": division.val}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, train=division.train, mean=np.array(mean), std=np.array(std), **val)
    with room_errors(folder):
        write_atomically(file, buffer.getvalue())
    return Cached(folder, decoded, division, mean, std, note)
