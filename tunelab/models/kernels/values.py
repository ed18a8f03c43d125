"""What the kernels are made of: how they are compiled, values in memory, activations.

Values are float32, or bfloat16 as the uint16 with its bits; what is computed with them is of float32.
"""

from __future__ import annotations

import threading

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

LINES, SILU, GELU = range(3)
"""The activations that can follow a norm. LINES is z above 0 and z * `below` under it: ReLU where `below` is 0, nothing
where it is 1."""

_F, _U = np.float32, np.uint32
_LOWEST = np.finfo(np.float32).min
_OPTIONS = {"fastmath": {"arcp", "contract", "nsz"}, "error_model": "numpy"}  # what is not a number stays so
inline = numba.njit(forceinline=True, **_OPTIONS)
part = numba.njit(cache=True, nogil=True, **_OPTIONS)
threaded = numba.njit(cache=True, nogil=True, parallel=True, **_OPTIONS)


_told = threading.local()


def use_threads(threads: int) -> None:
    """Lets the kernels that this thread calls use so many threads, or as many as there are processors."""
    if getattr(_told, "threads", 0) != threads:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        _told.threads = threads


@intrinsic
def _as_float(context, bits):
    """The float32 with these bits."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def _as_bits(context, value):
    """The bits of a float32."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def _pointer(context, address, sample):
    """A pointer to values of the type of `sample`."""

    def as_pointer(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(sample)(types.intp, sample), as_pointer


@inline
def values_at(address, shape, sample):
    """The values of the type of `sample` that lie at an address, as an array."""
    return numba.carray(_pointer(address, sample), shape)


def load(values, at):
    """The value at a place, as float32."""


def store(values, at, value):
    """Puts a float32 at a place, rounded to the nearest that the array can hold."""


@overload(load)
def _load(values, at):
    if values.dtype == types.uint16:
        return lambda values, at: _as_float(_U(_U(values[at]) << _U(16)))
    return lambda values, at: values[at]


@overload(store)
def _store(values, at, value):
    def rounded(values, at, value):
        bits = _as_bits(value)
        values[at] = np.uint16((bits + _U(0x7FFF) + ((bits >> _U(16)) & _U(1))) >> _U(16))

    def as_it_is(values, at, value):
        values[at] = value

    return rounded if values.dtype == types.uint16 else as_it_is


@inline
def _exp(x):
    """The number e to the x, to 1e-6 of it: 2 to a whole power, added to the exponent, times 2 to the rest.

    The rest, within half of 1, goes into a polynomial fitted for its relative error (ours, 7.5e-8). The whole number is
    found by adding a number so large that a float32 has no places left behind the point.
    """
    x = min(max(x, _F(-87.0)), _F(87.0))
    rounded = x * _F(1.44269504) + _F(12582912.0)
    r = x * _F(1.44269504) - (rounded - _F(12582912.0))
    p = _F(1.327647174e-3) * r + _F(9.675541540e-3)
    p = p * r + _F(5.550713276e-2)
    p = p * r + _F(2.402211972e-1)
    p = p * r + _F(6.931469671e-1)
    p = p * r + _F(1.000000072)
    return _as_float(_U(_as_bits(p) + _U(_as_bits(rounded) << _U(23))))


@inline
def _below(z, bell):
    """The share of a normal distribution below z, to 1e-7 (Abramowitz & Stegun, 7.1.26); `bell` is exp(-z*z/2)."""
    t = _F(1.0) / (_F(1.0) + _F(0.3275911 * 0.70710678118) * abs(z))
    p = _F(1.061405429) * t - _F(1.453152027)
    p = p * t + _F(1.421413741)
    p = p * t - _F(0.284496736)
    p = p * t + _F(0.254829592)
    above = _F(0.5) * p * t * bell
    return _F(1.0) - above if z > _F(0.0) else above


@inline
def value(kind, below, z):
    """The activation."""
    if kind == SILU:
        return z / (_F(1.0) + _exp(-z))
    if kind == GELU:
        return z * _below(z, _exp(_F(-0.5) * z * z))
    return below * max(z, _LOWEST) if z <= _F(0.0) else z  # 0 times infinity would be no number


@inline
def slope(kind, below, z):
    """The activation's derivative."""
    if kind == SILU:
        s = _F(1.0) / (_F(1.0) + _exp(-z))
        return s * (_F(1.0) + z * (_F(1.0) - s))
    if kind == GELU:
        bell = _exp(_F(-0.5) * z * z)
        return _below(z, bell) + z * _F(0.3989422804) * bell
    return below if z <= _F(0.0) else _F(1.0)
