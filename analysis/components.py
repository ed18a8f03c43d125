"""The components of a configuration: those of its recipe, and those of its kind of network.

A component is put back to what it is in a baseline, or removed where that has a meaning. Nothing else is changed, apart
from what has no meaning without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from tunelab.config import (
    AnyArch,
    ArchSpec,
    CustomSpec,
    LeNetSpec,
    MLPSpec,
    ScheduleConfig,
    TrainConfig,
    TrialConfig,
)
from tunelab.variants import Component

from .network_components import CUSTOM, LENET, MLP, NETWORK, unread_convs
from .recipe_components import READ_BY_OPTIMIZER, RECIPE

READ_BY_SCHEDULE: Final[dict[str, tuple[str, ...]]] = {
    "constant": (),
    "step": ("period", "factor"),
    "cosine": (),
    "warm_restarts": ("cycles",),
    "one_cycle": (),
    "cyclic": ("factor", "cycles"),
    "plateau": ("period", "factor"),
}
"""The numbers that a schedule reads, beside the warm-up, which all of them have."""


_OF_NETWORKS: Final[Mapping[type[AnyArch], dict[str, Component]]] = {
    ArchSpec: NETWORK,
    LeNetSpec: LENET,
    MLPSpec: MLP,
    CustomSpec: CUSTOM,
}


def components_of(arch: AnyArch) -> dict[str, Component]:
    """The components of a configuration with this kind of network, by name, in the order of their variants."""
    return {**RECIPE, **_OF_NETWORKS[type(arch)]}


def effective(config: TrialConfig) -> TrialConfig:
    """The same training with every number that it does not read at its default."""
    train, plain = config.train, TrainConfig()
    used = {train.optimizer, *(stage.optimizer for stage in train.stages)}
    for name, optimizers in READ_BY_OPTIMIZER.items():
        if used.isdisjoint(optimizers) or (name == "nesterov" and train.momentum == 0.0):
            train = dataclasses.replace(train, **{name: getattr(plain, name)})
    schedule = ScheduleConfig(train.schedule.name, train.schedule.warmup, by_norm=train.schedule.by_norm)
    read = READ_BY_SCHEDULE[train.schedule.name]
    schedule = dataclasses.replace(schedule, **{name: getattr(train.schedule, name) for name in read})
    augment = train.augment if train.augment.mixup > 0.0 else dataclasses.replace(train.augment, mixup_until=1.0)
    arch = config.arch
    if isinstance(arch, ArchSpec):
        arch = unread_convs(arch)
    train = dataclasses.replace(train, schedule=schedule, augment=augment)
    return dataclasses.replace(config, arch=arch, train=train)
