"""LeNet-5, first described as layers of weights, which `tunelab.models.check` counts, then built from them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from tunelab.config import LeNetSpec
from tunelab.errors import RefusedError
from tunelab.models.fused import MaxPool
from tunelab.models.init import CLASSIC_INITS

_KERNEL = 5
_MAPS = (6, 16)  # of C1 and C3
_UNITS = (120, 84)  # of C5 and F6
_FIELD = 32  # pixels of the side of the field that LeNet-5 looks at
_SIZES = (28, 32)  # of images: MNIST's, which stand in the middle of the field, and those that fill it

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": lambda: nn.Sigmoid(),
    "tanh": lambda: nn.Tanh(),
    "relu": lambda: nn.ReLU(inplace=True),
}

POOLINGS: dict[str, Callable[[], nn.Module]] = {"average": lambda: nn.AvgPool2d(2), "max": lambda: MaxPool(2)}


class Layer(NamedTuple):
    """A layer with a bias: `width` outputs (channels of a convolution) at each of `pixels`, each of `fan_in` inputs."""

    fan_in: int
    width: int
    pixels: int = 1


class Plan(NamedTuple):
    """A network's convolutions, then its fully connected layers, the classifier last."""

    convs: tuple[Layer, ...]
    dense: tuple[Layer, ...]


def padding_of(image_size: tuple[int, int]) -> int:
    """The zeros that the first convolution puts around images of (height, width) pixels.

    Raises:
        RefusedError: they are not of 28x28 or 32x32 pixels.
    """
    height, width = image_size
    if height != width or height not in _SIZES:
        allowed = " or ".join(f"{size}x{size}" for size in _SIZES)
        raise RefusedError(
            f"LeNet-5 takes images of {allowed} pixels, these have {height}x{width} (--image-size 32 resizes them)"
        )
    return (_FIELD - height) // 2


def plan_lenet(image_size: tuple[int, int], channels: int, classes: int) -> Plan:
    """The layers of LeNet-5: C1, C3, then C5, F6 and the classifier.

    Raises:
        RefusedError: the images are not of 28x28 or 32x32 pixels.
    """
    side = image_size[0] + 2 * padding_of(image_size)
    convs = []
    for width in _MAPS:
        side = side - _KERNEL + 1
        convs.append(Layer(channels * _KERNEL**2, width, side**2))
        side, channels = side // 2, width
    widths = (channels * side**2, *_UNITS, classes)
    return Plan(tuple(convs), tuple(Layer(fan_in, width) for fan_in, width in pairwise(widths)))


class LeNet(nn.Module):
    """Images (N, C, H, W) to class scores (N, classes), before any softmax."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


def build_lenet(spec: LeNetSpec, channels: int, classes: int, image_size: tuple[int, int]) -> LeNet:
    """LeNet-5 as it is used on MNIST today, its weights drawn from PyTorch's random state.

    Two convolutions of 5x5 pixels with 6 and 16 channels, each followed by a pooling of 2x2 pixels, then fully
    connected layers of 120, 84 and `classes` outputs (LeCun et al. 1998, "Gradient-based learning applied to document
    recognition", section II.B and figure 2). Images of 28x28 pixels are padded to the paper's 32x32. Other than there,
    C3 reads all maps of S2, the poolings have no weights and follow the activation, the activations are not scaled, and
    the scores go into a softmax, not to radial basis functions; with one channel it has 61,706 weights.

    After a maximum the activations, which all rise, give the same numbers as before it, of a quarter as many.

    Raises:
        RefusedError: the images are not of 28x28 or 32x32 pixels.
    """
    plan = plan_lenet(image_size, channels, classes)
    features: list[nn.Module] = []
    for layer, padding in zip(plan.convs, (padding_of(image_size), 0), strict=True):
        features.append(nn.Conv2d(layer.fan_in // _KERNEL**2, layer.width, _KERNEL, padding=padding))
        after = [ACTIVATIONS[spec.activation](), POOLINGS[spec.pooling]()]
        features += reversed(after) if spec.pooling == "max" else after
    dense: list[nn.Module] = []
    for layer in plan.dense:
        dense += [nn.Linear(layer.fan_in, layer.width), ACTIVATIONS[spec.activation]()]
    network = LeNet(nn.Sequential(*features), nn.Sequential(*dense[:-1]))
    CLASSIC_INITS[spec.init](network)
    return network
