"""Random changes of training images as a few tensor operations over a whole batch, each image with its own draw.

Images are uint8 (B, H, W, C) until they are normalised: a byte per value moves four times faster than a float.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tunelab.config import AugmentConfig


@dataclass(frozen=True)
class Draws:
    """The random numbers of an epoch, one per image and use: uniform in [0, 1), float32 (N,)."""

    top: Tensor
    left: Tensor
    mirror: Tensor
    row: Tensor
    column: Tensor

    def __getitem__(self, part: slice | Tensor) -> Draws:
        """The draws of some images: a slice of them, or those at the places of an int64 tensor."""
        return Draws(self.top[part], self.left[part], self.mirror[part], self.row[part], self.column[part])


def draw(images: int, generator: torch.Generator) -> Draws:
    """The draws for an epoch of `images`, on the generator's device.

    What is switched off draws too, so that switching it on does not shift the others.
    """
    return Draws(*torch.rand(5, images, generator=generator, device=generator.device).unbind())


def pixels_of(fraction: float, size: int) -> int:
    """A fraction of an image's side in whole pixels: at least 1 where the fraction is above 0."""
    return max(1, round(fraction * size)) if fraction > 0 else 0


def crop_and_flip(images: Tensor, draws: Draws, crop: float, flip: bool) -> Tensor:
    """A random window, mirrored for half of the images: uint8 (B, H, W, C) to the same.

    Each side is padded by the fraction `crop` of it (He et al., arXiv 1512.03385, section 4.2: 4 pixels of 32), with
    black, as torchvision's RandomCrop does. Both changes are one gather of whole pixels.
    """
    if not crop and not flip:
        return images
    batch, height, width, channels = images.shape
    above, beside = pixels_of(crop, height), pixels_of(crop, width)
    if crop:
        images = functional.pad(images, (0, 0, beside, beside, above, above))
    device = images.device
    row = torch.arange(height, device=device) + (draws.top * (2 * above + 1)).long()[:, None]  # (B, H)
    column = torch.arange(width, device=device).expand(batch, width)
    if flip:
        column = torch.where((draws.mirror < 0.5)[:, None], width - 1 - column, column)
    column = column + (draws.left * (2 * beside + 1)).long()[:, None]  # (B, W)
    row = row + (torch.arange(batch, device=device) * (height + 2 * above))[:, None]
    pixel = (row * (width + 2 * beside))[:, :, None] + column[:, None, :]  # (B, H, W), of the whole batch
    return images.reshape(-1, channels).index_select(0, pixel.view(-1)).view(batch, height, width, channels)


def cutout(images: Tensor, draws: Draws, side: float) -> Tensor:
    """Set a square of normalised images (B, C, H, W) to 0, which is each channel's mean, in place.

    Its side is the fraction `side` of the shorter side of the image, its centre anywhere in it, so that part of the
    square may lie outside (DeVries & Taylor, arXiv 1708.04552, section 3.2).
    """
    if not side:
        return images
    height, width = images.shape[2:]
    length = pixels_of(side, min(height, width))
    top = (draws.row * height).long() - length // 2
    left = (draws.column * width).long() - length // 2
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < length), (columns >= 0) & (columns < length)
    square = inside_rows[:, :, None] & inside_columns[:, None, :]
    return images.masked_fill_(square[:, None], 0)


def mixup(images: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Each image (B, C, H, W) mixed with its neighbour in the batch, `weight` of itself; the neighbour's labels (B,).

    The order of a batch is random, so the neighbour is (Zhang et al., arXiv 1710.09412, section 2). Grey images too
    keep the strides that they have: compiled code is made for these.
    """
    pixels = images.permute(0, 2, 3, 1)
    return torch.lerp(pixels.roll(1, 0), pixels, weight).permute(0, 3, 1, 2), labels.roll(1, 0)


def mixup_weights(config: AugmentConfig, batches: int, seed: int) -> list[float]:
    """One weight per batch from Beta(alpha, alpha), as Python numbers, so that a GPU is never waited for."""
    source = random.Random(seed)
    return [source.betavariate(config.mixup, config.mixup) for _ in range(batches)]


def normalize(images: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, C) to `dtype` (B, C, H, W) in channels_last: one multiply-add in float32 per value.

    `scale` and `shift` are those of `normalizer`, one per value of a row.
    """
    batch, height, width, channels = images.shape
    rows = torch.addcmul(shift, images.reshape(batch, height, width * channels).to(torch.float32), scale)
    return rows.to(dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)


def normalizer(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`scale` and `shift`, float32 (W * C,), such that x * scale + shift is (x / 255 - mean) / std of a pixel row."""
    scale = torch.tensor([1 / (255 * part) for part in std])
    shift = torch.tensor([-middle / part for middle, part in zip(mean, std, strict=True)])
    return scale.repeat(width).to(device), shift.repeat(width).to(device)
