"""Image files become arrays: Pillow in a pool of threads, chunk by chunk, so that memory stays bounded.

Pillow lets other threads run while it decodes and resizes, so the pool pays for photographs; for thumbnails the time
goes into Python itself. Threads need no second interpreter and no picklable `__main__`, as processes would.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tunelab.data.ahead import in_order
from tunelab.data.raw import Meter, Pixels, Rows, chunk_length, usable_cores
from tunelab.errors import InputError
from tunelab.files import open_file

Result = TypeVar("Result")

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
_HEADERS_PER_TASK = 256
# What it says of odd metadata is nothing to a user, and goes to no one line.
warnings.filterwarnings("ignore", module=r"PIL\.")
# What Pillow's many decoders raise for damaged files; OSError is also UnidentifiedImageError, cut data, no access.
_UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the head of an image file says: its size (H, W) as it is to be seen, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


@dataclass(frozen=True)
class _Unreadable:
    path: str
    reason: str


def read_headers(paths: Sequence[str], skip: bool, skipped: list[str], meter: Meter) -> list[Header | None]:
    """The header of each file; None where it cannot be read and `skip` says to go on, its name added to `skipped`.

    Raises:
        InputError: a file is no image that can be read, and `skip` is False; the first of `paths` is named.
    """
    found: list[Header | None] = []
    tasks = [paths[start : start + _HEADERS_PER_TASK] for start in range(0, len(paths), _HEADERS_PER_TASK)]
    cores = usable_cores()
    for results in in_order(lambda some: [_attempt(_header, path) for path in some], tasks, cores, cores + 1):
        found += [_kept(result, skip, skipped) for result in results]
        meter.advance(len(results))
    return found


@dataclass(frozen=True)
class FileImages:
    """Image files of one split. They are stretched to `size` (H, W) where theirs differs, and turned as EXIF says."""

    paths: list[str]
    labels: Rows
    size: tuple[int, int]
    grey: bool
    skip: bool
    skipped: list[str]

    def chunks(self, rows: Rows, meter: Meter) -> Iterator[tuple[Pixels, Rows]]:
        """As `Images.chunks`.

        Raises:
            InputError: a file cannot be decoded, and `skip` is False.
        """
        step = chunk_length(self.size, 1 if self.grey else 3)
        tasks = [rows[start : start + step] for start in range(0, len(rows), step)]
        cores = usable_cores()
        for task, results in zip(tasks, in_order(self._decode_all, tasks, cores, cores + 1), strict=True):
            good = [(pixels, row) for result, row in zip(results, task, strict=True)
                    if (pixels := _kept(result, self.skip, self.skipped)) is not None]  # fmt: skip
            meter.advance(len(task))
            if good:
                yield np.stack([pixels for pixels, _ in good]), np.array([row for _, row in good], dtype=np.int64)

    def _decode_all(self, rows: Rows) -> list[Pixels | _Unreadable]:
        return [_attempt(self._decode, self.paths[row]) for row in rows]

    def _decode(self, path: str) -> Pixels:
        height, width = self.size
        with open_file(Path(path)) as file, Image.open(file) as image:
            if image.format == "JPEG":  # decoding at 1/2, 1/4 or 1/8 is much faster and, at twice the size, as good
                image.draft(None, (2 * max(self.size), 2 * max(self.size)))
            turned = ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
            plain = _to_grey(turned) if self.grey else _to_colour(turned)
            if plain.size != (width, height):
                plain = plain.resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.array(plain, dtype=np.uint8)
        return pixels[..., None] if self.grey else pixels


def _attempt(work: Callable[[str], Result], path: str) -> Result | _Unreadable:
    try:
        return work(path)
    except _UNREADABLE as error:
        return _Unreadable(path, f"{type(error).__name__}: {str(error).replace(path, '...')}".strip())


def _kept(result: Result | _Unreadable, skip: bool, skipped: list[str]) -> Result | None:
    if not isinstance(result, _Unreadable):
        return result
    if not skip:
        raise InputError(
            f"{result.path} is not an image that can be read ({result.reason}); "
            "remove it, or go on with --skip-unreadable"
        )
    skipped.append(result.path)
    return None


def _header(path: str) -> Header:
    with open_file(Path(path)) as file, Image.open(file) as image:
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, more than Pillow's limit")
        width, height = image.size
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
        return Header((height, width), image.mode in _GREY_MODES)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as in EXIF; 1 is upright."""
    if "exif" not in image.info:
        return 1
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _to_grey(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("L")
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))  # 16 bits to 8


def _to_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _to_grey(image)
    if "transparency" in image.info:  # Pillow warns of the straight way
        image = image.convert("RGBA")
    return image.convert("RGB")
