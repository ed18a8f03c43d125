"""Versions that belong together, and kernels that are compiled."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.errors import InputError

_SHOWN = ("ray", "optuna", "torch", "torchvision", "numba")


def find_versions(
    required: Sequence[str] | None = None, installed: Callable[[str], str] = importlib.metadata.version
) -> list[MachineFinding]:
    """Python, and the packages that tunelab requires, each of a version that it works with.

    Args:
        required: requirements as in a package's metadata; by default tunelab's own.
        installed: from a package's name to its version.
    """
    required = (importlib.metadata.requires("tunelab") or []) if required is None else required
    versions: dict[str, str] = {}
    found = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra, or of another Python
        name = requirement.name
        wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))
        try:
            versions[name] = installed(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(error("packages", f"{name} is missing", f"pip install '{name}{wanted}'"))
            continue
        release = Version(versions[name]).base_version  # NVIDIA's containers have a torch that is 2.10.0a0+b4e4ee8
        if not requirement.specifier.contains(release):
            said = f"{name} is {versions[name]}, tunelab works with {name}{wanted}"
            found.append(error("packages", said, f"pip install '{name}{wanted}'"))
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    return found or [ok("versions", f"Python {platform.python_version()}, {shown}")]


def find_torchvision(load: Callable[[], object]) -> list[MachineFinding]:
    """Whether torchvision can be imported beside this torch.

    Args:
        load: imports it, as `data.vision.import_torchvision`.
    """
    try:
        load()
    except InputError as wrong:
        said, _, mend = str(wrong).rpartition("; ")
        return [error("torchvision", said, mend.replace("`", "").removesuffix(" mends it"))]
    return [ok("torchvision", f"{importlib.metadata.version('torchvision')} fits torch")]


def find_kernels(usable: Callable[[], bool], compiled: Callable[[], tuple[Path, int]]) -> list[MachineFinding]:
    """Whether the kernels for processors run, and are compiled already.

    Args:
        usable: as `models.kernels.usable`, which warns of the reason where they are not.
        compiled: as `models.kernels.compiled`.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        works = usable()
    if not works:
        reason = next((str(one.message) for one in told if "kernels" in str(one.message)), "they cannot be imported")
        return [
            warning("kernels", reason, f"{Path(sys.executable).name} -m pip install --force-reinstall numba llvmlite")
        ]
    folder, count = compiled()
    if count == 0:
        said = f"not compiled yet in {folder}: the first search on processors takes up to a minute longer, once"
        return [ok("kernels", said)]
    return [ok("kernels", f"{count} compiled functions in {folder}")]
