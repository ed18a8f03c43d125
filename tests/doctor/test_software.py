from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path

import pytest

from tunelab.data.vision import import_torchvision
from tunelab.doctor.software import find_kernels, find_torchvision, find_versions
from tunelab.errors import InputError


@pytest.mark.parametrize(
    ("required", "version", "verdict"),
    [
        ("ray[tune]>=2.60,<3", "2.60.0", "ok"),
        ("ray[tune]<3,>=2.60", "2.59.9", "error"),
        ("ray[tune]<3,>=2.60", "3.0.0", "error"),
        ("torch>=2.10", "2.13.0+cpu", "ok"),
        ("torch>=2.10", "2.10.0a0+b4e4ee8", "ok"),
        ("optuna!=5.1.*,>=5.0", "5.1.2", "error"),
        ("torch (>=2.10)", "2.9.1", "error"),
        ("numpy>=1.26", "2", "ok"),
        ('onnx>=1.16; extra == "onnx"', "0.1", "ok"),
        ('tomli>=2; python_version < "3"', "0.1", "ok"),
        ('tomli>=2; python_version >= "3"', "0.1", "error"),
        ("click", "0.0.1", "ok"),
    ],
)
def test_versions_against_what_is_required(required: str, version: str, verdict: str) -> None:
    (found,) = find_versions([required], lambda _name: version)
    assert found.verdict == verdict
    if verdict == "error":
        assert version in found.measured
        assert found.mend.startswith("pip install '")


def test_a_package_that_is_missing() -> None:
    def fail(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    (found,) = find_versions(["optuna<6,>=5.0"], fail)
    assert (found.verdict, found.measured) == ("error", "optuna is missing")
    assert found.mend == "pip install 'optuna>=5.0,<6'"


def test_this_environment_is_what_tunelab_requires() -> None:
    (found,) = find_versions()
    assert found.verdict == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in found.measured


def test_torchvision_that_does_not_fit() -> None:
    def fail() -> None:
        raise InputError(
            "torchvision does not fit this torch (no nms); torch is 2.13.0, torchvision 0.20.0; "
            "`pip install 'torchvision==0.28.*'` mends it"
        )

    (found,) = find_torchvision(fail)
    assert (found.verdict, found.mend) == ("error", "pip install 'torchvision==0.28.*'")
    assert found.measured.endswith("torch is 2.13.0, torchvision 0.20.0")


def test_torchvision_here() -> None:
    assert [one.verdict for one in find_torchvision(import_torchvision)] == ["ok"]


def test_kernels(tmp_path: Path) -> None:
    def broken() -> bool:
        warnings.warn("networks train without compiled kernels, slower: no llvm", RuntimeWarning, stacklevel=2)
        return False

    def never() -> tuple[Path, int]:
        raise AssertionError

    (found,) = find_kernels(broken, never)
    assert (found.verdict, "no llvm" in found.measured) == ("warning", True)
    (found,) = find_kernels(lambda: True, lambda: (tmp_path, 0))
    assert (found.verdict, "up to a minute longer, once" in found.measured) == ("ok", True)
    (found,) = find_kernels(lambda: True, lambda: (tmp_path, 12))
    assert found.measured == f"12 compiled functions in {tmp_path}"
