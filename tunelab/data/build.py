"""Decoding a data set into files, once: one `.npy` pair per split in a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tunelab.config import DataConfig, derive_seed
from tunelab.data.raw import Found, Images, Meter, Progress, Raw, Rows, require_images
from tunelab.data.splits import cut
from tunelab.data.storage import NpyWriter, require_room, room_errors
from tunelab.files import read_json, sync_folder

DESCRIPTION = "decoded.json"
FORMAT = 1  # goes into the cache's key; raise it when the same data would be decoded differently
_TEST_SEED = derive_seed("test split")  # no option changes it, so that no other seed brings a test image into a search


@dataclass(frozen=True)
class Decoded:
    """What the folder of a decoded data set says about itself. `image_size` is (H, W); `sizes` are bytes per file.

    `rows` counts the images of each split's file: "train" and "test", and "val" where the data brings it.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    fingerprint: str
    rows: dict[str, int]
    sizes: dict[str, int]
    notes: tuple[str, ...]


def file_names(split: str) -> tuple[str, str]:
    """The files of a split: images uint8 (N, H, W, C), labels int64 (N,)."""
    return f"{split}_images.npy", f"{split}_labels.npy"


def read_description(folder: Path) -> Decoded | None:
    """What was decoded into `folder`, None where there is nothing that can be used."""
    try:
        plain = read_json(folder / DESCRIPTION)
        return Decoded(
            tuple(plain["classes"]), tuple(plain["image_size"]), plain["channels"], plain["fingerprint"],
            plain["rows"], plain["sizes"], tuple(plain["notes"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(found: Found, config: DataConfig, target: Path, progress: Progress | None) -> Decoded:
    """Decode what was found into the folder `target`, which must be locked and is replaced if it exists.

    Everything is written into a hidden folder beside it, which is then renamed; those of builds that died are removed.

    Raises:
        InputError: the images or labels cannot be used, a class is too small, or there is no room.
    """
    for dead in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(dead)
    hidden = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    hidden.mkdir(mode=0o700)
    try:
        with room_errors(target.parent):
            decoded = _decode(found, config, hidden, Meter(progress))
            text = json.dumps(asdict(decoded), indent=1)
            (hidden / DESCRIPTION).write_text(text)
            sync_folder(hidden)
        if target.exists():  # damaged, or it would have been used
            target.rename(target.parent / f".{target.name}-damaged-{secrets.token_hex(4)}")
        hidden.rename(target)
        sync_folder(target.parent)
    finally:
        for rest in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(rest, ignore_errors=True)
    return decoded


def _decode(found: Found, config: DataConfig, folder: Path, meter: Meter) -> Decoded:
    raw = found.read(meter)
    parts = _parts(raw, config)
    height, width = raw.image_size
    require_room(folder, sum(len(rows) for _, rows in parts.values()) * (height * width * raw.channels + 8))
    digests: list[list[str | int]] = []
    counted: dict[str, int] = {}
    for split, (images, rows) in parts.items():
        names = file_names(split)
        with (
            NpyWriter(folder / names[0], (height, width, raw.channels), np.dtype(np.uint8)) as pixel_file,
            NpyWriter(folder / names[1], (), np.dtype(np.int64)) as label_file,
        ):
            for pixels, kept in images.chunks(rows, meter):
                pixel_file.append(pixels)
                label_file.append(images.labels[kept])
            digests.append([split, pixel_file.rows, pixel_file.digest, label_file.digest])
            counted[split] = pixel_file.rows
        require_images(np.load(folder / names[1], allow_pickle=False), raw.classes, 1, split)
    notes = list(raw.notes)
    if raw.skipped:
        files = "file" if len(raw.skipped) == 1 else "files"
        notes.append(f"{len(raw.skipped)} unreadable {files} skipped, the first is {raw.skipped[0]}")
    content = json.dumps([raw.classes, raw.image_size, raw.channels, digests])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    return Decoded(raw.classes, raw.image_size, raw.channels, fingerprint, counted, sizes, tuple(notes))


def _parts(raw: Raw, config: DataConfig) -> Mapping[str, tuple[Images, Rows]]:
    """Per file to be written, the images it comes from and which of them; a missing test split is cut off."""
    train = raw.splits["train"]
    least = 1 + ("val" not in raw.splits) + ("test" not in raw.splits)
    for split, images in raw.splits.items():
        why = f" (one each for {'train, val, test' if least == 3 else 'train and the split cut from it'})"
        own = split == "train" and least > 1
        require_images(images.labels, raw.classes, least if own else 1, f"the {split} split", why if own else "")
    parts = {split: (images, np.arange(len(images.labels), dtype=np.int64)) for split, images in raw.splits.items()}
    if "test" not in raw.splits:
        mask = cut(train.labels, config.test_fraction, _TEST_SEED)
        parts["train"], parts["test"] = (train, np.flatnonzero(~mask)), (train, np.flatnonzero(mask))
    return parts
