"""A data set that a search is to use: whether it opens, how many images it has, whether they are decoded already."""

from __future__ import annotations

import shutil

import numpy as np

from tunelab.capacity import describe_size
from tunelab.config import DataConfig
from tunelab.data.cache import known
from tunelab.data.datasets import find_dataset
from tunelab.data.raw import Meter
from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.errors import InputError, TunelabError
from tunelab.files import cache_root


def find_data(name: str, data_dir: str | None = None) -> list[MachineFinding]:
    """Whether a data set opens, and what a search would still have to do to it. Nothing is decoded or downloaded."""
    about = f"data {name}"
    try:
        config = DataConfig(name=name, data_dir=data_dir)
        found = known(config)
        if found is not None:
            folder, decoded = found
            size = sum(decoded.sizes.values())
            said = f"{_count(decoded.rows)}, decoded in {folder} ({describe_size(size)})"
            return [ok(about, said)]
        raw = find_dataset(config).read(Meter(None))
    except InputError as wrong:
        said, _, mend = str(wrong).partition("; ")
        return [error(about, said, mend or "name a data set, folder:PATH or npz:PATH with --data")]
    except TunelabError as wrong:
        return [error(about, str(wrong), "export TUNELAB_CACHE=/a/folder/with/room")]
    rows = {split: len(images.labels) for split, images in raw.splits.items()}
    height, width = raw.image_size
    size = sum(rows.values()) * height * width * raw.channels
    free = shutil.disk_usage(cache_root()[0]).free
    said = f"{_count(rows)} of {height}x{width} in {len(raw.classes)} classes, not decoded yet ({describe_size(size)})"
    if size > free:
        said += f"; the cache has room for {describe_size(free)}"
        return [error(about, said, "export TUNELAB_CACHE=/a/folder/with/room, or a smaller --image-size")]
    smallest = min(np.bincount(raw.splits["train"].labels, minlength=len(raw.classes)))
    if smallest < 10:
        mend = "add images, or leave the class out; no accuracy of it can be believed"
        return [warning(about, f"{said}; the smallest class has {smallest} training images", mend)]
    return [ok(about, said)]


def _count(rows: dict[str, int]) -> str:
    parts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    return f"{sum(rows.values()):,} images ({parts})"
