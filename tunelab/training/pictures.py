"""Pictures of what a network has learnt and answers: filters, feature maps, examples and a confusion matrix.

They are small, made without matplotlib (whose import takes longer than a picture), and the same for the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tunelab.training.summaries import Pixels

MOST_TILES = 64
"""The most filters, or maps of a layer, in a picture; our choice."""

MOST_LABELLED = 20
"""With more classes than this a confusion matrix has neither numbers nor names: there is no room; our choice."""

_SIDE = 48  # pixels that a tile should have at least, so that it can be looked at; our choice
_GAP = 2  # pixels between tiles
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
_RIGHT, _WRONG = (0, 128, 0), (200, 0, 0)
_FULL = np.array((8, 48, 107), float)  # of a confusion matrix's colours, from white: the darkest of matplotlib's Blues
_LINE = 14  # pixels of a line of text in Pillow's own font
_LETTER = 6  # pixels that a letter of it takes, about


def tiles(pictures: torch.Tensor) -> Pixels:
    """Pictures (N, C, h, w), each with its own black and white, in a grid; of more than `MOST_TILES` the first.

    Three channels are a colour, one is grey; of any other number the mean is shown.
    """
    shown = pictures[:MOST_TILES].detach().float().cpu()
    if shown.shape[1] not in (1, 3):
        shown = shown.mean(1, keepdim=True)
    flat = shown.flatten(1).nan_to_num(0.0, 0.0, 0.0)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = ((flat - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return grid(_colours(scaled.reshape(shown.shape)))


def grid(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures of one size, made large enough to be looked at, side by side in about as many rows as columns."""
    height, width = pictures[0].shape[:2]
    times = max(1, math.ceil(_SIDE / max(height, width)))
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    high, wide = height * times + _GAP, width * times + _GAP
    whole = np.full((rows * high + _GAP, columns * wide + _GAP, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * high + _GAP, place % columns * wide + _GAP
        large = picture.repeat(times, 0).repeat(times, 1)
        whole[top : top + large.shape[0], left : left + large.shape[1]] = large
    return whole


def first_filters(weight: torch.Tensor, image_shape: tuple[int, int, int]) -> Pixels | None:
    """The weights of a network's first layer as pictures, one for each output.

    A convolution has one of each kernel (outputs, C, k, k), a fully connected layer (outputs, C * H * W) one of the
    size of the images, which are (C, H, W). None for weights of another shape, which are no pictures.
    """
    if weight.ndim == 4:
        return tiles(weight)
    if weight.ndim == 2 and weight.shape[1] == math.prod(image_shape):
        return tiles(weight.reshape(-1, *image_shape))
    return None


def feature_maps(maps: torch.Tensor) -> Pixels:
    """The maps (channels, h, w) that a layer makes of one image."""
    return tiles(maps.unsqueeze(1))


def examples(images: torch.Tensor, labels: Sequence[int], scores: torch.Tensor, classes: Sequence[str]) -> Pixels:
    """Images with what they are taken for and how surely: green where right, red with the truth below where not.

    Args:
        images: uint8 (N, H, W, C), C being 1 or 3.
        labels: the class of each.
        scores: what the network gives each, (N, classes), before the softmax.
        classes: their names.
    """
    sure, answers = scores.detach().float().softmax(1).max(1)
    height, width = images.shape[1:3]
    times = max(1, math.ceil(2 * _SIDE / max(height, width)))
    wide, high = max(width * times, 2 * _SIDE), height * times
    cards = []
    pictures = _colours(images.cpu().permute(0, 3, 1, 2))
    for picture, label, answer, share in zip(pictures, labels, answers.tolist(), sure.tolist(), strict=True):
        card = Image.new("RGB", (wide, high + 2 * _LINE), _PAPER)
        card.paste(Image.fromarray(picture.repeat(times, 0).repeat(times, 1)), ((wide - width * times) // 2, 0))
        draw = ImageDraw.Draw(card)
        said = f"{_short(classes[answer], wide - 5 * _LETTER)} {100 * share:.0f}%"
        _write(draw, (2, high + 1), said, _RIGHT if answer == label else _WRONG)
        if answer != label:
            _write(draw, (2, high + _LINE), f"is {_short(classes[label], wide - 3 * _LETTER)}")
        cards.append(np.asarray(card))
    return grid(cards)


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Pixels:
    """The counts of each class (rows) that were taken for each (columns), the darker the larger the share of the row.

    Up to `MOST_LABELLED` classes have their names and numbers on it.
    """
    table = np.array(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    labelled = len(classes) <= MOST_LABELLED
    cell = 36 if labelled else max(1, 600 // len(classes))
    colours = (255 - shares[..., None] * (255 - _FULL)).round().astype(np.uint8)
    squares = Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1))
    names = [_short(name, 90) for name in classes]
    side = max(len(name) for name in names) * _LETTER + 8 if labelled else 4
    top = 2 * _LINE
    sheet = Image.new("RGB", (max(side + squares.width, 30 * _LETTER) + 4, top + squares.height + 4), _PAPER)
    sheet.paste(squares, (side, top))
    draw = ImageDraw.Draw(sheet)
    _write(draw, (2, 0), "rows: what it is; columns: taken for")
    if labelled:
        _label(draw, table, shares, names, cell, side, top)
    return np.asarray(sheet)


def _label(
    draw: ImageDraw.ImageDraw,
    table: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    names: Sequence[str],
    cell: int,
    side: int,
    top: int,
) -> None:
    """Writes names beside and above the squares, and counts into them."""
    for row, name in enumerate(names):
        middle = top + row * cell + (cell - _LINE) // 2
        _write(draw, (4, middle), name)
        _write(draw, (side + row * cell + 2, top - _LINE), _short(name, cell))
        for column in range(len(names)):
            colour = _PAPER if shares[row, column] > 0.5 else _INK
            _write(draw, (side + column * cell + 4, middle), f"{table[row, column]:.0f}", colour)


def _colours(pictures: torch.Tensor) -> list[Pixels]:
    """Pictures uint8 (N, 1 or 3, h, w) as red, green and blue."""
    return list(pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy())


def _short(text: str, width: int) -> str:
    """As much of a text as has room in so many pixels."""
    letters = max(1, width // _LETTER)
    return text if len(text) <= letters else text[: max(1, letters - 1)] + "."


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int] = _INK) -> None:
    """Writes a text; letters that Pillow's own font lacks become question marks."""
    draw.text(place, text.encode("latin-1", "replace").decode("latin-1"), fill=colour, font=ImageFont.load_default())
