"""What is made of the figures of both searches, and the two on a few images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("search_throughput")


def test_the_ratio_is_of_pairs(script: ModuleType) -> None:
    hand = [script.figures(seconds, 10, 40, 0.4) for seconds in (100.0, 200.0, 400.0)]
    mine = [script.figures(seconds, 10, 60, 0.5) for seconds in (50.0, 50.0, 50.0)]
    said = script.table({"hand": hand, "tunelab": mine}).splitlines()
    assert said[-1] == "trials per hour, tunelab to the script by hand: 4.00 (2.00 to 8.00)"
    assert " ".join(said[1].split()) == "Ray Tune by hand 200 (100 to 400) 10 40 180 0.400 (0.400 to 0.400)"


@pytest.mark.slow
def test_both_search(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    words = ["--images", "64", "--trials", "2", "--epochs", "1", "--json", str(result)]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "search_throughput.py"), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    for side in ("hand", "tunelab"):
        (run,) = found[side]
        assert (run["trials"], run["epochs"]) == (2, 2)
        assert 0 <= run["accuracy"] <= 1
    assert "trials per hour, tunelab to the script by hand: " in done.stdout
