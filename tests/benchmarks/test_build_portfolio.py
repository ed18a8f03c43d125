"""The choice of a portfolio, and the whole script on two real searches."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tunelab.config import DataConfig
from tunelab.tuning.runner import search

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "build_portfolio.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_portfolio", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_choice_adds_most_to_what_is_covered(script: ModuleType) -> None:
    values = np.array([[1.0, 0.9, 0.0, 0.2], [0.0, 0.8, 1.0, 0.9]])
    assert script.choose(values, 1) == [1], "the best all-round one"
    assert script.choose(values, 3) == [1, 2, 0], "then what is better somewhere"
    assert script.choose(values, 9) == [1, 2, 0, 3], "what adds nothing comes last"


def test_values_are_relative_to_the_median_and_the_best(script: ModuleType) -> None:
    found = script.normalise([[0.5, 0.7, 0.9, None], [0.1, 0.1, 0.1, 0.1]])
    assert found[0].tolist() == pytest.approx([-1.0, 0.0, 1.0, -1.0])
    assert found[1].tolist() == [0.0] * 4


def test_data_that_is_held_out_has_no_part_in_the_choice(script: ModuleType) -> None:
    origins = ["baseline", "trial 1 of a", "trial 1 of b", "trial 2 of b"]
    values = np.array([[0.0, 1.0, 0.4, -0.5], [0.2, 0.3, 1.0, 0.9]])
    first, second = script.held_out(values, origins, ["a", "b"], 1)
    assert first["portfolio"] == 0.4, "the best of b, among those that are not a's"
    assert second["portfolio"] == 0.3
    assert (first["space's own"], second["space's own"]) == (0.0, 0.2)


@pytest.mark.slow
def test_a_portfolio_of_real_searches(tmp_path: Path) -> None:
    for name, images in (("few", 60), ("more", 120)):
        search(
            "arch",
            trials=3,
            epochs=2,
            data=DataConfig(limit_train=images),
            study=tmp_path / name,
            max_mflops=2.0,
            concurrent=1,
            progress=False,
        )
    out = tmp_path / "portfolio.json"
    words = [str(tmp_path / "few"), str(tmp_path / "more"), "--size", "3", "--each", "2"]
    words += ["--work", str(tmp_path / "work"), "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["configurations"]) == 3
    assert [one["images"] for one in found["searches"]] == [60, 120]
    for one in found["configurations"]:
        assert set(one["scores"]) == {"few", "more"}
        assert "stem_width" in one["params"]
    told = [row["data"] for row in found["best_value_on_held_out_data"]]
    assert told == ["few", "more"]
    wrong = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--out", str(out)], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
