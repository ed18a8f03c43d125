"""Folders that opening a cache makes, which a mere look at the machine must not leave behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunelab.files import private_root, wanted_root


@contextlib.contextmanager
def leaving_no_folders(*wanted: Path) -> Iterator[None]:
    """Removes, of these folders and those above them, the empty ones that were not there before."""
    new = {folder for path in wanted for folder in (path, *path.parents) if not folder.exists()}
    try:
        yield
    finally:
        for top in (folder for folder in new if folder.parent not in new):
            for folder, _folders, _files in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # it holds something
                    Path(folder).rmdir()


def cache_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders that opening the caches of images and of kernels may make."""
    folders = [wanted_root() / "data", wanted_root() / "raw"]
    if environ.get("NUMBA_CACHE_DIR"):
        folders.append(Path(environ["NUMBA_CACHE_DIR"]))
    elif not environ.get("XDG_CACHE_HOME"):
        folders.append(Path.home() / ".cache/tunelab")
    else:
        folders.append(Path(environ["XDG_CACHE_HOME"]) / "tunelab")
    with contextlib.suppress(FileNotFoundError):  # no temporary folder can be written
        folders.append(private_root())
    return tuple(folders)
