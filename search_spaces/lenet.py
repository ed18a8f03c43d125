"""LeNet-5 on MNIST and Fashion-MNIST: its parts, and four strategies for the learning rate.

Images of 28x28 pixels are padded to 32x32, others must have 32x32 (`--image-size 32`). All train by SGD with momentum.
Ranges are for trainings of a few to some tens of epochs; "our choice" where no source is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunelab.config import DataConfig, LeNetSpec, ScheduleConfig, TrainConfig, TrialConfig
from tunelab.space import Suggest

SUMMARY = "LeNet-5 on images of 28x28 or 32x32 pixels, with four strategies for the learning rate"
VERSION = 1

ACTIVATIONS: Final = ("sigmoid", "tanh", "relu")
POOLINGS: Final = ("average", "max")
INITS: Final = ("torch", "lecun", "xavier", "he", "zero")

# The highest rate, logarithmic; 1 is beyond what trains, so that there is a "too high" to be seen.
LR: Final = (1e-3, 1.0)
BATCH_SIZES: Final = (32, 64, 128, 256, 512)
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 5e-4

STRATEGIES: Final = ("fixed", "step", "cyclic", "plateau")
STEP_PERIOD: Final = (0.1, 0.5)
PLATEAU_PERIOD: Final = (0.05, 0.25)
DROP_FACTOR: Final = (0.1, 0.5)
CYCLES: Final = (1, 4)
CYCLIC_LOWEST: Final = (0.001, 0.3)  # Smith (arXiv 1506.01186, section 3.3): a third of the highest, or less
PATIENCE: Final = (0.2, 0.5)  # early stopping: two drops on a plateau come first


def draw(suggest: Suggest) -> TrialConfig:
    """One network and its recipe; never fails, whatever is drawn."""
    arch = LeNetSpec(
        activation=suggest.suggest_categorical("activation", ACTIVATIONS),
        pooling=suggest.suggest_categorical("pooling", POOLINGS),
        init=suggest.suggest_categorical("init", INITS),
    )
    strategy = suggest.suggest_categorical("strategy", STRATEGIES)
    train = TrainConfig(
        batch_size=suggest.suggest_categorical("batch_size", BATCH_SIZES),
        lr=suggest.suggest_float("lr", *LR, log=True),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        schedule=_draw_schedule(suggest, strategy),
        patience=suggest.suggest_float("patience", *PATIENCE) if strategy == "plateau" else None,
    )
    normalise = suggest.suggest_categorical("normalise", (True, False))
    return TrialConfig(arch, train, DataConfig(normalise=normalise))


def _draw_schedule(suggest: Suggest, strategy: str) -> ScheduleConfig:
    """The strategies: a fixed rate, drops at equal steps, triangles, and drops when the loss makes no progress."""
    if strategy == "fixed":
        return ScheduleConfig("constant")
    if strategy == "cyclic":
        lowest = suggest.suggest_float("factor_cyclic", *CYCLIC_LOWEST, log=True)
        return ScheduleConfig("cyclic", factor=lowest, cycles=suggest.suggest_int("cycles", *CYCLES))
    period = suggest.suggest_float(f"period_{strategy}", *(STEP_PERIOD if strategy == "step" else PLATEAU_PERIOD))
    return ScheduleConfig(strategy, period=period, factor=suggest.suggest_float(f"factor_{strategy}", *DROP_FACTOR))


_NETWORK: Final = {"activation": "relu", "pooling": "max", "init": "he", "normalise": True}

_FIXED: Final[Mapping[str, Any]] = {**_NETWORK, "strategy": "fixed", "batch_size": 64, "lr": 0.01}

# The plain network as tutorials have it, at a fixed rate; where a batch is more than all images, smaller ones.
BASELINES: Final[tuple[Mapping[str, Any], ...]] = (_FIXED, {**_FIXED, "batch_size": 32, "lr": 0.005})

_STEP: Final = {**_NETWORK, "strategy": "step", "batch_size": 64, "lr": 0.02, "period_step": 0.25, "factor_step": 0.3}
_CYCLIC: Final = {**_NETWORK, "strategy": "cyclic", "batch_size": 64, "lr": 0.03, "factor_cyclic": 0.01, "cycles": 1}
_PLATEAU: Final = {
    **_NETWORK,
    "strategy": "plateau",
    "batch_size": 64,
    "lr": 0.02,
    "period_plateau": 0.125,
    "factor_plateau": 0.3,
    "patience": 0.375,
}

# Of other families: small steps on a saturating network, as the paper had it, and the strategy that ends lowest.
STARTERS: Final[tuple[tuple[Mapping[str, Any], ...], ...]] = (
    (_STEP,),
    (_CYCLIC,),
    ({**_STEP, "activation": "tanh", "pooling": "average", "init": "lecun"},),
)

# "strategies": each strategy with what did best for it among a few trials by hand on MNIST, 8 epochs.
# "broken": the baseline with one thing wrong at a time, for `tunelab diagnose`: the rate, the weights, the pixels.
GRIDS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "strategies": (_FIXED, _STEP, _CYCLIC, _PLATEAU),
    "broken": ({**_FIXED, "lr": 1.0}, {**_FIXED, "init": "zero"}, {**_FIXED, "normalise": False}),
}
