"""What a data set looks like before it is decoded: where it is found, and images that come in chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tunelab.errors import InputError

Progress = Callable[[int, int], None]
Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

CHUNK_BYTES = 8 * 2**20  # decoded bytes per chunk, which bounds the memory of a build (our choice)


class Meter:
    """Counts the work of reading and decoding, and reports it in images."""

    def __init__(self, report: Progress | None) -> None:
        self._report, self._done, self._total, self._passes = report, 0, 0, 1

    def start(self, images: int, passes: int = 1) -> None:
        """Begin: each of `images` will be looked at `passes` times."""
        self._done, self._total, self._passes = 0, images, passes

    def advance(self, images: int) -> None:
        """One pass over this many more images is done."""
        self._done += images
        if self._report is not None:
            self._report(min(self._done // self._passes, self._total), self._total)


class Images(Protocol):
    """The images of one split, in a fixed order, decoded when asked for."""

    @property
    def labels(self) -> Rows:
        """The class of each image, int64 (N,)."""

    def chunks(self, rows: Rows, meter: Meter) -> Iterator[tuple[Pixels, Rows]]:
        """The images at `rows` as uint8 (k, H, W, C), with their rows; rows that were skipped are missing."""


@dataclass
class Raw:
    """A data set that has been read as far as needed to decode it.

    `splits` has "train", and "val" and "test" where the data brings them. `skipped` names the files left out so far,
    and grows while the images are decoded.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    splits: Mapping[str, Images]
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """A data set that has been found, before anything costly.

    `key` is plain JSON and decides, together with the options, what would be decoded. `splits` are those that the data
    brings. `read` opens it.
    """

    key: Mapping[str, Any]
    splits: tuple[str, ...]
    read: Callable[[Meter], Raw]


@dataclass(frozen=True)
class ArrayImages:
    """Images that are an array already: uint8 (N, H, W, C), resized on the way out where `size` (H, W) differs."""

    pixels: Pixels
    labels: Rows
    size: tuple[int, int]

    def chunks(self, rows: Rows, meter: Meter) -> Iterator[tuple[Pixels, Rows]]:
        """As `Images.chunks`."""
        step = chunk_length(self.size, self.pixels.shape[3])
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            meter.advance(len(some))
            yield resize_all(self.pixels[some], self.size), some


def raw_from_arrays(
    classes: tuple[str, ...], arrays: Mapping[str, tuple[Pixels, Rows]], image_size: int | None, meter: Meter
) -> Raw:
    """A data set from one (images (N, H, W, C), labels (N,)) pair per split, all images of one size."""
    height, width, channels = arrays["train"][0].shape[1:]
    size, notes = size_of((height, width), image_size)
    meter.start(sum(len(labels) for _, labels in arrays.values()))
    splits = {name: ArrayImages(pixels, labels, size) for name, (pixels, labels) in arrays.items()}
    return Raw(classes, size, channels, splits, notes)


def size_of(size: tuple[int, int], image_size: int | None) -> tuple[tuple[int, int], list[str]]:
    """The size (H, W) that images of `size` are decoded to, and a note if that resizes them."""
    height, width = size
    if image_size is None or size == (image_size, image_size):
        return size, []
    return (image_size, image_size), [f"images of {width}x{height} resized to {image_size}x{image_size}"]


def resize_all(images: Pixels, size: tuple[int, int]) -> Pixels:
    """Images uint8 (k, h, w, C) as (k, H, W, C), themselves where that is their size."""
    if images.shape[1:3] == size:
        return images
    return np.stack([resize_pixels(image, size) for image in images])


def resize_pixels(image: Pixels, size: tuple[int, int]) -> Pixels:
    """One image uint8 (h, w, C) as (H, W, C): stretched to `size`, bicubic with antialias (Pillow's `BICUBIC`)."""
    to = (size[1], size[0])
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BICUBIC))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(plane.resize(to, Image.Resampling.BICUBIC)) for plane in planes], axis=2)


def chunk_length(size: tuple[int, int], channels: int) -> int:
    """How many decoded images fit in one chunk of at most 8 MiB, 1 to 256."""
    return max(1, min(256, CHUNK_BYTES // (size[0] * size[1] * channels)))


def usable_cores() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_images(labels: Rows, classes: tuple[str, ...], least: int, where: str, why: str = "") -> None:
    """Refuse a class with too few images.

    Raises:
        InputError: a class has fewer than `least` images in `labels`; the first such class is named.
    """
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count < least:
            raise InputError(f"class {name!r} has {count} images in {where}, and needs at least {least}{why}")
