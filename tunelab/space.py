"""What a search space is, and how one is found: by name, by entry point, or as a Python file.

A space is a module with four names: `draw`, a function from `Suggest` to a `TrialConfig`; `VERSION`, an integer that
changes whenever a name or a list of choices does; `SUMMARY`, one line; and `BASELINES`, parameter sets of which the
first that fits the limits becomes trial 0. Two more may be there: `STARTERS`, families of parameter sets, of each of
which the first that fits is tried before anything is drawn; and `GRIDS`, lists of parameter sets by name, each of which
`--grid NAME` trains.

A space that begins with a configuration of another study (`--from STUDY`) has `draw_from(suggest, base)` in place of
`draw`, and `baselines_from(base)` in place of `BASELINES`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from tunelab.config import CustomSpec, TrialConfig
from tunelab.errors import InputError, RefusedError
from tunelab.foreign import import_file, place_of, say, settle, trust
from tunelab.patience import limited

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

    `grids` are lists of parameter sets by name; what a set leaves out is drawn. `draw` is called by `draw_config`.
    `base` is the configuration that a space with `baselines_from` begins with. `folder` is where its file lies, and
    `factories` what its networks are made by, as it was when the first of them was drawn.
    """

    name: str
    source: str
    version: int
    summary: str
    draw: Callable[..., TrialConfig]
    baselines: tuple[Mapping[str, Any], ...]
    starters: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    grids: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    baselines_from: Callable[[TrialConfig], Any] | None = None
    base: TrialConfig | None = None
    folder: Path | None = None
    factories: dict[str, CustomSpec] = field(default_factory=dict, compare=False, repr=False)

    @property
    def needs_base(self) -> bool:
        """True if it begins with a configuration of another study."""
        return self.baselines_from is not None

    @property
    def place(self) -> str:
        """Where its function is, as " (FILE, line N)"; "" where that is not known."""
        function = self.draw.func if isinstance(self.draw, functools.partial) else self.draw
        code = getattr(function, "__code__", None)
        return "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"


def load_space(source: str, base: TrialConfig | None = None) -> SearchSpace:
    """The space called `source`: one that comes with tunelab, an entry point, or a path that ends in `.py`.

    A file given as a path is Python code and is run. A space that needs a base and has none cannot draw.

    Raises:
        InputError: there is no such space, its file cannot be imported, it lacks one of the four names, it has no use
            for a base, or the base names a factory without the hash of its file.
    """
    space = _find_space(source)
    if base is None:
        return space
    if space.baselines_from is None:
        raise InputError(f"the space {space.name!r} begins with no study; leave out --from (the space recipe needs it)")
    if isinstance(base.arch, CustomSpec) and not base.arch.sha256:  # a draw would take it for the space's, and allow it
        raise InputError(f"the factory {base.arch.factory} comes without the hash of its file; every search notes that")
    draw = functools.partial(space.draw, base=base)
    try:
        given = space.baselines_from(base)
    except (Exception, SystemExit) as error:
        raise InputError(f"the space {space.name!r} raised {say(error)}{place_of(error, space.folder)}") from error
    return dataclasses.replace(space, draw=draw, baselines=_families((given,), source)[0], base=base)


def draw_config(space: SearchSpace, suggest: Suggest) -> TrialConfig:
    """What the space draws. A factory of networks is found and allowed, for the user gave the space.

    Raises:
        InputError: the space raises or exits, or returns something else; file and line are named.
    """
    require_base(space)
    try:
        with limited(f"the space {space.name!r}{space.place}"):
            config = space.draw(suggest)
    except (Exception, SystemExit) as error:
        if isinstance(error, InputError) and not isinstance(error, RefusedError):
            raise
        where = place_of(error, space.folder) or space.place
        raise InputError(f"the space {space.name!r} raised {say(error)}{where}") from error
    if not isinstance(config, TrialConfig):
        raise InputError(f"the space {space.name!r} returned {type(config).__name__}, not a TrialConfig{space.place}")
    if isinstance(config.arch, CustomSpec) and not config.arch.sha256:
        config = dataclasses.replace(config, arch=_settled(space, config.arch))
    return config


def require_base(space: SearchSpace) -> None:
    """Raises InputError if the space begins with a configuration of a study, and has none."""
    if space.needs_base and space.base is None:
        raise InputError(
            f"the space {space.name!r} begins with the network of a study; `tunelab search {space.source} --from "
            "STUDY` names it"
        )


def _settled(space: SearchSpace, spec: CustomSpec) -> CustomSpec:
    """The same for a whole search, so that code that changes in between is found out."""
    if spec.factory not in space.factories:
        space.factories[spec.factory] = settle(spec, space.folder)
        trust(space.factories[spec.factory])
    return dataclasses.replace(space.factories[spec.factory], arguments=spec.arguments)


def _find_space(source: str) -> SearchSpace:
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        return _from_module(import_file(path, "space file", anew=True), path.stem, str(path))
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


def _load_entry_point(point: importlib.metadata.EntryPoint) -> ModuleType:
    try:
        module = point.load()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the space {point.name!r} ({point.value}) cannot be imported: {say(error)}{place_of(error)}"
        ) from error
    if not isinstance(module, ModuleType):
        raise InputError(f"the entry point {point.name!r} ({point.value}) is not a module")
    return module


def _from_module(module: ModuleType, name: str, source: str) -> SearchSpace:
    needs_base = hasattr(module, "draw_from")
    function, first = ("draw_from", "baselines_from") if needs_base else ("draw", "BASELINES")
    names = (function, "VERSION", "SUMMARY", first)
    missing = [wanted for wanted in names if not hasattr(module, wanted)]
    if missing:
        raise InputError(f"the space {source!r} lacks {', '.join(missing)}; a space defines {', '.join(names)}")
    draw = getattr(module, function)
    if not callable(draw) or not isinstance(module.VERSION, int):
        raise InputError(f"the space {source!r}: {function} must be a function and VERSION an integer")
    given = getattr(module, "STARTERS", ())
    starters = _families(given if isinstance(given, Sequence) else (given,), source)
    return SearchSpace(
        name,
        source,
        module.VERSION,
        str(module.SUMMARY),
        draw,
        () if needs_base else _families((module.BASELINES,), source)[0],
        starters,
        _grids(getattr(module, "GRIDS", {}), source),
        module.baselines_from if needs_base else None,
        folder=None if module.__file__ is None else Path(module.__file__).parent,
    )


def _families(given: Sequence[Any], source: str) -> tuple[tuple[Mapping[str, Any], ...], ...]:
    if not all(isinstance(family, Sequence) and all(isinstance(one, Mapping) for one in family) for family in given):
        raise InputError(
            f"the space {source!r}: BASELINES and each of STARTERS must be a sequence of dicts from names to values"
        )
    return tuple(tuple(family) for family in given)


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
