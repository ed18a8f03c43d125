from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.config import LeNetSpec, ScheduleConfig, TrainConfig, TrialConfig, to_json
from tunelab.study import Study
from tunelab.summary import config_hash, lr_strategy, write_summary

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

COLUMNS = [
    "name", "lr_strategy", "lr", "epochs_trained", "best_val_accuracy", "test_accuracy", "seconds_per_epoch",
    "peak_memory_mib", "status",
]  # fmt: skip


def rows_of(study: Study) -> list[dict[str, str]]:
    write_summary(study)
    with (study.path / "runs_summary.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tell_test(study: Study, folder: str, content: Any, when: int) -> None:
    """A retraining in the study that has read the test images, `when` seconds after the beginning of time."""
    (study.path / folder).mkdir()
    file = study.path / folder / "metrics.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(file, (when, when))


def test_a_row_for_each_trial(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5, 0.9, 0.8]), ("DIVERGED", []), ("RUNNING", [0.1])])
    first, diverged, paused = rows_of(study)
    assert list(first) == COLUMNS
    assert list(first.values()) == ["study/0000", "cosine", "0.1", "3", "0.9", "", "0.25", "300.0", "COMPLETED"]
    assert list(diverged.values()) == ["study/0001", "cosine", "0.1", "0", "", "", "", "", "DIVERGED"]
    assert (paused["best_val_accuracy"], paused["status"]) == ("0.1", "PAUSED")


def test_the_test_accuracy_is_that_of_the_newest_retraining(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5]), ("COMPLETED", [0.6]), ("COMPLETED", [0.7])])
    tell_test(study, "retrain-b", {"trial": 1, "test_accuracy": 0.75}, 2000)
    tell_test(study, "retrain-a", {"trial": 1, "test_accuracy": 0.85}, 3000)
    tell_test(study, "retrain-c", {"trial": 1, "test_accuracy": 0.65}, 1000)
    tell_test(study, "retrain-d", {"trial": 2, "test_accuracy": 0.5}, 1000)
    tell_test(study, "retrain-e", "{", 4000)
    tell_test(study, "retrain-f", "[]", 4000)
    assert [row["test_accuracy"] for row in rows_of(study)] == ["", "0.85", "0.5"]


@pytest.mark.parametrize("name", ["=cmd", "+1", "-1", "@SUM(A1)"])
def test_a_name_is_no_formula(make_study: MakeStudy, tmp_path: Path, name: str) -> None:
    (row,) = rows_of(make_study([("COMPLETED", [0.5])], path=tmp_path / name))
    assert row["name"] == f"'{name}/0000"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (TrainConfig(schedule=ScheduleConfig("constant")), "fixed"),
        (TrainConfig(schedule=ScheduleConfig("step")), "step"),
        (TrainConfig(schedule=ScheduleConfig("warm_restarts")), "warm restarts"),
        (TrainConfig(schedule=ScheduleConfig("plateau"), patience=0.25), "reduce on plateau, early stopping"),
    ],
)
def test_strategies_in_words(recipe: TrainConfig, words: str) -> None:
    assert lr_strategy(to_json(recipe)) == words


def test_templates_of_a_search_are_written_once(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5]), ("STOPPED", [0.6])])
    write_summary(study)
    file = study.trial_folder(1) / "experiment_template.json"
    content = json.loads(file.read_text())
    assert content["params"] == study.trial(1).params
    assert content["config_hash"] == config_hash(content["config"])
    file.write_text("edited")
    write_summary(study)
    assert file.read_text() == "edited"


def test_a_list_of_trainings_has_a_summary_and_no_templates(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5])], info={"kind": "retrain"})
    assert len(rows_of(study)) == 1
    assert not study.trial_folder(0).exists()


def test_a_hash_is_the_same_of_values_and_of_their_texts() -> None:
    plain = to_json(TrialConfig(LeNetSpec(), TrainConfig(lr=1e-7, nesterov=False)))
    texts = json.loads(json.dumps(plain), parse_float=str, parse_int=str)
    texts["train"]["nesterov"], texts["data"]["data_dir"] = "false", "null"
    assert config_hash(texts) != config_hash({**plain, "seed": 1})
    for name in ("download", "skip_unreadable"):
        texts["data"][name] = "false"
    for name in ("limit_train", "image_size"):
        texts["data"][name] = "null"
    texts["train"]["augment"]["flip"] = "false"
    assert config_hash(texts) == config_hash(plain)
