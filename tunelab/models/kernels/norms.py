"""Norms with what comes after them, in two passes over a map.

torch runs a norm, the sum with a shortcut and an activation as operations of their own, each of which reads and writes
the whole map; of the narrow networks of a search they take as long as the convolutions. Here they are one: statistics
in a pass, everything else in another. Maps are flat arrays of pixel after pixel, with a value per channel each
(channels_last). Short sums are of float32, long ones of float64.

A pass walks over stretches of P values, a multiple of the channels and of what the processor computes at once, beside
arrays of P with what belongs to each value's channel. Each thread has its share of the stretches.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tunelab.models.kernels.values import (
    GELU,
    LINES,
    SILU,
    inline,
    load,
    part,
    slope,
    store,
    threaded,
    use_threads,
    value,
    values_at,
)

__all__ = ["batch_backward", "batch_forward", "group_backward", "group_forward", "use_threads"]
_F = np.float32
_LANES = 16  # float32 values in the widest registers
_STRETCH = 128  # values of a stretch, at least; our choice
_FLUSH = 256  # stretches whose sums are added up in float32; our choice


@inline
def _apply_row(kind, below, summed, row, added, scale, shift, out):
    for place in range(len(row)):
        z = load(row, place) * scale[place] + shift[place]
        if summed:
            z += load(added, place)
        store(out, place, value(kind, below, z))


@inline
def _differentiate_row(kind, below, summed, row, added, above, scale, shift, origin, out, some, products):
    for place in range(len(row)):
        value = load(row, place)
        z = value * scale[place] + shift[place]
        if summed:
            z += load(added, place)
        d = load(above, place) * slope(kind, below, z)
        some[place] += d
        products[place] += d * (value - origin[place])
        store(out, place, d)


@part
def _add_up(x, origin, first, last, one, two):
    """Adds up, of each place in a stretch, x - origin and its square, over the stretches from `first` to `last`."""
    length = len(origin)
    some, squares = np.empty(length, np.float32), np.empty(length, np.float32)
    one[:] = 0.0
    two[:] = 0.0
    for begin in range(first, last, _FLUSH):
        some[:] = 0.0
        squares[:] = 0.0
        for stretch in range(begin, min(begin + _FLUSH, last)):
            row = x[stretch * length : (stretch + 1) * length]
            for place in range(len(row)):
                value = load(row, place) - origin[place]
                some[place] += value
                squares[place] += value * value
        for place in range(length):
            one[place] += some[place]
            two[place] += squares[place]


@part
def _apply(how, x, other, scale, shift, first, last, y):
    """Puts into y: activation(x * scale + shift + other), the sum with `other` only where `summed`."""
    kind, below, summed = how
    length = len(scale)
    for stretch in range(first, last):
        start, stop = stretch * length, (stretch + 1) * length
        row, added, out = x[start:stop], other[start:stop], y[start:stop]
        if kind == LINES and summed:  # each case is a loop of its own
            _apply_row(LINES, below, True, row, added, scale, shift, out)
        elif kind == LINES:
            _apply_row(LINES, below, False, row, added, scale, shift, out)
        elif kind == SILU and summed:
            _apply_row(SILU, below, True, row, added, scale, shift, out)
        elif kind == SILU:
            _apply_row(SILU, below, False, row, added, scale, shift, out)
        elif summed:
            _apply_row(GELU, below, True, row, added, scale, shift, out)
        else:
            _apply_row(GELU, below, False, row, added, scale, shift, out)


@part
def _differentiate(how, x, other, dy, scale, shift, origin, first, last, g, one, two):
    """Puts into g: dy * activation'(x * scale + shift + other); adds up g and g * (x - origin) of each place."""
    kind, below, summed = how
    length = len(scale)
    some, products = np.empty(length, np.float32), np.empty(length, np.float32)
    one[:] = 0.0
    two[:] = 0.0
    for begin in range(first, last, _FLUSH):
        some[:] = 0.0
        products[:] = 0.0
        for stretch in range(begin, min(begin + _FLUSH, last)):
            start, stop = stretch * length, (stretch + 1) * length
            row, added, above, out = x[start:stop], other[start:stop], dy[start:stop], g[start:stop]
            if kind == LINES and summed:
                _differentiate_row(LINES, below, True, row, added, above, scale, shift, origin, out, some, products)
            elif kind == LINES:
                _differentiate_row(LINES, below, False, row, added, above, scale, shift, origin, out, some, products)
            elif kind == SILU and summed:
                _differentiate_row(SILU, below, True, row, added, above, scale, shift, origin, out, some, products)
            elif kind == SILU:
                _differentiate_row(SILU, below, False, row, added, above, scale, shift, origin, out, some, products)
            elif summed:
                _differentiate_row(GELU, below, True, row, added, above, scale, shift, origin, out, some, products)
            else:
                _differentiate_row(GELU, below, False, row, added, above, scale, shift, origin, out, some, products)
        for place in range(length):
            one[place] += some[place]
            two[place] += products[place]


@inline
def _combine_row(steep, row, a, b, c, out):
    for place in range(len(row)):
        store(out, place, load(steep, place) * a[place] + load(row, place) * b[place] + c[place])


@inline
def _combine_row_in_place(steep, row, a, b, c):
    for place in range(len(row)):
        store(steep, place, load(steep, place) * a[place] + load(row, place) * b[place] + c[place])


@part
def _combine(summed, g, x, a, b, c, first, last, dx):
    """Puts into dx: g * a + x * b + c; without `summed`, where nobody else needs g, in its place."""
    length = len(a)
    for stretch in range(first, last):
        start, stop = stretch * length, (stretch + 1) * length
        if summed:
            _combine_row(g[start:stop], x[start:stop], a, b, c, dx[start:stop])
        else:
            _combine_row_in_place(g[start:stop], x[start:stop], a, b, c)


@part
def _stretch_of(channels):
    """The values of a stretch: whole pixels, whole registers, enough of them to be worth the way."""
    length = channels
    while length % _LANES or length < _STRETCH:
        length += channels
    return length


@part
def _over(length, values):
    """What belongs to each channel, as float32 at each place of a stretch."""
    found = np.empty(length, np.float32)
    for place in range(length):
        found[place] = values[place % len(values)]
    return found


@part
def _per_channel(sums, channel, channels):
    """The sum over threads and the places of a channel."""
    total = 0.0
    for thread in range(len(sums)):
        for place in range(channel, sums.shape[1], channels):
            total += sums[thread, place]
    return total


@threaded
def batch_forward(
    sample,
    kind,
    below,
    summed,
    x,
    other,
    y,
    size,
    channels,
    parameters,
    running,
    momentum,
    eps,
    training,
    kept,
    threads,
):
    """Puts into y: activation(norm(x) * weight + bias + other), the norm over all pixels of a channel.

    With `training` the statistics are those of x, and the running ones follow them, the variance corrected for the size
    of the sample; else they are the running ones. Arguments are addresses: of `size` values like `sample` (x, other,
    y), of float32 (channels) (two of `parameters`, weight and bias; two of `running`, mean and variance), and of what
    is kept for `batch_backward`, float32 (2, channels): the means and the inverse standard deviations.
    """
    x, y, other = values_at(x, size, sample), values_at(y, size, sample), values_at(other, size, sample)
    weight, bias = values_at(parameters[0], channels, _F(0)), values_at(parameters[1], channels, _F(0))
    kept, how = values_at(kept, (2, channels), _F(0)), (kind, below, summed)
    run_mean, run_variance = values_at(running[0], channels, _F(0)), values_at(running[1], channels, _F(0))
    length, pixels = _stretch_of(channels), size // channels
    stretches = (size + length - 1) // length
    if training:
        origin = np.empty(length, np.float32)
        for place in range(length):
            origin[place] = load(x, place % channels)
        one, two = np.empty((threads, length)), np.empty((threads, length))
        for thread in prange(threads):
            first, last = stretches * thread // threads, stretches * (thread + 1) // threads
            _add_up(x, origin, first, last, one[thread], two[thread])
        for channel in range(channels):
            away = _per_channel(one, channel, channels) / pixels
            variance = max(_per_channel(two, channel, channels) / pixels - away * away, 0.0)
            kept[0, channel] = origin[channel] + away
            kept[1, channel] = 1 / np.sqrt(variance + eps)
            run_mean[channel] += momentum * (kept[0, channel] - run_mean[channel])
            run_variance[channel] += momentum * (variance * pixels / (pixels - 1) - run_variance[channel])
    else:
        for channel in range(channels):
            kept[0, channel], kept[1, channel] = run_mean[channel], 1 / np.sqrt(run_variance[channel] + eps)
    scale, shift = np.empty(length, np.float32), np.empty(length, np.float32)
    for place in range(length):
        channel = place % channels
        scale[place] = weight[channel] * kept[1, channel]
        shift[place] = bias[channel] - kept[0, channel] * scale[place]
    for thread in prange(threads):
        first, last = stretches * thread // threads, stretches * (thread + 1) // threads
        _apply(how, x, other, scale, shift, first, last, y)


@threaded
def batch_backward(
    sample, kind, below, summed, x, other, dy, size, channels, parameters, kept, g, dx, gradients, threads
):
    """The gradients of `batch_forward` with `training`: `g` of other, `dx` of x (the same address without `summed`).

    `gradients`, an address of float32 (2, channels), is for those of weight and bias.
    """
    x, dy, other = values_at(x, size, sample), values_at(dy, size, sample), values_at(other, size, sample)
    g, dx, kept = values_at(g, size, sample), values_at(dx, size, sample), values_at(kept, (2, channels), _F(0))
    weight, bias = values_at(parameters[0], channels, _F(0)), values_at(parameters[1], channels, _F(0))
    gradients, how = values_at(gradients, (2, channels), _F(0)), (kind, below, summed)
    length, pixels = _stretch_of(channels), size // channels
    stretches = (size + length - 1) // length
    origin, scale, shift = _over(length, kept[0]), np.empty(length, np.float32), np.empty(length, np.float32)
    for place in range(length):
        channel = place % channels
        scale[place] = weight[channel] * kept[1, channel]
        shift[place] = bias[channel] - kept[0, channel] * scale[place]
    one, two = np.empty((threads, length)), np.empty((threads, length))
    for thread in prange(threads):
        first, last = stretches * thread // threads, stretches * (thread + 1) // threads
        _differentiate(how, x, other, dy, scale, shift, origin, first, last, g, one[thread], two[thread])
    b, c = np.empty(length, np.float32), np.empty(length, np.float32)
    for channel in range(channels):
        total, products = _per_channel(one, channel, channels), _per_channel(two, channel, channels)
        inverse = kept[1, channel]
        gradients[0, channel], gradients[1, channel] = products * inverse, total
        by_x = -scale[channel] * inverse * inverse * products / pixels
        for place in range(channel, length, channels):
            b[place], c[place] = by_x, -scale[channel] * total / pixels - by_x * kept[0, channel]
    for thread in prange(threads):
        first, last = stretches * thread // threads, stretches * (thread + 1) // threads
        _combine(summed, g, x, scale, b, c, first, last, dx)


@part
def _group_images(how, x, other, weight, bias, eps, first, last, y, mean, inverse):
    channels, groups = len(weight), mean.shape[1]
    length, width, size = _stretch_of(channels), channels // groups, len(x) // len(mean)
    stretches = (size + length - 1) // length
    origin, scale, shift = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    one, two = np.empty(length), np.empty(length)
    for image in range(first, last):
        begin, end = image * size, (image + 1) * size
        image_x = x[begin:end]
        for place in range(length):
            origin[place] = load(image_x, place % channels // width * width)
        _add_up(image_x, origin, 0, stretches, one, two)
        for group in range(groups):
            total, squares = 0.0, 0.0
            for start in range(group * width, length, channels):
                for place in range(start, start + width):
                    total += one[place]
                    squares += two[place]
            away = total * groups / size
            mean[image, group] = origin[group * width] + away
            inverse[image, group] = 1 / np.sqrt(max(squares * groups / size - away * away, 0.0) + eps)
        for place in range(length):
            channel = place % channels
            scale[place] = weight[channel] * inverse[image, channel // width]
            shift[place] = bias[channel] - mean[image, channel // width] * scale[place]
        _apply(how, image_x, other[begin:end], scale, shift, 0, stretches, y[begin:end])


@threaded
def group_forward(
    sample, kind, below, summed, x, other, y, size, images, groups, channels, parameters, eps, kept, threads
):
    """Puts into y: activation(norm(x) * weight + bias + other), the norm over the pixels and channels of a group.

    The arguments are those of `batch_forward`; kept are float32 (2, images, groups).
    """
    x, y, other = values_at(x, size, sample), values_at(y, size, sample), values_at(other, size, sample)
    weight, bias = values_at(parameters[0], channels, _F(0)), values_at(parameters[1], channels, _F(0))
    kept, how = values_at(kept, (2, images, groups), _F(0)), (kind, below, summed)
    for thread in prange(threads):
        first, last = images * thread // threads, images * (thread + 1) // threads
        _group_images(how, x, other, weight, bias, eps, first, last, y, kept[0], kept[1])


@part
def _group_gradients(how, x, other, dy, weight, bias, mean, inverse, first, last, g, dx, dweight, dbias):
    channels, groups = len(weight), mean.shape[1]
    length, width, size = _stretch_of(channels), channels // groups, len(x) // len(mean)
    stretches = (size + length - 1) // length
    origin, scale, shift = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    b, c = np.empty(length, np.float32), np.empty(length, np.float32)
    one, two = np.empty(length), np.empty(length)
    dweight[:] = 0.0
    dbias[:] = 0.0
    for image in range(first, last):
        begin, end = image * size, (image + 1) * size
        for place in range(length):
            channel = place % channels
            origin[place] = mean[image, channel // width]
            scale[place] = weight[channel] * inverse[image, channel // width]
            shift[place] = bias[channel] - origin[place] * scale[place]
        image_x, steep = x[begin:end], g[begin:end]
        _differentiate(
            how, image_x, other[begin:end], dy[begin:end], scale, shift, origin, 0, stretches, steep, one, two
        )
        for group in range(groups):
            total, products, spread = 0.0, 0.0, inverse[image, group]
            for start in range(group * width, length, channels):
                for place in range(start, start + width):
                    channel = place % channels
                    dbias[channel] += one[place]
                    dweight[channel] += two[place] * spread
                    total += one[place] * weight[channel]
                    products += two[place] * weight[channel]
            by_x = -spread * spread * spread * products * groups / size
            constant = -spread * total * groups / size - by_x * mean[image, group]
            for start in range(group * width, length, channels):
                b[start : start + width] = by_x
                c[start : start + width] = constant
        _combine(how[2], steep, image_x, scale, b, c, 0, stretches, dx[begin:end])


@threaded
def group_backward(
    sample,
    kind,
    below,
    summed,
    x,
    other,
    dy,
    size,
    images,
    groups,
    channels,
    parameters,
    kept,
    g,
    dx,
    gradients,
    threads,
):
    """The gradients of `group_forward`, as `batch_backward` gives them."""
    x, dy, other = values_at(x, size, sample), values_at(dy, size, sample), values_at(other, size, sample)
    g, dx, kept = values_at(g, size, sample), values_at(dx, size, sample), values_at(kept, (2, images, groups), _F(0))
    weight, bias = values_at(parameters[0], channels, _F(0)), values_at(parameters[1], channels, _F(0))
    gradients, how = values_at(gradients, (2, channels), _F(0)), (kind, below, summed)
    some = np.empty((threads, 2, channels))
    for thread in prange(threads):
        first, last = images * thread // threads, images * (thread + 1) // threads
        _group_gradients(
            how, x, other, dy, weight, bias, kept[0], kept[1], first, last, g, dx, some[thread, 0], some[thread, 1]
        )
    for channel in range(channels):
        gradients[0, channel], gradients[1, channel] = some[:, 0, channel].sum(), some[:, 1, channel].sum()
