"""Batches in parts, for want of memory: computed one after the other they take as much as one part.

The gradients of the parts, each weighted by its share of the images, add up to those of the whole. Without norms over a
batch the training is the same within rounding; a batch norm takes mean and variance of each part by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from tunelab.data.batches import Batch

_LEAST = 2  # images of a part: a batch norm cannot normalise one value of one image


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts that differ by at most one image, in fewer if it is small; itself if that is one."""
    count = _possible(len(batch.labels), count)
    if count == 1:
        return [batch]
    images, labels = torch.tensor_split(batch.images, count), torch.tensor_split(batch.labels, count)
    mixed = [None] * count if batch.mixed_labels is None else torch.tensor_split(batch.mixed_labels, count)
    return [Batch(*part, batch.mix) for part in zip(images, labels, mixed, strict=True)]


def in_parts(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """Batches of images (B, C, H, W), each in `count` parts."""
    for images in batches:
        yield from torch.tensor_split(images, _possible(len(images), count))


def note_of(model: nn.Module, count: int) -> str:
    """What is to be said of a training whose batches are computed in `count` parts; "" of one part."""
    if count == 1:
        return ""
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    by_itself = ", each of which its batch norms normalise by itself" if norms else ""
    return f"for want of memory every batch was computed in {count} parts{by_itself}"


def _possible(images: int, count: int) -> int:
    return max(1, min(count, images // _LEAST))
