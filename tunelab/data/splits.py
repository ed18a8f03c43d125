"""Stratified division: which images are for training, for validation and for the test. Plain numpy on labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunelab.config import DataConfig, derive_seed
from tunelab.data.raw import CHUNK_BYTES, Rows, require_images
from tunelab.data.storage import NpyReader
from tunelab.errors import InputError

STATS_VERSION = 1  # goes into the name of a kept division; raise it when divide or channel_stats change
VAL_AT_LEAST = 2000  # the cap on a cut-off validation set never goes below this; our choice
STD_FLOOR = 1 / 255  # one step of grey: a constant channel becomes 0 instead of infinite; our choice


@dataclass(frozen=True)
class Division:
    """Rows of the decoded train file: int64 (n,), ascending. `val` is None where the data brings its own."""

    train: Rows
    val: Rows | None


def shares(counts: Rows, total: int, most: Rows) -> Rows:
    """`total` divided over the classes in proportion to `counts`, each at least 1 and at most `most`.

    Largest remainders get what rounding leaves. `total` must lie between the number of classes and `most.sum()`.
    """
    assert len(counts) <= total <= most.sum()
    exact = counts * (total / counts.sum())
    parts: Rows = np.clip(np.floor(exact).astype(np.int64), 1, most)
    while parts.sum() < total:
        parts[np.argmax(np.where(parts < most, exact - parts, -np.inf))] += 1
    while parts.sum() > total:
        parts[np.argmin(np.where(parts > 1, exact - parts, np.inf))] -= 1
    return parts


def pick(labels: Rows, parts: Rows, seed: int) -> NDArray[np.bool_]:
    """A mask (N,) with `parts[c]` random images of each class c. More parts with one seed give a superset."""
    mask = np.zeros(len(labels), dtype=np.bool_)
    for number, part in enumerate(parts):
        of_class = np.flatnonzero(labels == number)
        mask[np.random.default_rng([seed, number]).permutation(of_class)[:part]] = True
    return mask


def cut(labels: Rows, fraction: float, seed: int) -> NDArray[np.bool_]:
    """A stratified mask (N,) of `fraction` of the images: of each class at least one in and one out.

    Every class must have two images.
    """
    counts = np.bincount(labels)
    wanted = min(max(round(fraction * len(labels)), len(counts)), len(labels) - len(counts))
    return pick(labels, shares(counts, wanted, counts - 1), seed)


def divide(labels: Rows, classes: tuple[str, ...], has_val: bool, config: DataConfig) -> Division:
    """Divide the rows of the train file, whose labels (N,) are given, as `config` says.

    Validation images are cut off first, so that `limit_train` does not decide which images can be in which part. With
    `limit_train`, a validation set that was cut off keeps at most max(2000, limit_train * val_fraction /
    (1 - val_fraction)) images (our choice: one much larger than the training set takes the time that it should save).

    Raises:
        InputError: a class is too small, or `limit_train` is less than the number of classes.
    """
    train = np.arange(len(labels), dtype=np.int64)
    val: Rows | None = None
    if not has_val:
        require_images(labels, classes, 2, "train", " (one for train, one for val)")
        mask = cut(labels, config.val_fraction, derive_seed(config.split_seed, "val"))
        train, val = np.flatnonzero(~mask), np.flatnonzero(mask)
    if config.limit_train is None:
        return Division(train, val)
    if config.limit_train < len(classes):
        raise InputError(f"limit_train {config.limit_train} is too small: {len(classes)} classes need an image each")
    if val is not None:
        ratio = config.val_fraction / (1 - config.val_fraction)
        most = max(VAL_AT_LEAST, round(config.limit_train * ratio))
        val = _keep(val, labels, most, derive_seed(config.split_seed, "limit val"))
    return Division(_keep(train, labels, config.limit_train, derive_seed(config.split_seed, "limit train")), val)


def _keep(rows: Rows, labels: Rows, most: int, seed: int) -> Rows:
    if len(rows) <= most:
        return rows
    counts = np.bincount(labels[rows])
    return rows[pick(labels[rows], shares(counts, max(most, len(counts)), counts), seed)]


def channel_stats(pixels: NpyReader, rows: Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the images at `rows` of uint8 (N, H, W, C), scaled to [0, 1].

    Counted exactly, as a histogram, in chunks of at most 8 MiB; a deviation below 1/255 is given as 1/255.
    """
    channels = pixels.row_shape[2]
    counts = np.zeros((channels, 256), dtype=np.int64)
    step = max(1, CHUNK_BYTES // pixels.row_bytes)
    chunk = np.empty((min(step, len(rows)), *pixels.row_shape), dtype=np.uint8)
    for start in range(0, len(rows), step):
        some = chunk[: len(rows[start : start + step])]
        pixels.read(rows[start : start + step], some)
        for channel in range(channels):
            counts[channel] += np.bincount(some[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(np.sum(weights * (values - mean[:, None]) ** 2, axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(std, STD_FLOOR).tolist())
