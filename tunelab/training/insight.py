"""What a network does with some images: the activations of its layers, its scores, and the maps that it makes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_ACTIVATIONS = "torch.nn.modules.activation"  # where torch's own are from
MOST_MAPS = 4
"""The most layers whose maps are kept; our choice."""


@dataclass
class Insight:
    """What was seen. `maps` has the maps (channels, h, w) of the first image, by the layer that made them."""

    scores: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)


def look_inside(model: nn.Module, images: Tensor, see: Callable[[str, Tensor], None]) -> Insight:
    """Runs a copy of `model` in evaluation mode on `images` (N, C, H, W); model and random state stay as they are.

    `see` is given the output of each activation, by the name of its module, or of each layer with weights in a network
    without modules for its activations, and at last the scores. It must not keep a tensor, which may be changed.

    The maps kept are those of the last such layer at each resolution, from the finest, at most `MOST_MAPS`: what a
    network has made of an image before it looks at it more coarsely.
    """
    own = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    maps: dict[tuple[int, ...], tuple[str, Tensor]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                see(name, output)
                if output.ndim == 4 and min(output.shape[2:]) > 1:
                    maps[tuple(output.shape[2:])] = name, output[0].clone()

        return hook

    for name, layer in layers_seen(own):
        layer.register_forward_hook(hook_of(name))
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        scores = own(images.contiguous())
    see("scores", scores)
    finest = sorted(maps, key=lambda size: -size[0] * size[1])[:MOST_MAPS]
    return Insight(scores.float().cpu(), dict(maps[size] for size in finest))


def layers_seen(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The activations of a network, or its layers with weights where it has no modules for activations."""
    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    found = [(name, module) for name, module in leaves if type(module).__module__ == _ACTIVATIONS]
    yield from found or [(name, module) for name, module in leaves if any(p.ndim >= 2 for p in module.parameters())]
