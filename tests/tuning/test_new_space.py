"""What `tunelab new-space` writes is searched as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.cli import run
from tunelab.config import ArchSpec, CustomSpec
from tunelab.study import load

if TYPE_CHECKING:
    from tests.tuning.conftest import Played


@pytest.mark.parametrize(("words", "family"), [([], ArchSpec), (["--from-model"], CustomSpec)])
def test_the_file_that_is_written_is_searched_as_it_says(
    words: list[str],
    family: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    played: Played,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new-space", "mine", *words]) == 0
    said = capfd.readouterr().out
    assert said.startswith("mine.py is written; `tunelab search mine.py --trials 4 --epochs 2` tries it")
    command = said.partition("`tunelab ")[2].partition("`")[0].split()
    assert run([*command, "--limit-train", "100", "--study", "first", "--race", "0"]) == 0, capfd.readouterr().err
    trials = load("first").list_trials()
    assert trials[0].origin == "baseline"
    assert len(trials) == 4
    assert all(isinstance(load("first").config(trial).arch, family) for trial in trials)
    assert run(["search", "./mine.py", "--grid", "rates", "--epochs", "2", "--limit-train", "100", "--study", "g"]) == 0
    assert sorted(trial.params["lr"] for trial in load("g").list_trials() if trial.origin == "grid") == [
        0.02,
        0.05,
        0.2,
    ]
    capfd.readouterr()
    assert run(["describe", "./mine.py"]) == 0
    assert "grid rates: 3 configurations" in capfd.readouterr().out


def test_nothing_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("precious")
    assert run(["new-space", "mine"]) == 2
    assert "mine.py is there already" in capfd.readouterr().err
    (tmp_path / "own_model.py").write_text("precious")
    assert run(["new-space", "own.py", "--from-model"]) == 2
    assert "own_model.py is there already" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "own_model.py"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-space", "'my-space.py' cannot be a space's file; a name has letters, digits and _"),
        ("7", "'7.py' cannot be a space's file"),
        ("nowhere/mine", "nowhere/mine.py cannot be written: No such file or directory"),
        ("", "cannot be a space's file"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new-space", name]) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
