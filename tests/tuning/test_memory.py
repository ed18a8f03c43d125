from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.journal import encode
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import load_space
from tunelab.study import Study
from tunelab.tuning import memory
from tunelab.tuning.model_sampler import Earlier
from tunelab.tuning.options import SearchOptions


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
    with pytest.raises(InputError, match=r"earlier\.jsonl is damaged .*empty it to go on"):
        memory.read(tmp_path)


def test_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"earlier\.jsonl is missing, .* of /old; put it back, or an empty file"):
        memory.read(tmp_path, ["/old"])
    (tmp_path / memory.FILE).touch()
    assert memory.read(tmp_path, ["/old"]) == []


def write_study(path: Path, params: list[dict[str, float]], lengths: Sequence[int] = ()) -> Study:
    data = {"name": "x", "image_size": [8, 8], "channels": 1, "classes": [], "counts": {}, "fingerprint": ""}
    hardware = {"processor": "x", "cpus": 1, "gpus": []}
    info = {"space": {"name": "x", "source": "x", "version": 1}, "data": data, "hardware": hardware}
    options = {"trials": len(params), "epochs": max(lengths, default=1)}
    study = Study.create(path, {"kind": "search", "options": options, **info})
    lines = []
    for number, one in enumerate(params):
        made = trial(number, 0.0, 0.5)
        made.config["train"]["epochs"] = lengths[number] if lengths else 1
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


def test_each_length_of_a_study_that_was_extended_is_a_study_of_its_own(tmp_path: Path) -> None:
    """A score of 3 epochs says little of one of 9."""
    study = write_study(tmp_path / "old", [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}], [3, 9, 3])
    found = memory.collect([study], redraw)
    assert [(one.epochs, list(one.trials)) for one in found] == [(9, [1]), (3, [0, 2])]
    assert [one.name for one in found] == [str(study.path), f"{study.path}, 3 epochs"]
    memory.write(tmp_path, found)
    assert [(one.name, one.epochs, list(one.trials)) for one in memory.read(tmp_path)] == [
        (one.name, one.epochs, list(one.trials)) for one in found
    ]
    assert "trial 0 of old, 3 epochs" in [origin for origin, _ in memory.tried_first(found, redraw)]


def test_a_parameter_with_other_choices_is_named() -> None:
    def changing(params: Mapping[str, Any]) -> Mapping[str, BaseDistribution]:
        return {"x": CategoricalDistribution((0.1, 0.2, 0.3) if params["x"] < 0.3 else (0.2, 0.3))}

    with pytest.raises(InputError, match=r"'x' the choices \(0.1, 0.2, 0.3\) .* the choices \(0.2, 0.3\) in another"):
        memory.tried_first([study_of(trial(0, 0.1, 0.9), trial(1, 0.3, 0.8))], changing)


# What is meant by the names of studies.


def test_one_name_is_one_study_here_or_in_the_folder_of_studies(
    tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (runs_dir, tmp_path / "others", tmp_path / "here"):
        folder.mkdir()
    inside, other = write_study(runs_dir / "old", [{"x": 0.1}]).path, write_study(tmp_path / "others/b", []).path
    here = write_study(tmp_path / "here" / "a", []).path
    monkeypatch.chdir(tmp_path / "here")
    assert memory.find_studies("old") == [str(inside)]
    assert memory.find_studies(Path("b"), tmp_path / "others") == [str(other)]
    assert memory.find_studies(["a", inside, "old", "./a", f"{here}/"]) == [str(here), str(inside)]
    assert memory.find_studies(()) == []
    for nothing in ("nothing", ["old", "nothing"], "b"):
        with pytest.raises(InputError, match=r"there is no study (nothing|b) to start from, neither here nor in "):
            memory.find_studies(nothing)


def test_a_study_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    plain = load_space("arch")
    baseline = next(one for one in plain.baselines if one["stem_width"] == 8)
    study = write_study(tmp_path / "old", [dict(baseline)])
    (tmp_path / "link").symlink_to(study.path)
    given = (str(study.path), f"{tmp_path}/./old", str(tmp_path / "link"))
    config = DataConfig(limit_train=100)
    options = SearchOptions(warm_start=given, data=config, max_params=10**6, max_mflops=40.0)
    earlier, first = memory.recall(plain, options, prepare(config))
    assert [one.name for one in earlier] == [str(study.path)]
    assert [one["origin"] for one in first] == ["trial 0 of old"]
