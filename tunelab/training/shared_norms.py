"""Batch norms over the batches of all processes of a group: mean and variance are those of the whole batch.

On GPUs they are torch's SyncBatchNorm, which does not work on processors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from tunelab.errors import InputError


def share_norms(model: nn.Module) -> None:
    """Makes each batch norm of `model`, on its device, one over the batches of all processes; its state stays.

    Raises:
        InputError: it has a batch norm of a kind of its own, which nothing is known of.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, (nn.SyncBatchNorm, *_SHARED.values())):
            continue
        if type(module) not in _SHARED:
            raise InputError(f"the norm {name!r} is a {type(module).__name__}, which cannot be shared by processes")
        on_gpu = next(iter(module.state_dict().values()), torch.empty(0)).is_cuda
        if on_gpu:
            module.process_group = None  # type: ignore[assignment]  # all processes
        module.__class__ = nn.SyncBatchNorm if on_gpu else _SHARED[type(module)]


class _Shared(_BatchNorm):
    """A batch norm on processors; not in training, it is torch's."""

    def forward(self, images: Tensor) -> Tensor:
        """The normalised values: (N, C, ...) to the same; every process calls it as often."""
        if not self.training:
            return super().forward(images)
        self._check_input_dim(images)  # type: ignore[no-untyped-call]
        mean, variance, count = _statistics(images)
        if self.running_mean is not None and self.running_var is not None:
            self._remember(mean, variance * (count / (count - 1)))
        inverse = (variance + self.eps).rsqrt()
        made: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            images, self.weight, self.bias, mean.float(), inverse.float(), count
        )
        return made

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics, as torch's."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        moved = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now.to(running.dtype), moved)


class _Shared1d(_Shared, nn.BatchNorm1d):
    pass


class _Shared2d(_Shared, nn.BatchNorm2d):
    pass


class _Shared3d(_Shared, nn.BatchNorm3d):
    pass


_SHARED: dict[type[_BatchNorm], type[_Shared]] = {
    nn.BatchNorm1d: _Shared1d,
    nn.BatchNorm2d: _Shared2d,
    nn.BatchNorm3d: _Shared3d,
}


@torch.no_grad()
def _statistics(images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance of each channel over all processes, float64 (C,), and how many values they are of."""
    around = [place for place in range(images.ndim) if place != 1]
    variance, mean = torch.var_mean(images.float(), around, correction=0)
    count, mean = images.numel() / images.shape[1], mean.double()
    sums = torch.stack([mean * count, (variance.double() + mean.square()) * count, torch.full_like(mean, count)])
    distributed.all_reduce(sums)
    mean, square = sums[0] / sums[2], sums[1] / sums[2]
    return mean, (square - mean.square()).clamp_min(0.0), float(sums[2, 0])


class _Normalise(torch.autograd.Function):
    """Ioffe & Szegedy, arXiv 1502.03167, algorithm 1, and its gradients; those of weight and bias are of this process.

    In float32, whatever the type of the values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        count: float,
    ) -> Tensor:
        ctx.save_for_backward(images, weight, mean, inverse)
        ctx.count, ctx.has_bias = count, bias is not None
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(_along(shift, images), images.float(), _along(scale, images)).to(images.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse = ctx.saved_tensors
        around = [place for place in range(images.ndim) if place != 1]
        whole = gradient.float()
        normal = (images.float() - _along(mean, images)) * _along(inverse, images)
        own = torch.stack([whole.sum(around), (whole * normal).sum(around)])
        sums = own.double()
        distributed.all_reduce(sums)
        means = (sums / ctx.count).float()
        scale = inverse if weight is None else inverse * weight
        of_images = _along(scale, images) * (whole - _along(means[0], images) - normal * _along(means[1], images))
        of_weight, of_bias = None if weight is None else own[1], own[0] if ctx.has_bias else None
        return of_images.to(images.dtype), of_weight, of_bias, None, None, None


def _along(values: Tensor, images: Tensor) -> Tensor:
    """Values of channels (C,) so that they meet those of `images`."""
    return values.view(-1, *[1] * (images.ndim - 2))
