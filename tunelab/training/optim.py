"""The optimizers, built from a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tunelab.config import TrainConfig
from tunelab.errors import InputError

Groups = list[dict[str, Any]]
Builder = Callable[[Groups, TrainConfig], torch.optim.Optimizer]


def sgd(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, in Nesterov's form if asked (Sutskever et al., ICML 2013, section 2, as torch writes it)."""
    nesterov = train.nesterov and train.momentum > 0.0
    optimizer = torch.optim.SGD(groups, train.lr, momentum=train.momentum, nesterov=nesterov, fused=_fused(groups))
    if train.momentum > 0.0:
        optimizer.register_step_pre_hook(_begin_late)
    return optimizer


def _begin_late(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Weights that get their first gradient after others, as in a network that leaves layers out at random.

    torch's fused step takes momenta of all weights or of none. From 0 they become the first gradient, as torch has it.
    """
    state = optimizer.state
    for group in optimizer.param_groups:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        late = [weight for weight in weights if state[weight].get("momentum_buffer") is None]
        if 0 < len(late) < len(weights):
            for weight in late:
                state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def _fused(groups: Groups) -> bool:
    """Torch's fused steps do not know complex weights."""
    return not any(weight.is_complex() for group in groups for weight in group["params"])


def adam(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """Adam with betas 0.9 and 0.999 and eps 1e-8 (Kingma & Ba, arXiv 1412.6980, algorithm 1).

    The weight decay is an L2 term of the gradient.
    """
    return torch.optim.Adam(groups, train.lr, betas=(0.9, 0.999), eps=1e-8, fused=_fused(groups))


def adamw(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """Adam with the weight decay apart from the gradient (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2).

    As in torch, the decay of a step is `lr * weight_decay`.
    """
    return torch.optim.AdamW(groups, train.lr, betas=(0.9, 0.999), eps=1e-8, fused=_fused(groups))


def rmsprop(groups: Groups, train: TrainConfig) -> torch.optim.Optimizer:
    """RMSprop with momentum (Hinton, Coursera lecture 6e, 2012); alpha 0.99 and eps 1e-8 are torch's choice.

    torch has no fused form of it.
    """
    return torch.optim.RMSprop(groups, train.lr, alpha=0.99, eps=1e-8, momentum=train.momentum, foreach=True)


OPTIMIZERS: dict[str, Builder] = {"sgd": sgd, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}


def find_optimizer(name: str) -> Builder:
    """What builds the optimizer called `name`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r} is unknown; allowed are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer called `train.optimizer` over all weights of `model`, with the peak rate set.

    Norms and biases, which are the parameters with fewer than two dimensions, are never decayed (He et al., arXiv
    1812.01187, section 3.1).

    Raises:
        InputError: there is no optimizer of that name.
    """
    build = find_optimizer(train.optimizer)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return build([group for group in groups if group["params"]], train)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step use the rate `lr`; a recorded one reads it from a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def suit(optimizer: torch.optim.Optimizer, device: torch.device, *, recorded: bool) -> None:
    """Let the steps of `optimizer` run on `device`, whichever device its state comes from.

    With `recorded` they can be recorded as a CUDA graph: rate and step count are tensors on the device. What the state
    holds of each weight is put into the weight's memory order: fused steps walk over both as they lie.
    """
    rate = torch.zeros((), device=device)
    for group in optimizer.param_groups:
        value = float(group["lr"])
        group["lr"] = rate if recorded else value
        rate.fill_(value)
        if "capturable" in group:
            group["capturable"] = recorded and device.type == "cuda"
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        if isinstance(state.get("step"), torch.Tensor):
            on_device = recorded or any(group.get("fused") for group in optimizer.param_groups)
            state["step"] = state["step"].to(device if on_device else "cpu")
