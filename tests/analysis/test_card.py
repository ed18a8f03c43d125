"""The card says what the numbers say, and shows data as text."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tunelab.analysis.card import card, found_by, per_class, write_card
from tunelab.analysis.intervals import of_images
from tunelab.analysis.latency import measure_latency
from tunelab.analysis.retrain import changed

from tunelab.config import (
    ArchSpec,
    AveragingConfig,
    DataConfig,
    ScheduleConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    from_json,
    to_json,
)
from tunelab.errors import InputError
from tunelab.study import Study
from tunelab.training.model_files import find_model, open_model

if TYPE_CHECKING:
    from tests.conftest import MakeModel, MakeStudy

TEST = {
    "loss": 0.5,
    "accuracy": 0.75,
    "correct": 9,
    "n": 12,
    "class_correct": [5, 4, 0],
    "class_counts": [6, 6, 0],
    "confusion": [[5, 1, 0], [2, 4, 0], [0, 0, 0]],
}
LATENCY = [
    {"batch": 1, "median_ms": 0.4, "low_ms": 0.3, "high_ms": 0.9, "answers": 200, "device": "a CPU", "threads": 1},
    {"batch": 64, "median_ms": 9.0, "low_ms": 8.0, "high_ms": 11.5, "answers": 99, "device": "a GPU", "threads": None},
]
DESCRIPTION = {
    "trial_config": to_json(TrialConfig(ArchSpec(StemSpec(4), ((),)))),
    "classes": ["cat", "<b>dog</b>\n# |x|", "none"],
    "channels": 3,
    "image_size": [32, 24],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.24, 0.23],
    "data_fingerprint": "0123456789abcdef",
}
INFO = {
    "kind": "retrain",
    "data": {
        "name": "digits",
        "image_size": [32, 24],
        "channels": 3,
        "classes": ["cat", "dog", "none"],
        "counts": {"train": 100, "val": 0, "test": 12},
        "fingerprint": "0123456789abcdef",
    },
    "versions": {"python": "3.11.4", "torch": "2.13.0"},
    "hardware": {"processor": "an old CPU", "cpus": 1, "gpus": []},
    "slots": {"concurrent": 1, "device": "cpu", "cpus": 1, "precision": "bfloat16", "channels_last": True},
}
SEARCH = {
    "name": "my study",
    "space": {"name": "arch", "version": 3},
    "options": {"trials": 60, "epochs": 30, "seed": 4},
    "created": "2026-11-21T23:30:00+01:00",
    "trials": 60,
    "repeats": 5,
    "hours": 7.5,
    "best": 7,
    "hardware": {"processor": "an old CPU"},
}


def metrics(accuracies: list[float], **more: Any) -> dict[str, Any]:
    tests = [TEST] + [{**TEST, "accuracy": accuracy} for accuracy in accuracies[1:]]
    return {
        "study": "/runs/my study",
        "trial": 7,
        "arch_id": "1a2b3c4d",
        "epochs": 150,
        "trained_on": "train+val",
        "search_val_accuracy": 0.8,
        "search_runs": 3,
        "search_epochs": 30,
        "test_accuracy": sum(accuracies) / len(accuracies),
        "test_images": 12,
        "test_reads_before": 0,
        "params": 123_456,
        "mflops": 12.345,
        "seeds": [{"seed": 11 + place, "test": test} for place, test in enumerate(tests)],
        **more,
    }


def rows_of(text: str, title: str) -> list[list[str]]:
    """The rows of the table below a heading, its head left out."""
    part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines[2:]]


def test_precision_and_recall_of_each_class() -> None:
    rows = per_class(TEST)
    assert [(row["precision"], row["recall"], row["images"]) for row in rows] == [
        (5 / 7, 5 / 6, 6),
        (4 / 5, 4 / 6, 6),
        (None, None, 0),
    ]
    known = of_images(5, 6)
    assert rows[0]["interval"] == (known["low"], known["high"])
    old = {name: value for name, value in TEST.items() if name != "confusion"}
    assert [(row["precision"], row["recall"]) for row in per_class(old)] == [(None, 5 / 6), (None, 4 / 6), (None, None)]


def test_a_card_of_several_trainings_has_all_of_it() -> None:
    text = card(metrics([0.75, 0.7, 0.8]), DESCRIPTION, INFO, SEARCH, LATENCY)
    assert text.startswith("# Model 1a2b3c4d, trained on digits\n")
    known = of_images(9, 12)
    low, high = known["low"], known["high"]
    scores = rows_of(text, "How good it is")
    assert scores[0][:3] == ["test accuracy of this model", "75.0%", f"{100 * low:.1f} to {100 * high:.1f}%"]
    assert scores[2][:3] == ["test accuracy, mean of trainings", "75.0%", "62.6 to 87.4%"]
    assert "3 trainings with other seeds" in scores[2][3]
    assert scores[3][:2] == ["validation accuracy, by which it was chosen", "80.0%"]
    classes = rows_of(text, "Class by class")
    assert [row[1:3] + row[4:] for row in classes] == [
        ["71.4%", "83.3%", "6"],
        ["80.0%", "66.7%", "6"],
        ["-", "-", "0"],
    ]
    for said in (
        "`0123456789abcdef`",
        "100 training images, 12 test images",
        "32 x 24 pixels",
        "RGB",
        "(0.5000, 0.4000, 0.3000)",
        "123.5k parameters, 12.35 million multiply-adds",
        "1 image: 0.40 ms (median; 10% to 90%: 0.30 to 0.90, n = 200), float32 on a CPU, 1 thread\n",
        "64 images at once: 9.00 ms (median; 10% to 90%: 8.00 to 11.50, n = 99), float32 on a GPU\n",
        "Space arch, version 3; trials 60, epochs 30, seed 4",
        "60 trials and 5 repeats, 7.50 hours",
        "Trial 7: the best of the ranking; then trained for 150 epochs on train+val",
        "tunelab best 'my study' --retrain --trial 7 --epochs 150 --seeds 3\n",
        "tunelab reproduce 'my study' 7 ",
        "Seeds 11, 12, 13; this model is of the first",
        "python 3.11.4, torch 2.13.0",
        "device cpu, cpus 1, precision bfloat16, channels_last True",
        "by no training of this study before",
        "no other camera",
        "one of its 3 classes",
    ):
        assert said in text, said


def test_names_of_classes_are_shown_as_they_are() -> None:
    text = card(metrics([0.75]), DESCRIPTION, INFO, SEARCH, LATENCY)
    name = r"\<b\>dog\</b\> \# \|x\|"
    assert rows_of(text, "Class by class")[1][0] == name
    assert f"- 3 classes: cat, {name}, none\n" in text
    assert "<b>" not in text


def test_a_card_says_where_pixels_are_as_they_were() -> None:
    config = to_json(TrialConfig(ArchSpec(StemSpec(4), ((),)), data=DataConfig(normalise=False)))
    text = card(metrics([0.75]), {**DESCRIPTION, "trial_config": config}, INFO, SEARCH, LATENCY)
    assert "(bicubic with antialias); pixels as they are, 0 to 255\n" in text
    assert "minus the mean" not in text
    assert "minus the mean (0.5000, 0.4000, 0.3000)" in card(metrics([0.75]), DESCRIPTION, INFO, SEARCH, LATENCY)


def test_a_card_says_what_it_cannot_know() -> None:
    text = card(metrics([0.75], test_reads_before=2, mflops=None), DESCRIPTION, {}, None, [])
    assert "The test images of this study had been read before, by 2 trainings: a choice" in text
    past = [{"time": "2026-11-22T07:30:00+00:00", "folder": "retrain-x", "trial": 4, "trainings": 2}]
    told = card(metrics([0.75], test_reads_before=2, test_readings_before=past), DESCRIPTION, {}, None, [])
    assert "had been read once before: 2026-11-22 07:30 (trial 4, 2 trainings): a choice" in told
    assert "by no training" not in text
    assert "mean of trainings" not in text
    assert "unknown multiply-adds" in text
    assert "By trial 7 of a study that is not here any more." in text
    text = card(metrics([0.75], trained_on="train"), DESCRIPTION, INFO, {**SEARCH, "best": 3}, LATENCY)
    assert "Trial 7: named by hand, not the best one" in text
    assert "--seeds 1 --keep-val\n" in text


def test_a_changed_recipe_is_part_of_how_to_train_it_again(tmp_path: Path) -> None:
    schedule = ScheduleConfig("plateau", by_norm=True)
    own = to_json(TrainConfig(averaging=AveragingConfig("ema"), weight_decay=1e-5, schedule=schedule, patience=0.5))
    changes = {
        "schedule": {"by_norm": False},
        "patience": None,
        "stages": [{"begin": 0.5, "optimizer": "adam", "lr": 2e-05}],
        "augment": {"flip": True},
        "lr": 0.03,
    }
    for made in (changed(from_json(TrainConfig, own), changes, "none"), from_json(TrainConfig, own)):
        recipe = to_json(dataclasses.replace(made, epochs=150))
        text = card(metrics([0.75], recipe=recipe), DESCRIPTION, INFO, {**SEARCH, "recipe": own}, LATENCY)
        assert ("--seeds 1 --recipe recipe.yaml\n" in text) == (made.averaging is None)
        if made.averaging is None:
            line = next(line for line in text.splitlines() if line.startswith("printf"))
            subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, check=True)
            read = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
            assert changed(from_json(TrainConfig, own), read) == made


def test_an_ensemble_has_a_row() -> None:
    ensemble = {"accuracy": 10 / 12, "correct": 10, "n": 12}
    rows = rows_of(card(metrics([0.75, 0.7], ensemble=ensemble), DESCRIPTION, INFO, SEARCH, LATENCY), "How good it is")
    assert ["test accuracy of the ensemble", "83.3%"] in [row[:2] for row in rows]


def test_many_classes_are_not_all_named_twice() -> None:
    names = [f"class {number}" for number in range(60)]
    test = {**TEST, "class_correct": [1] * 60, "class_counts": [2] * 60, "confusion": None}
    text = card(
        metrics([0.75], seeds=[{"seed": 1, "test": test}]), {**DESCRIPTION, "classes": names}, INFO, SEARCH, LATENCY
    )
    assert "class 49 and 10 more, in `config.json`" in text
    assert len(rows_of(text, "Class by class")) == 60


def test_the_card_of_a_folder(make_study: MakeStudy, make_model: MakeModel, runs_dir: Path) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("STOPPED", [0.1])])
    runs = Study.create(study.path / "retrain-x", INFO)
    built = make_model(folder=study.path / "made")
    for file in built.iterdir():
        file.rename(runs.path / file.name)
    with pytest.raises(InputError, match=r"metrics\.json cannot be read"):
        write_card(runs.path)
    content = metrics([0.75], study="/was/elsewhere", trial=0)
    (runs.path / "metrics.json").write_text(json.dumps(content))
    found = found_by(runs, content)
    assert found is not None
    assert (found["name"], found["trials"], found["best"]) == ("study", 2, 0)
    assert found["recipe"] == study.trial(0).config["train"]
    assert found["hours"] == pytest.approx(5 * 0.25 / 3600)
    assert write_card(runs.path, "cpu") == runs.path / "card.md"
    text = (runs.path / "card.md").read_text()
    assert "Space plain, version 1; trials 2, epochs 4" in text
    assert "Trial 0: the best of the ranking" in text
    assert len(re.findall(r"ms \(median", text)) == 2
    (study.path / "study.json").unlink()
    assert found_by(runs, content) is None


def test_latency_is_measured_for_each_batch_size(make_model: MakeModel) -> None:
    rows = measure_latency(open_model(find_model(make_model())), (1, 3))
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["answers"] >= 5
        assert row["device"]
        assert row["threads"] >= 1
