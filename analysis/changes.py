"""A configuration with one component changed at a time: which changes there are, and what they change, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from tunelab.config import ArchSpec, BlockSpec, TrialConfig, config_id, to_json
from tunelab.errors import InputError
from tunelab.variants import BACK, REMOVED, Changes, Variant

from .components import READ_BY_SCHEDULE, components_of, effective
from .network_components import CONVS_READ_BY

BOTH: Final = f"{REMOVED}, {BACK}"
_OF_SCHEDULES: Final = {number for numbers in READ_BY_SCHEDULE.values() for number in numbers}


def find_variants(
    config: TrialConfig, baseline: TrialConfig, names: Sequence[str] = ()
) -> tuple[list[Variant], list[str], dict[str, str]]:
    """The configuration with one component changed at a time.

    Args:
        config: what the components are changed in.
        baseline: what they are put back to; where its network is of another family, the defaults of this one.
        names: components; all without any.

    Returns:
        The variants; the components that have none, because they are the same already or play no part; and what is
        left out, by name, with the reason. No two variants are the same, and none is the configuration itself.

    Raises:
        InputError: there is no component of a name.
    """
    components = components_of(config.arch)
    for name in names:
        if name not in components:
            raise InputError(f"--components {name!r} is unknown; allowed are {', '.join(components)}")
    found: dict[str, Variant] = {}
    same, left_out = [], {}
    for component in components if not names else dict.fromkeys(names):
        changes = _merged(components[component](config, baseline))
        different = False
        for change, made in changes.items():
            name = f"{component}, {change}"
            if isinstance(made, str):
                left_out[name], different = made, True
                continue
            key = config_id(effective(made))
            if key == config_id(effective(config)):
                continue
            different = True
            if key in found:
                left_out[name] = f"the same as {found[key].name}"
            else:
                found[key] = Variant(component, change, difference(config, made), made)
        if not different:
            same.append(component)
    return list(found.values()), same, left_out


def difference(before: TrialConfig, after: TrialConfig) -> str:
    """What differs between two configurations, in words: "mixup 0.2 -> 0, mixup_until 0.8 -> 1"."""
    old, new = _leaves(to_json(effective(before))), _leaves(to_json(effective(after)))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if "schedule" in names:  # the numbers of two schedules have nothing to do with each other
        names = [name for name in names if name not in _OF_SCHEDULES]
    said = [f"{name} {_value(old.get(name))} -> {_value(new.get(name))}" for name in names]
    if isinstance(before.arch, ArchSpec) and isinstance(after.arch, ArchSpec):
        said += _difference_of_blocks(before.arch, after.arch)
    return ", ".join(said)


def _merged(changes: Changes) -> Changes:
    """The same with removed and put back as one change where they come to the same."""
    removed, back = changes.get(REMOVED), changes.get(BACK)
    if isinstance(removed, TrialConfig) and isinstance(back, TrialConfig) and effective(removed) == effective(back):
        others = {change: made for change, made in changes.items() if change not in (REMOVED, BACK)}
        return {BOTH: removed, **others}
    return changes


def _leaves(plain: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a configuration by name, without blocks, data and seed."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if name in ("branches", "data", "seed"):
            continue
        if name == "stages":
            found[name] = " then ".join(
                f"{one['optimizer']} from {one['begin']:.0%}, lr {one['lr']:.3g}" for one in value
            )
        elif name == "averaging":
            found[name] = f"{value['kind']} from {value['start']:.0%}"
        elif isinstance(value, dict):
            told = {"by_norm": False, **value} if name == "schedule" else value  # left out where it is not used
            found.update(_leaves(told, name))
        else:
            found[_spoken(above, name)] = value
    return found


def _spoken(above: str, name: str) -> str:
    if above == "schedule":
        return "schedule" if name == "name" else name
    return f"stem {name}" if above == "stem" else name


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _difference_of_blocks(before: ArchSpec, after: ArchSpec) -> list[str]:
    if before.branches == after.branches:
        return []
    if len(before.branches) != len(after.branches):
        return [f"branches {len(before.branches)} -> {len(after.branches)}"]
    old = [block for branch in before.branches for block in branch]
    new = [block for branch in after.branches for block in branch]
    if len(old) != len(new):
        return [f"blocks {len(old)} -> {len(new)}"]
    pairs = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
    return [f"{_kinds(one for one, _ in pairs)} -> {_kinds(other for _, other in pairs)}"]


def _kinds(blocks: Iterable[BlockSpec]) -> str:
    """The kinds of some blocks, each once, with the number of convolutions where it is free."""
    said = [f"{one.kind}({one.convs})" if one.kind in CONVS_READ_BY else one.kind for one in blocks]
    return ", ".join(sorted(set(said)))
