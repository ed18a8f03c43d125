"""The simulated fleet on a few trials: what it counts, and that recorded curves are played as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fleet.py"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("fleet")


def test_the_verdict_compares_the_last_line_with_the_first(script: ModuleType) -> None:
    def row(part: str, ended: int, processor: float, resident: float, trials: int = 100) -> dict[str, float | str]:
        return {
            "part": part,
            "ended": ended,
            "trials": trials,
            "processor_ms_per_trial": processor,
            "wall_ms_per_trial": 2 * processor,
            "resident_mb": resident,
        }

    rows = [row("search", 100, 10.0, 200.0), row("search", 300, 12.0, 210.0), row("race", 300, 99.0, 300.0, 7)]
    found = script.verdict(rows)
    assert found["last_to_first"] == pytest.approx(1.2)
    assert found["memory_kb_per_trial"] == pytest.approx(50.0)
    assert found["ended_per_second"] == pytest.approx(300 / 4.4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["model", "random"])
def test_a_small_fleet_searches(tmp_path: Path, sampler: str) -> None:
    curves = tmp_path / "curves.npz"
    val = np.linspace(0.1, 0.9, 40)[:, None] * np.linspace(0.5, 1.0, 9)[None, :]
    arrays = {"X": np.zeros((40, 1)), "val": val, "sec": np.ones((40, 9)), "len": np.full(40, 9), "ok": np.ones(40)}
    np.savez(curves, **arrays)
    result = tmp_path / "fleet.json"
    words = ["--trials", "24", "--concurrent", "6", "--epochs", "9", "--every", "8", "--sampler", sampler]
    more = ["--curves", str(curves)] if sampler == "random" else []
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, *more, "--json", str(result)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    assert [row["ended"] for row in found["rows"] if row["part"] == "search"] == [8, 16, 24]
    assert all(row["record_bytes"] > 0 for row in found["rows"])
    assert 1 <= found["reports_per_trial"] <= 9
    assert 1 < found["fsyncs_per_trial"] <= 2 + found["reports_per_trial"], "one of a proposal, one of each report"
    assert "last to first: " in done.stdout
