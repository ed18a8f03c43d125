"""Where trials by hand are read from: a file, or a grid that a space has itself.

The file is YAML or JSON: a list of mappings, each of them one trial, or one mapping from names to lists of values,
which stands for all combinations; or a template of a trial, or a list of such. Values are read as text;
`tunelab.tuning.grid` turns them into what the space asks for.
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.errors import InputError
from tunelab.space import SearchSpace
from tunelab.tuning.templates import is_template, params_of, take_options
from tunelab.yaml_files import compose

Entry = Mapping[str, str]

WORDS = {True: ("true", "yes", "on"), False: ("false", "no", "off"), None: ("null", "none", "~", "")}
"""The texts that stand for values that are no numbers; the first of them is what they are shown as."""
MOST = 10_000
"""A file may ask for so many trials (our choice): more is a slip in a product."""
_MAX_BYTES = 10_000_000
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


@dataclass(frozen=True)
class Grid:
    """The entries of a file or of a space's own grid, and what to call it.

    In a product, names that a combination has no use for are left out of it. What the entries of a space's own grid
    leave out is as in one of its baselines, `rests`, the first of them that suits all entries; else it is drawn.
    """

    name: str
    entries: tuple[Entry, ...]
    is_product: bool = False
    rests: tuple[Entry, ...] = ()


def find_grid(asked: str | Path, space: SearchSpace) -> Grid:
    """The grid that is asked for: one of the space's own, as `NAME` or `SPACE/NAME`, or a file.

    A file has precedence only where it exists and its name has a suffix or a folder.

    Raises:
        InputError: there is neither, or the file is neither of the two forms.
    """
    path = Path(asked).expanduser()
    name = str(asked).removeprefix(f"{space.name}/")
    if name in space.grids and not (path.is_file() and (path.suffix or len(path.parts) > 1)):
        entries, rests = _worded(space.grids[name]), _worded(space.baselines)
        return Grid(f"{space.name}/{name}", entries, rests=rests)
    if not path.suffix and not path.exists():
        there = f"it has {', '.join(space.grids)}" if space.grids else "it has none"
        raise InputError(f"the space {space.name!r} has no grid {str(asked)!r} ({there}), and there is no such file")
    return read_grid(path, space)


def _listed(plain: Any) -> Any:
    """What a file holds, one template as a list of one."""
    return [plain] if is_template(plain) else plain


def _worded(sets: Sequence[Mapping[str, Any]]) -> tuple[Entry, ...]:
    return tuple({key: word(value) for key, value in entry.items()} for entry in sets)


def word(value: Any) -> str:
    """A value as the text that means it in a file."""
    return WORDS[value][0] if value is None or isinstance(value, bool) else str(value)


def options_of_templates(
    asked: str | Path, values: Mapping[str, Any], data: Mapping[str, Any], given: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """As `tunelab.tuning.templates.take_options`, of a file of templates; of other grids nothing is taken."""
    path = Path(asked).expanduser()
    plain = _read_yaml(path) if path.is_file() and (path.suffix or len(path.parts) > 1) else None
    return take_options(_listed(plain), values, data, given, str(path))


def read_grid(path: Path, space: SearchSpace) -> Grid:
    """The entries of a file.

    Raises:
        InputError: there is no such file, it is neither of the two forms, or a template in it is not of `space`.
    """
    plain = _listed(_read_yaml(path))
    if isinstance(plain, list):
        plain = [
            params_of(entry, f"{path}, entry {place}", space) if is_template(entry) else entry
            for place, entry in enumerate(plain, start=1)
        ]
    if isinstance(plain, list) and plain and all(isinstance(entry, dict) and entry for entry in plain):
        entries = plain
        for place, entry in enumerate(entries, start=1):
            for name, value in entry.items():
                if not isinstance(value, str):
                    raise InputError(f"{path}, entry {place}: {name} has {_SHORT.repr(value)}; it must be one value")
    elif isinstance(plain, dict) and plain:
        lists = {name: values if isinstance(values, list) else [values] for name, values in plain.items()}
        for name, values in lists.items():
            if not values or not all(isinstance(value, str) for value in values):
                raise InputError(f"{path}: {name} must have a list of values, such as [0.1, 0.2]")
        if math.prod(len(values) for values in lists.values()) > MOST:
            raise InputError(f"{path} asks for more than {MOST} combinations; leave out values")
        entries = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    else:
        raise InputError(
            f"{path} must hold a list of mappings such as `- {{lr: 0.1}}`, one for each trial, or one mapping "
            "such as `lr: [0.1, 0.2]`, for all combinations"
        )
    if len(entries) > MOST:
        raise InputError(f"{path} asks for {len(entries)} trials; {MOST} are allowed")
    return Grid(str(path), tuple(entries), isinstance(plain, dict))


def _read_yaml(path: Path) -> Any:
    """Lists and mappings of texts; a name that is there twice is refused, and what contains itself."""
    import yaml

    node = compose(path, _MAX_BYTES, "neither YAML nor JSON")
    made: dict[int, Any] = {}  # by node: what is there once and meant again is made once

    def plain(node: yaml.Node | None) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return _whole(str(node.value))
        if not isinstance(node, yaml.CollectionNode):
            return None
        if id(node) not in made:
            made[id(node)] = _Unfinished
            made[id(node)] = listed(node) if isinstance(node, yaml.SequenceNode) else named(node)
        if made[id(node)] is _Unfinished:
            raise InputError(f"{path}, line {node.start_mark.line + 1}: a list or a mapping contains itself")
        return made[id(node)]

    def listed(node: yaml.SequenceNode) -> list[Any]:
        return [plain(one) for one in node.value]

    def named(node: yaml.Node) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            where = f"{path}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{where}: a name must be one word, not a list or a mapping")
            if key.value in found:
                raise InputError(f"{where}: {key.value!r} is given twice")
            found[_whole(str(key.value))] = plain(value)
        return found

    try:
        return plain(node)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply") from None


def _whole(text: str) -> str:
    """The text with surrogate pairs as characters: JSON writes those beyond 16 bits so, which YAML does not know."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Unfinished:
    """Stands for a list or a mapping that is being made."""
