"""The layers of a network, one by one: what each puts out, has and costs, and how much of the image it sees.

From the same plans as `tunelab.models.check` counts, whose sums these are; a network of the user's own is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tunelab.config import AnyArch, ArchSpec, BlockSpec, CustomSpec, LeNetSpec, MLPSpec
from tunelab.errors import RefusedError
from tunelab.models.blocks import Conv, Plan, Style, after_stride, block_kind
from tunelab.models.check import check
from tunelab.models.classic import padding_of, plan_lenet
from tunelab.models.custom import build_custom, scores_of
from tunelab.models.dense import plan_mlp
from tunelab.models.network import final_width, stem_conv, style_of

Size = tuple[int, int]
_BATCH = 2  # images of a run of a network of the user's own


@dataclass(frozen=True)
class LayerRow:
    """One layer, for one image.

    `name` is the module's in the network that `tunelab.models.network.build_network` makes, `what` what it does, with
    the norm and the activation after it. `shape` is its output's, (C, H, W) or (values,). `params` has those of its
    norm. `multiply_adds` leaves out biases and norms. `field` is the side in pixels of the square of the image that a
    value of the output depends on; None where that is not known, or all of it.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int
    field: int | None = None


class _Reach(NamedTuple):
    """A map on its way: its size, the pixels of the image that one value sees, and those between two neighbours."""

    size: Size
    field: int = 1
    jump: int = 1

    def after(self, kernel: int, stride: int = 1) -> _Reach:
        """Behind a layer that keeps the size but for its stride."""
        return _Reach(after_stride(self.size, stride), self.field + (kernel - 1) * self.jump, self.jump * stride)


def list_layers(arch: AnyArch, *, image_size: Size, channels: int, classes: int) -> list[LayerRow]:
    """The layers of a network for images of `image_size` (height, width in pixels), in the order of their work.

    Raises:
        RefusedError: as `check`; the layer that fails is named.
        InputError: as `check`.
    """
    if isinstance(arch, CustomSpec):  # its own run names the layer that fails
        return _run_custom(arch, image_size, channels, classes)
    check(arch, image_size=image_size, channels=channels, classes=classes)
    if isinstance(arch, LeNetSpec):
        return list(_lenet(arch, image_size, channels, classes))
    if isinstance(arch, MLPSpec):
        return list(_mlp(arch, image_size, channels, classes))
    return list(_blocks(arch, image_size, channels, classes))


def _blocks(arch: ArchSpec, image_size: Size, channels: int, classes: int) -> Iterator[LayerRow]:
    style, width = style_of(arch), final_width(arch)
    stem = stem_conv(arch, channels)
    reach = _Reach(image_size).after(stem.kernel, stem.stride)
    yield _conv("stem.0", stem, reach, style, style.activation)
    if arch.stem.pool:
        reach = reach.after(3, 2)
        name = f"stem.{_step(style)}"
        yield LayerRow(name, "max pool 3x3, stride 2", (arch.stem.width, *reach.size), 0, 0, reach.field)
    for number, blocks in enumerate(arch.branches):
        width_in, inside = arch.stem.width, reach
        for place, block in enumerate(blocks):
            plan = block_kind(block.kind).plan(width_in, block.width, block.stride, block.convs)
            rows = list(_block(f"branches.{number}.{place}", block, plan, inside, style))
            yield from rows
            strided = _Reach(inside.size, 1, inside.jump).after(1, block.stride)
            inside = strided._replace(field=max(row.field or 0 for row in rows))
            width_in = block.width
        if len(arch.branches) > 1:
            yield LayerRow(f"norms.{number}", "mean over the map, layer norm", (width,), 2 * width, 0)
    first = "sum of the branches" if len(arch.branches) > 1 else "mean over the map"
    dropout = f", dropout {arch.dropout:.2g}" if arch.dropout else ""
    yield LayerRow("classifier", f"{first}{dropout}, linear", (classes,), (width + 1) * classes, width * classes)


def _block(name: str, block: BlockSpec, plan: Plan, reach: _Reach, style: Style) -> Iterator[LayerRow]:
    if block.kind == "inception":
        yield from _inception(name, plan, reach, style)
        return
    is_plain = block.kind in ("plain", "plain_bottleneck")
    inside = "" if is_plain else ".residual"
    now = reach
    for place, conv in enumerate(plan.path):
        now = now.after(conv.kernel, conv.stride)
        is_last = place == len(plan.path) - 1
        then = style.activation if is_plain or not is_last else f"plus shortcut, {style.activation}"
        yield _conv(f"{name}{inside}.{place * _step(style)}", conv, now, style, then)
    for conv in plan.side:
        place = 1 if conv.stride > 1 else 0
        yield _conv(f"{name}.shortcut.{place}", conv, reach.after(conv.kernel, conv.stride), style, "")


def _inception(name: str, plan: Plan, reach: _Reach, style: Style) -> Iterator[LayerRow]:
    (reduce, three, last), (one, thin, second, project) = plan.path, plan.side
    step, joined = _step(style), f"joined, {style.activation}"
    inside = f"{name}.module"
    seen = reach.after(3)
    yield _conv(f"{inside}.one", one, reach, style, joined)
    yield _conv(f"{inside}.three.0", reduce, reach, style, style.activation)
    yield _conv(f"{inside}.three.{step}", three, seen, style, joined)
    yield _conv(f"{inside}.second.0", thin, reach, style, style.activation)
    yield _conv(f"{inside}.second.{step}", second, seen, style, joined)
    yield LayerRow(f"{inside}.pool.0", "max pool 3x3", (project.width_in, *seen.size), 0, 0, seen.field)
    yield _conv(f"{inside}.pool.1", project, seen, style, joined)
    yield _conv(f"{name}.after.0", last, seen.after(last.kernel, last.stride), style, style.activation)


def _step(style: Style) -> int:
    """So many modules are a convolution with what comes after it."""
    return 2 + (style.norm != "none")


def _conv(name: str, conv: Conv, reach: _Reach, style: Style, then: str) -> LayerRow:
    """A convolution whose output is `reach`, with its norm and what comes `then`."""
    weights = conv.width_in * conv.width_out * conv.kernel**2
    each = style.bias + (2 if style.norm != "none" else 0)
    said = [f"conv {conv.kernel}x{conv.kernel}", "stride 2" if conv.stride > 1 else ""]
    said += [f"{style.norm} norm" if style.norm != "none" else "", then]
    shape = (conv.width_out, *reach.size)
    params = weights + each * conv.width_out
    return LayerRow(name, ", ".join(filter(None, said)), shape, params, weights * math.prod(reach.size), reach.field)


def _lenet(arch: LeNetSpec, image_size: Size, channels: int, classes: int) -> Iterator[LayerRow]:
    plan, padding = plan_lenet(image_size, channels, classes), padding_of(image_size)
    is_max = arch.pooling == "max"
    field, jump = 1, 1
    for place, layer in enumerate(plan.convs):
        side, field = math.isqrt(layer.pixels), field + 4 * jump
        padded = f", padding {padding}" if place == 0 and padding else ""
        what = f"conv 5x5{padded}" if is_max else f"conv 5x5{padded}, {arch.activation}"
        costs = (layer.fan_in + 1) * layer.width, layer.fan_in * layer.width * layer.pixels
        yield LayerRow(f"features.{3 * place}", what, (layer.width, side, side), *costs, field)
        field, jump, side = field + jump, 2 * jump, side // 2
        what = f"max pool 2x2, {arch.activation}" if is_max else "average pool 2x2"
        yield LayerRow(f"features.{3 * place + (1 if is_max else 2)}", what, (layer.width, side, side), 0, 0, field)
    yield from _dense("classifier", plan.dense, 2, arch.activation)


def _mlp(arch: MLPSpec, image_size: Size, channels: int, classes: int) -> Iterator[LayerRow]:
    after = f"{arch.activation}, dropout {arch.dropout:.2g}" if arch.dropout else arch.activation
    layers = plan_mlp(arch, image_size, channels, classes).dense
    yield from _dense("layers", layers, 3 if arch.dropout else 2, after)


def _dense(name: str, layers: Sequence[Any], step: int, after: str) -> Iterator[LayerRow]:
    for place, layer in enumerate(layers):
        what = "linear" if place == len(layers) - 1 else f"linear, {after}"
        costs = (layer.fan_in + 1) * layer.width, layer.fan_in * layer.width
        yield LayerRow(f"{name}.{place * step}", what, (layer.width,), *costs)


def _run_custom(spec: CustomSpec, image_size: Size, channels: int, classes: int) -> list[LayerRow]:
    """The modules without modules in them, as they are called; what is computed beside them is a row of its own."""
    try:
        with torch.device("meta"):
            return _Calls(spec, build_custom(spec, channels, classes, image_size)).rows(channels, image_size, classes)
    except Exception:  # not all code can do without numbers
        pass
    with torch.random.fork_rng(devices=[]):
        return _Calls(spec, build_custom(spec, channels, classes, image_size)).rows(channels, image_size, classes)


class _Calls:
    """A run of a network, told module by module."""

    def __init__(self, spec: CustomSpec, network: nn.Module) -> None:
        self._spec = spec
        self._network = network.eval()
        self._flops = FlopCounterMode(display=False)
        self._inside: list[tuple[str, int]] = []
        self._found: list[LayerRow] = []
        self._counted: set[int] = set()

    def rows(self, channels: int, image_size: Size, classes: int) -> list[LayerRow]:
        """What each module did with two images.

        Raises:
            RefusedError: the network fails on them; the module is named.
        """
        hooks = []
        for name, module in self._network.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda _module, _given, name=name: self._begin(name)))
            if not list(module.children()):
                hooks.append(module.register_forward_hook(self._leaf))
            hooks.append(module.register_forward_hook(lambda *_call: self._end()))
        try:
            with self._flops, torch.no_grad():
                images = torch.zeros(_BATCH, channels, *image_size)
                scores = scores_of(self._spec, self._network, images, classes)
        except RefusedError as error:
            where = f"; it fails in the layer {self._inside[-1][0]!r}" if self._inside and self._inside[-1][0] else ""
            raise RefusedError(f"{error}{where}") from error
        finally:
            for hook in hooks:
                hook.remove()
        return [*self._found, *self._rest(scores)]

    def _begin(self, name: str) -> None:
        self._inside.append((name, self._flops.get_total_flops()))

    def _end(self) -> None:
        self._inside.pop()

    def _leaf(self, module: nn.Module, _given: Any, out: Any) -> None:
        name, before = self._inside[-1]
        new = [weight for weight in module.parameters() if id(weight) not in self._counted]
        self._counted |= {id(weight) for weight in new}
        shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else ()
        done = (self._flops.get_total_flops() - before) // 2 // _BATCH
        what = f"{type(module).__name__}({module.extra_repr()})"
        self._found.append(LayerRow(name, what, shape, sum(weight.numel() for weight in new), done))

    def _rest(self, scores: Tensor) -> Iterator[LayerRow]:
        params = sum(weight.numel() for weight in self._network.parameters() if id(weight) not in self._counted)
        done = self._flops.get_total_flops() // 2 // _BATCH - sum(row.multiply_adds for row in self._found)
        if params or done:
            yield LayerRow("", "beside these layers", tuple(scores.shape[1:]), params, done)
