"""Versions that belong together, and kernels that are compiled."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.errors import InputError

_SHOWN = ("ray", "optuna", "torch", "torchvision", "numba")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*)(;.*)?$")


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
    for line in required:
        name, wanted, marker = _parse(line)
        if marker:  # of an extra
            continue
        try:
            versions[name] = installed(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(error("packages", f"{name} is missing", f"pip install '{name}{wanted}'"))
            continue
        if not _fits(versions[name], wanted):
            said = f"{name} is {versions[name]}, tunelab works with {name}{wanted}"
            found.append(error("packages", said, f"pip install '{name}{wanted}'"))
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    return found or [ok("versions", f"Python {platform.python_version()}, {shown}")]


def _parse(line: str) -> tuple[str, str, str]:
    """Name, range of versions and marker of a requirement."""
    match = _REQUIREMENT.match(line.strip())
    assert match is not None, line
    return match[1], ",".join(sorted(match[2].replace(" ", "").strip("()").split(","), reverse=True)), match[3] or ""


def _fits(version: str, wanted: str) -> bool:
    """True if a version is within `>=1.2,<3`."""
    own = _numbers(version)
    for part in filter(None, wanted.split(",")):
        sign, bound = part.rstrip("0123456789.*abrcdevpost+"), _numbers(part.lstrip("<>=!~"))
        width = max(len(own), len(bound))
        left, right = own + (0,) * (width - len(own)), bound + (0,) * (width - len(bound))
        if not {">=": left >= right, "<": left < right, "<=": left <= right, ">": left > right}.get(sign, True):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version: `2.13.0+cpu` is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


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
