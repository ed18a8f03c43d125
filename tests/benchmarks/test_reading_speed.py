"""What is measured of `tunelab best` on a made-up study, and what is made of the figures."""

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
    return load_script("reading_speed")


def test_the_made_up_study_is_one(script: ModuleType, tmp_path: Path) -> None:
    study = script.make_study(tmp_path / "study", 200, 3)
    trials = study.list_trials()
    assert [trial.number for trial in trials] == list(range(200))
    assert [(trial.number, trial.repeat_of) for trial in trials if trial.repeat_of is not None] == [
        (99, 98),
        (199, 198),
    ]
    assert all(len(trial.epochs) == 3 for trial in trials)
    assert study.config(trials[99]).arch == study.config(trials[98]).arch
    assert len(study.ranked()) == 198


def test_the_table_has_median_and_range(script: ModuleType) -> None:
    lines = script.table({"best": [(1.0, 0.5, 300.0), (3.0, 0.7, 310.0), (1.5, 0.6, 305.0)]}).splitlines()
    assert " ".join(lines[1].split()) == "best 1.50 (1.00 to 3.00) 0.60 (0.50 to 0.70) 305 (300 to 310)"


def test_commands_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "figures.json"
    words = ["--trials", "12", "--epochs", "2", "--rounds", "1", "--json", str(result)]
    done = subprocess.run([sys.executable, str(FOLDER / "reading_speed.py"), *words], capture_output=True, text=True)
    assert done.stdout.startswith("12 trials of 2 epochs"), done.stderr
    figures = json.loads(result.read_text())
    assert set(figures) == {"best", "best --json"}
    for ((seconds, processor, memory),) in figures.values():
        assert 0 < processor < seconds + 1
        assert 20 < memory < 500
