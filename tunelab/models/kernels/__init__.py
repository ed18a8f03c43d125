"""Loops over the values of maps, compiled for this processor by numba, which keeps them: a machine compiles once.

What is compiled is kept in `kernels-*` below the user's cache folder (`NUMBA_CACHE_DIR`, else `XDG_CACHE_HOME/tunelab`,
else `~/.cache/tunelab`, else a folder of the user's in the temporary folder), a folder for each version of the sources.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.resources
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_ATTEMPTS = 30  # more than there are functions in a kernel, each of which may meet with a damaged or a full folder
_DAMAGED = (OSError, EOFError, pickle.UnpicklingError)
_ready: set[tuple[str, type]] = set()
_of_a_fork: list[bool] = []


def usable() -> bool:
    """True if this process can run kernels, which are imported (0.4 s) for it; where they cannot be is warned of.

    A fork of a process that ran some cannot: the threads are not in the copy.
    """
    return not _of_a_fork and _modules() is not None


def compiled() -> tuple[Path, int]:
    """The folder of compiled code, made if missing, and how many functions it holds.

    Raises:
        OSError: there is no folder that can be written.
    """
    return _folder(), sum(1 for _ in _folder().rglob("*.nbi"))


def run(name: str, sample: Any, *arguments: Any) -> None:
    """Runs a kernel on values like `sample`, with as many threads as torch has, which are its last argument.

    Of several processes that need it for the first time one compiles it, and the others wait. A folder of compiled code
    that is damaged or full costs time, and nothing else.
    """
    kernel, use_threads = _found(name)
    threads = torch.get_num_threads()
    use_threads(threads)
    if (name, type(sample)) in _ready:
        kernel(sample, *arguments, threads)
        return
    with _locked(_folder()):
        left = _ATTEMPTS
        while not _succeeds(kernel, sample, *arguments, threads, last=left == 0):
            left -= 1
            for index in _folder().rglob("*.nbi"):
                with contextlib.suppress(OSError):
                    index.unlink()
    _ready.add((name, type(sample)))


def _succeeds(kernel: Callable[..., None], *arguments: Any, last: bool) -> bool:
    """Runs it; False if its compiled code could not be read or kept, in which case it has done nothing."""
    try:
        kernel(*arguments)
    except _DAMAGED:
        if last:
            raise
        return False
    return True


@functools.cache
def _found(name: str) -> tuple[Callable[..., None], Callable[[int], None]]:
    modules = _modules()
    assert modules is not None
    module = next(module for module in modules if hasattr(module, name))
    return getattr(module, name), module.use_threads


@functools.cache
def _modules() -> tuple[ModuleType, ...] | None:
    threads = torch.get_num_threads()
    try:
        import numba

        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(_folder())
        try:
            from tunelab.models.kernels import norms, pooling
        finally:
            numba.config.CACHE_DIR = before
        norms.use_threads(threads)
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(f"networks train without compiled kernels, slower: {error}", RuntimeWarning, stacklevel=2)
        return None
    torch.set_num_threads(threads)  # numba starts its threads with a number of its own, for all that use OpenMP
    os.register_at_fork(after_in_child=lambda: _of_a_fork.append(True))
    return norms, pooling


def folders() -> tuple[Path, Path]:
    """Where compiled code of this version may be kept, the usual folder first; neither need exist.

    numba looks at the source of the function that it compiled only, not at those of the functions in it.
    """
    sources = sorted(Path(str(importlib.resources.files(__package__))).glob("*.py"))
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    own, shared = os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    usual = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "tunelab"
    private = Path(tempfile.gettempdir()) / f"tunelab-cache-{os.getuid()}"
    return usual / f"kernels-{version}", private / f"kernels-{version}"


@functools.cache
def _folder() -> Path:
    """Where compiled code is kept: the first of `folders` that can be written."""
    for folder in folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK) and folder.stat().st_uid == os.getuid():
                return folder
    raise OSError(f"there is no folder for compiled code: {folders()[0]} cannot be written; set NUMBA_CACHE_DIR")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no room, or no locks on this file system: nobody waits
            file = stack.enter_context((folder / "lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
