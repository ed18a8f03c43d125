"""The largest value of each window of a map, and where it was.

Maps are flat arrays of float32 or bfloat16's bits, pixel after pixel (channels_last). The maxima of columns are found
first, along whole rows of the map, then those of rows. Of equal values the first counts, row by row, as in torch.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tunelab.models.kernels.values import inline, load, part, store, threaded, use_threads, values_at

__all__ = ["pool", "pool_backward", "use_threads"]
_F = np.float32


@inline
def _take_larger(values, rows, best, row, column, place):
    """Lets `best` have the larger of values; of equal ones that of the upper row, then the one it has."""
    for j in range(len(best)):
        value = values[j]
        larger = value > best[j] or value != value or (value == best[j] and rows[j] < row[j])
        best[j] = value if larger else best[j]
        row[j] = rows[j] if larger else row[j]
        column[j] = place if larger else column[j]


@part
def _pool_images(x, shape, window, first, last, y, where):
    height, width, channels = shape
    kernel, stride, padding = window
    out_height, out_width = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    length, out_length, all_length = (
        width * channels,
        out_width * channels,
        (width + 2 * padding - kernel + 1) * channels,
    )
    best, rows, largest = np.empty(length, np.float32), np.empty(length, np.uint8), np.empty(all_length, np.float32)
    row, column = np.empty(all_length, np.uint8), np.empty(all_length, np.uint8)
    for line in range(first * out_height, last * out_height):
        image, top = line // out_height, line % out_height * stride - padding
        above = max(top, 0)
        values = x[(image * height + above) * length : (image * height + above + 1) * length]
        for j in range(len(values)):
            best[j] = load(values, j)
            rows[j] = above - top
        for y_in in range(above + 1, min(top + kernel, height)):
            values = x[(image * height + y_in) * length : (image * height + y_in + 1) * length]
            for j in range(len(values)):
                value = load(values, j)
                larger = value > best[j] or value != value
                best[j] = value if larger else best[j]
                rows[j] = y_in - top if larger else rows[j]
        largest[:] = -np.inf
        row[:] = 255
        for place in range(kernel):  # of windows at every pixel, which is vectorised; those in between are left out
            shift = (place - padding) * channels
            start, stop = max(0, -shift), min(all_length, length - shift)
            _take_larger(
                best[start + shift : stop + shift],
                rows[start + shift : stop + shift],
                largest[start:stop],
                row[start:stop],
                column[start:stop],
                np.uint8(place),
            )
        if stride > 1:
            for pixel in range(1, out_width):
                start, source = pixel * channels, pixel * stride * channels
                for channel in range(channels):
                    largest[start + channel] = largest[source + channel]
                    row[start + channel] = row[source + channel]
                    column[start + channel] = column[source + channel]
        out, index = y[line * out_length : (line + 1) * out_length], where[line * out_length : (line + 1) * out_length]
        for j in range(len(out)):
            store(out, j, largest[j])
            index[j] = row[j] * kernel + column[j]


@threaded
def pool(sample, x, shape, window, images, y, places, where, threads):
    """Puts the maxima into y, and their places in the windows, counted row by row, into `where` (uint8).

    `shape` is (H, W, C), `window` (kernel, stride, padding). x, y and `where` are addresses, of values like `sample`
    and, the latter two, of so many `places`.
    """
    x, y = values_at(x, images * shape[0] * shape[1] * shape[2], sample), values_at(y, places, sample)
    where = values_at(where, places, np.uint8(0))
    for thread in prange(threads):
        _pool_images(x, shape, window, images * thread // threads, images * (thread + 1) // threads, y, where)


@inline
def _add_where(total, values, index, place):
    for j in range(len(total)):
        total[j] += load(values, j) if index[j] == place else _F(0.0)


@part
def _gather(dy, where, shape, window, first, last, dx):
    """Of stride 1: each row of dx is summed up from the rows of dy whose windows it lies in."""
    height, width, channels = shape
    kernel, _, padding = window
    out_height, out_width = height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1
    length, out_length = width * channels, out_width * channels
    total = np.empty(length, np.float32)
    for line in range(first * height, last * height):
        image, y_in = line // height, line % height
        total[:] = 0.0
        for down in range(kernel):
            y_out = y_in + padding - down
            if y_out < 0 or y_out >= out_height:
                continue
            begin = (image * out_height + y_out) * out_length
            for right in range(kernel):
                shift = (right - padding) * channels
                start, stop = max(0, -shift), min(out_length, length - shift)
                steep, index = dy[begin + start : begin + stop], where[begin + start : begin + stop]
                _add_where(total[start + shift : stop + shift], steep, index, np.uint8(down * kernel + right))
        out = dx[line * length : (line + 1) * length]
        for j in range(len(out)):
            store(out, j, total[j])


@part
def _scatter(dy, where, shape, window, first, last, dx):
    """Of any stride: each value of dy is added where it came from."""
    height, width, channels = shape
    kernel, stride, padding = window
    out_height, out_width = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    size = height * width * channels
    total, offsets = np.empty(size, np.float32), np.empty(kernel * kernel, np.int64)
    for place in range(kernel * kernel):
        offsets[place] = ((place // kernel - padding) * width + place % kernel - padding) * channels
    for image in range(first, last):
        total[:] = 0.0
        for pixel in range(out_height * out_width):
            corner = (pixel // out_width * width + pixel % out_width) * stride * channels
            start = (image * out_height * out_width + pixel) * channels
            steep, index = dy[start : start + channels], where[start : start + channels]
            for channel in range(channels):
                total[corner + offsets[index[channel]] + channel] += load(steep, channel)
        out = dx[image * size : (image + 1) * size]
        for j in range(len(out)):
            store(out, j, total[j])


@threaded
def pool_backward(sample, dy, where, places, shape, window, images, dx, threads):
    """Puts the gradients of the map into dx; the arguments are those of `pool`."""
    dx, dy = values_at(dx, images * shape[0] * shape[1] * shape[2], sample), values_at(dy, places, sample)
    where = values_at(where, places, np.uint8(0))
    for thread in prange(threads):
        first, last = images * thread // threads, images * (thread + 1) // threads
        if window[1] == 1:
            _gather(dy, where, shape, window, first, last, dx)
        else:
            _scatter(dy, where, shape, window, first, last, dx)
