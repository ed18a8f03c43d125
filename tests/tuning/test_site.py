"""Where a search runs; a dashboard that cannot be shown is refused before anything is made."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tunelab.cli import run
from tunelab.errors import InputError
from tunelab.tuning import site
from tunelab.tuning.site import Site


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the packages of the extra `dashboard`."""
    found = importlib.util.find_spec

    def look(name: str, *more: Any) -> Any:
        return None if name in ("aiohttp", "opencensus") else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", look)


def test_what_rays_dashboard_needs_is_what_ray_says_that_it_needs() -> None:
    """Ray has a module of imports, and shows no dashboard if one of them fails."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "dashboard" / "optional_deps.py").read_text())
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.partition(".")[0] for name in named} == set(site._PACKAGES)
    assert Site(dashboard=True).dashboard, "the tests are run with the extra"


@pytest.mark.usefixtures("lacking")
def test_a_dashboard_without_its_packages_is_refused_with_the_command_that_installs_them() -> None:
    with pytest.raises(InputError, match=r'\(aiohttp, opencensus\): python -m pip install "ray\[default\]"'):
        Site(dashboard=True)
    assert Site("auto", dashboard=True).dashboard, "the cluster has its own"
    assert not Site().dashboard


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("words", ["search arch", "resume study", "extend study --trials 9"])
def test_it_is_one_line_and_nothing_is_made(
    words: str, make_study: Any, runs_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set()
    if not words.startswith("search"):
        make_study([("COMPLETED", (0.5,))])
        before = {(path, path.lstat().st_mtime_ns) for path in runs_dir.rglob("*")}
    assert run([*words.split(), "--dashboard"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert 'python -m pip install "ray[default]"' in line
    after = {(path, path.lstat().st_mtime_ns) for path in runs_dir.rglob("*")} if runs_dir.exists() else set()
    assert after == before
