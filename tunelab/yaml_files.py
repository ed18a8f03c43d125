"""YAML of anybody's: read up to a size, and refused where it would grow when it is read or used.

YAML can name a list and mean it again. Nine lists of nine others each are a few hundred bytes, and a thousand million
values for everything that goes through them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunelab.errors import InputError
from tunelab.files import read_file

_MOST_NODES = 1_000_000
"""Values of a file at most, those that are meant again counted again; each takes about 1 KB (our choice)."""
_LONGEST = 300  # characters of what is wrong; our choice


def compose(path: Path, most: int, what: str) -> Any:
    """The nodes of a YAML or JSON file, None if it is empty.

    Args:
        path: the file.
        most: bytes that it may have.
        what: what it is not if it cannot be read, e.g. "YAML".

    Raises:
        InputError: it cannot be read, is no YAML, is nested too deeply, holds itself or too much.
    """
    import yaml

    text = read_text(path, most, what)
    if text.count(",") + text.count("\n") > _MOST_NODES:
        raise InputError(f"{path} holds more than {_MOST_NODES:,} values")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _count(node, path, {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _refused(path, what, error) from error
    return node


def load(path: Path, most: int, what: str) -> Any:
    """What a YAML or JSON file holds, as plain values; args and errors as those of `compose`."""
    import yaml

    compose(path, most, what)
    try:
        return yaml.safe_load(read_text(path, most, what))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise _refused(path, what, error) from error


def read_text(path: Path, most: int, what: str) -> str:
    """The text of a file of at most `most` bytes, or InputError."""
    try:
        return read_file(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(path, what, error) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _refused(path: Path, what: str, error: Exception) -> InputError:
    if isinstance(error, RecursionError):
        return InputError(f"{path} is nested too deeply")
    return InputError(f"{path} is {what}: {' '.join(str(error).split())[:_LONGEST]}")


def _count(node: Any, path: Path, known: dict[int, int]) -> int:
    """How many values a node stands for, those that are meant again counted again."""
    if isinstance(node.value if node is not None else "", str):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        total = 1
        for part in node.value:
            for one in part if isinstance(part, tuple) else (part,):
                total += _count(one, path, known)
        if total > _MOST_NODES:
            raise InputError(f"{path} holds more than {_MOST_NODES:,} values, as it means some again and again")
        known[id(node)] = total
    if known[id(node)] < 0:
        raise InputError(f"{path}, line {node.start_mark.line + 1}: a list or a mapping contains itself")
    return known[id(node)]
