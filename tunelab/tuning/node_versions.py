"""Which versions the nodes of a cluster must have: the one place that says it, before a search and for the doctor."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from tunelab.tuning.node_findings import NodeFinding
from tunelab.tuning.nodes import Versions

NEEDED = ("numpy", "pillow", "pydantic", "pydantic-core", "ray", "tensorboard", "torch", "torchvision")
"""What no trial runs without."""
WANTED = {
    "numba": "networks train far slower on processors without it",
    "llvmlite": "networks train far slower on processors without it",
    "scikit-learn": "the data digits needs it",
}
"""What some trials need, or are faster with."""
_SAME = ("ray", "torch")  # whose releases are the driver's: checkpoints and results depend on them


def requirements() -> dict[str, SpecifierSet]:
    """What tunelab requires of each package that a node needs or wants; anything where its metadata are missing."""
    found = {name: SpecifierSet() for name in (*NEEDED, *WANTED)}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for one in map(Requirement, importlib.metadata.requires("tunelab") or ()):
            if one.name in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
                found[one.name] = one.specifier
    return found


def judge_versions(node: str, there: Versions, here: Versions, wanted: Mapping[str, SpecifierSet]) -> list[NodeFinding]:
    """What of the Python and the packages of `node` does not fit; those of the driver are `here`.

    Two builds of one release (+cpu, +cu130) are the same.
    """
    found = []
    for name, specifier in wanted.items():
        version, ours = there.packages.get(name), here.packages.get(name)
        why = f"; {WANTED[name]}" if name in WANTED else ""
        verdict: Literal["warning", "error"] = "error" if name in NEEDED else "warning"
        if version is None:
            said = f"{name} is missing{why}"
        elif not specifier.contains(_release(version), prereleases=True):
            said = f"{name} is {version}, tunelab works with {name}{specifier}{why}"
        elif name in _SAME and ours and _release(version) != _release(ours):
            said = f"{name} is {version}, the driver has {ours}: they must be the same"
        elif name == "torchvision" and ours and _release(version) != _release(ours):
            said, verdict = f"{name} is {version}, the driver has {ours}", "warning"
        else:
            continue
        exact = f"=={_release(ours)}" if ours else specifier
        found.append(
            NodeFinding(node, "packages", said, verdict, f"{there.executable} -m pip install '{name}{exact}' there")
        )
    return found + _judge_python(node, there, here)


def _judge_python(node: str, there: Versions, here: Versions) -> list[NodeFinding]:
    if there.python == here.python:
        return []
    said = f"it is {there.python}, the driver has {here.python}"
    if there.python.split(".")[:2] == here.python.split(".")[:2]:
        return [NodeFinding(node, "Python", said, "warning", "the same is safer")]
    return [NodeFinding(node, "Python", said, "error", "start Ray there with that Python")]


def _release(version: str) -> str:
    """A version without what names its build: NVIDIA's containers have a torch that is 2.10.0a0+b4e4ee8."""
    try:
        return Version(version).base_version
    except InvalidVersion:
        return version
