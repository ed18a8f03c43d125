"""Which class a trained model takes images for: decoded as those that it was trained on, batch by batch in a stream.

Scores are computed in float32, whatever precision the network was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tunelab.data.augment import normalize, normalizer
from tunelab.data.decode import FileImages, read_headers
from tunelab.data.folders import files_below
from tunelab.data.raw import Meter, Pixels, resize_all
from tunelab.errors import InputError
from tunelab.training.device import pick_device
from tunelab.training.evaluate import BATCH_PIXELS
from tunelab.training.model_files import Model, find_model, open_model

Images: TypeAlias = "str | Path | Sequence[str | Path] | Pixels"
_Batch: TypeAlias = "tuple[Pixels, Sequence[Any]]"  # images (B, H, W, C), and what each is called

DIGITS = 6
"""Significant digits of a probability; float32 has about seven."""
_HEADERS_AT_ONCE = 8192  # files whose heads are kept in memory together; our choice


def predict(
    model: str | Path,
    images: Images,
    *,
    top_k: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    skip_unreadable: bool = False,
) -> list[dict[str, Any]]:
    """The classes that a model takes images for: one dictionary per image, in order.

    Its keys are `file`, or `image` with the number of an image of an array; `class` and `probability` of the most
    probable class; and with `top_k` of the next ones `class_2`, `probability_2` and so on.
    `pandas.DataFrame(tunelab.predict(...))` is a table of them.

    Args:
        model: the folder of a model, its file of weights, or a study that was retrained once.
        images: a file, a folder (with all folders in it), several of both, or an array uint8 (N, H, W, C) or (N, H, W).
        top_k: how many classes are told of each image.
        batch_size: how many images are computed at once; by default as many as 1000 of 32x32 pixels have pixels.
        device: "auto", "cpu" or "cuda".
        skip_unreadable: leaves out files that are no images.

    Raises:
        InputError: there is no such model or image, one of them is something else, the images do not fit the model, or
            its scores are not finite.
    """
    return list(
        predictions(model, images, top_k=top_k, batch_size=batch_size, device=device, skip_unreadable=skip_unreadable)
    )


def predictions(
    model: str | Path,
    images: Images,
    *,
    top_k: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    skip_unreadable: bool = False,
    skipped: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """As `predict`, one image after another; few of them are in memory at a time.

    What can be found out before the first image is decoded, is raised at once: the heads of all files are read.

    Args:
        model: as for `predict`.
        images: as for `predict`.
        top_k: as for `predict`.
        batch_size: as for `predict`.
        device: as for `predict`.
        skip_unreadable: as for `predict`.
        skipped: the names of files that were left out are added to it.
        progress: is called with the number of images that were computed, and of all.

    Raises:
        InputError: as for `predict`.
    """
    where = pick_device(device)
    opened = open_model(find_model(Path(model).expanduser()), where)
    classes = len(opened.info.classes)
    if not 1 <= top_k <= classes:
        raise InputError(f"--top-k {top_k} must be from 1 to {classes}, the number of the model's classes")
    height, width = opened.info.image_size
    size = batch_size or max(1, min(1000, BATCH_PIXELS // (height * width)))
    if size < 1:
        raise InputError(f"--batch-size {size} must be at least 1")
    if isinstance(images, np.ndarray):
        key, total, batches = "image", len(images), _array_batches(images, opened, size)
    else:
        left_out: list[str] = [] if skipped is None else skipped
        files = _readable(list_images(images), opened, skip_unreadable, left_out)
        key, total = "file", len(files)
        batches = _regrouped(_decoded(files, opened, skip_unreadable, left_out), size)
    return _rows(
        opened, where, batches, key, top_k, (lambda done: None) if progress is None else _bound(progress, total)
    )


def list_images(images: str | Path | Sequence[str | Path]) -> list[str]:
    """The files that are meant: those that are named, and in place of a folder all files below it, in order.

    Raises:
        InputError: there is no such file or folder, or no file in a folder.
    """
    found: list[str] = []
    for name in [images] if isinstance(images, (str, Path)) else images:
        path = Path(name).expanduser()
        if path.is_dir():
            below = files_below(path)
            if not below:
                raise InputError(f"there is no image in the folder {path}")
            found += below
        elif path.is_file():
            found.append(str(path))
        else:
            raise InputError(f"there is no image {path}" if not path.exists() else f"{path} is no file")
    if not found:
        raise InputError("no images were given")
    return found


def _bound(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    return lambda done: progress(done, total)


def _readable(files: Sequence[str], model: Model, skip: bool, skipped: list[str]) -> list[str]:
    """The files whose heads are those of images.

    Raises:
        InputError: the model reads something else than image files, a file is no image and `skip` is False, or none is.
    """
    channels = model.info.channels
    if channels not in (1, 3):
        raise InputError(
            f"the model reads images of {channels} channels; a file gives 1 (grey) or 3 (colour), "
            "an array given to tunelab.predict may have as many"
        )
    kept: list[str] = []
    for start in range(0, len(files), _HEADERS_AT_ONCE):
        some = files[start : start + _HEADERS_AT_ONCE]
        headers = read_headers(some, skip, skipped, Meter(None))
        kept += [file for file, header in zip(some, headers, strict=True) if header is not None]
    if not kept:
        raise InputError(f"none of the {len(files)} files is an image that can be read; the first is {files[0]}")
    return kept


def _decoded(files: list[str], model: Model, skip: bool, skipped: list[str]) -> Iterator[_Batch]:
    """The images in chunks as they are decoded, by the code that decodes the data of a search."""
    labels = np.zeros(len(files), dtype=np.int64)
    images = FileImages(files, labels, model.info.image_size, model.info.channels == 1, skip, skipped)
    for pixels, rows in images.chunks(np.arange(len(files), dtype=np.int64), Meter(None)):
        yield pixels, [files[row] for row in rows]


def _regrouped(chunks: Iterable[_Batch], size: int) -> Iterator[_Batch]:
    """The same images in batches of `size`, the last one of what is left."""
    waiting: list[Pixels] = []
    names: list[Any] = []
    for pixels, some in chunks:
        waiting.append(pixels)
        names += some
        if len(names) < size:
            continue
        whole, full = np.concatenate(waiting), len(names) - len(names) % size
        for start in range(0, full, size):
            yield whole[start : start + size], names[start : start + size]
        waiting, names = [whole[full:]], names[full:]
    if names:
        yield np.concatenate(waiting), names


def _array_batches(images: Any, model: Model, size: int) -> Iterator[_Batch]:
    """The images of an array in batches, of the model's size and channels.

    Raises:
        InputError: the array is of something else.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"images must be an array uint8 (N, H, W, C) or (N, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    pixels: Pixels = images[..., None] if images.ndim == 3 else images
    found, wanted = pixels.shape[3], model.info.channels
    if found != wanted and {found, wanted} != {1, 3}:
        raise InputError(f"the images have {found} channels, the model reads {wanted}")

    def batches() -> Iterator[_Batch]:
        for start in range(0, len(pixels), size):
            some = _with_channels(pixels[start : start + size], wanted)
            yield resize_all(some, model.info.image_size), range(start, start + len(some))

    return batches()


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Images (B, H, W, C) as grey or colour ones, by Pillow's rule, as image files are."""
    if pixels.shape[3] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=3)
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in pixels])


def _rows(
    model: Model, device: torch.device, batches: Iterable[_Batch], key: str, top_k: int, told: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    info = model.info
    scale, shift = normalizer(info.mean, info.std, info.image_size[1], device)
    done = 0
    for pixels, names in batches:
        found = _classify(model, torch.tensor(pixels, device=device), scale, shift)
        if not bool(found.isfinite().all()):
            raise InputError(f"the scores of {model.path} are not finite numbers for {key} {names[0]} or after it")
        best = found.topk(top_k)
        for name, values, places in zip(names, best.values.tolist(), best.indices.tolist(), strict=True):
            row: dict[str, Any] = {key: name}
            for rank, (value, place) in enumerate(zip(values, places, strict=True), start=1):
                suffix = "" if rank == 1 else f"_{rank}"
                row[f"class{suffix}"] = info.classes[place]
                row[f"probability{suffix}"] = _rounded(value)
            yield row
        done += len(names)
        told(done)


def _classify(model: Model, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Images uint8 (B, H, W, C) to the probabilities of the classes (B, classes)."""
    with torch.inference_mode():
        scores: Tensor = model.network(normalize(pixels, scale, shift, torch.float32))
        return scores.softmax(1)


def _rounded(value: float) -> float:
    """A number to DIGITS significant digits."""
    return 0.0 if value == 0 else round(value, DIGITS - 1 - math.floor(math.log10(value)))
