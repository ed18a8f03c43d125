"""The average of a network's weights over the last part of a training; `AveragingConfig` says which.

Written out and not torch's AveragedModel, whose count is moved to the GPU at every step, and whose exponential average
does not forget what it began with any sooner than the rest. The statistics of batch norms are torch's `update_bn`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from tunelab.config import TrainConfig
from tunelab.training.checkpoint import CheckpointError
from tunelab.training.stages import first_epoch

_WARM_UP = 10.0
"""After n steps an exponential average moves by at least 9 / (10 + n): as TensorFlow's ExponentialMovingAverage with
`num_updates`, whose documentation says (1 + n) / (10 + n) for the decay."""


_Pair = tuple[list[torch.Tensor], list[torch.Tensor]]


class Averager:
    """Averages the weights of one training as its recipe says; does nothing where the recipe says nothing.

    `network` is the average, with its own weights and statistics; None before it begins.
    """

    def __init__(self, train: TrainConfig) -> None:
        self.network: nn.Module | None = None
        self._averaging = train.averaging
        self._count = 0
        self._first = train.epochs + 1
        if train.averaging is not None:
            self._first = min(train.epochs, first_epoch(train.averaging.start, train.epochs))

    def after_step(self, model: nn.Module, epoch: int) -> None:
        """Takes in the weights and statistics of `model` after a step of `epoch`, if the average is one over steps."""
        if self._averaging is None or self._averaging.kind != "ema" or epoch < self._first:
            return
        share = max(1 - self._averaging.decay, (_WARM_UP - 1) / (_WARM_UP + self._count))
        self._take_in(model, share, statistics=True)

    def after_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Takes in the weights of `model` at the end of `epoch`, if the average is one over epochs.

        Returns:
            True if `renew_statistics` is to follow.
        """
        if self._averaging is None or self._averaging.kind != "swa" or epoch < self._first:
            return False
        self._take_in(model, 1 / (self._count + 1), statistics=False)
        return True

    def renew_statistics(self, batches: Iterable[torch.Tensor]) -> None:
        """Computes the statistics of the average's batch norms over `batches` of images; without norms takes none."""
        assert self.network is not None
        update_bn(batches, self.network)

    def state(self) -> Mapping[str, Any]:
        """The average for a checkpoint: nothing before it begins."""
        return {} if self.network is None else {"count": self._count, "network": self.network.state_dict()}

    def load(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Goes on with the average of a checkpoint of `model`.

        Raises:
            CheckpointError: it does not fit.
        """
        if not state:
            self.network, self._count = None, 0
            return
        self._begin(model)
        assert self.network is not None
        try:
            self.network.load_state_dict(state["network"])
            self._count = int(state["count"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"its average does not fit the network: {str(error).splitlines()[-1]}") from error

    def _begin(self, model: nn.Module) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._weights: _Pair = [*self.network.parameters()], [*model.parameters()]
        buffers = list(zip(self.network.buffers(), model.buffers(), strict=True))
        floats = [pair for pair in buffers if pair[0].is_floating_point()]
        self._statistics: _Pair = [pair[0] for pair in floats], [pair[1] for pair in floats]
        self._counts = [pair for pair in buffers if not pair[0].is_floating_point()]

    @torch.no_grad()
    def _take_in(self, model: nn.Module, share: float, *, statistics: bool) -> None:
        """Moves by `share` towards the weights of `model`, and with `statistics` towards those of its norms."""
        if self.network is None:
            self._begin(model)
        elif self._weights[0]:
            torch._foreach_lerp_(*self._weights, share)
        if self._count and statistics and self._statistics[0]:
            torch._foreach_lerp_(*self._statistics, share)
            for own, other in self._counts:
                own.copy_(other)
        self._count += 1
