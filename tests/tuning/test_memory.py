from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, FloatDistribution

from tunelab.errors import InputError
from tunelab.journal import encode
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import Study
from tunelab.tuning import memory
from tunelab.tuning.model_sampler import Earlier


def redraw(params: Mapping[str, Any]) -> Mapping[str, BaseDistribution]:
    if "x" not in params:
        raise InputError("the space has no such parameter")
    return dict.fromkeys(params, FloatDistribution(0.0, 1.0))


def trial(number: int, x: float, score: float, status: TrialStatus = TrialStatus.COMPLETED) -> Trial:
    epochs = [EpochMetrics(1, 1.0, 0.0, 1.0, score, 0.1, 1.0, 1.0, 1.0)]
    return Trial(number, {"train": {"epochs": 1}}, {"x": x}, status, epochs=epochs, stats={"params": 5})


def study_of(*trials: Trial, name: str = "old") -> Earlier:
    return Earlier(name, {one.number: one for one in trials}, 1)


def test_the_best_comes_first_and_then_what_is_different() -> None:
    crowd = [trial(number, 0.5 + number / 1000, 0.9 - number / 1000) for number in range(10)]
    other = [trial(20, 0.05, 0.85), trial(21, 0.95, 0.84), trial(22, 0.3, 0.1)]
    found = memory.tried_first([study_of(*crowd, *other)], redraw)
    assert len(found) == memory.TRIED_FIRST
    assert found[0] == ("trial 0 of old", {"x": 0.5})
    assert {params["x"] for _, params in found[1:3]} == {0.05, 0.95}


def test_studies_take_turns() -> None:
    one = study_of(*[trial(number, number / 10, 0.9 - number / 100) for number in range(9)], name="one")
    two = study_of(*[trial(number, number / 10, 0.9 - number / 100) for number in range(9)], name="/a/b/two")
    origins = [origin for origin, _ in memory.tried_first([one, two], redraw)]
    assert [origin.split()[-1] for origin in origins] == ["one", "two"] * 4
    assert origins[0] == "trial 0 of one"


def test_what_diverged_is_not_tried_again() -> None:
    found = memory.tried_first([study_of(trial(0, 0.2, 0.9, TrialStatus.DIVERGED), trial(1, 0.4, 0.5))], redraw)
    assert [params for _, params in found] == [{"x": 0.4}]
    assert memory.tried_first([study_of(trial(0, 0.2, 0.9, TrialStatus.DIVERGED))], redraw) == []
    assert memory.tried_first([], redraw) == []


def test_what_is_known_is_written_and_read_back(tmp_path: Path) -> None:
    studies = [study_of(trial(0, 0.1, 0.5), trial(3, 0.2, 0.6), name="/one"), study_of(trial(0, 0.9, 0.4), name="/two")]
    memory.write(tmp_path, studies)
    assert memory.read(tmp_path) == studies


def test_without_earlier_studies_no_file_is_written(tmp_path: Path) -> None:
    memory.write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    assert memory.read(tmp_path) == []


@pytest.mark.parametrize("text", ["{", '{"study": "one"}\n', "[]\n"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / memory.FILE).write_text(text)
    with pytest.raises(InputError, match=r"earlier\.jsonl is damaged .*remove it to go on"):
        memory.read(tmp_path)


def write_study(path: Path, params: list[dict[str, float]]) -> Study:
    study = Study.create(path, {"kind": "search", "options": {"epochs": 1}})
    lines = []
    for number, one in enumerate(params):
        made = trial(number, 0.0, 0.5)
        common = {"arch_id": "", "stats": {}, "config": made.config}
        lines.append({"event": "proposed", "trial": number, "params": one, **common})
        lines.append({"event": "result", "trial": number, "metrics": made.epochs[0].to_json()})
    (path / "journal.jsonl").write_bytes(b"".join(encode(line) for line in lines))
    return study


def test_trials_that_the_space_cannot_draw_are_left_out(tmp_path: Path) -> None:
    study = write_study(tmp_path / "old", [{"x": 0.1}, {"y": 0.2}, {"x": 0.3}])
    (found,) = memory.collect([study], redraw)
    assert list(found.trials) == [0, 2]
    assert found.epochs == 1
    assert found.name == str(tmp_path / "old")


def test_a_study_of_another_space_is_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "old", [{"y": 0.2}])
    with pytest.raises(InputError, match=r"old: the study has no trial that the space can draw"):
        memory.collect([study], redraw)


def test_the_file_is_json_lines(tmp_path: Path) -> None:
    memory.write(tmp_path, [study_of(trial(0, 0.1, 0.5), trial(1, 0.2, 0.6))])
    lines = (tmp_path / memory.FILE).read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]
