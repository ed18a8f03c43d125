"""Batches for training and evaluation, made on the device that holds the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tunelab.config import AugmentConfig, DataConfig, derive_seed
from tunelab.data.augment import crop_and_flip, cutout, draw, mixup, mixup_weights, normalize, normalizer
from tunelab.data.cache import Cached, DataInfo, opened
from tunelab.data.raw import Pixels, Rows
from tunelab.errors import InputError


@dataclass
class Split:
    """Images uint8 (N, C, H, W), in channels_last where they come from `load_split`, and labels int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass
class Batch:
    """Normalised images float (B, C, H, W) in channels_last, and labels int64 (B,).

    With mixup the loss is `mix` times that of `labels` plus (1 - `mix`) times that of `mixed_labels` (B,); without it
    `mixed_labels` is None and `mix` 1.0. A recorded step reads `mix` from a tensor ().
    """

    images: Tensor
    labels: Tensor
    mixed_labels: Tensor | None
    mix: float | Tensor


def load_split(config: DataConfig, split: Literal["train", "val", "test"], device: torch.device) -> Split:
    """One split on `device`. A split that is a whole file of the cache stays memory-mapped on the CPU.

    "train" obeys `limit_train` and `train_on`. The files with the test images are opened for "test" alone.

    Raises:
        InputError: "val" is asked for where it is trained on, or the data cannot be prepared.
    """
    if split == "val" and config.train_on == "train+val":
        raise InputError(f"{config.name}: with train_on 'train+val' no val images are held out")
    cached = opened(config, split)
    pixels, labels = _rows_of(cached, split, config)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
    return Split(images, torch.from_numpy(labels).to(device))


def _rows_of(cached: Cached, split: str, config: DataConfig) -> tuple[Pixels, Rows]:
    train, val = cached.division.train, cached.division.val
    if split == "test" or (split == "val" and val is None):
        return cached.images(split), cached.labels(split)
    if split == "val":
        return _take(cached, val)
    if config.train_on == "train":
        return _take(cached, train)
    if val is not None:
        return _take(cached, np.sort(np.concatenate([train, val])))
    pixels, labels = _take(cached, train)
    return np.concatenate([pixels, cached.images("val")]), np.concatenate([labels, cached.labels("val")])


def _take(cached: Cached, rows: Rows | None) -> tuple[Pixels, Rows]:
    pixels, labels = cached.images("train"), cached.labels("train")
    if rows is None or len(rows) == len(labels):
        return pixels, labels
    return pixels[rows], labels[rows]


class TrainBatches:
    """The training batches of each epoch. Order and augmentation depend on (seed, epoch) alone.

    Per epoch there are `steps_per_epoch` batches of `batch_size`; the images left over, others in each epoch, are
    dropped. Fewer images than `batch_size` make one batch. On a GPU nothing waits for it inside an epoch.
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
    ) -> None:
        self._pixels = split.images.permute(0, 2, 3, 1).contiguous()
        self._labels = split.labels
        self._augment, self._seed, self._total_epochs, self._dtype = augment, seed, total_epochs, dtype
        self._scale, self._shift = normalizer(info.mean, info.std, self._pixels.shape[2], self._pixels.device)
        self._batch_size = min(batch_size, len(self._labels))
        self.steps_per_epoch = len(self._labels) // self._batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, which counts from 1."""
        order = torch.randperm(len(self._labels), generator=self._generator("order", epoch), device=self._labels.device)
        draws = draw(self.steps_per_epoch * self._batch_size, self._generator("augment", epoch))
        weights = self._weights(epoch)
        for step in range(self.steps_per_epoch):
            part = slice(step * self._batch_size, (step + 1) * self._batch_size)
            rows = order[part]
            pixels = crop_and_flip(
                self._pixels.index_select(0, rows), draws[part], self._augment.crop, self._augment.flip
            )
            images = normalize(pixels, self._scale, self._shift, self._dtype)
            images = cutout(images, draws[part], self._augment.cutout)
            labels = self._labels.index_select(0, rows)
            if weights is None:
                yield Batch(images, labels, None, 1.0)
            else:
                yield Batch(*_mixed(images, labels, weights[step]))

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
    pixels = split.images.permute(0, 2, 3, 1)
    scale, shift = normalizer(info.mean, info.std, pixels.shape[2], pixels.device)
    for start in range(0, len(split.labels), batch_size):
        part = slice(start, start + batch_size)
        yield normalize(pixels[part], scale, shift, dtype), split.labels[part]
