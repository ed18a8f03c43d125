"""What TensorBoard draws, made from tensors and pictures: histograms and images, as the messages that it reads."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

Pixels = npt.NDArray[np.uint8]
"""A picture (H, W, 3), red, green and blue."""

BINS = 30
"""The bars of a histogram: as many as TensorBoard shows; our choice."""

MOST_VALUES = 2**17
"""The most values that a histogram counts; of more, so many evenly picked ones stand for all. Our choice."""


def histogram(tag: str, values: torch.Tensor) -> Summary.Value | None:
    """How the finite ones of `values`, of any shape, are spread, in `BINS` bins of one width; None without any.

    Of more than `MOST_VALUES`, evenly picked ones are counted.
    """
    flat = values.detach().flatten()
    flat = flat[:: -(-len(flat) // MOST_VALUES) or 1].float()
    flat = flat[flat.isfinite()]
    if len(flat) == 0:
        return None
    low, high = (float(edge) for edge in torch.aminmax(flat))
    if low == high:
        limits, counts = [high], [float(len(flat))]
    else:
        limits = np.linspace(low, high, BINS + 1)[1:].tolist()
        counts = torch.histc(flat, BINS, low, high).tolist()
    exact = flat.double()
    found = HistogramProto(
        min=low,
        max=high,
        num=len(flat),
        sum=float(exact.sum()),
        sum_squares=float(exact.square().sum()),
        bucket_limit=limits,
        bucket=counts,
    )
    return Summary.Value(tag=tag, histo=found)


def image(tag: str, pixels: Pixels) -> Summary.Value:
    """A picture, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    height, width, colours = pixels.shape
    content = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=file.getvalue())
    return Summary.Value(tag=tag, image=content)
