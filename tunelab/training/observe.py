"""Looking at a training while it runs, without changing it.

An `Observer` says which steps it wants to see. Such a step computes what any other does, as it comes: not replayed from
a recording and not compiled. In it observers may put forward hooks on the network, and read the gradients and the
change of the weights. A step that nobody wants to see costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tunelab.config import TrialConfig
from tunelab.data.batches import Batch, Split
from tunelab.data.cache import DataInfo
from tunelab.records import EpochMetrics
from tunelab.training.evaluate import Evaluation


@dataclass(frozen=True)
class Scene:
    """A training that begins or goes on: its network as it is now, what it is trained and validated on, its past."""

    model: nn.Module
    config: TrialConfig
    info: DataInfo
    train: Split
    val: Split | None
    history: Sequence[EpochMetrics]


@dataclass(frozen=True)
class LayerNorms:
    """Euclidean norms of one of a network's weights, of its gradient and of what a step changed it by.

    `name` is that of `nn.Module.named_parameters`. `weight` is taken before the step. `gradient` is None where there is
    none: the loss does not depend on the weight, or it is not to be trained.
    """

    name: str
    weight: float
    gradient: float | None
    update: float


@dataclass(frozen=True)
class Look:
    """A step that was looked at, just after it: `step` counts from 0, of `steps` in an epoch.

    `loss` is that of its batch, before the step; `batch` is that one, or its last part where it is computed in parts.
    `gradient` and `change` give tensors of a weight by its name; they, `model` and `batch` are only good until
    `Observer.after` returns.
    """

    epoch: int
    step: int
    steps: int
    lr: float
    loss: float
    layers: tuple[LayerNorms, ...]
    model: nn.Module
    batch: Batch
    gradient: Callable[[str], Tensor | None]
    change: Callable[[str], Tensor]

    @property
    def grad_norm(self) -> float:
        """The Euclidean norm of the gradients of all weights together."""
        return math.hypot(*(layer.gradient or 0.0 for layer in self.layers))

    @property
    def update_ratio(self) -> float:
        """The Euclidean norm of the step's change of all weights together, as a share of that of the weights."""
        change = math.hypot(*(layer.update for layer in self.layers))
        weight = math.hypot(*(layer.weight for layer in self.layers))
        return change / weight if weight else math.inf if change else 0.0


class Observer(Protocol):
    """Sees a training. It draws no random numbers of torch's global state and moves no statistics of a norm.

    Forward hooks may be put on any module but norms and activations, which are one operation only while nobody waits
    for the parts: on an activation those that `tunelab.models.fused.reads_output` marks, on a norm none.
    `before` and `after` are told of the steps that it wants alone. `after` and `epoch_ended` may raise a DivergedError,
    which ends the training.
    """

    def begin(self, scene: Scene) -> None:
        """The network was built, or restored from a checkpoint."""

    def wants(self, epoch: int, step: int, steps: int) -> bool:
        """True if the step, which counts from 0, is to be looked at; the epoch counts from 1."""

    def before(self, model: nn.Module, batch: Batch) -> None:
        """The step is about to begin, or the last part of its batch; forward hooks may be put on `model`."""

    def after(self, look: Look) -> None:
        """The step is done; what `before` put on the network is to be taken off."""

    def epoch_ended(self, metrics: EpochMetrics, evaluation: Evaluation | None, model: nn.Module) -> None:
        """The epoch is done; `model` is the network that was validated, an average of weights where there is one."""


class Eye:
    """Looks at one step for `observers`: `open` before it, `before_update` and `after_update` inside it."""

    def __init__(
        self, model: nn.Module, observers: Sequence[Observer], epoch: int, step: int, steps: int, lr: float
    ) -> None:
        self.model = model
        self._observers, self._at, self._lr = observers, (epoch, step, steps), lr

    def open(self, batch: Batch) -> None:
        """Tells the observers that the step begins, or the last part of its batch."""
        self._batch = batch
        for observer in self._observers:
            observer.before(self.model, batch)

    @torch.no_grad()
    def before_update(self) -> None:
        """Takes the norms of weights and gradients, and a copy of the weights."""
        self._weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        self._before = {name: weight.clone() for name, weight in self._weights.items()}
        self._gradients = {name: weight.grad for name, weight in self.model.named_parameters()}
        self._weight_norms = norms_of(self._before)
        self._gradient_norms = norms_of({name: grad for name, grad in self._gradients.items() if grad is not None})

    @torch.no_grad()
    def after_update(self, loss: Tensor) -> None:
        """Tells the observers what the step was, whose mean loss was `loss`."""
        # One change after another: all at once would take as much memory again.
        changes = [torch.linalg.vector_norm(self._change(name)) for name in self._weights]
        updates = torch.stack(changes).tolist() if changes else []
        layers = tuple(
            LayerNorms(name, weight, self._gradient_norms.get(name), update)
            for (name, weight), update in zip(self._weight_norms.items(), updates, strict=True)
        )
        look = Look(
            *self._at, self._lr, float(loss), layers, self.model, self._batch, self._gradients.get, self._change
        )
        for observer in self._observers:
            observer.after(look)

    def _change(self, name: str) -> Tensor:
        return self._weights[name] - self._before[name]


class LastStep:
    """Sees the last step of every epoch, for what the record holds of it."""

    def __init__(self) -> None:
        self.grad_norm: float | None = None
        self.update_ratio: float | None = None

    def begin(self, scene: Scene) -> None:
        """Nothing."""

    def wants(self, epoch: int, step: int, steps: int) -> bool:
        """True for the last step."""
        return step + 1 == steps

    def before(self, model: nn.Module, batch: Batch) -> None:
        """Nothing."""

    def after(self, look: Look) -> None:
        """Keeps the norms; what is not finite, or no number of the record, is None."""
        self.grad_norm, self.update_ratio = (
            value if math.isfinite(value) else None for value in (look.grad_norm, look.update_ratio)
        )

    def epoch_ended(self, metrics: EpochMetrics, evaluation: Evaluation | None, model: nn.Module) -> None:
        """Nothing."""


def norms_of(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each tensor; waits for the device once."""
    if not tensors:
        return {}
    norms = torch.stack([norm.float() for norm in torch._foreach_norm([one.detach() for one in tensors.values()])])
    return dict(zip(tensors, norms.tolist(), strict=True))


@torch.no_grad()
def weight_norm(model: nn.Module) -> float:
    """The Euclidean norm over all weights with two or more dimensions, which are those that a recipe decays.

    Raises:
        ValueError: a weight, or a statistic of a norm, is no longer finite.
    """
    state = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point() or tensor.is_complex()
    }
    norms = norms_of(state)
    finite = all(map(math.isfinite, norms.values()))
    if not finite and not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError("a weight is no longer finite")
    decayed = [name for name, weight in model.named_parameters() if weight.ndim >= 2]
    return math.hypot(*(norms[name] for name in decayed))
