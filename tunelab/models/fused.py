"""A norm, the sum with a shortcut and an activation as one operation on processors, and maxima; elsewhere torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunelab.models import kernels

_SAMPLES = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
"""What the kernels take values of a type for."""


Hook = TypeVar("Hook", bound=Callable[..., None])


def reads_output(hook: Hook) -> Hook:
    """Marks a forward hook that reads a module's output alone, and changes and returns nothing; its input is ().

    Such a hook on an activation does not keep it from being one operation with a norm.
    """
    hook.__dict__["reads_output"] = True
    return hook


def norm_act(images: Tensor, norm: nn.Module, activation: nn.Module | None, shortcut: Tensor | None = None) -> Tensor:
    """activation(norm(images) + shortcut): (N, C, H, W) -> (N, C, H, W); an activation or shortcut of None is left out.

    It is one operation where a processor trains or evaluates float32 or bfloat16 in channels_last order. What it gives
    differs from torch's by rounding: in bfloat16 nothing is rounded between norm and activation.
    """
    kind = _kind_of(activation)
    if kind is None or not _suits(images, norm, activation, shortcut):
        out: Tensor = norm(images)
        if shortcut is not None:
            out += shortcut
        return out if activation is None else activation(out)
    if shortcut is not None:
        shortcut = _in_order(shortcut.to(images.dtype))
    if isinstance(norm, nn.BatchNorm2d) and not norm.training:
        fused: Tensor = _batch_forward(images, shortcut, norm.weight, norm.bias, norm, kind)[0]
    else:
        operation = _BatchNorm if isinstance(norm, nn.BatchNorm2d) else _GroupNorm
        fused = operation.apply(images, shortcut, norm.weight, norm.bias, norm, kind)  # type: ignore[no-untyped-call]
    if activation is not None:
        for hook in activation._forward_hooks.values():
            hook(activation, (), fused)
    return fused


class MaxPool(nn.MaxPool2d):
    """nn.MaxPool2d: (N, C, H, W) -> (N, C, H', W'); with a small square window on processors by a kernel of ours."""

    def forward(self, images: Tensor) -> Any:
        """The maxima."""
        window = self._window
        if window is None or min(images.shape[2:]) < window[0] or not _is_ours(images):
            return super().forward(images)
        return _MaxPool.apply(images, window)  # type: ignore[no-untyped-call]

    @property
    def _window(self) -> tuple[int, int, int] | None:
        """(kernel, stride, padding) where it is one for our kernel: no place beyond a byte, no window outside."""
        kernel, stride, padding = self.kernel_size, self.stride, self.padding
        if not (isinstance(kernel, int) and isinstance(stride, int) and isinstance(padding, int)):
            return None
        if self.ceil_mode or self.return_indices or self.dilation != 1:
            return None
        return (kernel, stride, padding) if kernel <= 15 and 0 <= 2 * padding <= kernel else None


class _Kind(NamedTuple):
    """What the kernels call an activation: its number there and its slope below 0."""

    number: int
    below: np.float32 = np.float32(0.0)


def _kind_of(activation: nn.Module | None) -> _Kind | None:
    """None if the kernels have none like it."""
    if activation is None:
        return _Kind(0, np.float32(1.0))
    if type(activation) is nn.ReLU:
        return _Kind(0)
    if type(activation) is nn.LeakyReLU:
        return _Kind(0, np.float32(activation.negative_slope))
    if type(activation) is nn.SiLU:
        return _Kind(1)
    if type(activation) is nn.GELU and activation.approximate == "none":
        return _Kind(2)
    return None


def _is_ours(images: Tensor) -> bool:
    """True if the kernels can read it, here and now."""
    if images.device.type != "cpu" or images.dtype not in _SAMPLES or type(images) is not Tensor:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return images.is_contiguous(memory_format=torch.channels_last) and images.numel() > 0 and kernels.usable()


def _suits(images: Tensor, norm: nn.Module, activation: nn.Module | None, shortcut: Tensor | None) -> bool:
    """True if kernels can do it all: nobody waits for the parts, and everything is as they take it to be."""
    if not _is_ours(images) or _waited_for(norm, *norm._forward_hooks.values()):
        return False
    if activation is not None and _waited_for(activation, *_reading_more(activation)):
        return False
    if shortcut is not None and (shortcut.shape != images.shape or shortcut.device != images.device):
        return False
    if type(norm) is nn.GroupNorm:
        return norm.affine and _are_plain(images.shape[1], norm.weight, norm.bias)
    if type(norm) is not nn.BatchNorm2d or not (norm.affine and norm.track_running_stats):
        return False
    if not _are_plain(images.shape[1], norm.weight, norm.bias, norm.running_mean, norm.running_var):
        return False
    if norm.training:  # of a single pixel there is no variance, which torch refuses in its words
        return norm.momentum is not None and images.numel() > images.shape[1]
    return not torch.is_grad_enabled()


def _waited_for(module: nn.Module, *forward_hooks: object) -> bool:
    return bool(forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _reading_more(activation: nn.Module) -> list[object]:
    """The forward hooks that need more than the output."""
    return [hook for hook in activation._forward_hooks.values() if "reads_output" not in getattr(hook, "__dict__", {})]


def _are_plain(channels: int, *values: Tensor | None) -> bool:
    """True if all are float32 (channels,) on the processor, side by side."""
    return all(
        value is not None
        and value.dtype is torch.float32
        and value.shape == (channels,)
        and value.is_contiguous()
        and value.device.type == "cpu"
        for value in values
    )


def _in_order(images: Tensor) -> Tensor:
    """The same values with those of a pixel side by side, as the kernels walk over them."""
    return images.contiguous(memory_format=torch.channels_last)


def _floats(images: Tensor, *shape: int) -> Tensor:
    """Room for float32 values, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device=images.device)


def _described(images: Tensor, shortcut: Tensor | None, kind: _Kind) -> tuple[Any, ...]:
    """The first arguments of the kernels: values like which, the activation, whether there is a sum; x, other."""
    x = images.data_ptr()
    return _SAMPLES[images.dtype], *kind, shortcut is not None, x, x if shortcut is None else shortcut.data_ptr()


def _batch_forward(
    images: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, kind: _Kind
) -> tuple[Tensor, Tensor]:
    """The output, and the means and inverse standard deviations (2, C)."""
    channels = images.shape[1]
    out, kept = torch.empty_like(images), _floats(images, 2, channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    kernels.run(
        "batch_forward",
        *_described(images, shortcut, kind),
        out.data_ptr(),
        images.numel(),
        channels,
        (weight.data_ptr(), bias.data_ptr()),
        (norm.running_mean.data_ptr(), norm.running_var.data_ptr()),
        norm.momentum or 0.0,
        norm.eps,
        norm.training,
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
        out, kept = _batch_forward(images, shortcut, weight, bias, norm, kind)
        ctx.save_for_backward(images, shortcut, weight, bias, kept)
        ctx.kind, ctx.sizes = kind, (len(weight),)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients("batch_backward", ctx, gradient)


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
        out, kept = torch.empty_like(images), _floats(images, 2, len(images), norm.num_groups)
        sizes = len(images), norm.num_groups, len(weight)
        kernels.run(
            "group_forward",
            *_described(images, shortcut, kind),
            out.data_ptr(),
            images.numel(),
            *sizes,
            (weight.data_ptr(), bias.data_ptr()),
            norm.eps,
            kept.data_ptr(),
        )
        ctx.save_for_backward(images, shortcut, weight, bias, kept)
        ctx.kind, ctx.sizes = kind, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients("group_backward", ctx, gradient)


def _gradients(name: str, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of images, shortcut, weight and bias by the kernel of that name; none of norm and kind."""
    images, shortcut, weight, bias, kept = ctx.saved_tensors
    gradient = _in_order(gradient)
    of_sum = torch.empty_like(images)
    of_images = of_sum if shortcut is None else torch.empty_like(images)
    of_parameters = _floats(images, 2, len(weight))
    kernels.run(
        name,
        *_described(images, shortcut, ctx.kind),
        gradient.data_ptr(),
        images.numel(),
        *ctx.sizes,
        (weight.data_ptr(), bias.data_ptr()),
        kept.data_ptr(),
        of_sum.data_ptr(),
        of_images.data_ptr(),
        of_parameters.data_ptr(),
    )
    return of_images, None if shortcut is None else of_sum, *of_parameters.unbind(), None, None


def _map(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, window: tuple[int, int, int]) -> Tensor:
        n, channels, *size = images.shape
        kernel, stride, padding = window
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in size]
        out = _map(images, (n, channels, *sides))
        where = torch.empty(out.numel(), dtype=torch.uint8, device=images.device)
        kernels.run(
            "pool",
            _SAMPLES[images.dtype],
            images.data_ptr(),
            (*size, channels),
            window,
            n,
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
        dx = _map(gradient, ctx.shape)
        kernels.run(
            "pool_backward",
            _SAMPLES[gradient.dtype],
            gradient.data_ptr(),
            where.data_ptr(),
            where.numel(),
            (*size, channels),
            ctx.window,
            n,
            dx.data_ptr(),
        )
        return dx, None
