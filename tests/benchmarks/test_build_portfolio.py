"""The choice of a portfolio, and the whole script on two real searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tunelab.config import DataConfig
from tunelab.errors import InputError
from tunelab.journal import encode
from tunelab.records import EpochMetrics
from tunelab.space import SearchSpace, load_space
from tunelab.study import Study
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import search

if TYPE_CHECKING:
    from tests.conftest import MakeStudy


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("build_portfolio")


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


def test_what_is_the_same_wherever_it_fits_is_one_candidate(script: ModuleType) -> None:
    wide, narrow = {"width": 64}, {"width": 8}
    families = [("baseline", ()), ("starter", (wide, narrow)), ("trial 1", (narrow,)), ("trial 2", (narrow,))]
    nowhere, everywhere, there, both = [None, None], [wide, narrow], [None, narrow], [narrow, narrow]
    found = script.distinct([*families, ("trial 3", (narrow,))], [nowhere, everywhere, there, both, both])
    assert [origin for origin, _ in found] == ["starter", "trial 2"]


def test_a_candidate_brings_what_its_space_tries_in_its_place(script: ModuleType) -> None:
    family = script.variants(load_space("arch"), {"stem_width": 12, "stem_pool": True, "norm": "batch"})
    assert [(one["stem_width"], one["stem_pool"]) for one in family] == [
        (12, True), (8, True), (12, False), (8, False),
    ]  # fmt: skip
    assert {one["norm"] for one in family} == {"batch"}


def test_a_space_may_begin_with_nothing(script: ModuleType) -> None:
    space = SearchSpace("empty", "empty.py", 1, "", load_space("arch").draw, (), ())
    assert script.collect(space, [], 8) == []
    (row, _) = script.held_out(np.array([[0.5, 1.0], [0.2, 0.3]]), ["trial 1 of x", "trial 2 of x"], ["a", "b"], 1)
    assert row["space's own"] is None


def test_every_length_of_a_study_is_its_own_data(script: ModuleType) -> None:
    origins = ["trial 1 of a, 9 epochs", "trial 1 of a b", "trial 2 of b"]
    (row, _) = script.held_out(np.array([[1.0, 0.4, 0.2], [0.1, 0.2, 0.3]]), origins, ["a", "b"], 2)
    assert row["portfolio"] == 0.4, "what is of a has no part in it"


BASELINES = [one for one in load_space("arch").baselines if one["stem_width"] in (8, 16, 32)]


@pytest.fixture
def begun(make_study: MakeStudy, tmp_path: Path) -> Study:
    """Trainings of two candidates, both again: stopped in the second of them, which was the best by then."""
    study = make_study(path=tmp_path / "work" / "few")
    lines = []
    for number, (status, scores) in enumerate([("COMPLETED", [0.1, 0.5]), ("RUNNING", [0.9])]):
        config = {"train": {"epochs": 2}}
        common = {"params": dict(BASELINES[number]), "stats": {}, "arch_id": "", "config": config}
        lines.append({"event": "proposed", "trial": number, **common})
        lines += results(number, scores, status)
    lines.append({**lines[0], "trial": 2, "repeat_of": 0})
    lines += results(2, [0.2, 0.7], "COMPLETED")
    (study.path / "journal.jsonl").write_bytes(b"".join(encode(line) for line in lines))
    return study


def results(number: int, scores: list[float], status: str) -> list[dict[str, Any]]:
    metrics = [EpochMetrics(n, 1.0, one, 1.0, one, 0.1, 1.0, 1.0, 1.0) for n, one in enumerate(scores, start=1)]
    lines: list[dict[str, Any]] = [{"event": "result", "trial": number, "metrics": one.to_json()} for one in metrics]
    return (
        lines if status == "RUNNING" else [*lines, {"event": "ended", "trial": number, "status": status, "reason": ""}]
    )


def ask(script: ModuleType, work: Path, families: list[Any], monkeypatch: pytest.MonkeyPatch, resumed: Any) -> Any:
    searched = SimpleNamespace(path=Path("few"))
    task = script.Task(searched, SearchOptions(epochs=2), None, lambda config: {})
    monkeypatch.setattr(script, "resume", resumed)
    return script.train(load_space("arch"), task, families, work, 2)


def test_unfinished_trainings_go_on(script: ModuleType, begun: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def resumed(path: Path) -> Study:
        assert path == begun.path
        with (path / "journal.jsonl").open("ab") as file:
            for line in results(1, [0.9, 0.8], "COMPLETED")[1:]:
                file.write(encode(line))
        return begun

    families = [(BASELINES[0],), (BASELINES[1],)]
    found = ask(script, begun.path.parent, families, monkeypatch, resumed)
    assert found == [pytest.approx(0.6), pytest.approx(0.8)]


def test_only_trainings_that_came_to_their_end_count(
    script: ModuleType, begun: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = [(BASELINES[0],), (BASELINES[1],)]
    found = ask(script, begun.path.parent, families, monkeypatch, lambda path: begun)
    assert found == [pytest.approx(0.6), None]
    with pytest.raises(InputError, match="was begun with other candidates; remove it"):
        ask(script, begun.path.parent, [*families, (BASELINES[2],)], monkeypatch, lambda path: begun)


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
def test_a_portfolio_of_real_searches(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, images in (("few", 60), ("more", 120)):
        search(
            "arch",
            trials=3,
            epochs=2,
            data=DataConfig(limit_train=images),
            study=tmp_path / name,
            max_mflops=2.0,
            concurrent=1,
            race=0.0,
            progress=False,
        )
    out = tmp_path / "portfolio.json"
    words = [str(tmp_path / "few"), str(tmp_path / "more"), "--size", "3", "--each", "2"]
    words += ["--work", str(tmp_path / "work"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["build_portfolio.py", *words])
    script.main()
    found = json.loads(out.read_text())
    assert len(found["configurations"]) == 3
    assert [one["images"] for one in found["searches"]] == [60, 120]
    for one in found["configurations"]:
        assert set(one["scores"]) == {"few", "more"}
        assert "stem_width" in one["params"]
    told = [row["data"] for row in found["best_value_on_held_out_data"]]
    assert told == ["few", "more"]
    monkeypatch.setattr("sys.argv", ["build_portfolio.py", str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit) as wrong:
        script.main()
    assert wrong.value.code == 2
    assert "error: " in capfd.readouterr().err
