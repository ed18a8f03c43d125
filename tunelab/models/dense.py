"""Fully connected networks, first described as layers of weights, which `tunelab.models.check` counts, then built."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from tunelab.config import MLPSpec
from tunelab.models.classic import ACTIVATIONS, Layer, Plan
from tunelab.models.init import DENSE_INITS


def plan_mlp(spec: MLPSpec, image_size: tuple[int, int], channels: int, classes: int) -> Plan:
    """The layers of the network, the classifier last; the first reads every value of an image."""
    widths = (channels * image_size[0] * image_size[1], *spec.hidden, classes)
    return Plan((), tuple(Layer(fan_in, width) for fan_in, width in pairwise(widths)))


class MLP(nn.Module):
    """Images (N, C, H, W) to class scores (N, classes), before any softmax."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.layers(images.flatten(1))
        return scores


def build_mlp(spec: MLPSpec, channels: int, classes: int, image_size: tuple[int, int]) -> MLP:
    """The network, its weights drawn from PyTorch's random state; each hidden layer is followed by its activation."""
    *hidden, classifier = plan_mlp(spec, image_size, channels, classes).dense
    layers: list[nn.Module] = []
    for layer in hidden:
        layers += [nn.Linear(layer.fan_in, layer.width), ACTIVATIONS[spec.activation]()]
        layers += [nn.Dropout(spec.dropout)] if spec.dropout else []
    network = MLP(nn.Sequential(*layers, nn.Linear(classifier.fan_in, classifier.width)))
    DENSE_INITS[spec.init](network)
    return network
