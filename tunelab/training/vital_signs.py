"""What one training step shows of a network: its inputs and scores, the units of its layers, how its weights move.

The activations are seen by forward hooks on the layers with weights, on tanh, sigmoid and dropout, never on a norm, a
ReLU or a pooling: those may be one operation together (`tunelab.models.fused`), which a hook on one of them would take
apart. What a ReLU gave is what the next layer with weights is fed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunelab.training.observe import Look

_SEEN = 2**17  # values of an activation that are looked at, those of the first images of the batch; our choice
LEAST_IMAGES = 16
"""Images that are looked at in any case, where a batch has so many; our choice."""
_FEW_UNITS = 8  # of one value per image may all be 0 by chance, as in squeeze and excitation; our choice
_TANH, _SIGMOID = 0.97, 0.47
"""|tanh| and |sigmoid - 1/2| above which a unit is saturated: there the slope is below 6% of tanh's largest and 12% of
the sigmoid's; our choice (Glorot & Bengio 2010, section 3, look at units near their asymptotes)."""
_SAME = 1e-5  # of the largest weight of a layer: units that differ by less are the same; our choice, some float32 steps

_OPERATIONS = {
    "SoftmaxBackward0": "softmax",
    "ReluBackward0": "relu",
    "ThresholdBackward0": "relu",
    "LeakyReluBackward0": "leaky_relu",
    "HardtanhBackward0": "hardtanh",
    "EluBackward0": "elu",
    "GeluBackward0": "gelu",
    "SiluBackward0": "silu",
    "SigmoidBackward0": "sigmoid",
    "TanhBackward0": "tanh",
    "SoftplusBackward0": "softplus",
    "ClampMinBackward0": "clamp",
    "ClampBackward0": "clamp",
    "ClampBackward1": "clamp",
}
"""Activations, and what autograd calls them. Not log_softmax: of its output it is the identity."""
_PASSED_ON = {"ToCopyBackward0", "ViewBackward0", "ReshapeAliasBackward0", "CloneBackward0", "AliasBackward0"}


@dataclass(frozen=True)
class LayerStart:
    """A layer before the first step. `units` are its outputs; `gain` is the root mean square of its weights times the
    square root of its inputs: 1 keeps the variance of what it is fed, He's initialisation has 1.4. Of weights that are
    added to something, such as embeddings of places, it is 0. `alike`: all units have the same weights; `zero`: these
    are 0. Not `trained`: it is not to be.
    """

    name: str
    units: int
    gain: float
    alike: bool
    zero: bool
    trained: bool


@dataclass(frozen=True)
class LayerSigns:
    """A layer in one step: norms as in `LayerNorms`, and of the units that it leads to, after their activation, the
    share that is 0 for the whole batch (`dead`) and the share of saturated values; None where that is not seen.
    """

    name: str
    weight: float
    gradient: float | None
    update: float
    dead: float | None = None
    saturated: float | None = None


@dataclass(frozen=True)
class ScoreSigns:
    """The scores of a batch. `after` is the activation that they come out of, "" if it is none that is known; `zeros`
    the share that is exactly 0; `normed`: none is negative and those of each image sum to 1.
    """

    after: str
    lowest: float
    highest: float
    zeros: float
    normed: bool


@dataclass(frozen=True)
class Signs:
    """A network in one step: `step` counts from 1. `inputs` are mean and standard deviation of the images of the batch;
    `alike` names the layers whose units still have the same weights, as they had at the start, `idle` those that the
    step did not run.
    """

    epoch: int
    step: int
    steps: int
    lr: float
    loss: float
    layers: tuple[LayerSigns, ...]
    scores: ScoreSigns | None = None
    inputs: tuple[float, float] | None = None
    alike: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    @property
    def steps_done(self) -> int:
        """The steps of the whole training up to this one, itself included."""
        return (self.epoch - 1) * self.steps + self.step


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights with two or more dimensions, by the name of their layer; those of norms are none."""
    norms = {id(one) for norm in model.modules() if isinstance(norm, nn.LayerNorm) for one in norm.parameters()}
    return {
        name.removesuffix(".weight"): weight
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and weight.numel() and id(weight) not in norms
    }


@torch.no_grad()
def begin_of(model: nn.Module) -> tuple[LayerStart, ...]:
    """The layers as they are drawn."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = {id(weight) for name, weight in model.named_parameters() if name.endswith("weight")}
    found = []
    for name, weight in weights_of(model).items():
        rows = _real(weight).flatten(1)
        size = float(rows.norm()) / math.sqrt(rows.shape[0])
        multiplies = id(weight) not in embeddings and (id(weight) in named or len(rows) > 1)
        alike = units_alike(weight)
        gain = size if multiplies else 0.0
        found.append(LayerStart(name, len(rows), gain, alike, alike and size == 0.0, weight.requires_grad))
    return tuple(found)


@torch.no_grad()
def units_alike(weight: Tensor) -> bool:
    """True if all of several units of a layer have the same weights; one weight for each unit is a scale."""
    rows = _real(weight).flatten(1)
    if len(rows) < 2 or rows.shape[1] < 2:
        return False
    return bool((rows - rows[0]).abs().max() <= _SAME * rows.abs().max())


def _real(weight: Tensor) -> Tensor:
    """Complex numbers as pairs."""
    values = weight.detach()
    return torch.view_as_real(values).float() if values.is_complex() else values.float()


def dropout_of(model: nn.Module) -> dict[str, float]:
    """The probability of each dropout, by the name of its module."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    return {name: module.p for name, module in model.named_modules() if isinstance(module, kinds)}


@dataclass
class _Seen:
    """What the hooks of one step have seen; numbers stay on the device until they are asked for."""

    dead: dict[str, Tensor] = field(default_factory=dict)
    saturated: dict[str, Tensor] = field(default_factory=dict)
    scores: tuple[str, Tensor] | None = None
    inputs: tuple[Tensor, Tensor] | None = None


class Sensors:
    """Hooks on a network for one step: made before it, `read` after it, which takes them off.

    Mean and deviation of the images are only taken `with_inputs`, and dead units only looked for `with_dead`: in a few
    images of a batch a unit may be 0 that is alive.
    """

    def __init__(self, model: nn.Module, images: Tensor, *, with_inputs: bool = True, with_dead: bool = True) -> None:
        self._with_dead = with_dead
        self._seen = _Seen()
        self._idle: dict[str, None] = {}  # the layers that have not worked yet, in order
        self._before = ""  # the last layer that has worked
        self._fed: dict[
            int, Tensor
        ] = {}  # what layers were fed, by where it lies; kept, so that nothing else lies there
        self._undropped: list[tuple[Tensor, Tensor]] = []  # what came out of a dropout and what went in
        self._images = images
        if with_inputs:
            with torch.no_grad():
                values = images.float()
                self._seen.inputs = values.mean(), values.std()
        modules = list(model.named_modules())
        self._by_module = any(isinstance(module, (nn.Tanh, nn.Sigmoid)) for _, module in modules)
        self._hooks = [model.register_forward_hook(self._see_scores)]
        for name, module in modules:
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                self._idle[name] = None
                self._hooks.append(module.register_forward_pre_hook(self._layer_hook(name)))
            elif isinstance(module, (nn.Tanh, nn.Sigmoid)):
                self._hooks.append(module.register_forward_hook(self._see_saturation))
            elif isinstance(module, nn.Dropout):
                self._hooks.append(module.register_forward_hook(self._see_dropout))

    def off(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._fed.clear()
        self._undropped.clear()

    def read(self, look: Look, watched: Mapping[str, nn.Parameter]) -> Signs:
        """The signs of the step, which is done; `watched` are the weights of layers whose units began alike."""
        self.off()
        seen = self._seen
        shares = {**{("dead", name): x for name, x in seen.dead.items()}}
        shares |= {("saturated", name): x for name, x in seen.saturated.items()}
        numbers = dict(zip(shares, torch.stack(list(shares.values())).tolist(), strict=True)) if shares else {}
        names = weights_of(look.model)
        layers = tuple(
            LayerSigns(
                name,
                norms.weight,
                norms.gradient,
                norms.update,
                numbers.get(("dead", name)),
                numbers.get(("saturated", name)),
            )
            for norms in look.layers
            if (name := norms.name.removesuffix(".weight")) in names
        )
        inputs = None if seen.inputs is None else (float(seen.inputs[0]), float(seen.inputs[1]))
        alike = tuple(name for name, weight in watched.items() if units_alike(weight))
        scores = None if seen.scores is None else _judge_scores(*seen.scores)
        at = look.epoch, look.step + 1, look.steps, look.lr
        return Signs(*at, look.loss, layers, scores, inputs, alike, tuple(self._idle))

    def _layer_hook(self, name: str) -> Any:
        def see(module: nn.Module, given: tuple[Any, ...]) -> None:
            self._idle.pop(name, None)
            if given and isinstance(given[0], Tensor) and _lies_somewhere(given[0]):
                self._see_units(given[0], channels_first=not isinstance(module, nn.Linear))
            self._before = name

        return see

    @torch.no_grad()
    def _see_units(self, given: Tensor, *, channels_first: bool) -> None:
        """Looks at what a layer is fed: the units of the layer that led to it."""
        values = next((before for after, before in self._undropped if after is given), given)
        place = given.untyped_storage().data_ptr()
        if not self._before or place in self._fed or place == self._images.untyped_storage().data_ptr():
            return
        self._fed[place] = given
        if self._before in self._seen.dead:
            return
        values = _some(values)
        unit = 1 if channels_first else values.ndim - 1
        others = [dimension for dimension in range(values.ndim) if dimension != unit]
        units = values.shape[unit] if values.ndim > 1 else 0
        if self._with_dead and values.numel() and (units >= _FEW_UNITS or values[0].numel() > units > 0):
            sums = values.abs().sum(others)  # many times faster than their maxima
            self._seen.dead[self._before] = (sums == 0).float().mean()
        if not self._by_module:
            kind = _operation(given)
            if kind in ("tanh", "sigmoid"):
                self._seen.saturated.setdefault(self._before, _saturated(values, kind))

    @torch.no_grad()
    def _see_saturation(self, module: nn.Module, given: Any, found: Tensor) -> None:
        # A gate of one number is no layer's.
        if self._before and found.ndim > 1 and _lies_somewhere(found):
            kind = "tanh" if isinstance(module, nn.Tanh) else "sigmoid"
            self._seen.saturated.setdefault(self._before, _saturated(_some(found), kind))

    def _see_dropout(self, module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        self._undropped.append((found, given[0]))

    def _see_scores(self, module: nn.Module, given: Any, found: Any) -> None:
        if isinstance(found, Tensor) and found.ndim == 2:
            self._seen.scores = _operation(found), found.detach().float()


def _lies_somewhere(values: Tensor) -> bool:
    """False for what exists only inside of `torch.func.vmap`, say, and cannot be read outside."""
    try:
        values.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _some(values: Tensor) -> Tensor:
    """The first images of a batch, as many as there is time for."""
    each = max(1, values[0].numel() if len(values) else 1)
    return values.detach()[: max(LEAST_IMAGES, _SEEN // each)]


def _saturated(values: Tensor, kind: str) -> Tensor:
    far = values.abs() > _TANH if kind == "tanh" else (values - 0.5).abs() > _SIGMOID
    return far.float().mean()


def _operation(found: Tensor) -> str:
    """The activation that a tensor comes out of, "" if it is none that is known."""
    node: Any = found.grad_fn
    while node is not None and node.name() in _PASSED_ON and node.next_functions:
        node = node.next_functions[0][0]
    return "" if node is None else _OPERATIONS.get(node.name(), "")


def _judge_scores(after: str, scores: Tensor) -> ScoreSigns:
    lowest, highest = float(scores.min()), float(scores.max())
    off = float((scores.sum(1) - 1).abs().max())
    if after == "clamp":  # at another border it may keep scores in bounds
        after = "relu" if lowest == 0 else ""
    return ScoreSigns(after, lowest, highest, float((scores == 0).float().mean()), lowest >= 0 and off < 0.02)
