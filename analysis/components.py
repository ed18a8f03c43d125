"""The components of a configuration, and the configuration with one of them changed: pure functions.

A component is put back to what it is in a baseline, or removed where that has a meaning. Nothing else is changed, apart
from what has no meaning without it: a learning rate belongs to an optimizer and to a batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from tunelab.config import (
    AnyArch,
    ArchSpec,
    AugmentConfig,
    BlockSpec,
    LeNetSpec,
    ScheduleConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
)

REMOVED: Final = "removed"
BACK: Final = "as in the baseline"

Changes: TypeAlias = dict[str, "TrialConfig | str"]
"""What becomes of a component, in words -> the configuration then, or the reason why there is none."""

Component: TypeAlias = Callable[[TrialConfig, TrialConfig], Changes]
"""(a configuration, the baseline) -> the changes; those that change nothing may be among them."""

WITHOUT_SHORTCUT: Final = {"basic": "plain", "bottleneck": "plain_bottleneck"}
"""Kinds of residual blocks, each with the kind that is the same without a shortcut."""

READ_BY_OPTIMIZER: Final = {"momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",)}
"""Numbers of a recipe that only some optimizers read."""

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

CONVS_READ_BY: Final = ("basic", "plain")
"""Kinds of blocks with a free number of convolutions."""

LR_GROWTH: Final = {"sgd": 1.0, "adam": 0.5, "adamw": 0.5, "rmsprop": 0.5}
"""The power of the batch size that a good learning rate grows with.

In proportion for SGD (Goyal et al., arXiv 1706.02677, section 2.1), with the square root for the adaptive ones (Malladi
et al., arXiv 2205.10287, section 5); as the space `arch` draws them.
"""


def components_of(arch: AnyArch) -> dict[str, Component]:
    """The components of a configuration with this kind of network, by name, in the order of their variants."""
    return {**RECIPE, **(LENET if isinstance(arch, LeNetSpec) else NETWORK)}


def effective(config: TrialConfig) -> TrialConfig:
    """The same training with every number that it does not read at its default."""
    train, plain = config.train, TrainConfig()
    for name, optimizers in READ_BY_OPTIMIZER.items():
        if train.optimizer not in optimizers or (name == "nesterov" and train.momentum == 0.0):
            train = dataclasses.replace(train, **{name: getattr(plain, name)})
    schedule = ScheduleConfig(train.schedule.name, train.schedule.warmup)
    read = READ_BY_SCHEDULE[train.schedule.name]
    schedule = dataclasses.replace(schedule, **{name: getattr(train.schedule, name) for name in read})
    augment = train.augment if train.augment.mixup > 0.0 else dataclasses.replace(train.augment, mixup_until=1.0)
    arch = config.arch
    if isinstance(arch, ArchSpec):
        arch = _with_blocks(arch, lambda block: block if block.kind in CONVS_READ_BY else _replaced(block, block.kind))
    train = dataclasses.replace(train, schedule=schedule, augment=augment)
    return dataclasses.replace(config, arch=arch, train=train)


# The recipe.


def _with_train(config: TrialConfig, **values: Any) -> TrialConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


def _with_augment(config: TrialConfig, **values: Any) -> TrialConfig:
    return _with_train(config, augment=dataclasses.replace(config.train.augment, **values))


def _augmentation(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {
        REMOVED: _with_train(config, augment=AugmentConfig()),
        BACK: _with_train(config, augment=baseline.train.augment),
    }


def _crop(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_augment(config, crop=0.0), BACK: _with_augment(config, crop=baseline.train.augment.crop)}


def _flip(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_augment(config, flip=False), BACK: _with_augment(config, flip=baseline.train.augment.flip)}


def _cutout(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _with_augment(config, cutout=baseline.train.augment.cutout)
    return {REMOVED: _with_augment(config, cutout=0.0), BACK: back}


def _mixup(config: TrialConfig, baseline: TrialConfig) -> Changes:
    there = baseline.train.augment
    back = _with_augment(config, mixup=there.mixup, mixup_until=there.mixup_until)
    return {REMOVED: _with_augment(config, mixup=0.0, mixup_until=1.0), BACK: back}


def _label_smoothing(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _with_train(config, label_smoothing=baseline.train.label_smoothing)
    return {REMOVED: _with_train(config, label_smoothing=0.0), BACK: back}


def _of_another_optimizer(config: TrialConfig, baseline: TrialConfig, what: str) -> str:
    """Why a number of the baseline's recipe is not used, "" if it can be."""
    mine, theirs = config.train.optimizer, baseline.train.optimizer
    return "" if mine == theirs else f"the baseline's {what} is for {theirs}, not for {mine}; see optimizer"


def _weight_decay(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _of_another_optimizer(config, baseline, "weight decay")
    return {
        REMOVED: _with_train(config, weight_decay=0.0),
        BACK: back or _with_train(config, weight_decay=baseline.train.weight_decay),
    }


def _momentum(config: TrialConfig, baseline: TrialConfig) -> Changes:
    if config.train.optimizer not in READ_BY_OPTIMIZER["momentum"]:
        return {}
    back = _of_another_optimizer(config, baseline, "momentum")
    return {
        REMOVED: _with_train(config, momentum=0.0),
        BACK: back or _with_train(config, momentum=baseline.train.momentum),
    }


def _nesterov(config: TrialConfig, baseline: TrialConfig) -> Changes:
    if config.train.optimizer not in READ_BY_OPTIMIZER["nesterov"]:
        return {}
    changes: Changes = {REMOVED: _with_train(config, nesterov=False)}
    if baseline.train.optimizer in READ_BY_OPTIMIZER["nesterov"]:
        changes[BACK] = _with_train(config, nesterov=baseline.train.nesterov)
    return changes


def _warmup(config: TrialConfig, baseline: TrialConfig) -> Changes:
    schedule = config.train.schedule
    back = dataclasses.replace(schedule, warmup=baseline.train.schedule.warmup)
    return {
        REMOVED: _with_train(config, schedule=dataclasses.replace(schedule, warmup=0.0)),
        BACK: _with_train(config, schedule=back),
    }


def _schedule(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """A constant rate, and the baseline's schedule, each after the warm-up that there is."""
    warmup = config.train.schedule.warmup
    back = dataclasses.replace(baseline.train.schedule, warmup=warmup)
    return {
        REMOVED: _with_train(config, schedule=ScheduleConfig("constant", warmup)),
        BACK: _with_train(config, schedule=back),
    }


def _rate(lr: float, optimizer: str, batch_size: int, other: int) -> float:
    """The rate for batches of `other` that goes with `lr` for batches of `batch_size`."""
    grown: float = lr * (other / batch_size) ** LR_GROWTH[optimizer]
    return min(grown, 1000.0)  # what TrainConfig allows


def _optimizer(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, with its rate for this batch size, momentum and weight decay: they mean nothing for another."""
    if config.train.optimizer == baseline.train.optimizer:
        return {}
    there = baseline.train
    back = _with_train(
        config,
        optimizer=there.optimizer,
        lr=_rate(there.lr, there.optimizer, there.batch_size, config.train.batch_size),
        momentum=there.momentum,
        nesterov=there.nesterov,
        weight_decay=there.weight_decay,
    )
    return {BACK: back}


def _batch_size(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, and the rate that goes with it."""
    train, size = config.train, baseline.train.batch_size
    rate = _rate(train.lr, train.optimizer, train.batch_size, size)
    return {BACK: _with_train(config, batch_size=size, lr=rate)}


def _lr(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's, for this batch size."""
    there = baseline.train
    rate = _rate(there.lr, there.optimizer, there.batch_size, config.train.batch_size)
    return {BACK: _of_another_optimizer(config, baseline, "learning rate") or _with_train(config, lr=rate)}


RECIPE: Final[dict[str, Component]] = {
    "crop": _crop,
    "flip": _flip,
    "cutout": _cutout,
    "mixup": _mixup,
    "augmentation": _augmentation,
    "label_smoothing": _label_smoothing,
    "optimizer": _optimizer,
    "lr": _lr,
    "batch_size": _batch_size,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "weight_decay": _weight_decay,
    "schedule": _schedule,
    "warmup": _warmup,
}
"""Components of every configuration."""


# Networks of blocks.


def _blocks_of(config: TrialConfig) -> ArchSpec:
    assert isinstance(config.arch, ArchSpec)  # find_variants asks no other
    return config.arch


def _reference(config: TrialConfig, baseline: TrialConfig) -> ArchSpec:
    """The baseline's network, or one with all defaults where that is of another family."""
    if isinstance(baseline.arch, ArchSpec):
        return baseline.arch
    arch = _blocks_of(config)
    return ArchSpec(StemSpec(arch.stem.width), arch.branches)


def _with_arch(config: TrialConfig, **values: Any) -> TrialConfig:
    return dataclasses.replace(config, arch=dataclasses.replace(config.arch, **values))


def _with_blocks(arch: ArchSpec, change: Callable[[BlockSpec], BlockSpec]) -> ArchSpec:
    branches = tuple(tuple(change(block) for block in branch) for branch in arch.branches)
    return dataclasses.replace(arch, branches=branches)


def _replaced(block: BlockSpec, kind: str, convs: int = 2) -> BlockSpec:
    return BlockSpec(kind, block.width, block.stride, convs)


def _dropout(config: TrialConfig, baseline: TrialConfig) -> Changes:
    back = _with_arch(config, dropout=_reference(config, baseline).dropout)
    return {REMOVED: _with_arch(config, dropout=0.0), BACK: back}


def _norm(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_arch(config, norm="none"), BACK: _with_arch(config, norm=_reference(config, baseline).norm)}


def _activation(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {BACK: _with_arch(config, activation=_reference(config, baseline).activation)}


def _bias(config: TrialConfig, baseline: TrialConfig) -> Changes:
    return {REMOVED: _with_arch(config, bias=False), BACK: _with_arch(config, bias=_reference(config, baseline).bias)}


def _stem(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's kernel and pool; the width is left, since that of the blocks belongs to it."""
    there = _reference(config, baseline).stem
    return {BACK: _with_arch(config, stem=dataclasses.replace(there, width=_blocks_of(config).stem.width))}


def _shortcuts(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """All residual blocks without their shortcuts, projections included."""
    arch = _with_blocks(
        _blocks_of(config),
        lambda block: dataclasses.replace(block, kind=WITHOUT_SHORTCUT.get(block.kind, block.kind)),
    )
    return {REMOVED: dataclasses.replace(config, arch=arch)}


def _block_kinds(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """Every block of the baseline's kind, at its own width and stride."""
    there = _reference(config, baseline)
    if there.branches == _blocks_of(config).branches:
        return {}
    of_kind = {
        (block.kind, block.convs if block.kind in CONVS_READ_BY else 2) for one in there.branches for block in one
    }
    kinds = sorted(of_kind)
    if len(kinds) != 1:
        return {BACK: "the baseline has not one kind of block"}
    changed = _with_blocks(_blocks_of(config), lambda block: _replaced(block, *kinds[0]))
    return {BACK: dataclasses.replace(config, arch=changed)}


def _branches(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """One branch less, each in turn."""
    branches = _blocks_of(config).branches
    if len(branches) == 1:
        return {}
    return {
        f"branch {number + 1} {REMOVED}": _with_arch(config, branches=branches[:number] + branches[number + 1 :])
        for number in range(len(branches))
    }


def _depth(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """Half of the blocks of each branch."""
    arch = _blocks_of(config)
    return {"halved": _with_arch(config, branches=tuple(_halved(branch, arch.stem.width) for branch in arch.branches))}


def _halved(blocks: tuple[BlockSpec, ...], width: int) -> tuple[BlockSpec, ...]:
    """About half as many blocks: those that change the resolution or the width stay, the others evenly thinned."""
    widths = [width, *(block.width for block in blocks)]
    free = [at for at, block in enumerate(blocks) if block.stride == 1 and block.width == widths[at]]
    wanted = max(0, (len(blocks) + 1) // 2 - (len(blocks) - len(free)))
    kept = {free[(2 * one + 1) * len(free) // (2 * wanted)] for one in range(wanted)}
    return tuple(block for at, block in enumerate(blocks) if at in kept or at not in free)


NETWORK: Final[dict[str, Component]] = {
    "dropout": _dropout,
    "norm": _norm,
    "activation": _activation,
    "bias": _bias,
    "stem": _stem,
    "shortcuts": _shortcuts,
    "blocks": _block_kinds,
    "branches": _branches,
    "depth": _depth,
}
"""Components of networks of blocks."""


# LeNet-5.


def _lenet_part(name: str) -> Component:
    """An activation, a pooling or an initialisation: the baseline's, or the default where that is no LeNet-5."""

    def change(config: TrialConfig, baseline: TrialConfig) -> Changes:
        there = baseline.arch if isinstance(baseline.arch, LeNetSpec) else LeNetSpec()
        return {BACK: _with_arch(config, **{name: getattr(there, name)})}

    return change


LENET: Final[dict[str, Component]] = {name: _lenet_part(name) for name in ("activation", "pooling", "init")}
"""Components of LeNet-5."""
