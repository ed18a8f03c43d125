"""Retraining on real Ray, from a search to a model that is used."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tunelab.analysis.advice import next_step
from tunelab.analysis.rank import summary
from tunelab.analysis.readings import count_trainings, earlier
from tunelab.analysis.retrain import changed, retrain
from tunelab.analysis.text import print_best

import tunelab
from tunelab.config import (
    ArchSpec,
    AveragingConfig,
    BlockSpec,
    ComputeConfig,
    DataConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    from_json,
)
from tunelab.data.batches import load_split
from tunelab.data.cache import prepare
from tunelab.errors import DivergedError, InputError, TunelabError
from tunelab.models.network import build_network
from tunelab.records import EpochMetrics, TrialStatus
from tunelab.study import Study
from tunelab.training.checkpoint import load
from tunelab.training.evaluate import class_scores, evaluate
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.tuning import ray_tune
from tunelab.tuning.engine import Engine
from tunelab.tuning.runner import PausedError
from tunelab.tuning.slots import Slots

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"lr": 0.1},)


def draw(suggest):
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=16, lr=suggest.suggest_float("lr", 0.01, 0.5, log=True)))
"""


def write_images(path: Path, seed: int) -> None:
    """Two classes that differ in brightness."""
    random = np.random.default_rng(seed)
    labels = np.arange(240) % 2
    images = random.integers(0, 128, (240, 8, 8)) + 100 * labels[:, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, no_calibration_at_all: None) -> Study:
    """A finished search on images in an npz file beside it."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "small.py").write_text(SPACE)
    write_images(folder / "data.npz", seed=1)
    return tunelab.search(
        str(folder / "small.py"),
        trials=2,
        epochs=2,
        data=f"npz:{folder}/data.npz",
        study=folder / "study",
        progress=False,
    )


@pytest.fixture(scope="module")
def retrained(searched: Study) -> dict[str, Any]:
    return retrain(searched, epochs=3, seeds=2, progress=False)


@pytest.mark.slow
def test_the_model_on_the_disk_is_the_one_that_was_measured(retrained: dict[str, Any]) -> None:
    folder = Path(retrained["folder"])
    content = json.loads((folder / "config.json").read_text())
    config = from_json(TrialConfig, content["trial_config"])
    assert (config.train.epochs, config.data.train_on) == (3, "train+val")
    model = build_network(config.arch, content["channels"], len(content["classes"]), content["image_size"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    info = prepare(config.data)
    assert (content["mean"], content["data_fingerprint"]) == (list(info.mean), info.fingerprint)
    test = load_split(config.data, "test", torch.device("cpu"))
    again = evaluate(model.eval(), test, info, device="cpu", precision=config.train.precision)
    first = retrained["seeds"][0]["test"]
    assert again.correct == first["correct"]
    assert first["n"] == retrained["test_images"] == info.counts["test"]


@pytest.mark.slow
def test_the_metrics_and_the_curve_are_of_all_seeds(retrained: dict[str, Any], searched: Study) -> None:
    accuracies = [seed["test"]["accuracy"] for seed in retrained["seeds"]]
    assert retrained["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert retrained["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert min(accuracies) > 0.8
    assert len({seed["seed"] for seed in retrained["seeds"]}) == 2
    assert retrained["search_val_accuracy"] == searched.best().score
    assert retrained["test_reads_before"] == 0
    folder = Path(retrained["folder"])
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "learning_curve.csv").read_text().splitlines()) == 1 + 2 * 3
    assert json.loads((folder / "metrics.json").read_text()) == retrained


@pytest.mark.slow
def test_a_finished_retraining_is_neither_trained_nor_tested_again(
    retrained: dict[str, Any], searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object, **_more: object) -> None:
        raise AssertionError("this must not be called")

    monkeypatch.setattr("tunelab.tuning.ray_tune.run", never)
    monkeypatch.setattr("tunelab.analysis.retrain.load_split", never)
    assert retrain(searched, epochs=3, seeds=2, progress=False) == retrained
    assert retrain(searched, epochs=3, seeds=1, progress=False) == retrained


@pytest.mark.slow
def test_another_retraining_says_that_the_test_images_were_read_before(
    retrained: dict[str, Any], searched: Study
) -> None:
    kept = retrain(searched, epochs=1, keep_val=True, trial=1, progress=False)
    assert kept["test_reads_before"] == 2
    assert kept["trained_on"] == "train"
    assert kept["seeds"][0]["last_epoch"]["val_accuracy"] is not None
    assert kept["folder"] != retrained["folder"]


KILLED = """
import json, sys
import tunelab

tunelab.retrain(sys.argv[1], epochs=30, seeds=2, average="ema", changes=json.loads(sys.argv[2]), progress=False)
"""


@pytest.mark.slow
def test_kill_9_costs_nothing_but_time(searched: Study, tmp_path: Path) -> None:
    """Of the command in the middle of two seeds: every number is that of a training that was not interrupted."""
    copied = tmp_path / "study"
    shutil.copytree(searched.path, copied, ignore=shutil.ignore_patterns("retrain-*", "test_reads.jsonl"))
    changes = {"stages": [{"begin": 0.4, "optimizer": "adam", "lr": 0.002}]}
    program = [sys.executable, "-c", KILLED, str(copied), json.dumps(changes)]
    process = subprocess.Popen(program, cwd=tmp_path, start_new_session=True)
    ends = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < ends:
        if sum(file.read_bytes().count(b'"result"') for file in copied.glob("retrain-*/journal.jsonl")) >= 8:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it was killed in the middle"
    process.kill()
    process.wait()
    metrics = retrain(copied, epochs=30, seeds=2, average="ema", changes=changes, progress=False)
    assert metrics["test_reads_before"] == 0
    runs = Study.open(Path(metrics["folder"]))
    compute = Slots(**runs.info["slots"]).compute | {"compile": "off"}
    before = torch.get_num_threads()
    for trial in runs.list_trials():
        config = from_json(TrialConfig, trial.config)
        threads = runs.info["slots"]["cpus"]
        alone = fit(config, device="cpu", threads=threads, compute=from_json(ComputeConfig, compute))
        assert [(one.train_loss, one.lr) for one in trial.epochs] == [(one.train_loss, one.lr) for one in alone]
    torch.set_num_threads(before)
    assert len(runs.list_trials()) == 2


@pytest.mark.slow
def test_changed_data_is_refused_before_anything_is_trained(searched: Study, tmp_path: Path) -> None:
    """Images that the search has seen could be test images of the changed data."""
    copied = tmp_path / "study"
    shutil.copytree(searched.path, copied, ignore=shutil.ignore_patterns("retrain-*"))
    data = Path(searched.info["options"]["data"]["name"].removeprefix("npz:"))
    before = data.read_bytes()
    write_images(data, seed=2)
    try:
        with pytest.raises(InputError, match="has changed since"):
            retrain(copied, epochs=1, progress=False)
    finally:
        data.write_bytes(before)
    assert not list(copied.glob("retrain-*"))


def test_there_must_be_a_trial_of_full_length(make_study: MakeStudy) -> None:
    with pytest.raises(InputError, match=r"no trial of .* has run its full length yet"):
        retrain(make_study([("STOPPED", [0.9])]))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"seeds": 0}, {"trial": 7}, {"compile": "on"}])
def test_wrong_arguments_are_refused(wrong: dict[str, int], make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], config=None)
    assert study.config(study.best()).data == DataConfig(limit_train=100)
    with pytest.raises(InputError, match=r"at least 1|no trial 7|--compile 'on' is unknown; allowed are auto and off"):
        retrain(study, **wrong)
    assert not list(study.path.glob("retrain-*"))


# Without Ray: trials train in this process, one after another.


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, no_calibration: None) -> list[tuple[int, int]]:
    """What is trained, as trial and epoch; the engine is halted before (1, 2) the first time that it comes up."""
    trained: list[tuple[int, int]] = []
    halts = [(1, 2)]

    def run(engine: Engine, slots: object, *, folder_of: Any, **_more: object) -> None:
        while (trial := engine.next_trial()) is not None:
            trainer = Trainer(
                from_json(TrialConfig, trial.config), folder=folder_of(trial.number), device="cpu", telemetry="off"
            )
            trainer.resume()
            try:
                while not engine.should_halt:
                    at = (trial.number, len(trainer.history) + 1)
                    if at in halts:
                        halts.remove(at)
                        engine.halt("SIGTERM")
                        break
                    trained.append(at)
                    if not engine.report(trial.number, trainer.run_epoch(), trainer.notes):
                        break
            except DivergedError as error:
                engine.end(trial.number, TrialStatus.DIVERGED, str(error))

    monkeypatch.setattr("tunelab.tuning.ray_tune.run", run)
    return trained


@pytest.fixture
def studied(make_study: MakeStudy) -> Study:
    """A study on digits whose fingerprint is theirs."""
    data = prepare(DataConfig(limit_train=100)).to_json()
    return make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], info={"data": data})


def test_an_interrupted_retraining_goes_on_and_the_test_images_are_read_once(
    here: list[tuple[int, int]], studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def counted(config: DataConfig, split: Any, device: torch.device, memory: int | None) -> Any:
        reads.append(split)
        assert len(earlier(studied)) == len(reads), "it is recorded before"
        return load_split(config, split, device, memory)

    monkeypatch.setattr("tunelab.analysis.retrain.load_split", counted)
    with pytest.raises(PausedError) as paused:
        retrain(studied, epochs=2, seeds=2, progress=False)
    assert paused.value.exit_status == 3
    assert "resume" not in str(paused.value), "the same command goes on, `tunelab resume` does not"
    (folder,) = studied.path.glob("retrain-*")
    assert not (folder / "metrics.json").exists()
    assert reads == []
    metrics = retrain(studied, epochs=2, seeds=2, progress=False)
    assert here == [(0, 1), (0, 2), (1, 1), (1, 2)], "every epoch once"
    assert reads == ["test"]
    assert len(metrics["seeds"]) == 2
    assert metrics["test_reads_before"] == 0
    assert retrain(studied, epochs=2, seeds=2, progress=False) == metrics
    assert reads == ["test"]
    more = retrain(studied, epochs=2, seeds=3, progress=False)
    assert here[4:] == [(2, 1), (2, 2)], "only the new seed is trained"
    assert [seed["test"] for seed in more["seeds"][:2]] == [seed["test"] for seed in metrics["seeds"]]
    assert (more["test_reads_before"], more["test_readings_before"]) == (2, [metrics["test_reading"]])


def test_a_crash_after_the_test_images_were_read_counts_as_a_reading(
    here: list[tuple[int, int]], studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    halted = here.clear

    def crash(*_arguments: object, **_more: object) -> None:
        raise MemoryError("no more")

    with pytest.raises(PausedError):
        retrain(studied, epochs=2, seeds=2, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("tunelab.analysis.retrain.outcome", crash)
        with pytest.raises(MemoryError):
            retrain(studied, epochs=2, seeds=2, progress=False)
    assert not list(studied.path.glob("retrain-*/metrics.json"))
    halted()
    metrics = retrain(studied, epochs=2, seeds=2, progress=False)
    assert here == [], "nothing is trained again"
    (crashed,) = metrics["test_readings_before"]
    assert (crashed["trial"], crashed["trainings"], metrics["test_reads_before"]) == (0, 2, 2)
    shutil.rmtree(metrics["folder"])
    assert count_trainings(earlier(studied)) == 4, "and what is removed is not forgotten"


def test_the_ensemble_the_weights_and_the_predictions_are_those_of_the_seeds(
    here: list[tuple[int, int]], studied: Study
) -> None:
    with pytest.raises(PausedError):
        retrain(studied, epochs=2, seeds=2, progress=False)
    metrics = retrain(studied, epochs=2, seeds=2, progress=False)
    folder = Path(metrics["folder"])
    content = json.loads((folder / "config.json").read_text())
    config = from_json(TrialConfig, content["trial_config"])
    info = prepare(config.data)
    test = load_split(config.data, "test", torch.device("cpu"))
    probabilities = []
    for seed in metrics["seeds"]:
        model = build_network(config.arch, content["channels"], len(content["classes"]), content["image_size"])
        model.load_state_dict(load_file(folder / seed["weights"]))
        scores = class_scores(model.eval(), test, info, device="cpu", precision=config.train.precision)
        probabilities.append(scores.softmax(1).double().numpy())
        assert int((scores.argmax(1) == test.labels).sum()) == seed["test"]["correct"]
    assert [seed["weights"] for seed in metrics["seeds"]] == ["model.safetensors", "model-1.safetensors"]
    together = np.mean(probabilities, axis=0)
    labels = test.labels.numpy()
    assert metrics["ensemble"]["correct"] == (together.argmax(1) == labels).sum()
    assert metrics["ensemble"]["loss"] == pytest.approx(-np.log(together[np.arange(len(labels)), labels]).mean())
    kept = np.load(folder / "test_predictions.npz")
    assert (kept["labels"] == labels).all()
    assert (kept["predicted"] == probabilities[0].argmax(1)).all()
    assert kept["probability"] == pytest.approx(probabilities[0].max(1), abs=1e-6)
    low, high = metrics["search_low"], metrics["search_high"]
    told = summary(studied, 99)["new_data"]
    assert (low, high) == (told["low"], told["high"]), "what `tunelab best` expects on new data"
    assert metrics["search_interval_holds"] is (low <= metrics["test_accuracy"] <= high)
    assert metrics["test_interval"]["method"] == "Student's t over 2 seeds"
    assert metrics["validation"] is None


def test_one_seed_has_the_interval_of_its_images_and_no_ensemble(here: list[tuple[int, int]], studied: Study) -> None:
    metrics = retrain(studied, epochs=1, keep_val=True, progress=False)
    assert metrics["ensemble"] is None
    assert metrics["test_interval"] == metrics["seeds"][0]["test"]["interval"]
    assert metrics["test_interval"]["method"] == f"Wilson, {metrics['test_images']} images"
    assert metrics["validation"]["accuracy"] == metrics["seeds"][0]["last_epoch"]["val_accuracy"]
    with (studied.path / "runs_summary.csv").open(newline="") as stream:
        rows = {int(row["name"].rpartition("/")[2]): row["test_accuracy"] for row in csv.DictReader(stream)}
    assert rows.pop(metrics["trial"]) == str(metrics["test_accuracy"])
    assert set(rows.values()) <= {""}, "the others have not been tested"
    curve = (Path(metrics["folder"]) / "learning_curve.csv").read_text().splitlines()
    assert dict(zip(curve[0].split(","), curve[1].split(","), strict=True))["val_accuracy"] != ""


STAGES = [{"begin": 0.5, "optimizer": "adam", "lr": 0.001}]


def test_the_recipe_can_be_changed_and_has_a_folder_of_its_own(here: list[tuple[int, int]], studied: Study) -> None:
    plain = retrain(studied, epochs=2, progress=False)
    changes = {"stages": STAGES, "augment": {"flip": True}, "lr": 0.02}
    other = retrain(studied, epochs=2, average="swa", changes=changes, progress=False)
    assert other["folder"].startswith(f"{plain['folder']}-recipe-")
    assert retrain(studied, epochs=2, average="none", progress=False)["folder"] == plain["folder"]
    content = json.loads((Path(other["folder"]) / "config.json").read_text())
    train = from_json(TrialConfig, content["trial_config"]).train
    assert (train.stages[0].optimizer, train.averaging.kind, train.lr, train.epochs) == ("adam", "swa", 0.02, 2)
    assert train.augment == dataclasses.replace(studied.config(studied.best()).train.augment, flip=True)
    averaged = load(Path(other["folder"]) / "trials" / "0000" / "checkpoint" / "last.pt").averaged["network"]
    saved = load_file(Path(other["folder"]) / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in averaged.items()), "the average is the model"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"changes": {"lrr": 0.1}}, "lrr: unexpected keyword argument"),
        ({"changes": {"epochs": 3}}, "a changed recipe has no epochs: --epochs says how many"),
        ({"changes": {"optimizer": "lion"}}, "optimizer 'lion' is unknown"),
        ({"changes": {"stages": [{**STAGES[0], "optimizer": "lion"}]}}, "optimizer 'lion' is unknown"),
        ({"changes": {"schedule": {"name": "linear"}}}, "schedule 'linear' is unknown"),
        ({"changes": {"augment": {"crop": 2}}}, "augment.crop"),
        ({"average": "mean"}, "--average 'mean' is unknown; allowed are none, ema, swa"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, Any], said: str, make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    with pytest.raises(InputError, match=said):
        retrain(study, **wrong)
    assert not list(study.path.glob("retrain-*"))


@pytest.mark.parametrize("kind", ["retrain", "ablate", "reproduce"])
def test_only_a_search_is_retrained(kind: str, make_study: MakeStudy, capfd: pytest.CaptureFixture[str]) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], info={"kind": kind})
    with pytest.raises(InputError, match=f"is a {kind}; the study of a search is needed"):
        retrain(study)
    shown = summary(study, 1)
    assert next_step(study, study.list_trials(), shown) == []
    print_best(shown)
    assert "--retrain" not in capfd.readouterr().out
    study.info["kind"] = "search"
    assert len(next_step(study, study.list_trials(), summary(study, 1))) == 1
    print_best(summary(study, 1))
    assert "--retrain" in capfd.readouterr().out


def test_an_average_that_the_recipe_has_keeps_its_numbers() -> None:
    ema = TrainConfig(averaging=AveragingConfig("ema", 0.2, 0.9))
    assert changed(ema, {}) == ema
    assert changed(ema, {}, "swa").averaging == AveragingConfig("swa", 0.2, 0.9)
    assert changed(ema, {}, "none").averaging is None
    assert changed(TrainConfig(), {}, "ema").averaging == AveragingConfig("ema")
    assert changed(ema, {"averaging": {"start": 0.5}}).averaging == AveragingConfig("ema", 0.5, 0.9)


def test_a_retraining_may_be_compiled_and_says_what_came_of_it(
    here: list[tuple[int, int]], studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    in_order, run_epoch = ray_tune.run, Trainer.run_epoch

    def run(engine: Engine, slots: Slots, **more: Any) -> None:
        told.append(slots.compute["compile"])
        in_order(engine, slots, **more)

    def noting(trainer: Trainer, *given: float) -> EpochMetrics:
        trainer.notes[:] = ["compiled: 1.31 x as fast"]
        return run_epoch(trainer, *given)

    monkeypatch.setattr(ray_tune, "run", run)
    monkeypatch.setattr(Trainer, "run_epoch", noting)
    metrics = retrain(studied, epochs=1, progress=False)
    assert [seed["notes"] for seed in metrics["seeds"]] == [["compiled: 1.31 x as fast"]]
    retrain(studied, epochs=1, seeds=2, progress=False, compile="off")
    assert told == ["auto", "off"], "the second call as it says, whatever the first one was"


def test_a_retraining_writes_what_it_is_asked_to_for_tensorboard(
    here: list[tuple[int, int]], studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    in_order = ray_tune.run

    def run(engine: Engine, slots: Slots, **more: Any) -> None:
        told.append(more["telemetry"])
        in_order(engine, slots, **more)

    monkeypatch.setattr(ray_tune, "run", run)
    retrain(studied, epochs=1, progress=False)
    retrain(studied, epochs=1, seeds=2, progress=False, telemetry="full")
    assert told == ["scalars", "full"]
    with pytest.raises(InputError, match=r"SearchOptions: telemetry"):
        retrain(studied, epochs=3, progress=False, telemetry="everything")  # type: ignore[arg-type]


def test_a_retraining_that_diverges_leaves_no_model(here: list[tuple[int, int]], make_study: MakeStudy) -> None:
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),), norm="none", activation="leaky_relu")
    recipe = TrainConfig(epochs=4, batch_size=8, lr=1000.0, precision="float32")
    study = make_study(
        [("COMPLETED", [0.1, 0.2, 0.3, 0.4])],
        config=TrialConfig(arch, recipe, DataConfig(limit_train=100)),
        info={"data": prepare(DataConfig(limit_train=100)).to_json()},
    )
    for _ in range(2):
        with pytest.raises(TunelabError, match=r"the training of trial 0 in full diverged: epoch 1: .* nan") as error:
            retrain(study, epochs=2, progress=False)
        assert error.value.exit_status == 1
    assert not list(study.path.glob("retrain-*/metrics.json"))
    assert not list(study.path.glob("retrain-*/model.safetensors"))


def test_a_retraining_leaves_a_card_beside_its_model(here: list[tuple[int, int]], studied: Study) -> None:
    metrics = retrain(studied, epochs=1, progress=False)
    card = Path(metrics["folder"]) / "card.md"
    assert f"test accuracy of this model | {100 * metrics['test_accuracy']:.1f}%" in card.read_text()
    card.unlink()  # as if the process had been killed before it wrote the card
    assert retrain(studied, epochs=1, progress=False) == metrics
    assert card.exists()
    (answer,) = tunelab.predict(studied.path, np.zeros((1, 8, 8), dtype=np.uint8))
    assert answer["class"] in "0123456789"
