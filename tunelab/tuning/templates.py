"""Complete configurations among trials by hand: what a search writes as `experiment_template.json`, edited or not.

What is read has texts in place of numbers, as all of a grid's file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunelab.config import DataConfig, from_json, to_json
from tunelab.errors import InputError
from tunelab.space import SearchSpace
from tunelab.summary import OPTIONS, TEMPLATE_FORMAT, config_hash

_NAMES = ("format", "space", "params", "options", "config", "config_hash")
_SECTIONS = ("space", "params", "options", "config")


def is_template(entry: Any) -> bool:
    """True if an entry of a file is meant as a template: one of its sections is a mapping."""
    return isinstance(entry, Mapping) and any(isinstance(entry.get(name), Mapping) for name in _SECTIONS)


def params_of(entry: Mapping[str, Any], where: str, space: SearchSpace) -> Mapping[str, str]:
    """The parameters of a template.

    Raises:
        InputError: it has other names than a template, is of another space or version, or its `config` was edited.
    """
    for name in entry:
        if name not in _NAMES:
            raise InputError(f"{where}: {name!r} is no part of a template, which has {', '.join(_NAMES)}")
    about, params = entry.get("space"), entry.get("params")
    if entry.get("format") != str(TEMPLATE_FORMAT) or not isinstance(about, Mapping) or not isinstance(params, Mapping):
        raise InputError(f"{where}: a template has format {TEMPLATE_FORMAT}, a space and params, each with its names")
    own = {"name": space.name, "version": str(space.version)}
    found = {name: about.get(name) for name in own}
    if found != own:
        raise InputError(
            f"{where} is of version {found['version']} of the space {found['name']!r}, "
            f"not of version {own['version']} of {own['name']!r}"
        )
    if not params or not all(isinstance(value, str) for value in params.values()):
        raise InputError(f"{where}: params must be a mapping from names to one value each")
    if "config" in entry and config_hash(entry["config"]) != entry.get("config_hash"):
        raise InputError(f"{where}: config was edited, which only tells what the space makes of params: edit params")
    return params


def take_options(
    entries: Sequence[Any], values: Mapping[str, Any], data: Mapping[str, Any], given: Collection[str], where: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The options of a search with those of its templates where they are not given, and which these are, in words.

    What some of the templates leave out is as the others have it.

    Args:
        entries: of a file; nothing is taken where not all of them are templates.
        values: the options so far.
        data: the fields of a DataConfig so far.
        given: the names of options and fields that are given otherwise.
        where: what to call the file.

    Raises:
        InputError: a name or value is not allowed, or templates differ.
    """
    if not entries or not all(is_template(entry) for entry in entries):
        return dict(values), dict(data), []
    asked = [_options(entry, f"{where}, entry {place}") for place, entry in enumerate(entries, start=1)]
    taken: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in asked for name in one):
        found = [one[name] for one in asked if name in one]
        if name not in given and any(one != found[0] for one in found):
            raise InputError(f"{where}: the templates differ in {_spoken(name)} ({found[0]} and others); say which")
        if name not in given:
            taken[name] = found[0]
    known = {**to_json(DataConfig()), **values, **data}
    told = [f"{_spoken(name)} {value}" for name, value in taken.items() if known.get(name) != value]
    return (
        {**values, **{name: value for name, value in taken.items() if name in OPTIONS}},
        {**data, **{name: value for name, value in taken.items() if name not in OPTIONS}},
        told,
    )


def _options(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a template as values, flat, the fields of its data among them."""
    options = entry.get("options", {})
    allowed = (*OPTIONS, "data")
    if not isinstance(options, Mapping) or not isinstance(options.get("data", {}), Mapping):
        raise InputError(f"{where}: options must be a mapping of {', '.join(allowed)}, and data one of its fields")
    for name in options:
        if name not in allowed:
            raise InputError(f"{where}: {name!r} is no option of a template, which has {', '.join(allowed)}")
    data = {name: value for name, value in options.get("data", {}).items() if value != "null"}
    numbers = {name: _number(options[name], f"{where}: {name}") for name in OPTIONS if name in options}
    try:
        return {**numbers, **(to_json(from_json(DataConfig, data)) if data else {})}
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _number(text: Any, where: str) -> float | int | None:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        value = text
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise InputError(f"{where} is {text!r}; it must be a number")
    return value


def _spoken(name: str) -> str:
    return "data" if name == "name" else name
