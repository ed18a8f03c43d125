"""How the weights of a new network are drawn, from PyTorch's random state."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from tunelab.models.blocks import ResidualBlock


def he(network: nn.Module) -> None:
    """Normal weights that keep the variance of the gradients, and no biases (He et al., arXiv 1502.01852, section 2.2).

    "fan_out" and the gain of relu for all activations, as torchvision's ResNet.
    """
    _draw_convs(network, "fan_out")


def fixup(network: nn.Module) -> None:
    """Weights with which a deep network without norms starts at a finite loss (Zhang et al., arXiv 1901.09321).

    Section 3, rules 1 and 2: the classifier and the last convolution of each residual block start at zero, the block's
    other convolutions are scaled by L^(-1 / (2m - 2)), L being the number of residual blocks on one path through the
    network and m the convolutions of the block. The first loss is therefore ln(classes). Convolutions are drawn with
    "fan_in", which keeps the variance of the maps: inception blocks have no shortcut to carry them (our choice).
    """
    _draw_convs(network, "fan_in")
    for branch in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        blocks = [block for block in branch if isinstance(block, ResidualBlock)]
        for block in blocks:
            convs = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
            nn.init.zeros_(block.last_conv.weight)
            for conv in convs[:-1]:
                conv.weight.data.mul_(len(blocks) ** (-1 / (2 * len(convs) - 2)))
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)


INITS: dict[str, Callable[[nn.Module], None]] = {"he": he, "fixup": fixup}
"""Of networks of blocks."""


def as_torch(network: nn.Module) -> None:
    """Weights and biases uniform within 1 / sqrt(inputs), as PyTorch draws those of a new layer."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()


def lecun(network: nn.Module) -> None:
    """Normal weights of variance 1 / inputs, no biases (LeCun et al. 1998, "Efficient BackProp", section 4.6)."""
    _draw_layers(network, partial(nn.init.kaiming_normal_, nonlinearity="linear"))


def xavier(network: nn.Module) -> None:
    """Uniform weights of variance 2 / (inputs + outputs), no biases (Glorot & Bengio 2010, section 4.2.1)."""
    _draw_layers(network, nn.init.xavier_uniform_)


def he_fan_in(network: nn.Module) -> None:
    """Normal weights of variance 2 / inputs, no biases (He et al., arXiv 1502.01852, section 2.2, equation 10)."""
    _draw_layers(network, partial(nn.init.kaiming_normal_, nonlinearity="relu"))


def zero(network: nn.Module) -> None:
    """No weights and no biases: no hidden layer ever gets a gradient, and only the classifier's biases are learned."""
    _draw_layers(network, nn.init.zeros_)


def normal(network: nn.Module) -> None:
    """Normal weights of deviation 0.01, whatever the inputs; no biases (Krizhevsky et al. 2012, section 5)."""
    _draw_layers(network, partial(nn.init.normal_, std=0.01))


def uniform(network: nn.Module) -> None:
    """Uniform weights within 0.05, whatever the inputs, as Keras draws by default; no biases."""
    _draw_layers(network, partial(nn.init.uniform_, a=-0.05, b=0.05))


def xavier_normal(network: nn.Module) -> None:
    """Normal weights of variance 2 / (inputs + outputs), no biases (Glorot & Bengio 2010, section 4.2.1)."""
    _draw_layers(network, nn.init.xavier_normal_)


def sparse(network: nn.Module) -> None:
    """Each unit reads 15 inputs, by normal weights of variance 2 / 15; its other weights are zero; no biases.

    Martens 2010, "Deep learning via Hessian-free optimization", section 5, which has variance 1, for tanh: with relu
    each layer would then triple what goes through it. 2 / 15 is He's for so many inputs (our choice).
    """
    _draw_layers(network, _sparse)


def _sparse(weight: Tensor) -> Tensor:
    share = max(0.0, 1.0 - SPARSE_INPUTS / weight.shape[1])
    nn.init.sparse_(
        weight.t(), share, std=math.sqrt(2 / SPARSE_INPUTS)
    )  # torch's counts the zeros of each column, which there is a unit
    return weight


SPARSE_INPUTS = 15
"""How many inputs a unit reads at first (Martens 2010, section 5)."""

CLASSIC_INITS: dict[str, Callable[[nn.Module], None]] = {
    "torch": as_torch,
    "lecun": lecun,
    "xavier": xavier,
    "he": he_fan_in,
    "zero": zero,
}
"""Of the networks in `tunelab.models.classic`: all convolutions and fully connected layers alike."""

DENSE_INITS: dict[str, Callable[[nn.Module], None]] = {
    "normal": normal,
    "zero": zero,
    "uniform": uniform,
    "he": he_fan_in,
    "sparse": sparse,
    "xavier_uniform": xavier,
    "xavier_normal": xavier_normal,
}
"""Of the networks in `tunelab.models.dense`."""


def _draw_layers(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _draw_convs(network: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
