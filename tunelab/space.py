"""What a search space is, and how one is found: by name, by entry point, or as a Python file.

A space is a module with four names: `draw`, a function from `Suggest` to a `TrialConfig`; `VERSION`, an integer that
changes whenever a name or a list of choices does; `SUMMARY`, one line; and `BASELINES`, parameter sets of which the
first that fits the limits becomes trial 0. Two more may be there: `STARTERS`, families of parameter sets, of each of
which the first that fits is tried before anything is drawn; and `GRIDS`, lists of parameter sets by name, each of which
`--grid NAME` trains.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from tunelab.config import TrialConfig
from tunelab.errors import InputError

_PACKAGE = "tunelab.search_spaces"
_ENTRY_POINTS = "tunelab.spaces"

Choice = TypeVar("Choice", bound="bool | int | float | str | None")


class Suggest(Protocol):
    """The `suggest_*` methods of an Optuna trial, all that a space needs to know of Optuna.

    A name always comes with the same choices, or with the same kind of range, whose ends may differ.
    """

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """One of `choices`."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer in [low, high]."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""


@dataclass(frozen=True)
class SearchSpace:
    """A loaded space. `source` is what `load_space` finds it by again; `baselines` and `starters` come first.

    `grids` are lists of parameter sets by name; what a set leaves out is drawn.
    """

    name: str
    source: str
    version: int
    summary: str
    draw: Callable[[Suggest], TrialConfig]
    baselines: tuple[Mapping[str, Any], ...]
    starters: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    grids: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)


def load_space(source: str) -> SearchSpace:
    """The space called `source`: one that comes with tunelab, an entry point, or a path that ends in `.py`.

    A file given as a path is Python code and is run.

    Raises:
        InputError: there is no such space, its file cannot be imported, or it lacks one of the four names.
    """
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        return _from_module(_import_file(path), path.stem, str(path))
    if source in _own_spaces():
        return _from_module(importlib.import_module(f"{_PACKAGE}.{source}"), source, source)
    for point in importlib.metadata.entry_points(group=_ENTRY_POINTS):
        if point.name == source:
            return _from_module(_load_entry_point(point), source, source)
    raise InputError(
        f"there is no search space {source!r}; there are {', '.join(space_names())}, "
        "or a path to a Python file such as ./my_space.py"
    )


def space_names() -> list[str]:
    """The names that `load_space` knows on this machine, tunelab's own first."""
    foreign = {point.name for point in importlib.metadata.entry_points(group=_ENTRY_POINTS)}
    own = _own_spaces()
    return [*own, *sorted(foreign - set(own))]


def _own_spaces() -> list[str]:
    package = importlib.import_module(_PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no space file {path}")
    spec = importlib.util.spec_from_file_location(f"tunelab_space_{path.stem}", path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise InputError(f"the space file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _load_entry_point(point: importlib.metadata.EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except (Exception, SystemExit) as error:
        raise InputError(f"the space {point.name!r} ({point.value}) cannot be imported: {error}") from error
    if not isinstance(module, ModuleType):
        raise InputError(f"the entry point {point.name!r} ({point.value}) is not a module")
    return module


def _from_module(module: ModuleType, name: str, source: str) -> SearchSpace:
    missing = [wanted for wanted in ("draw", "VERSION", "SUMMARY", "BASELINES") if not hasattr(module, wanted)]
    if missing:
        raise InputError(
            f"the space {source!r} lacks {', '.join(missing)}; a space defines draw, VERSION, SUMMARY, BASELINES"
        )
    if not callable(module.draw) or not isinstance(module.VERSION, int):
        raise InputError(f"the space {source!r}: draw must be a function and VERSION an integer")
    starters = getattr(module, "STARTERS", ())
    families = [module.BASELINES, *(starters if isinstance(starters, Sequence) else (starters,))]
    if not all(isinstance(family, Sequence) and all(isinstance(one, Mapping) for one in family) for family in families):
        raise InputError(
            f"the space {source!r}: BASELINES and each of STARTERS must be a sequence of dicts from names to values"
        )
    baselines, *others = (tuple(family) for family in families)
    grids = _grids(getattr(module, "GRIDS", {}), source)
    return SearchSpace(name, source, module.VERSION, str(module.SUMMARY), module.draw, baselines, tuple(others), grids)


def _grids(given: Any, source: str) -> dict[str, tuple[Mapping[str, Any], ...]]:
    if not isinstance(given, Mapping) or not all(_is_grid(name, entries) for name, entries in given.items()):
        raise InputError(
            f"the space {source!r}: GRIDS must be a dict from names (letters, digits, - and _) to sequences of dicts "
            "from names to values, none of them empty"
        )
    return {name: tuple(entries) for name, entries in given.items()}


def _is_grid(name: object, entries: object) -> bool:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or not isinstance(entries, Sequence):
        return False
    return bool(entries) and all(isinstance(entry, Mapping) and entry for entry in entries)
