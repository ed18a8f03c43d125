"""Fully connected networks on small images such as MNIST: layers, initialisation and a step schedule.

All train by SGD with momentum. Ranges are for trainings of a few to some tens of epochs; "our choice" where no source
is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunelab.config import MLPSpec, ScheduleConfig, TrainConfig, TrialConfig
from tunelab.space import Suggest

SUMMARY = "fully connected networks: hidden layers, initialisation, dropout and a step schedule"
VERSION = 1

LAYOUTS: Final[Mapping[str, tuple[int, ...]]] = {"256": (256,), "256-128": (256, 128), "256-128-64": (256, 128, 64)}
LAYERS: Final = (1, 4)  # of a layout that is drawn
WIDTHS: Final = (32, 64, 128, 256, 512)
INITS: Final = ("normal", "zero", "uniform", "he", "sparse", "xavier_uniform", "xavier_normal")
ACTIVATIONS: Final = ("sigmoid", "tanh", "relu")
DROPOUT: Final = (0.0, 0.5)

LR: Final = (1e-3, 0.5)  # the first rate, logarithmic
BATCH_SIZES: Final = (32, 64, 128, 256, 512)
PERIOD: Final = (0.1, 1.0)  # between two drops; 1 is a fixed rate
FACTOR: Final = (0.1, 0.9)
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 1e-4


def draw(suggest: Suggest) -> TrialConfig:
    """One network and its recipe; never fails, whatever is drawn."""
    arch = MLPSpec(
        hidden=_draw_hidden(suggest),
        init=suggest.suggest_categorical("init", INITS),
        activation=suggest.suggest_categorical("activation", ACTIVATIONS),
        dropout=suggest.suggest_float("dropout", *DROPOUT),
    )
    period, factor = suggest.suggest_float("period", *PERIOD), suggest.suggest_float("factor", *FACTOR)
    train = TrainConfig(
        batch_size=suggest.suggest_categorical("batch_size", BATCH_SIZES),
        lr=suggest.suggest_float("lr", *LR, log=True),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        schedule=ScheduleConfig("step", period=period, factor=factor),
    )
    return TrialConfig(arch, train)


def _draw_hidden(suggest: Suggest) -> tuple[int, ...]:
    layout = suggest.suggest_categorical("layout", (*LAYOUTS, "drawn"))
    if layout in LAYOUTS:
        return LAYOUTS[layout]
    layers = suggest.suggest_int("layers", *LAYERS)
    return tuple(suggest.suggest_categorical(f"width_{number}", WIDTHS) for number in range(1, layers + 1))


_PLAIN: Final[Mapping[str, Any]] = {
    "layout": "256-128-64",
    "init": "he",
    "activation": "relu",
    "dropout": 0.0,
    "lr": 0.05,
    "batch_size": 128,
    "period": 0.3,
    "factor": 0.3,
}

# He's weights, made for relu; where a batch is more than all images, smaller ones.
BASELINES: Final[tuple[Mapping[str, Any], ...]] = (_PLAIN, {**_PLAIN, "batch_size": 32, "lr": 0.0125})

STARTERS: Final[tuple[tuple[Mapping[str, Any], ...], ...]] = (
    ({**_PLAIN, "layout": "drawn", "layers": 2, "width_1": 512, "width_2": 512, "dropout": 0.2},),
    ({**_PLAIN, "layout": "256", "init": "xavier_uniform", "activation": "tanh"},),
)

# "table", 28 rows. Rows 1 to 21: each of the three layouts with each of the seven initialisations, with the recipe of
# the baseline. Rows 22 to 28 change one thing of the best of these, as it was in a run of 8 epochs on MNIST (98.23%;
# the 18 that train at all came to 97.8% and more): its first rate, halved and doubled; its batches, halved and doubled;
# its schedule, with longer periods, a gentler factor, and none at all.
_BEST: Final[Mapping[str, Any]] = {**_PLAIN, "init": "xavier_normal"}

_CHANGES: Final[tuple[Mapping[str, Any], ...]] = (
    {"lr": 0.025},
    {"lr": 0.1},
    {"batch_size": 64},
    {"batch_size": 256},
    {"period": 0.5},
    {"factor": 0.5},
    {"period": 1.0},
)

GRIDS: Final[Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "table": (
        *({**_PLAIN, "layout": layout, "init": init} for layout in LAYOUTS for init in INITS),
        *({**_BEST, **change} for change in _CHANGES),
    ),
}
