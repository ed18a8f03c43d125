"""Ablations from a study to a table: without Ray, where trainings run in this process, and once on real Ray."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tunelab.analysis import ablate as module
from tunelab.analysis.ablate import ablate
from tunelab.analysis.ablate_plan import lay_out, listing
from tunelab.analysis.ablate_plot import draw_effects, effects
from tunelab.analysis.ablate_text import print_ablation, print_listing

import tunelab
from tunelab.cli import run as run_command
from tunelab.config import (
    ArchSpec,
    AugmentConfig,
    BlockSpec,
    DataConfig,
    LeNetSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    from_json,
    to_json,
)
from tunelab.data.cache import prepare
from tunelab.errors import DivergedError, InputError, TunelabError
from tunelab.journal import Journal, read_journal
from tunelab.records import TrialStatus
from tunelab.study import Study
from tunelab.training.loop import Trainer
from tunelab.tuning.engine import Engine
from tunelab.tuning.runner import PausedError

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

DATA = DataConfig(limit_train=100)
ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1), BlockSpec("inception", 8)),), dropout=0.3)
WINNER = TrialConfig(
    ARCH, TrainConfig(epochs=4, batch_size=32, lr=0.05, augment=AugmentConfig(crop=0.1, mixup=0.2)), DATA, seed=5
)
BASELINE = TrialConfig(ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),)), TrainConfig(epochs=4, batch_size=32), DATA)
SCORES = [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def studied(make_study: MakeStudy) -> Study:
    """A study on digits: trial 0 is the baseline, trial 1 the winner."""
    return studied_with(make_study, WINNER)


def studied_with(make_study: MakeStudy, winner: TrialConfig, baseline: TrialConfig = BASELINE) -> Study:
    study = make_study([("COMPLETED", SCORES)], config=baseline, info={"data": prepare(DATA).to_json()})
    other = make_study([("COMPLETED", [2 * score for score in SCORES])], config=winner, path=study.path / "other")
    journal = Journal.open(study.path)
    for event in read_journal(other.path / "journal.jsonl"):
        journal.append({**event, "trial": 1})
    journal.close()
    return study


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, no_calibration: None) -> dict[str, Any]:
    """Trainings run in this process, one after another: what was trained, and before what the engine halts, once."""
    state: dict[str, Any] = {"trained": [], "halts": [], "fails": set()}

    def run(engine: Engine, slots: object, *, folder_of: Any, **_more: object) -> None:
        while (trial := engine.next_trial()) is not None:
            config = from_json(TrialConfig, trial.config)
            if trial.number in state["fails"]:
                engine.end(trial.number, TrialStatus.FAILED, "out of memory")
                continue
            trainer = Trainer(config, folder=folder_of(trial.number), device="cpu", telemetry="off")
            trainer.resume()
            try:
                while not engine.should_halt:
                    at = (trial.number, len(trainer.history) + 1)
                    if at in state["halts"]:
                        state["halts"].remove(at)
                        engine.halt("SIGTERM")
                        break
                    state["trained"].append(at)
                    if not engine.report(trial.number, trainer.run_epoch(), trainer.notes):
                        break
            except DivergedError as error:
                engine.end(trial.number, TrialStatus.DIVERGED, str(error))

    monkeypatch.setattr("tunelab.tuning.ray_tune.run", run)
    return state


def small(study: Study, **more: Any) -> dict[str, Any]:
    given = {"epochs": 1, "seeds": 2, "components": ("crop", "mixup", "dropout"), "progress": False}
    return ablate(study, **{**given, **more})


# What is compared.


def test_the_winner_is_compared_with_the_baseline_of_the_study(studied: Study) -> None:
    found = lay_out(studied, seeds=2)
    assert (found.trial, found.baseline) == (1, "trial 0, the study's baseline")
    assert found.winner == WINNER
    assert found.folder.name.endswith("-trial0001-4epochs")
    assert found.folder.name.startswith("ablate-")
    assert {one.component for one in found.variants} >= {"crop", "mixup", "dropout", "lr", "norm", "blocks", "depth"}
    assert set(found.same) >= {"flip", "cutout", "label_smoothing", "optimizer", "batch_size", "branches"}
    assert found.trainings == 2 * (1 + len(found.variants))
    assert len(set(found.seeds)) == 2
    assert lay_out(studied, seeds=3).seeds[:2] == found.seeds, "more seeds are the same and more"
    assert lay_out(studied, seeds=1, trial=0).winner == BASELINE
    assert lay_out(studied, seeds=1, epochs=9).winner.train.epochs == 9


def test_without_a_baseline_the_defaults_are_taken(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", SCORES)], config=WINNER, info={"baseline": False})
    found = lay_out(study, components=("lr", "norm", "dropout"))
    assert found.baseline == "tunelab's defaults, as the study has no baseline"
    assert [one.name for one in found.variants] == [
        "lr, as in the baseline",
        "norm, removed",
        "dropout, removed, as in the baseline",
    ]
    assert found.variants[0].config.train.lr == pytest.approx(0.1 * 32 / 128)


def test_a_lenet_is_put_back_to_the_papers(make_study: MakeStudy) -> None:
    study = make_study(
        [("COMPLETED", SCORES)],
        config=TrialConfig(LeNetSpec("relu", "max", "he"), TrainConfig(epochs=4), DATA),
        info={
            "baseline": False,
            "data": {
                "image_size": [28, 28], "channels": 1, "classes": ["a", "b"], "counts": {"val": 9}, "fingerprint": "0",
            },
        },
    )  # fmt: skip
    found = lay_out(study, components=("activation", "pooling", "init"))
    assert [one.what for one in found.variants] == [
        "activation relu -> tanh",
        "pooling max -> average",
        "init he -> lecun",
    ]


def test_what_cannot_be_built_is_left_out_with_the_reason(make_study: MakeStudy) -> None:
    narrow = dataclasses.replace(ARCH, branches=((BlockSpec("basic", 4, 2, 1),),))
    inception = ArchSpec(StemSpec(4), ((BlockSpec("inception", 8),),))
    study = studied_with(
        make_study, dataclasses.replace(WINNER, arch=narrow), dataclasses.replace(BASELINE, arch=inception)
    )
    found = lay_out(study, components=("blocks", "dropout"))
    assert [one.component for one in found.variants] == ["dropout"]
    (reason,) = found.left_out.values()
    assert "inception block of width 4" in reason
    with pytest.raises(InputError, match=r"nothing to compare trial 1 with \(blocks, as in the baseline: an inception"):
        lay_out(study, components=("blocks",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trial": 7}, "no trial 7"),
        ({"seeds": 0}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
        ({"components": ("colour",)}, "--components 'colour' is unknown; allowed are crop, flip"),
        ({"components": ("flip",)}, "nothing to compare trial 1 with .the same already: flip"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], said: str, studied: Study) -> None:
    with pytest.raises(InputError, match=said):
        ablate(studied, **given)
    assert not list(studied.path.glob("ablate-*"))


def test_only_a_search_with_images_held_out_can_be_ablated(make_study: MakeStudy, tmp_path: Path) -> None:
    final = make_study([("COMPLETED", SCORES)], path=tmp_path / "final", info={"kind": "retrain"})
    with pytest.raises(InputError, match="final is a retrain; the study of a search is needed"):
        ablate(final)
    whole = dataclasses.replace(WINNER, data=dataclasses.replace(DATA, train_on="train+val"))
    with pytest.raises(InputError, match=r"trial 0 was trained on train\+val: no images are left"):
        ablate(make_study([("COMPLETED", SCORES)], config=whole))
    with pytest.raises(InputError, match=r"no trial of .* has run its full length yet"):
        ablate(make_study([("STOPPED", [0.9])], path=tmp_path / "stopped"))


# How it is run.


def test_an_ablation_has_a_row_for_every_change(here: dict[str, Any], studied: Study) -> None:
    found = small(studied)
    folder = Path(found["folder"])
    assert json.loads((folder / "ablation.json").read_text()) == found
    assert [(row["component"], row["change_made"]) for row in found["variants"]] == [
        (row["component"], row["change_made"]) for row in sorted(found["variants"], key=lambda row: row["change"])
    ]
    assert {row["component"] for row in found["variants"]} == {"crop", "mixup", "dropout"}
    runs = Study.open(folder).list_trials()
    assert runs[0].config["arch"] == to_json(WINNER)["arch"]
    for row in (found["winner"], *found["variants"]):
        own = [runs[number] for number in row["trials"]]
        assert [run.config["seed"] for run in own] == found["seeds"], "the same seeds for all"
        assert row["val_accuracy"] == pytest.approx(sum(run.epochs[-1].score for run in own) / 2)
        assert row["train_loss"] == pytest.approx(sum(run.epochs[-1].train_loss for run in own) / 2)
        assert (row["runs"], row["diverged"], row["failed"]) == (2, 0, 0)
    for row in found["variants"]:
        assert row["change"] == pytest.approx(row["val_accuracy"] - found["winner"]["val_accuracy"])
        assert row["low"] < row["change"] < row["high"]
    assert {run.config["data"]["train_on"] for run in runs} == {"train"}
    with (folder / "ablation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["component"] == "(none)"
    assert [float(row["change"]) for row in rows[1:]] == [row["change"] for row in found["variants"]]
    with Image.open(folder / "ablation.png") as picture:
        assert picture.format == "PNG"
    assert studied.ranked()[0].number == 1, "the study is as it was"


def test_it_goes_on_where_it_stopped_and_trains_nothing_twice(here: dict[str, Any], studied: Study) -> None:
    here["halts"] = [(2, 1)]
    with pytest.raises(PausedError) as paused:
        small(studied)
    assert (paused.value.exit_status, "the same command goes on" in str(paused.value)) == (3, True)
    assert not list(studied.path.glob("ablate-*/ablation.json"))
    assert listing(studied, lay_out(studied, epochs=1, seeds=2, components=("crop",)))["trained"] == 2
    found = small(studied)
    trained = here["trained"]
    assert sorted(trained) == [(number, 1) for number in range(2 * (1 + len(found["variants"])))], "each once"
    count = len(trained)
    assert small(studied) == found
    assert len(here["trained"]) == count, "nothing again"
    more = small(studied, components=("crop", "shortcuts"), seeds=3)
    crops = sum(row["component"] == "crop" for row in more["variants"])
    assert len(here["trained"]) == count + 2 + 1 + 1 + crops, "shortcuts three times, the others with the new seed"
    assert more["winner"]["scores"][:2] == found["winner"]["scores"]


def test_a_variant_that_diverges_or_fails_is_shown(
    here: dict[str, Any], make_study: MakeStudy, capfd: pytest.CaptureFixture[str]
) -> None:
    baseline = dataclasses.replace(BASELINE, train=TrainConfig(epochs=4, batch_size=32, lr=1000.0))
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),), norm="none", activation="leaky_relu", dropout=0.1)
    train = TrainConfig(epochs=4, batch_size=8, lr=0.01, precision="float32")
    study = studied_with(make_study, TrialConfig(arch, train, DATA), baseline)
    here["fails"] = {2, 5}
    found = small(study, components=("lr", "dropout"))
    by_component = {row["component"]: row for row in found["variants"]}
    assert (by_component["lr"]["diverged"], by_component["lr"]["val_accuracy"]) == (2, 0.0)
    assert by_component["lr"]["train_loss"] is None
    failed = by_component["dropout"]
    assert (failed["failed"], failed["verdict"], failed["val_accuracy"], failed["change"]) == (2, "failed", None, None)
    assert found["variants"][-1] is failed
    print_ablation(found)
    said = capfd.readouterr().out
    assert "(2 of 2 diverged)" in said
    assert "failed (2 of 2 failed)" in said
    assert "a run that diverged counts as an accuracy of 0" in said
    here["fails"] = {0, 1}
    with pytest.raises(TunelabError, match="every training of trial 1 failed: out of memory"):
        small(study, components=("dropout",), seeds=1, epochs=2)


def test_the_noise_of_the_search_is_used_if_it_was_measured(
    here: dict[str, Any], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = []
    monkeypatch.setattr(module, "judge", lambda own, others, guess: guesses.append(guess) or (guess, _rows(others)))
    study = make_study(
        [("COMPLETED", SCORES), ("COMPLETED", [0.1, 0.2, 0.3, 0.5])],
        config=WINNER,
        repeats={1: 0},
        info={"data": prepare(DATA).to_json(), "baseline": False},
    )
    small(study, epochs=4, components=("dropout",), seeds=1)
    small(study, epochs=1, components=("dropout",), seeds=1)
    assert guesses[0].source == "measured on 1 repeat and guessed from the binomial error of 229 validation images"
    assert guesses[1].source == "the binomial error of 229 validation images", "an epoch of four is not one of one"


def _rows(others: list[list[float]]) -> list[dict[str, Any]]:
    empty = {
        "change": None,
        "low": None,
        "high": None,
        "p": None,
        "verdict": "failed",
        "sure": False,
        "own_spread": True,
    }
    return [dict(empty) for _ in others]


def test_trainings_share_the_machine_as_those_of_the_search(studied: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"processor": "a processor", "cpus": 2, "gpus": []}
    monkeypatch.setattr(module, "describe_hardware", lambda: machine)
    slots = {"concurrent": 8, "cpus": 1, "gpus": 0.0, "device": "cpu"}
    measured = Study(studied.path, {**studied.info, "slots": slots})
    assert module._sharing(measured, 5, here=True) == {"concurrent": 5, "cpus_per_trial": 1, "gpus_per_trial": None}
    monkeypatch.setattr(module, "describe_hardware", lambda: {**machine, "cpus": 4})
    assert set(module._sharing(measured, 5, here=True).values()) == {None}
    assert set(module._sharing(studied, 5, here=True).values()) == {None}
    assert set(module._sharing(measured, 5, here=False).values()) == {None}, "a cluster"


# What is shown.


def test_the_command_lists_and_runs(here: dict[str, Any], studied: Study, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", str(studied.path), "--epochs", "1", "--seeds", "2", "--components", "mixup,shortcuts,flip"]
    assert run_command([*words, "--list"]) == 0
    said = capfd.readouterr().out
    assert "6 trainings with 2 seeds each, about 2s of training if each is like trial 1" in said
    assert "the same already: flip" in said
    assert not list(studied.path.glob("ablate-*"))
    assert run_command([*words, "--list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert (listed["trainings"], listed["trained"], listed["seconds_each"]) == (6, 0, 0.25)
    assert [row["what"] for row in listed["variants"]] == ["mixup 0.2 -> 0", "basic(1) -> plain(1)"]
    assert run_command(words) == 0
    out = capfd.readouterr().out.splitlines()
    (folder,) = studied.path.glob("ablate-*")
    rows = json.loads((folder / "ablation.json").read_text())["variants"]
    assert [line.split()[0] for line in out[1:5]] == ["component", "(none)", *(row["component"] for row in rows)]
    assert any("of 2 comparisons about 0.1 would be decided by chance alone" in line for line in out)
    here["halts"] = [(6, 1)]
    assert run_command([*words[:5], "3", *words[6:]]) == 3
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].endswith("3 trials are left; the same command goes on")
    assert run_command([*words[:-1], "colour"]) == 2
    assert capfd.readouterr().err.startswith("tunelab: --components 'colour' is unknown; allowed are crop, ")


def test_the_listing_is_for_people(studied: Study, capfd: pytest.CaptureFixture[str]) -> None:
    print_listing(listing(studied, lay_out(studied, seeds=1)))
    said = capfd.readouterr().out
    assert "crop 0.1 -> 0" in said
    assert "1 seed each" in said


def effect(component: str, change: float, verdict: str, *, diverged: int = 0, sure: bool = False) -> dict[str, Any]:
    bounds = {"low": change - 0.01, "high": change + 0.01}
    row = {"component": component, "change_made": "removed", "change": change, "verdict": verdict}
    return {**row, **bounds, "diverged": diverged, "sure": sure}


def test_the_plot_is_made_of_rows_in_points() -> None:
    rows = [effect("norm", -0.8, "helps"), effect("crop", 0.02, "hurts", sure=True), effect("flip", 0.0, "no evidence")]
    failed = {**effect("lr", 0, "failed"), "change": None}
    found = effects([*rows, failed])
    assert [row["label"] for row in found] == ["norm, removed", "crop, removed", "flip, removed"]
    assert [row["beyond"] for row in found] == [True, False, False]
    assert (found[1]["change"], found[1]["low"], found[1]["high"]) == pytest.approx((2, 1, 3))
    assert not effects(rows[:1])[0]["beyond"], "alone it is in the middle"
    assert effects([failed]) == []


def test_the_drawing_has_a_colour_for_every_verdict(tmp_path: Path) -> None:
    rows = effects(
        [
            effect("norm", -0.8, "helps", diverged=3),
            effect("mixup", -0.03, "helps", sure=True),
            effect("dropout", 0.001, "no evidence"),
            effect("crop", 0.02, "hurts", sure=True),
        ]
    )
    draw_effects(rows, tmp_path / "effects.png", "a title")
    with Image.open(tmp_path / "effects.png") as picture:
        assert picture.width > picture.height > 200
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1_000_000) or []}
    assert {(44, 160, 44), (214, 39, 40), (127, 127, 127)} <= colours
    draw_effects([], tmp_path / "none.png", "")
    assert not (tmp_path / "none.png").exists()


# On Ray.


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
def test_an_ablation_survives_a_kill(make_study: MakeStudy, tmp_path: Path) -> None:
    study = studied_with(make_study, WINNER)
    words = ["ablate", str(study.path), "--epochs", "2", "--seeds", "2", "--components", "dropout,shortcuts"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen([sys.executable, "-m", "tunelab.cli", *words], stdout=err, stderr=err)
        try:
            limit = time.monotonic() + 150
            while not (before := ended(study)) and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
    assert before, (tmp_path / "err").read_text()
    found = tunelab.ablate(study, epochs=2, seeds=2, components=("dropout", "shortcuts"), progress=False)
    runs = Study.open(Path(found["folder"])).list_trials()
    assert [run.status for run in runs] == [TrialStatus.COMPLETED] * 6
    assert [len(run.epochs) for run in runs] == [2] * 6
    assert before.items() <= ended(study).items(), "what had ended is as it was"
    assert {row["component"] for row in found["variants"]} == {"dropout", "shortcuts"}
    assert all(len(row["scores"]) == 2 for row in found["variants"])
    assert found["noise"]["repeats"] in (1, 2), "2 x 1, or 1 x 1 where one of the three spreads far more"


def ended(study: Study) -> dict[int, list[float]]:
    """The scores of the trainings that have ended."""
    folders = [folder for folder in study.path.glob("ablate-*") if (folder / "study.json").exists()]
    trials = Study.open(folders[0]).list_trials() if folders else []
    return {one.number: [epoch.score for epoch in one.epochs] for one in trials if one.status.ended}
