"""A norm, the sum with a shortcut and an activation as one operation on processors, and maxima; elsewhere torch's."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SAMPLES = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
"""What the kernels take values of a type for."""


def norm_act(images: Tensor, norm: nn.Module, activation: nn.Module | None, shortcut: Tensor | None = None) -> Tensor:
    """activation(norm(images) + shortcut): (N, C, H, W) -> (N, C, H, W); an activation or shortcut of None is left out.

    It is one operation where a processor trains or evaluates float32 or bfloat16 in channels_last order. What it gives
    differs from torch's by rounding: in bfloat16 nothing is rounded between norm and activation.
    """
    kind = _kind_of(activation)
    if kind is None or not _suits(images, norm):
        out: Tensor = norm(images)
        if shortcut is not None:
            out += shortcut
        return out if activation is None else activation(out)
    if shortcut is not None:
        shortcut = _in_order(shortcut.to(images.dtype))
    if isinstance(norm, nn.BatchNorm2d) and not norm.training:
        return _batch_forward(images, shortcut, norm, kind)[0]
    operation = _BatchNorm if isinstance(norm, nn.BatchNorm2d) else _GroupNorm
    fused: Tensor = operation.apply(images, shortcut, norm.weight, norm.bias, norm, kind)  # type: ignore[no-untyped-call]
    return fused


class MaxPool(nn.MaxPool2d):
    """nn.MaxPool2d: (N, C, H, W) -> (N, C, H', W'), with a square window; on processors by a kernel of ours."""

    def forward(self, images: Tensor) -> Tensor:
        """The maxima."""
        if not _is_ours(images):
            return nn.functional.max_pool2d(images, self.kernel_size, self.stride, self.padding)
        window = self.kernel_size, self.stride, self.padding
        out: Tensor = _MaxPool.apply(images, window)  # type: ignore[no-untyped-call]
        return out


class _Kind(NamedTuple):
    """What the kernels call an activation: its number there and its slope below 0."""

    number: int
    below: np.float32 = np.float32(0.0)


def _kind_of(activation: nn.Module | None) -> _Kind | None:
    """None if the kernels have none like it."""
    if activation is None:
        return _Kind(0, np.float32(1.0))
    if isinstance(activation, nn.ReLU):
        return _Kind(0)
    if isinstance(activation, nn.LeakyReLU):
        return _Kind(0, np.float32(activation.negative_slope))
    if isinstance(activation, nn.SiLU):
        return _Kind(1)
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return _Kind(2)
    return None


def _is_ours(images: Tensor) -> bool:
    """True if the kernels can read it."""
    if images.device.type != "cpu" or images.dtype not in _SAMPLES or torch.compiler.is_compiling():
        return False
    return images.is_contiguous(memory_format=torch.channels_last) and images.numel() > 0


def _suits(images: Tensor, norm: nn.Module) -> bool:
    if not _is_ours(images):
        return False
    if isinstance(norm, nn.GroupNorm):
        return norm.affine
    if not isinstance(norm, nn.BatchNorm2d) or not (norm.affine and norm.track_running_stats):
        return False
    if norm.training:  # of a single pixel there is no variance, which torch refuses in its words
        return norm.momentum is not None and images.numel() > images.shape[1]
    return not torch.is_grad_enabled()


@functools.cache
def _norms() -> ModuleType:
    """The kernels of norms, imported (0.4 s) where they are needed."""
    from tunelab.models.kernels import norms

    return _started(norms)


@functools.cache
def _pooling() -> ModuleType:
    from tunelab.models.kernels import pooling

    return _started(pooling)


def _started(kernels: ModuleType) -> ModuleType:
    threads = torch.get_num_threads()
    kernels.use_threads(threads)
    torch.set_num_threads(threads)  # numba starts its threads with a number of its own, for all that use OpenMP
    return kernels


def _threads(kernels: ModuleType) -> int:
    """As many threads as torch computes with, for the kernels too, as far as the machine has them."""
    threads = torch.get_num_threads()
    kernels.use_threads(threads)
    return threads


def _in_order(images: Tensor) -> Tensor:
    """The same values with those of a pixel side by side, as the kernels walk over them."""
    return images.contiguous(memory_format=torch.channels_last)


def _described(images: Tensor, shortcut: Tensor | None, kind: _Kind) -> tuple[Any, ...]:
    """The first arguments of the kernels: values like which, the activation, whether there is a sum; x, other."""
    x = images.data_ptr()
    return _SAMPLES[images.dtype], *kind, shortcut is not None, x, x if shortcut is None else shortcut.data_ptr()


def _batch_forward(images: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, kind: _Kind) -> tuple[Tensor, Tensor]:
    """The output, and the means and inverse standard deviations (2, C)."""
    channels = images.shape[1]
    out, kept = torch.empty_like(images), torch.empty(2, channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    _norms().batch_forward(
        *_described(images, shortcut, kind),
        out.data_ptr(),
        images.numel(),
        channels,
        (norm.weight.data_ptr(), norm.bias.data_ptr()),
        (norm.running_mean.data_ptr(), norm.running_var.data_ptr()),
        norm.momentum or 0.0,
        norm.eps,
        norm.training,
        _threads(_norms()),
        kept.data_ptr(),
    )
    return out, kept


class _BatchNorm(torch.autograd.Function):
    """Ioffe & Szegedy, arXiv 1502.03167, algorithm 1, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        kind: _Kind,
    ) -> Tensor:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        out, kept = _batch_forward(images, shortcut, norm, kind)
        ctx.save_for_backward(images, shortcut, weight, bias, kept)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, shortcut, weight, bias, kept = ctx.saved_tensors
        gradient = _in_order(gradient)
        g = torch.empty_like(images)
        dx = g if shortcut is None else torch.empty_like(images)
        gradients = torch.empty(2, len(weight))
        _norms().batch_backward(
            *_described(images, shortcut, ctx.kind),
            gradient.data_ptr(),
            images.numel(),
            len(weight),
            (weight.data_ptr(), bias.data_ptr()),
            kept.data_ptr(),
            _threads(_norms()),
            g.data_ptr(),
            dx.data_ptr(),
            gradients.data_ptr(),
        )
        return dx, None if shortcut is None else g, *gradients.unbind(), None, None


class _GroupNorm(torch.autograd.Function):
    """Wu & He, arXiv 1803.08494, section 3, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        shortcut: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.GroupNorm,
        kind: _Kind,
    ) -> Tensor:
        out, kept = torch.empty_like(images), torch.empty(2, len(images), norm.num_groups)
        _norms().group_forward(
            *_described(images, shortcut, kind),
            out.data_ptr(),
            images.numel(),
            *kept.shape[1:],
            len(weight),
            (weight.data_ptr(), bias.data_ptr()),
            norm.eps,
            _threads(_norms()),
            kept.data_ptr(),
        )
        ctx.save_for_backward(images, shortcut, weight, bias, kept)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, shortcut, weight, bias, kept = ctx.saved_tensors
        gradient = _in_order(gradient)
        g = torch.empty_like(images)
        dx = g if shortcut is None else torch.empty_like(images)
        gradients = torch.empty(2, len(weight))
        _norms().group_backward(
            *_described(images, shortcut, ctx.kind),
            gradient.data_ptr(),
            images.numel(),
            *kept.shape[1:],
            len(weight),
            (weight.data_ptr(), bias.data_ptr()),
            kept.data_ptr(),
            _threads(_norms()),
            g.data_ptr(),
            dx.data_ptr(),
            gradients.data_ptr(),
        )
        return dx, None if shortcut is None else g, *gradients.unbind(), None, None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, window: tuple[int, int, int]) -> Tensor:
        n, channels, *size = images.shape
        kernel, stride, padding = window
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in size]
        out = torch.empty((n, channels, *sides), dtype=images.dtype, memory_format=torch.channels_last)
        where = torch.empty(out.numel(), dtype=torch.uint8)
        _pooling().pool(
            _SAMPLES[images.dtype],
            images.data_ptr(),
            (*size, channels),
            window,
            n,
            _threads(_pooling()),
            out.data_ptr(),
            out.numel(),
            where.data_ptr(),
        )
        ctx.save_for_backward(where)
        ctx.window, ctx.shape = window, images.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (where,) = ctx.saved_tensors
        n, channels, *size = ctx.shape
        gradient = _in_order(gradient)
        dx = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=torch.channels_last)
        _pooling().pool_backward(
            _SAMPLES[gradient.dtype],
            gradient.data_ptr(),
            where.data_ptr(),
            where.numel(),
            (*size, channels),
            ctx.window,
            n,
            _threads(_pooling()),
            dx.data_ptr(),
        )
        return dx, None
