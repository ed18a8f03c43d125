"""Batches for training and evaluation, made on the device that trains.

The images lie there as bytes, are gathered from the memory map of the cache, or are streamed: whichever it is, the
batches are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tunelab.capacity import free_memory_mib
from tunelab.config import AugmentConfig, DataConfig, TrialConfig, derive_seed
from tunelab.data.ahead import in_order
from tunelab.data.augment import crop_and_flip, cutout, draw, mixup, mixup_weights, normalize, normalizer
from tunelab.data.build import file_names
from tunelab.data.cache import Cached, DataInfo, opened, prepare
from tunelab.data.raw import CHUNK_BYTES, Rows
from tunelab.data.share import Share
from tunelab.data.storage import NpyReader, read_ahead
from tunelab.errors import InputError

AHEAD = 3
"""So many batches of streamed images are gathered before they are asked for; our choice."""
_ADVISED = 4  # so many before that the system is told which images come; our choice
_LEAST = 64 * 2**20  # bytes that such batches may take in any case; our choice
_OF_GPU = 0.25  # of its free memory a split may take; the rest is for networks and for other trials; our choice
_PIXELS_AT_ONCE = 2**17  # of the batches that are made together: small ones cost more in calls than in work; our choice


@dataclass(frozen=True)
class Split:
    """The images of a split, and its labels int64 (N,) on the device that they are for.

    `pixels` are uint8 (M, H, W, C) on that device, memory-mapped where it is a processor, or files that the images are
    streamed from: read by a thread, `AHEAD` batches before they are asked for. Image i of the split is row `rows[i]` of
    them (int64 (N,), on the host), or row i where `rows` is None. Where `budget` is given, fewer batches are read ahead
    if all of them together would take more bytes than that, and more than 64 MiB.
    """

    pixels: Tensor | NpyReader
    labels: Tensor
    rows: Tensor | None = None
    budget: int | None = None

    @property
    def streamed(self) -> bool:
        """True if the images are read batch by batch."""
        return isinstance(self.pixels, NpyReader)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.pixels.row_shape if isinstance(self.pixels, NpyReader) else tuple(self.pixels.shape[1:])

    @property
    def images(self) -> Tensor:
        """All images on the device, uint8 (N, C, H, W) in channels_last: as they lie if that is in order, or a copy."""
        (whole,) = self.batches(len(self.labels))
        return whole.permute(0, 3, 1, 2)

    def first(self, images: int) -> Split:
        """The split of the first `images` images, or of all if there are fewer."""
        rows = None if self.rows is None else self.rows[:images]
        return dataclasses.replace(self, labels=self.labels[:images], rows=rows)

    def evenly(self, images: int) -> Split:
        """The split of so many of the images, evenly picked, or of all if there are fewer."""
        if images >= len(self.labels):
            return self
        return self._at(torch.linspace(0, len(self.labels) - 1, images).round().long())

    def part(self, share: Share) -> Split:
        """The split of what is one process's share of the images."""
        own = share.of(len(self.labels))
        return self._at(torch.arange(own.start, own.stop))

    def _at(self, at: Tensor) -> Split:
        there = at.to(self.labels.device)
        rows = self.rows[at] if self.rows is not None else at if self.streamed else there
        return dataclasses.replace(self, labels=self.labels[there], rows=rows)

    def batches(self, size: int, order: Tensor | None = None) -> Generator[Tensor, None, None]:
        """The images at `order` (int64; None: all of them, as they come) on the device, uint8 (B, H, W, C).

        There are `size` in a batch, or what is left. A batch may be a view of the data, and is good until the next is
        asked for. What a reading thread meets with is raised here, and closing the generator ends the thread.
        """
        rows = order if self.rows is None else self.rows if order is None else self.rows[order.cpu()]
        if isinstance(self.pixels, NpyReader):
            rows = torch.arange(len(self.labels)) if rows is None else rows.cpu()
            yield from self._stream(self.pixels, [part.numpy() for part in torch.split(rows, size)])
        elif rows is None:
            yield from torch.split(self.pixels[: len(self.labels)], size)
        else:
            for part in torch.split(rows, size):
                yield self.pixels.index_select(0, part)

    def _stream(self, pixels: NpyReader, parts: Sequence[Rows]) -> Generator[Tensor, None, None]:
        """The images at the rows of each part, read by a thread."""
        device, longest = self.labels.device, (len(parts[0]), *pixels.row_shape)
        ahead = AHEAD
        if self.budget is not None:  # beside them there is the one in use
            ahead = max(0, min(AHEAD, max(self.budget, _LEAST) // math.prod(longest) - 1))
        ahead = min(ahead, len(parts) - 1)

        def room() -> Iterator[tuple[int, Tensor]]:
            """Memory for each batch: the same few times over, on a GPU what its copying is done with."""
            pinned = device.type == "cuda"
            kept = [] if pinned else [torch.empty(longest, dtype=torch.uint8) for _ in range(ahead + 1)]
            for number, part in enumerate(parts):
                batch = torch.empty(longest, dtype=torch.uint8, pin_memory=True) if pinned else kept[number % len(kept)]
                yield number, batch[: len(part)]

        def fill(task: tuple[int, Tensor]) -> Tensor:
            number, batch = task
            for part in parts[number + _ADVISED : number + _ADVISED + 1] if number else parts[: _ADVISED + 1]:
                pixels.advise(part)
            pixels.read(parts[number], batch.numpy())
            return batch

        with contextlib.closing(in_order(fill, room(), 1, ahead)) as gathered:
            for batch in gathered:
                yield batch.to(device, non_blocking=True)


@dataclass
class Batch:
    """Normalised images float (B, C, H, W) in channels_last, and labels int64 (B,).

    With mixup the loss is `mix` times that of `labels` plus (1 - `mix`) times that of `mixed_labels` (B,); without it
    `mixed_labels` is None and `mix` 1.0. A recorded step reads `mix` from a tensor ().

    Of a batch that several processes share this is one's part; then `weight` is how often its mean loss counts in the
    mean over the processes, so that this is the mean over the images.
    """

    images: Tensor
    labels: Tensor
    mixed_labels: Tensor | None
    mix: float | Tensor
    weight: float = 1.0

    def without_first(self) -> Batch:
        """The batch without its first image."""
        mixed = None if self.mixed_labels is None else self.mixed_labels[1:]
        return dataclasses.replace(self, images=self.images[1:], labels=self.labels[1:], mixed_labels=mixed)


SplitName = Literal["train", "val", "test"]


def load_split(config: DataConfig, split: SplitName, device: torch.device, memory: int | None = None) -> Split:
    """One split; as `load_splits`."""
    (loaded,) = load_splits(config, [split], device, memory)
    return loaded


def load_splits(
    config: DataConfig, splits: Sequence[SplitName], device: torch.device, memory: int | None = None
) -> list[Split]:
    """Splits for `device`; on a processor nothing is copied: the memory map of the cache is what processes share.

    The images are streamed in place of that where the test split, or all that a search reads, is more than `memory`
    bytes, None being what the machine has free; where they lie in two files; and on a GPU where a split is more than a
    quarter of its free memory. "train" obeys `limit_train` and `train_on`. The files with the test images are opened
    for "test" alone. A file is mapped once for all of `splits`.

    Raises:
        InputError: "val" is asked for where it is trained on, or the data cannot be prepared.
    """
    maps: dict[str, Tensor] = {}
    loaded = []
    for split in splits:
        if split == "val" and config.train_on == "train+val":
            raise InputError(f"{config.name}: with train_on 'train+val' no val images are held out")
        cached = opened(config, split)
        files, rows, labels = _whereabouts(cached, split, config)
        there = torch.from_numpy(labels).to(device)
        host_rows = None if rows is None else torch.from_numpy(rows)
        if device.type == "cpu" and len(files) == 1 and _bytes_read(cached, split) <= _room(device, memory):
            if files[0] not in maps:
                read_ahead(cached.image_file(files[0]))
                maps[files[0]] = torch.from_numpy(cached.images(files[0]))
            loaded.append(Split(maps[files[0]], there, host_rows))
            continue
        reader = NpyReader([cached.image_file(file) for file in files])
        if device.type != "cpu" and len(labels) * reader.row_bytes <= _room(device, memory):
            loaded.append(Split(_copied(reader, np.arange(len(labels)) if rows is None else rows, device), there))
        else:
            loaded.append(Split(reader, there, host_rows, memory))
    return loaded


@functools.lru_cache(maxsize=1)
def load_data(
    config: DataConfig, device: torch.device, memory: int | None = None
) -> tuple[DataInfo, Split, Split | None]:
    """The data, its training images and its validation images (None when they are trained on), for `device`.

    What is more than `memory` bytes is streamed, as `load_splits` says. The last answer is kept, so that the trials of
    one process do not each open the data again; `load_data.cache_clear()` lets go of it.
    """
    info = prepare(config)
    train, *val = load_splits(config, ["train", "val"] if config.train_on == "train" else ["train"], device, memory)
    return info, train, val[0] if val else None


def _whereabouts(cached: Cached, split: str, config: DataConfig) -> tuple[list[str], Rows | None, Rows]:
    """The splits whose files hold the images, their rows in these (None: all, as they come), and the labels."""
    train, val = cached.division.train, cached.division.val
    if split == "test" or (split == "val" and val is None):
        return [split], None, cached.labels(split)
    labels = cached.labels("train")
    rows = train
    if split == "val" and val is not None:
        rows = val
    elif config.train_on == "train+val" and val is not None:
        rows = np.sort(np.concatenate([train, val]))
    elif config.train_on == "train+val":
        more = cached.labels("val")
        both = np.concatenate([rows, np.arange(len(labels), len(labels) + len(more))])
        return ["train", "val"], both, np.concatenate([labels[rows], more])
    return ["train"], None if len(rows) == len(labels) else rows, labels[rows]


def _bytes_read(cached: Cached, split: str) -> int:
    """The bytes of the image files that are read where this split is."""
    together = ["test"] if split == "test" else [name for name in ("train", "val") if name in cached.decoded.rows]
    return sum(cached.decoded.sizes[file_names(name)[0]] for name in together)


def _room(device: torch.device, memory: int | None) -> float:
    """How many bytes of images `device` may hold."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] * _OF_GPU)
    return free_memory_mib() * 2**20 if memory is None else memory


def _copied(reader: NpyReader, rows: Rows, device: torch.device) -> Tensor:
    """The images at `rows` on a device, uint8 (n, H, W, C), without ever having been in the host's memory together."""
    whole = torch.empty((len(rows), *reader.row_shape), dtype=torch.uint8, device=device)
    step = max(1, CHUNK_BYTES // reader.row_bytes)
    chunk = np.empty((min(step, len(rows)), *reader.row_shape), dtype=np.uint8)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        reader.read(some, chunk[: len(some)])
        whole[start : start + step] = torch.from_numpy(chunk[: len(some)])
    return whole


class TrainBatches:
    """The training batches of each epoch. Order and augmentation depend on (seed, epoch) alone.

    Per epoch there are `steps_per_epoch` batches of `batch_size`; the images left over, others in each epoch, are
    dropped. Fewer images than `batch_size` make one batch. On a GPU nothing waits for it inside an epoch.

    With a `share` they are that of one process: of each batch the very images that it has there without one, changed
    and mixed in the same way.

    Raises:
        InputError: a batch has fewer images than processes.
    """

    def __init__(
        self,
        split: Split,
        info: DataInfo,
        augment: AugmentConfig,
        batch_size: int,
        seed: int,
        total_epochs: int,
        dtype: torch.dtype = torch.float32,
        share: Share | None = None,
    ) -> None:
        self._split, self._labels = split, split.labels
        self._augment, self._seed, self._total_epochs, self._dtype = augment, seed, total_epochs, dtype
        self._scale, self._shift = normalizer(info.mean, info.std, split.image_shape[1], self._labels.device)
        self.batch_size = min(batch_size, len(self._labels))
        self.steps_per_epoch = len(self._labels) // self.batch_size
        self.images_per_epoch = self.steps_per_epoch * self.batch_size
        self._share = share
        if share is not None and self.batch_size < share.size:
            raise InputError(f"a batch of {self.batch_size} images cannot be shared by {share.size} processes")

    @classmethod
    def of(
        cls, config: TrialConfig, split: Split, info: DataInfo, dtype: torch.dtype, share: Share | None = None
    ) -> TrainBatches:
        """Those of a configuration, whose training images are `split`."""
        train, seed = config.train, derive_seed(config.seed, "batches")
        return cls(split, info, train.augment, train.batch_size, seed, train.epochs, dtype, share)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, which counts from 1."""
        order = torch.randperm(len(self._labels), generator=self._generator("order", epoch), device=self._labels.device)
        draws = draw(self.images_per_epoch, self._generator("augment", epoch))
        weights = self._weights(epoch)
        used = order[: len(draws.top)]
        size, weight = self.batch_size, 1.0
        if self._share is not None:
            places = self._places(self._share, before=weights is not None)
            used, draws, size = used[places], draws[places], len(places) // self.steps_per_epoch
            weight = self._share.weight(self.batch_size)
        together = size * self._batches_at_once
        with contextlib.closing(self._split.batches(together, used)) as gathered:
            for first, pixels in zip(range(0, len(used), together), gathered, strict=True):
                part = slice(first, first + together)
                pixels = crop_and_flip(pixels, draws[part], self._augment.crop, self._augment.flip)
                images = normalize(pixels, self._scale, self._shift, self._dtype)
                images = cutout(images, draws[part], self._augment.cutout)
                labels = self._labels.index_select(0, used[part])
                batches = zip(torch.split(images, size), torch.split(labels, size), strict=True)
                for step, (own, own_labels) in enumerate(batches, start=first // size):
                    if weights is None:
                        yield Batch(own, own_labels, None, 1.0, weight)
                    else:
                        mixed = Batch(*_mixed(own, own_labels, weights[step]), weight)
                        yield mixed if self._share is None else mixed.without_first()

    def as_they_are(self) -> Iterator[Tensor]:
        """The images without augmentation, as many batches as an epoch has, always the same ones in the same order."""
        order = torch.randperm(len(self._labels), generator=self._generator("plain", 0), device=self._labels.device)
        used, size = order[: self.images_per_epoch], self.batch_size
        if self._share is not None:
            used = used[self._places(self._share)]
            size = len(used) // self.steps_per_epoch
        with contextlib.closing(self._split.batches(size, used)) as gathered:
            for pixels in gathered:
                yield normalize(pixels, self._scale, self._shift, self._dtype)

    def _places(self, share: Share, *, before: bool = False) -> Tensor:
        """Where a share's images are among those of an epoch, as `Share.places`."""
        return share.places(self.steps_per_epoch, self.batch_size, before=before).to(self._labels.device)

    @property
    def _batches_at_once(self) -> int:
        """How many batches are made by the same few operations; what is streamed is bounded in memory, so one."""
        pixels = self.batch_size * math.prod(self._split.image_shape[:2])
        return 1 if self._split.streamed else max(1, _PIXELS_AT_ONCE // pixels)

    def _generator(self, use: str, epoch: int) -> torch.Generator:
        generator = torch.Generator(self._labels.device)
        generator.manual_seed(derive_seed(self._seed, use, epoch))
        return generator

    def _weights(self, epoch: int) -> list[float] | None:
        """The weight of each batch, or None where mixup is off: by its config, or from its switch-off point on."""
        if not self._augment.mixup or epoch - 1 >= self._augment.mixup_until * self._total_epochs:
            return None
        return mixup_weights(self._augment, self.steps_per_epoch, derive_seed(self._seed, "augment", epoch, "mixup"))


def _mixed(images: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, float]:
    mixed_images, mixed_labels = mixup(images, labels, weight)
    return mixed_images, labels, mixed_labels, weight


def eval_batches(
    split: Split, info: DataInfo, batch_size: int = 1000, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in order: normalised `dtype` (B, C, H, W) in channels_last, and labels (B,)."""
    scale, shift = normalizer(info.mean, info.std, split.image_shape[1], split.labels.device)
    with contextlib.closing(split.batches(batch_size)) as gathered:
        for pixels, labels in zip(gathered, torch.split(split.labels, batch_size), strict=True):
            yield normalize(pixels, scale, shift, dtype), labels
