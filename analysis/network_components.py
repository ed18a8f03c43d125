"""The components of a network, each with the configurations that it becomes: pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from tunelab.config import ArchSpec, BlockSpec, CustomSpec, LeNetSpec, MLPSpec, StemSpec, TrialConfig
from tunelab.variants import BACK, REMOVED, Changes, Component

WITHOUT_SHORTCUT: Final = {"basic": "plain", "bottleneck": "plain_bottleneck"}
"""Kinds of residual blocks, each with the kind that is the same without a shortcut."""

CONVS_READ_BY: Final = ("basic", "plain")
"""Kinds of blocks with a free number of convolutions."""


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


def unread_convs(arch: ArchSpec) -> ArchSpec:
    """The same network with the default number of convolutions in every block that does not read it."""
    return _with_blocks(arch, lambda block: block if block.kind in CONVS_READ_BY else _replaced(block, block.kind))


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


# Fully connected networks.


def _mlp_of(config: TrialConfig) -> MLPSpec:
    assert isinstance(config.arch, MLPSpec)  # find_variants asks no other
    return config.arch


def _mlp_part(name: str) -> Component:
    """An activation or an initialisation: the baseline's, or the default where that is of another family."""

    def change(config: TrialConfig, baseline: TrialConfig) -> Changes:
        there = baseline.arch if isinstance(baseline.arch, MLPSpec) else MLPSpec()
        return {BACK: _with_arch(config, **{name: getattr(there, name)})}

    return change


def _mlp_dropout(config: TrialConfig, baseline: TrialConfig) -> Changes:
    there = baseline.arch.dropout if isinstance(baseline.arch, MLPSpec) else MLPSpec().dropout
    return {REMOVED: _with_arch(config, dropout=0.0), BACK: _with_arch(config, dropout=there)}


def _hidden(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """The baseline's layers; one layer less, each in turn; and half the width of each."""
    own = _mlp_of(config).hidden
    there = baseline.arch.hidden if isinstance(baseline.arch, MLPSpec) else MLPSpec().hidden
    changes: Changes = {BACK: _with_arch(config, hidden=there)}
    for number in range(len(own)) if len(own) > 1 else ():
        changes[f"layer {number + 1} {REMOVED}"] = _with_arch(config, hidden=own[:number] + own[number + 1 :])
    changes["halved"] = _with_arch(config, hidden=tuple(max(1, width // 2) for width in own))
    return changes


MLP: Final[dict[str, Component]] = {
    "hidden": _hidden,
    "activation": _mlp_part("activation"),
    "init": _mlp_part("init"),
    "dropout": _mlp_dropout,
}
"""Components of fully connected networks."""


# A network of the user's own.


def _arguments(config: TrialConfig, baseline: TrialConfig) -> Changes:
    """What the factory is given: as in the baseline, where that is made by the same one."""
    arch, there = config.arch, baseline.arch
    assert isinstance(arch, CustomSpec)  # find_variants asks no other
    same = isinstance(there, CustomSpec) and (there.factory, there.sha256) == (arch.factory, arch.sha256)
    return {BACK: dataclasses.replace(config, arch=there)} if same else {}


CUSTOM: Final[dict[str, Component]] = {"arguments": _arguments}
"""Components of a network of the user's own."""
