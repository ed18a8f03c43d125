"""Code of the user's own: space files and factories of networks, found, trusted, imported, and named where they fail.

A file is run as it is now, never a compiled copy of what it was. Files beside it are there for it as those of a package
are (`from . import layers`); nothing is put on the path of modules, so that it hides no other module.

A factory is only run if its file is the one that was recorded, and if this user has allowed it: by a search of a space
that draws it, or by `tunelab trust`. What is allowed is in `trusted.txt` in the cache's folder, never in what is read:
a study or a model of somebody else cannot allow anything. So is the space file that a study goes on with: it is run if
this user gave it to a search, or allowed it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from tunelab.config import CustomSpec, one_line
from tunelab.errors import InputError
from tunelab.files import cache_root, read_file, write_atomically

FILE = "trusted.txt"
_ALLOWED: set[str] = set()  # entries of another machine's file
_BORROWED: dict[str, Path] = {}  # where files lie here, by their folder on the machine that lent them
_OWN = str(Path(__file__).resolve().parent)
_MOST_BYTES = 16 * 2**20  # of what is noted, of 150 bytes each, and of a Python file; our choice
_MOST_LENT = 2**20  # bytes of Python that travel with a trial; our choice
_LONGEST = 300  # characters of what an error says; our choice


def import_file(path: Path, what: str, *, anew: bool = False) -> ModuleType:
    """The module in the file `path`, run now.

    Args:
        path: absolute.
        what: what it is, in words, for errors.
        anew: runs the files beside it anew too, where it imports them.

    Raises:
        InputError: there is no such file, or it raises or exits; the line is named.
    """
    return _run(path, read_source(path, what), what, anew=anew)


def import_named(name: str, what: str) -> ModuleType:
    """The installed module of this dotted name.

    Raises:
        InputError: there is none, or it raises or exits.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} cannot be imported: {say(error)}{place_of(error)}") from error


def say(error: BaseException) -> str:
    """An error in one line that is not too long: its type and what it says."""
    said = " ".join((one_line(error) if isinstance(error, ValidationError) else str(error)).split())
    if isinstance(error, SyntaxError):
        said = error.msg
    return f"{type(error).__name__}: {said if len(said) <= _LONGEST else said[:_LONGEST] + ' ...'}"


def place_of(error: BaseException, folder: Path | None = None) -> str:
    """Where an error comes from, as " (FILE, line N)": the last line that ran in `folder`, or in foreign code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    foreign = [frame for frame in frames if not frame.filename.startswith((_OWN, importlib.__path__[0]))]
    near = [frame for frame in foreign if folder is not None and str(Path(frame.filename).parent) == str(folder)]
    last = (near or foreign)[-1:]
    return f" ({last[0].filename}, line {last[0].lineno})" if last else ""


def settle(spec: CustomSpec, folder: Path | None) -> CustomSpec:
    """The same factory, found from anywhere: its file absolute, with the file's hash.

    Args:
        spec: a relative file is looked for in `folder`.
        folder: that of the space; None is the current one.

    Raises:
        InputError: there is no such file or module.
    """
    source, _, function = spec.factory.rpartition(":")
    if not source.endswith(".py"):
        return dataclasses.replace(spec, sha256=_digest(read_source(_file_of(source), "module of a factory")))
    path = ((folder or Path.cwd()) / Path(source).expanduser()).resolve()
    digest = _digest(read_source(path, "file of a factory"))
    return dataclasses.replace(spec, factory=f"{path}:{function}", sha256=digest)


def trust(spec: CustomSpec) -> None:
    """Notes that this user allows the factory, as its file is now; nothing is noted twice.

    Raises:
        TunelabError: the folder of the cache cannot be written.
    """
    if spec.sha256 and not _is_trusted(spec):
        with (cache_root()[0] / FILE).open("a", encoding="utf-8") as file:
            file.write(_entry(spec))


def allow_space(path: Path) -> None:
    """Notes that this user gave the space file `path`: a study may name it from now on, whatever it holds then.

    Raises:
        TunelabError: the folder of the cache cannot be written.
    """
    if not _is_noted(_space_entry(path)):
        with (cache_root()[0] / FILE).open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(_space_entry(path))


def require_allowed_space(source: str, study: Path) -> None:
    """Passes if the space that a study names is no file, or one that this user gave to a search of this machine.

    Raises:
        InputError: it is another file. A study of somebody else would have it run.
    """
    if source.endswith(".py") and not _is_noted(_space_entry(Path(source))):
        raise InputError(
            f"the study {study} goes on with the space {source}, which is code that you have not allowed yet; read it, "
            f"then `tunelab trust {source}` allows it"
        )


def lend(spec: CustomSpec) -> dict[str, Any]:
    """What a process on another machine needs to run a factory, as JSON values: its file, and those beside it.

    That this user has allowed it travels along. Of an installed module no file does: it must be installed there.

    Raises:
        InputError: the file is missing.
    """
    source = spec.factory.rpartition(":")[0]
    lent: dict[str, Any] = {"allowed": [_entry(spec)] if _is_trusted(spec) else [], "folder": "", "files": {}}
    if source.endswith(".py"):
        path, left = Path(source), _MOST_LENT
        beside = sorted(
            file for file in path.parent.rglob("*.py") if file != path and _is_importable(file, path.parent)
        )
        for file in (path, *beside):
            text = read_source(file, "file of a factory")
            left -= len(text)
            if left < 0:
                break
            name = file.relative_to(path.parent).as_posix()
            lent["files"][name] = text.decode("utf-8", "surrogateescape")
        lent["folder"] = str(path.parent)
    return lent


def borrow(lent: Mapping[str, Any]) -> None:
    """Has this process use what `lend` gave on another machine.

    Files that do not lie here as they do there are written into the folder of the cache, once for each content.

    Raises:
        OSError: they cannot be written.
        TunelabError: there is no place for the cache.
    """
    _ALLOWED.update(lent["allowed"])
    files = {name: text.encode("utf-8", "surrogateescape") for name, text in lent["files"].items()}
    if not files or all(_holds(Path(lent["folder"], name), content) for name, content in files.items()):
        return
    digest = _digest(json.dumps(lent["files"], sort_keys=True).encode("utf-8", "surrogateescape"))
    folder = cache_root()[0] / "code" / digest[:32]
    for name, content in files.items():
        if not _holds(folder / name, content):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, content)
    _BORROWED[lent["folder"]] = folder


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _is_importable(file: Path, root: Path) -> bool:
    """True if `from . import` finds a file from the folder `root`: it is in it, or in packages below it."""
    folders = [folder for folder in file.parents if folder != root and root in folder.parents]
    return all((folder / "__init__.py").is_file() for folder in folders)


def _where(path: Path) -> Path:
    """The file itself, or what was lent of it."""
    lent = _BORROWED.get(str(path.parent))
    return path if lent is None else lent / path.name


def load_factory(spec: CustomSpec) -> Callable[..., Any]:
    """The function that makes the network, if its file is as recorded and this user has allowed it.

    Raises:
        InputError: the file is missing or has changed, it is not allowed or raises, or it has no such function.
    """
    source, _, function = spec.factory.rpartition(":")
    path = _where(Path(source)) if source.endswith(".py") else None
    text = b"" if path is None else read_source(path, "file of a factory")
    if not _is_trusted(spec):
        raise InputError(
            f"the network is made by {spec.factory}, which is code that you have not allowed yet; read it, then "
            f"`tunelab trust {spec.factory}` allows it"
        )
    if path is None:
        require_unchanged(spec)
    else:
        _require_hash(spec, path, text)  # of what is run, not of what the file is by then
    return _load(spec.factory, spec.sha256, path, text, function)


def require_unchanged(spec: CustomSpec) -> None:
    """Raises InputError if the factory's file is missing, or not as it was recorded; the factory is not run."""
    source = spec.factory.rpartition(":")[0]
    path = _where(Path(source)) if source.endswith(".py") else _file_of(source)
    _require_hash(spec, path, read_source(path, "file of a factory"))


def _require_hash(spec: CustomSpec, path: Path, text: bytes) -> None:
    now = _digest(text)
    if now != spec.sha256:
        raise InputError(
            f"{path}, which makes the network, has changed since it was recorded (sha256 {spec.sha256[:8]}..., now "
            f"{now[:8]}...); put it back as it was; a search goes on with the new one when the VERSION of its space is "
            "raised"
        )


def read_source(path: Path, what: str) -> bytes:
    """The content of a Python file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"there is no {what} {path}")
    try:
        return read_file(path, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read: {error.strerror}") from error


class _AsItIs(importlib.machinery.SourceFileLoader):
    """Runs this text of a file, whatever compiled copies there are."""

    def __init__(self, name: str, path: Path, text: bytes) -> None:
        super().__init__(name, str(path))
        self._text = text

    def get_code(self, fullname: str) -> Any:
        """The compiled text."""
        return self.source_to_code(self._text, self.path)


def _run(path: Path, text: bytes, what: str, *, anew: bool) -> ModuleType:
    name = _module_name(path, anew=anew)
    spec = importlib.util.spec_from_loader(name, _AsItIs(name, path, text))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (path.parent / f"{error.name}.py").is_file():
            hint = f"; a file beside it is imported by `from . import {error.name}`"
        said = f"the {what} {path} cannot be imported: {say(error)}{hint}{place_of(error, path.parent)}"
        raise InputError(said) from error
    return module


def _module_name(path: Path, *, anew: bool) -> str:
    """What a file is called as a module: one of a package that has all files of its folder."""
    package = f"tunelab_beside_{_digest(os.fsencode(path.parent))[:12]}"
    if anew:
        for known in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[known]
        importlib.invalidate_caches()
    if package not in sys.modules:
        made = ModuleType(package, "The files of a folder.")
        made.__path__ = [str(path.parent)]
        sys.modules[package] = made
    return f"{package}.{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"


@functools.lru_cache(maxsize=100)
def _load(factory: str, sha256: str, path: Path | None, text: bytes, function: str) -> Callable[..., Any]:
    """Runs the code that makes networks, once for each version of it."""
    if path is not None:
        module = _run(path, text, "file of a factory", anew=False)
    else:
        module = import_named(factory.rpartition(":")[0], f"the module of the factory {factory}")
    found = getattr(module, function, None)
    if not callable(found):
        there = ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing"
        raise InputError(f"the factory {factory}: there is no function {function!r} there; there are {there}")
    made: Callable[..., Any] = found
    return made


def _file_of(module: str) -> Path:
    """The file of an installed module. The packages that it is in are imported, it is not.

    Raises:
        InputError: there is no such module, or it is no Python file.
    """
    try:
        found = importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"the module {module!r} of a factory cannot be found: {say(error)}") from error
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise InputError(
            f"there is no Python module {module!r} for a factory; it is written as package.module:function, or as "
            "path/to/file.py:function"
        )
    return Path(found.origin)


def _is_trusted(spec: CustomSpec) -> bool:
    return _entry(spec) in _ALLOWED or _is_noted(_entry(spec))


def _is_noted(entry: str) -> bool:
    try:
        noted = read_file(cache_root()[0] / FILE, _MOST_BYTES).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{cache_root()[0] / FILE} cannot be read: {error.strerror}") from error
    return entry in noted.splitlines(keepends=True)


def _space_entry(path: Path) -> str:
    return f"space {str(path)!a}\n"


def _entry(spec: CustomSpec) -> str:
    return f"{spec.sha256} {spec.factory}\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
