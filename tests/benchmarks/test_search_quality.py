"""The benchmark runs on any folder of recorded curves, with conditional and categorical parameters too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "search_quality.py"
ROWS, EPOCHS = 80, 12
SPACE: list[dict[str, Any]] = [
    {"name": "rate", "kind": "float", "lo": 0.001, "hi": 1.0, "log": True},
    {"name": "optimizer", "kind": "cat", "choices": ["sgd", "adam", "none"]},
    {"name": "momentum", "kind": "float", "lo": 0.0, "hi": 1.0},
    {"name": "batch", "kind": "ord", "choices": [16, 32, 64]},
]


def write_curves(folder: Path, name: str, seed: int, *, told: bool) -> None:
    """A table in which momentum is asked for with sgd alone: as the space says (`told`), or as NaN in `X` shows."""
    random = np.random.default_rng(seed)
    x = random.random((ROWS, len(SPACE)))
    x[:, 1] = random.integers(3, size=ROWS) / 2
    x[:, 3] = random.integers(3, size=ROWS) / 2
    x[x[:, 1] > 0, 2] = np.nan
    final = 0.9 - np.abs(x[:, 0] - 0.7) - 0.1 * x[:, 1]
    val = final[:, None] * (1 - 0.6 ** np.arange(1, EPOCHS + 1)[None, :])
    length = np.full(ROWS, EPOCHS)
    length[:5], val[:5, 3:] = 3, np.nan
    arrays = {"X": x, "val": val, "sec": np.full((ROWS, EPOCHS), 1.0) * (1 + x[:, 3:4]), "len": length}
    np.savez(folder / f"{name}.npz", **arrays, ok=(np.arange(ROWS) != 7).astype(np.uint8))
    space = [{**one, "when": {"optimizer": ["sgd"]}} if told and one["name"] == "momentum" else one for one in SPACE]
    (folder / f"{name}.json").write_text(json.dumps({"space": space, "max_epochs": EPOCHS, "chance": 0.1}))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--curves", str(folder), "--jobs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fresh",)])
def test_all_methods_run_on_conditional_and_categorical_spaces(tmp_path: Path, more: tuple[str, ...]) -> None:
    write_curves(tmp_path, "told", 0, told=True)
    write_curves(tmp_path, "shown", 1, told=False)
    write_curves(tmp_path, "shown_too", 2, told=False)
    file = tmp_path / "out.json"
    done = run(tmp_path, "--seeds", "1", "--budgets", "1", "2", "--json", str(file), *more)
    assert done.returncode == 0, done.stderr
    runs = json.loads(file.read_text())["runs"]
    assert {one["curves"] for one in runs} == {"told", "shown", "shown_too"}
    for one in runs:
        assert len(one["seen"]) == 2
        assert 0.0 <= one["seen"][1] <= one["seen"][0]
    assert "tunelab, with transfer" in done.stdout


def test_a_folder_without_curves_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "there are no curves in" in done.stderr


@pytest.mark.parametrize("method", ["Optuna TPE + Hyperband", "Ray OptunaSearch + ASHA (R/27, 3)"])
def test_hastened_samplers_propose_the_same(
    tmp_path: Path, load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    script = load_script("search_quality")
    for owner, name in (
        (script.tpe.TPESampler, "_get_internal_repr"),
        (script.tpe, "_get_infeasible_trial_score"),
        (script._truncnorm, "_log_ndtr"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # as it is now afterwards
    write_curves(tmp_path, "told", 0, told=True)
    asked: list[list[dict[str, Any]]] = []
    for hastened in (False, True):
        if hastened:
            script.hasten_optuna()
        curves = script.Curves(tmp_path, "told")
        chosen = script.METHODS[method](curves, 0)
        proposals: list[dict[str, Any]] = []
        for _ in range(40):
            key, params, _ = chosen.ask()
            proposals.append(dict(params))
            row = curves.nearest(params)
            for epoch in range(1, curves.length[row] + 1):
                if not chosen.tell(key, epoch, float(curves.val[row, epoch - 1]), epoch == curves.length[row]):
                    break
        asked.append(proposals)
    for plain, fast in zip(*asked, strict=True):
        expected = {  # to the last bit they are not: sums are taken in another order
            name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value for name, value in plain.items()
        }
        assert fast == expected
    assert len({str(proposal) for proposal in asked[0]}) > 20
