"""The runner with everything real but Ray: trials train in this process, one after another."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch

from tunelab.cli import tunelab as command_line
from tunelab.config import DataConfig, LeNetSpec, TrainConfig, TrialConfig, from_json, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.journal import Journal, StudyLockedError, read_journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import Study, proposed
from tunelab.training.loop import Trainer
from tunelab.tuning import preflight, ray_tune
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.engine import Engine
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import PausedError, resume, search, start_search
from tunelab.tuning.slots import Slots

pytestmark = pytest.mark.usefixtures("no_calibration")

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"lr": 0.1},)


def draw(suggest):
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=32, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""
LENETS = """
from tunelab.config import LeNetSpec, TrainConfig, TrialConfig

SUMMARY = "LeNet-5"
VERSION = 1
BASELINES = ({"activation": "tanh", "pooling": "average", "lr": 0.05},)


def draw(suggest):
    arch = LeNetSpec(
        activation=suggest.suggest_categorical("activation", ("sigmoid", "tanh", "relu")),
        pooling=suggest.suggest_categorical("pooling", ("average", "max")),
        init="xavier",
    )
    return TrialConfig(arch, TrainConfig(batch_size=16, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""
SMALL: dict[str, Any] = {"trials": 5, "epochs": 3, "limit_train": 100, "progress": False}


class HereInsteadOfRay:
    """Trains in this process. `before_epoch(engine, number, epoch)` is called before each epoch that is trained.

    `score(trial)` is told as the validation accuracy in place of what was measured, which differs between machines.
    Every epoch is told to have taken a second: what the sampler proposes depends on the time that trials take.
    """

    def __init__(self) -> None:
        self.starts: list[Slots] = []
        self.stops: list[float] = []
        self.trained: list[tuple[int, int]] = []
        self.before_epoch: Callable[[Engine, int, int], None] = lambda engine, number, epoch: None
        self.score: Callable[[Trial], float] | None = None

    def told(self, trial: Trial, metrics: EpochMetrics) -> EpochMetrics:
        told = dataclasses.replace(metrics, seconds=1.0)
        return told if self.score is None else dataclasses.replace(told, val_accuracy=self.score(trial))

    def run(
        self,
        engine: Engine,
        slots: Slots,
        *,
        folder_of: Callable[[int], Path],
        log: Path,
        stop_at: float,
        **_more: object,
    ) -> None:
        self.starts.append(slots)
        self.stops.append(stop_at)
        log.touch()
        while (trial := engine.next_trial()) is not None:
            config = from_json(TrialConfig, trial.config)
            trainer = Trainer(config, folder=folder_of(trial.number), device="cpu", threads=1, telemetry="off")
            trainer.resume()
            goes_on = all(engine.report(trial.number, self.told(trial, metrics)) for metrics in list(trainer.history))
            while goes_on and not engine.should_halt:
                self.before_epoch(engine, trial.number, len(trainer.history) + 1)
                if engine.should_halt:
                    break
                self.trained.append((trial.number, len(trainer.history) + 1))
                goes_on = engine.report(trial.number, self.told(trial, trainer.run_epoch()))
            trainer.close()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> HereInsteadOfRay:
    made = HereInsteadOfRay()
    monkeypatch.setattr(ray_tune, "run", made.run)
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def space(tmp_path: Path) -> str:
    file = tmp_path / "plain.py"
    file.write_text(SPACE)
    return str(file)


@pytest.fixture
def lenets(tmp_path: Path) -> str:
    file = tmp_path / "lenets.py"
    file.write_text(LENETS)
    return str(file)


def halt_at(number: int, epoch: int, why: str) -> Callable[[Engine, int, int], None]:
    """Halts the engine before an epoch of a trial."""

    def hook(engine: Engine, its_number: int, its_epoch: int) -> None:
        if (its_number, its_epoch) == (number, epoch):
            engine.halt(why)

    return hook


def outcome(study: Study) -> list[Any]:
    """What must not depend on interruptions; how many repeats there is time for does."""
    return [
        (trial.number, trial.config, trial.status, [m.val_loss for m in trial.epochs], trial.decisions)
        for trial in proposed(study.list_trials())
    ]


# A search.


def test_a_space_of_lenets_is_searched(here: HereInsteadOfRay, lenets: str) -> None:
    study = search(lenets, **SMALL, image_size=28, concurrent=1)
    trials = study.list_trials()
    assert {trial.status for trial in trials} <= {TrialStatus.COMPLETED, TrialStatus.STOPPED}
    assert all(trial.stats["params"] == 61_706 for trial in trials)
    assert len({trial.arch_id for trial in proposed(trials)}) > 1
    first = from_json(TrialConfig, trials[0].config)
    assert first.arch == LeNetSpec("tanh", "average", "xavier")


def test_images_that_lenet_cannot_take_are_refused_before_anything_is_made(lenets: str, runs_dir: Path) -> None:
    said = r"LeNet-5 takes images of 28x28 or 32x32 pixels, these have 8x8 \(--image-size 32 resizes them\)"
    with pytest.raises(InputError, match=said):
        search(lenets, **SMALL)
    assert not runs_dir.exists()


def test_a_search_ends_with_a_study(here: HereInsteadOfRay, space: str, runs_dir: Path) -> None:
    study = search(space, **SMALL, seed=3, concurrent=1)
    assert study.path.parent == runs_dir
    assert study.name.startswith("plain-2")
    assert here.starts == [Slots(1, 1, 0.0, "cpu")]
    trials = study.list_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert proposed(trials) == trials[:5], "repeats come at the end"
    assert {trial.status for trial in trials} <= {TrialStatus.COMPLETED, TrialStatus.STOPPED}
    assert trials[0].params == {"lr": 0.1}
    assert trials[0].status is TrialStatus.COMPLETED
    assert all(trial.config["train"]["epochs"] == 3 for trial in trials)
    assert all(trial.config["data"]["limit_train"] == 100 for trial in trials)
    assert len({trial.config["seed"] for trial in trials}) == len(trials)
    assert trials[0].stats["params"] > 0
    assert len((study.path / "trials.jsonl").read_text().splitlines()) == len(trials)
    assert (study.path / "trials.csv").exists()
    assert (study.path / "optuna.journal").exists()
    assert study.best().number in range(5)


def test_the_manifest_says_what_was_asked_for_and_on_what(here: HereInsteadOfRay, space: str, tmp_path: Path) -> None:
    study = search(space, **SMALL, seed=3, concurrent=1, study=tmp_path / "study", device="cpu")
    info = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study.path == tmp_path / "study"
    assert info["kind"] == "search"
    assert info["space"] == {"name": "plain", "source": space, "version": 1}
    options = from_json(SearchOptions, info["options"])
    assert (options.trials, options.epochs, options.seed, options.data.limit_train) == (5, 3, 3, 100)
    assert (options.max_params, options.max_mflops) == (1_000_000, 40.0), "the defaults as they were then"
    assert len(info["data"]["fingerprint"]) == 16
    assert info["data"]["counts"]["train"] == 100
    assert info["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(info["versions"]["torch"])
    assert info["hardware"]["cpus"] >= 1
    assert 0 < info["forecast"]["low"] < info["forecast"]["expected"] < info["forecast"]["high"]
    assert info["forecast"]["coverage"] == 0.8
    assert info["calibration"]["reason"] == "nothing was measured"
    assert info["slots"] == info["calibration"]["slots"]


def test_equal_seeds_give_equal_searches(here: HereInsteadOfRay, space: str) -> None:
    first, second, other = (search(space, **SMALL, seed=seed, concurrent=1) for seed in (1, 1, 2))
    assert outcome(first) == outcome(second)
    assert outcome(first) != outcome(other)
    assert len({first.path, second.path, other.path}) == 3, "each has a folder of its own"


def test_without_the_scheduler_every_trial_runs_in_full(here: HereInsteadOfRay, space: str) -> None:
    study = search(space, **SMALL, scheduler="none", sampler="random")
    assert {trial.status for trial in study.list_trials()} == {TrialStatus.COMPLETED}


def test_data_can_be_given_whole(here: HereInsteadOfRay, space: str) -> None:
    study = search(space, trials=1, epochs=1, data=DataConfig(limit_train=50, split_seed=9), progress=False)
    assert study.info["options"]["data"]["split_seed"] == 9
    assert study.info["data"]["counts"]["train"] == 50


def test_the_options_of_python_are_those_of_the_command() -> None:
    assert isinstance(command_line, click.Group)
    command = {str(option.name) for option in command_line.commands["search"].params}
    command -= {"config", "as_json", "dry_run", "supervise"}
    command = {"health" if name == "no_health" else name for name in command}
    python = set(inspect.signature(search).parameters) - {"progress"}
    assert command == python
    values = command_line.commands["search"].make_context("search", ["arch"]).params
    values["health"] = not values["no_health"]
    for name, parameter in inspect.signature(search).parameters.items():
        if name not in ("space", "progress", "runs_dir", "data"):  # where data is not given, that of `from_study`
            assert values[name] == parameter.default, name


def test_paths_are_kept_whole(here: HereInsteadOfRay, space: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A worker, and a resume from another folder, must find them."""
    write_npz(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    study = search("plain.py", trials=1, epochs=1, data="npz:data.npz", data_dir="somewhere", progress=False)
    assert study.info["options"]["data"]["name"] == f"npz:{tmp_path}/data.npz"
    assert study.info["options"]["data"]["data_dir"] == str(tmp_path / "somewhere")
    assert study.info["space"]["source"] == space
    monkeypatch.chdir("/")
    assert resume(study.path, progress=False).best().number == 0


def test_nothing_is_printed_without_progress(
    here: HereInsteadOfRay, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    search(space, **SMALL)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_standard_error(here: HereInsteadOfRay, space: str, capfd: pytest.CaptureFixture[str]) -> None:
    study = search(space, **{**SMALL, "progress": True})
    said = capfd.readouterr()
    assert said.out == ""
    forecast, reason, room, title, *lines = said.err.splitlines()
    assert forecast.startswith("forecast: 5 trials need ")
    assert reason == "nothing was measured"
    assert room.startswith("space: about ")
    assert title == f"plain on digits: 5 trials of 3 epochs -> {study.path}"
    assert len(lines) == len(study.list_trials())
    assert "[5/5 trials" in lines[-1]


# What is refused, with nothing made.


def write_npz(path: Path, seed: int = 0) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": "nothing"}, "there is no search space 'nothing'"),
        ({"data": "nothing"}, "there is no data set 'nothing'"),
        ({"trials": 0}, "trials: input should be greater than or equal to 1 (got 0)"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"device": "tpu"}, "device"),
        ({"sampler": "grid"}, "sampler"),
        ({"deadline": "soon"}, "--deadline 'soon' is neither"),
        ({"cpus_per_trial": 100_000}, "--cpus-per-trial 100000 is more than"),
        ({"max_params": 10}, "none of 500 draws"),
        ({"image_size": 2}, "image_size"),
    ],
)
def test_bad_input_makes_nothing(
    here: HereInsteadOfRay, space: str, runs_dir: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        search(**{"space": space, **SMALL, **wrong})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not runs_dir.exists()
    assert here.starts == []


def test_an_existing_folder_is_refused_first(here: HereInsteadOfRay, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.txt").touch()
    with pytest.raises(InputError, match="exists already and is no empty folder"):
        search("there is no such space", study=tmp_path / "study", progress=False)
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_a_space_that_raises_at_one_of_the_first_draws_is_refused(
    here: HereInsteadOfRay, tmp_path: Path, runs_dir: Path, draws: int
) -> None:
    raising = SPACE.replace("def draw(suggest):", "drawn = []\ndef draw(suggest):\n    drawn.append(1)\n")
    raising = raising.replace("    arch =", f"    if len(drawn) > {draws}: raise OSError('gone')\n    arch =")
    (tmp_path / "raising.py").write_text(raising)
    with pytest.raises(InputError, match="the space 'raising' raised OSError: gone"):
        search(str(tmp_path / "raising.py"), **SMALL)
    assert not runs_dir.exists()


def test_a_disk_without_room_is_refused(
    here: HereInsteadOfRay, space: str, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def free_bytes(path: Path) -> int:
        asked.append(path)
        return 90 * 2**20

    monkeypatch.setattr(preflight, "free_bytes", free_bytes)
    with pytest.raises(InputError, match=r"no room for the study: it needs about 10\d MiB.*has 90 MiB free"):
        search(space, **SMALL)
    assert not runs_dir.exists()
    assert any(runs_dir.is_relative_to(place) for place in asked)


# Interrupted, and gone on with.


@pytest.mark.parametrize(("why", "status"), [("SIGINT", 130), ("SIGTERM", 3), ("SIGHUP", 3), ("deadline", 3)])
def test_a_halted_search_can_be_resumed(here: HereInsteadOfRay, space: str, why: str, status: int) -> None:
    here.before_epoch = halt_at(2, 2, why)
    data = DataConfig(limit_train=100)
    options = SearchOptions(trials=5, epochs=3, concurrent=1, scheduler="none", race=0.0, data=data)
    with pytest.raises(PausedError) as paused:
        start_search(space, options, None, show_progress=False)
    study = paused.value.study
    assert paused.value.exit_status == status
    assert str(paused.value) == (
        f"stopped before the end ({why}): 3 trials are left; `tunelab resume {study.path}` goes on"
    )
    assert [trial.status.value for trial in study.list_trials()] == ["COMPLETED", "COMPLETED", "PAUSED"]
    assert (study.path / "trials.jsonl").read_text().count("\n") == 2, "the tables are there for who looks"
    assert not study.running
    here.before_epoch = lambda engine, number, epoch: None
    resumed = resume(study, progress=False)
    assert resumed.list_trials()[-1].number == 4
    assert sorted(here.trained) == [(number, epoch) for number in range(5) for epoch in (1, 2, 3)]
    here.trained.clear()
    unbroken = start_search(space, options, None, show_progress=False)
    assert outcome(resumed) == outcome(unbroken)


def test_paused_trials_go_on_from_their_checkpoints(here: HereInsteadOfRay, space: str) -> None:
    """Those that become one of the best; the others are stopped at the end. An interruption changes nothing."""
    given = {**SMALL, "trials": 9, "epochs": 4, "concurrent": 1, "race": 0.0, "scheduler": "promote"}
    here.score = lambda trial: 0.9 - 0.1 * trial.number  # a paused one moves up with each that comes after it
    unbroken = search(space, **given, seed=2)
    trials = unbroken.list_trials()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED, TrialStatus.STOPPED}
    promoted = [trial.number for trial in trials if any(one["pause"] for one in trial.decisions[:-1])]
    assert promoted
    number, paused_at = promoted[0], next(one["epoch"] for one in trials[promoted[0]].decisions if one["pause"])
    assert here.trained.index((number, paused_at + 1)) > here.trained.index((number, paused_at)) + 1, "later"
    assert len(set(here.trained)) == len(here.trained), "no epoch is trained twice"
    here.trained.clear()
    here.before_epoch = halt_at(number, paused_at + 1, "SIGINT")
    with pytest.raises(PausedError) as paused:
        search(space, **given, seed=2)
    here.before_epoch = lambda engine, number, epoch: None
    assert outcome(resume(paused.value.study, progress=False)) == outcome(unbroken)
    assert len(set(here.trained)) == len(here.trained)


def test_workers_are_told_when_to_break_off(here: HereInsteadOfRay, space: str) -> None:
    search(space, **SMALL)
    began = time.monotonic()
    search(space, **SMALL, deadline="1h")
    assert here.stops[0] == math.inf
    assert began + 3500 < here.stops[1] < time.monotonic() + 3600


def test_an_interrupted_race_goes_on(here: HereInsteadOfRay, space: str) -> None:
    def halt_in_repeat(engine: Engine, number: int, epoch: int) -> None:
        if engine.trials[number].repeat_of is not None and epoch == 2:
            engine.halt("SIGINT")

    here.before_epoch = halt_in_repeat
    with pytest.raises(PausedError, match=r"\(SIGINT\): repeats are left; `tunelab resume") as paused:
        search(space, **SMALL, scheduler="none", race=0.5, concurrent=1)
    study = paused.value.study
    *own, repeat = study.list_trials()
    assert (len(own), repeat.number, repeat.status, len(repeat.epochs)) == (5, 5, TrialStatus.PAUSED, 1)
    here.before_epoch = lambda engine, number, epoch: None
    here.trained.clear()
    trials = resume(study, progress=False).list_trials()
    assert here.trained[0] == (5, 2)
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    assert {trial.repeat_of for trial in trials} > {None}
    here.starts.clear()
    resume(study, progress=False)
    assert here.starts == [], "the race is over"


def test_a_deadline_pauses_and_python_gets_the_study(here: HereInsteadOfRay, space: str) -> None:
    def late_in_the_second(engine: Engine, number: int, epoch: int) -> None:
        if number == 1:
            assert engine._deadline.ends < time.monotonic() + 3600
            engine._deadline = dataclasses.replace(engine._deadline, ends=time.monotonic())

    here.before_epoch = late_in_the_second
    study = search(space, **{**SMALL, "trials": 2000}, deadline="1h")
    trials = study.list_trials()
    assert len(trials) == 2
    assert {trial.status.value for trial in trials} <= {"COMPLETED", "STOPPED", "PAUSED"}


def test_a_deadline_of_a_resume(here: HereInsteadOfRay, space: str) -> None:
    here.before_epoch = halt_at(0, 1, "SIGTERM")
    with pytest.raises(PausedError) as paused:
        search(space, **SMALL)
    here.before_epoch = lambda engine, number, epoch: time.sleep(0.1)
    with pytest.raises(PausedError, match="deadline"):
        resume(paused.value.study, deadline="0.05s", progress=False)
    with pytest.raises(InputError, match="--deadline '8 days'"):
        resume(paused.value.study, deadline="8 days", progress=False)


def test_a_bound_on_memory_is_recorded_and_kept(here: HereInsteadOfRay, space: str) -> None:
    here.before_epoch = lambda engine, number, epoch: engine.halt("SIGTERM") if number == 1 else None
    with pytest.raises(PausedError) as paused:
        search(space, **{**SMALL, "memory": "2GiB", "concurrent": 2})
    study = Study.open(paused.value.study.path)
    assert study.info["options"]["memory"] == 2**31
    here.before_epoch = lambda engine, number, epoch: None
    resume(study, progress=False)
    assert here.starts[-1].memory == 2**30 - 300 * 2**20, "half of it without what was measured"
    assert Study.open(study.path).info["options"]["memory"] == 2**31


def test_a_finished_study_is_returned_as_it_is(here: HereInsteadOfRay, space: str) -> None:
    study = search(space, **SMALL)
    record = (study.path / "journal.jsonl").read_bytes()
    here.starts.clear()
    for given in (study, study.path, str(study.path)):
        assert resume(given, progress=False).path == study.path
    assert here.starts == []
    assert (study.path / "journal.jsonl").read_bytes() == record


@pytest.fixture
def paused(here: HereInsteadOfRay, space: str) -> Study:
    here.before_epoch = halt_at(1, 2, "SIGINT")
    with pytest.raises(PausedError) as stopped:
        search(space, **SMALL)
    here.before_epoch = lambda engine, number, epoch: None
    here.starts.clear()
    return stopped.value.study


def test_more_at_once_from_now_on(here: HereInsteadOfRay, paused: Study) -> None:
    resume(paused, concurrent=3, progress=False)
    assert here.starts[0].concurrent == 3
    with pytest.raises(InputError, match="concurrent"):
        resume(paused, concurrent=0, progress=False)


def test_a_running_study_is_not_resumed(here: HereInsteadOfRay, paused: Study) -> None:
    journal = Journal.open(paused.path)
    before = {file: file.read_bytes() for file in paused.path.iterdir() if file.is_file() and file.name != "lock"}
    try:
        with pytest.raises(StudyLockedError, match=f"being written by process {os.getpid()}"):
            resume(paused, progress=False)
    finally:
        journal.close()
    assert here.starts == []
    assert {file: file.read_bytes() for file in before} == before


def test_a_space_that_changed_under_the_same_version_is_refused(paused: Study, space: str) -> None:
    Path(space).write_text(SPACE.replace('"lr", 0.001, 0.5', '"rate", 0.001, 0.5').replace('{"lr"', '{"rate"'))
    with pytest.raises(InputError, match="the space 'plain'"):
        resume(paused, progress=False)
    Path(space).unlink()
    with pytest.raises(InputError, match="there is no space file"):
        resume(paused, progress=False)
    assert not paused.running


def test_changed_data_is_refused(here: HereInsteadOfRay, space: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz")
    here.before_epoch = halt_at(1, 2, "SIGINT")
    with pytest.raises(PausedError) as stopped:
        search(space, **{**SMALL, "data": f"npz:{tmp_path}/data.npz", "limit_train": None})
    write_npz(tmp_path / "data.npz", seed=1)
    with pytest.raises(InputError, match=r"has changed since .* was begun \(fingerprint"):
        resume(stopped.value.study, progress=False)
    (tmp_path / "data.npz").unlink()
    with pytest.raises(InputError, match=r"data\.npz"):
        resume(stopped.value.study, progress=False)


def test_what_is_no_search_is_not_resumed(make_study: Any) -> None:
    with pytest.raises(InputError, match="is a retrain; the command that began it goes on with it"):
        resume(make_study(info={"kind": "retrain"}), progress=False)
    with pytest.raises(InputError, match="is not a study"):
        resume("nowhere", progress=False)


def test_a_damaged_record_is_not_resumed(here: HereInsteadOfRay, paused: Study) -> None:
    file = paused.path / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1][:-5] + b"\n", *lines[2:]]))
    with pytest.raises(TunelabError, match="line 2 is damaged"):
        resume(paused, progress=False)
    assert here.starts == []


def test_lost_checkpoints_are_trained_again_and_change_nothing(
    here: HereInsteadOfRay, paused: Study, space: str
) -> None:
    shutil.rmtree(paused.path / "trials")
    resume(paused, progress=False)
    events = read_journal(paused.path / "journal.jsonl")
    results = [(event["trial"], event["metrics"]["epoch"]) for event in events if event["event"] == "result"]
    assert len(results) == len(set(results))
    assert outcome(paused) == outcome(search(space, **SMALL))


def test_the_error_of_the_search_is_told_even_where_no_table_can_be_written(
    here: HereInsteadOfRay, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: Engine, number: int, epoch: int) -> None:
        engine.error = TunelabError("the record cannot be written: No space left on device")
        engine.halt("the record cannot be written")

    def write_tables(_study: Study) -> None:
        raise OSError(28, "No space left on device", "trials.jsonl")

    here.before_epoch = fail
    monkeypatch.setattr(Study, "write_tables", write_tables)
    with pytest.raises(TunelabError, match="the record cannot be written"):
        search(space, **SMALL)


# A list of configurations.


def configs(count: int, **train: Any) -> list[TrialConfig]:
    namespace: dict[str, Any] = {}
    exec(SPACE, namespace)  # noqa: S102  # the text above
    drawn = namespace["draw"](SimpleNamespace(suggest_float=lambda *given, **named: 0.1))
    recipe = TrainConfig(**{"epochs": 2, "batch_size": 32, **train})
    return [dataclasses.replace(drawn, train=recipe, data=DataConfig(limit_train=100), seed=n) for n in range(count)]


def run(path: Path, given: list[TrialConfig]) -> Study:
    options = SearchOptions(data=given[0].data, max_params=1, scheduler="asha")
    return run_configs(path, given, options, kind="retrain", title="a list", about={"of": 7}, show_progress=False)


def test_a_list_is_trained_in_full(here: HereInsteadOfRay, tmp_path: Path) -> None:
    study = run(tmp_path / "list", configs(3))
    assert [trial.config for trial in study.list_trials()] == [to_json(config) for config in configs(3)]
    assert {trial.status.value for trial in study.list_trials()} == {"COMPLETED"}
    assert (study.info["kind"], study.info["of"], study.info["options"]["trials"]) == ("retrain", 7, 3)
    assert here.starts[0].concurrent <= 3


def test_a_list_goes_on(here: HereInsteadOfRay, tmp_path: Path) -> None:
    here.before_epoch = halt_at(1, 2, "SIGINT")
    with pytest.raises(PausedError):
        run(tmp_path / "list", configs(3))
    here.before_epoch = lambda engine, number, epoch: None
    run(tmp_path / "list", configs(3))
    assert sorted(here.trained) == [(number, epoch) for number in range(3) for epoch in (1, 2)]
    here.trained.clear()
    run(tmp_path / "list", configs(3))
    assert here.trained == []


def test_a_list_can_grow_and_a_part_of_it_can_be_asked_for(here: HereInsteadOfRay, tmp_path: Path) -> None:
    run(tmp_path / "list", configs(1))
    assert [trial.number for trial in run(tmp_path / "list", configs(3)).list_trials()] == [0, 1, 2]
    assert len(here.trained) == 6
    part = run(tmp_path / "list", configs(1))
    assert part.list_trials()[0].status is TrialStatus.COMPLETED
    assert len(here.trained) == 6


def test_another_list_in_the_same_folder_is_refused(here: HereInsteadOfRay, tmp_path: Path) -> None:
    run(tmp_path / "list", configs(2))
    with pytest.raises(InputError, match="begun with another configuration of trial 0; remove it first"):
        run(tmp_path / "list", configs(2, lr=0.3))
