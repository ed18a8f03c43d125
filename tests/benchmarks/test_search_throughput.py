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
    hand = [script.figures(seconds, 10, [(60.0, 0.3), (90.0, 0.4)]) for seconds in (100.0, 200.0, 400.0)]
    mine = [script.figures(50.0, 10, [(20.0, 0.2), (41.0, 0.5), (49.0, best)]) for best in (0.5, 0.6, 0.7)]
    said = script.table({"hand": hand, "tunelab": mine}).splitlines()
    assert " ".join(said[1].split()) == "Ray Tune by hand 200 (100 to 400) 10 2 180 0.400 (0.400 to 0.400)"
    assert " ".join(said[2].split()) == "tunelab search 50 (50 to 50) 10 3 720 0.600 (0.500 to 0.700)"
    assert said[3] == "trials per hour, tunelab to the script by hand: 4.00 (2.00 to 8.00)"
    assert said[4:] == ["the script's best accuracy, 0.400: tunelab after 41 s, the script after 90 s"] * 3


def test_what_was_never_reached_is_said(script: ModuleType) -> None:
    runs = {"hand": [script.figures(10.0, 1, [(5.0, 0.4)])], "tunelab": [script.figures(10.0, 1, [(5.0, 0.3)])]}
    assert script.table(runs).endswith("the script's best accuracy, 0.400: tunelab never, the script after 5 s")


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
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
