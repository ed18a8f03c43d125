from __future__ import annotations

import configparser
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tunelab

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tunelab", "search_spaces", "analysis", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def can_build() -> bool:
    """True if this environment's setuptools is one that pyproject.toml asks for; then no network is needed."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that no earlier build leaves its files in it."""
    if not can_build():
        pytest.skip('the wheel is not checked: setuptools>=77 is missing; `pip install ".[test]"` brings it')
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "-w", str(out), str(source)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    expected = {"tunelab/py.typed", "tunelab/search_spaces/arch_portfolio.json"}
    for folder, package in (
        ("tunelab", "tunelab"),
        ("search_spaces", "tunelab/search_spaces"),
        ("analysis", "tunelab/analysis"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            expected.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


@pytest.mark.slow
def test_the_wheel_says_who_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"tunelab-{tunelab.__version__}.dist-info"
        assert wheel.name == f"tunelab-{tunelab.__version__}-py3-none-any.whl"
        metadata = archive.read(f"{info}/METADATA").decode()
        points = configparser.ConfigParser()
        points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert points["console_scripts"]["tunelab"] == "tunelab.cli:main"
    assert "Apache License" in licence
