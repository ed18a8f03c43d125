"""Trials trained again: equal to the bit where nothing has changed, and an honest word where something has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.reproduce import (
    DIFFERENT,
    IDENTICAL,
    WITHIN_NOISE,
    as_recorded,
    compare_epoch,
    differences,
    reproduce,
)

import tunelab
from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, from_json
from tunelab.data.cache import prepare
from tunelab.errors import DivergedError, InputError
from tunelab.noise import Noise, half_width
from tunelab.records import EpochMetrics, TrialStatus
from tunelab.study import Study
from tunelab.training.loop import Trainer
from tunelab.tuning import ray_tune
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.engine import Engine
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import PausedError
from tunelab.tuning.slots import Slots

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),))
DATA = DataConfig(limit_train=100)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Slots]]:
    """Trials train in this process, one after another: the epochs that were trained, and with what."""
    trained: list[tuple[int, Slots]] = []

    def run(engine: Engine, slots: Slots, *, folder_of: Any, **_more: object) -> None:
        from tunelab.config import ComputeConfig

        while (trial := engine.next_trial()) is not None:
            trainer = Trainer(
                from_json(TrialConfig, trial.config),
                folder=folder_of(trial.number),
                device=slots.device,
                threads=slots.cpus,
                telemetry="off",
                compute=from_json(ComputeConfig, slots.compute),
                split=trial.split,
            )
            trainer.resume()
            try:
                while engine.report(trial.number, trainer.run_epoch(), trainer.notes):
                    trained.append((len(trainer.history), slots))
                trained.append((len(trainer.history), slots))
            except DivergedError as error:
                engine.end(trial.number, TrialStatus.DIVERGED, str(error))

    monkeypatch.setattr("tunelab.tuning.ray_tune.run", run)
    return trained


def trained(path: Path, epochs: int = 3, stop_after: int | None = None, split: int = 1, **train: Any) -> Study:
    """A study with one trial that was really trained."""
    recipe: dict[str, Any] = {"epochs": epochs, "batch_size": 32, **train}
    options = SearchOptions(epochs=epochs, data=DATA, device="cpu", cpus_per_trial=1)
    configs = [TrialConfig(ARCH, TrainConfig(**recipe), DATA, seed=5)]
    about = {"space": {"name": "arch", "source": "arch", "version": 1}}
    return run_configs(
        path,
        configs,
        options,
        kind="search",
        title="",
        about=about,
        stop_after=stop_after,
        split=split,
        show_progress=False,
    )


def test_nothing_has_changed_so_every_bit_is_the_same(
    here: list[tuple[int, Slots]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = trained(tmp_path / "study")
    content = reproduce(study, 0, progress=False)
    assert content["verdict"] == IDENTICAL
    assert [row["verdict"] for row in content["rows"]] == [IDENTICAL] * 3
    assert (content["compared"], content["epochs"], content["differences"]) == (3, 3, [])
    folder = tmp_path / "study" / "reproduce-trial0000"
    assert json.loads((folder / "reproduce.json").read_text()) == content
    assert [epoch for epoch, _ in here] == [1, 2, 3, 1, 2, 3]
    assert reproduce(tmp_path / "study", 0, progress=False) == content
    assert len(here) == 6, "what has ended is not trained again"
    again = Study.open(folder)
    assert (again.info["kind"], again.info["trial"]) == ("reproduce", 0)
    assert again.trial(0).config == study.trial(0).config


def test_a_trial_in_parts_is_trained_in_as_many(here: list[tuple[int, Slots]], tmp_path: Path) -> None:
    """Its batch norms saw the parts: whole batches would measure something else."""
    study = trained(tmp_path / "study", split=2)
    assert study.trial(0).split == 2
    assert reproduce(study, 0, progress=False)["verdict"] == IDENTICAL
    assert Study.open(tmp_path / "study" / "reproduce-trial0000").trial(0).split == 2


def test_a_trial_that_was_stopped_is_trained_as_far_as_it_came(here: list[tuple[int, Slots]], tmp_path: Path) -> None:
    study = trained(tmp_path / "study", epochs=5, stop_after=2)
    assert (study.trial(0).status, len(study.trial(0).epochs)) == (TrialStatus.STOPPED, 2)
    assert study.trial(0).epochs[-1].lr > 0.04, "the schedule is that of five epochs"
    content = reproduce(study, 0, progress=False)
    assert (content["verdict"], content["compared"]) == (IDENTICAL, 2)
    assert [epoch for epoch, _ in here] == [1, 2, 1, 2]


def test_a_trial_that_diverged_is_followed_to_where_it_did(
    here: list[tuple[int, Slots]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epoch = Trainer.run_epoch

    def diverging(trainer: Trainer, *given: float) -> EpochMetrics:
        if len(trainer.history) == 2:
            raise DivergedError("epoch 3: the training loss became nan")
        return run_epoch(trainer, *given)

    monkeypatch.setattr(Trainer, "run_epoch", diverging)
    one, two = trained(tmp_path / "one", epochs=5), trained(tmp_path / "two", epochs=5)
    assert (one.trial(0).status, len(one.trial(0).epochs)) == (TrialStatus.DIVERGED, 2)
    content = reproduce(one, 0, progress=False)
    assert (content["verdict"], content["compared"]) == (IDENTICAL, 2)
    assert content["ended"] == {"then": "diverged after epoch 2", "now": "diverged after epoch 2"}
    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    content = reproduce(two, 0, progress=False)
    assert (content["verdict"], content["identical"], here[-1][0]) == (DIFFERENT, 2, 3)
    assert content["ended"] == {"then": "diverged after epoch 2", "now": "stayed finite"}


def test_it_computes_as_the_study_did_on_any_machine(
    here: list[tuple[int, Slots]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = trained(tmp_path / "study")
    slots = {**study.info["slots"], "precision": "float32", "channels_last": False}
    hardware = {**study.info["hardware"], "processor": "another processor"}
    versions = {**study.info["versions"], "torch": "1.0"}
    study.update(lambda _info: {"slots": slots, "hardware": hardware, "versions": versions})
    content = reproduce(study, 0, progress=False)
    used = here[-1][1]
    assert (used.precision, used.channels_last, used.cpus) == ("float32", False, 1)
    now = Study.open(Path(content["folder"])).info
    assert content["differences"] == [
        {"what": "version of torch", "then": "1.0", "now": now["versions"]["torch"]},
        {"what": "processor", "then": "another processor", "now": now["hardware"]["processor"]},
    ]


def test_threads_that_are_not_here_are_named(here: list[tuple[int, Slots]], tmp_path: Path) -> None:
    study = trained(tmp_path / "study")
    study.update(lambda info: {"slots": {**info["slots"], "cpus": 4096}})
    content = reproduce(study, 0, progress=False)
    (one,) = content["differences"]
    assert (one["what"], one["then"], one["now"]) == ("threads", 4096, here[-1][1].cpus)


def test_another_result_is_judged_by_the_noise_of_runs(here: list[tuple[int, Slots]], make_study: MakeStudy) -> None:
    config = TrialConfig(ARCH, TrainConfig(epochs=2, batch_size=32), DATA, seed=5)
    info = {"data": prepare(DATA).to_json()}
    study = make_study([("COMPLETED", [0.999, 1.0])], config=config, info=info)
    content = reproduce(study, 0, progress=False)
    assert content["verdict"] == DIFFERENT
    last = content["rows"][-1]
    assert last["difference"] == pytest.approx(last["now"] - 1.0)
    assert abs(last["difference"]) > last["margin"] > 0
    told = {one["what"]: one["then"] for one in content["differences"]}
    assert told["version of torch"] == "not recorded"


def metrics(score: float, **changes: Any) -> EpochMetrics:
    return dataclasses.replace(EpochMetrics(3, 1.0, 0.5, 1.0, score, 0.1, 2.0, 300.0, 100.0), **changes)


def test_an_epoch_is_identical_within_noise_or_different() -> None:
    noise = Noise(0.01, 10.0, "a guess")
    margin = half_width(noise, 2.0)
    assert 0.02 < margin < 0.04, "of a difference, so more than two standard deviations"
    then = metrics(0.5)
    assert compare_epoch(then, metrics(0.5, seconds=9.0, peak_memory_mib=7.0), noise)["verdict"] == IDENTICAL
    for name in ("train_loss", "train_accuracy", "val_loss", "lr"):
        assert compare_epoch(then, metrics(0.5, **{name: 0.9999999999999999}), noise)["verdict"] == WITHIN_NOISE
    assert compare_epoch(then, metrics(0.5 - 0.99 * margin), noise)["verdict"] == WITHIN_NOISE
    assert compare_epoch(then, metrics(0.5 + 1.01 * margin), noise)["verdict"] == DIFFERENT


def test_what_is_not_the_same_is_named_once() -> None:
    then = {"versions": {"torch": "2.12.0", "old": "1"}, "slots": {"cpus": 2, "precision": "bfloat16", "memory": 5}}
    now = {"versions": {"torch": "2.13.0"}, "hardware": {"gpus": []}, "slots": {"cpus": 1, "precision": "bfloat16"}}
    assert differences(then, now) == [
        {"what": "version of torch", "then": "2.12.0", "now": "2.13.0"},
        {"what": "version of old", "then": "1", "now": None},
        {"what": "gpus", "then": "not recorded", "now": []},
        {"what": "threads", "then": 2, "now": 1},
    ]
    assert differences(now, now) == []


def test_changed_data_is_refused_and_nothing_is_made(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    with pytest.raises(InputError, match="the data 'digits' has changed since"):
        reproduce(study, 0, progress=False)
    assert not list(study.path.glob("reproduce-*"))


def test_a_trial_without_an_epoch_cannot_be_compared(make_study: MakeStudy) -> None:
    study = make_study([("FAILED", [])])
    with pytest.raises(
        InputError, match=r"trial 0 of .* no epoch to compare with: it is failed \(failed for a reason\)"
    ):
        reproduce(study, 0, progress=False)
    with pytest.raises(InputError, match="no trial 7"):
        reproduce(study, 7, progress=False)


def test_one_that_was_interrupted_goes_on(
    here: list[tuple[int, Slots]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = trained(tmp_path / "study")
    run = ray_tune.run
    monkeypatch.setattr("tunelab.tuning.ray_tune.run", lambda engine, *_more, **_given: engine.halt("SIGTERM"))
    with pytest.raises(PausedError, match="the same command goes on"):
        reproduce(study, 0, progress=False)
    monkeypatch.setattr("tunelab.tuning.ray_tune.run", run)
    assert reproduce(study, 0, progress=False)["verdict"] == IDENTICAL


SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY, VERSION, BASELINES = "one block", 1, ({"lr": 0.1},)


def draw(suggest):
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=16, lr=suggest.suggest_float("lr", 0.01, 0.5, log=True)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
def test_a_trial_of_a_real_search_is_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SPACE)
    study = tunelab.search(
        str(tmp_path / "small.py"),
        trials=2,
        epochs=2,
        limit_train=200,
        race=0.0,
        study=tmp_path / "study",
        progress=False,
    )
    content = reproduce(study, 1, progress=False)
    assert (content["verdict"], content["compared"]) == (IDENTICAL, 2), content
    assert {one["what"] for one in content["differences"]} <= {"threads"}


def test_only_what_diverged_may_be_given_up_for_its_health_again(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1] * 4), ("DIVERGED", [0.1])])
    assert [as_recorded(study, trial)[0]["health"] for trial in study.list_trials()] == [False, True]
    study.info["options"]["health"] = False
    assert [as_recorded(study, trial)[0]["health"] for trial in study.list_trials()] == [False, False]
