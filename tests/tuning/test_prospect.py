from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from tunelab.config import DataConfig, TrialConfig, from_json
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import load_space
from tunelab.study import Study
from tunelab.tuning import calibrate, prospect, quota, sharing
from tunelab.tuning.hardware import precisions
from tunelab.tuning.options import GridRequest, SearchOptions
from tunelab.tuning.preflight import make_check, make_source
from tunelab.tuning.prospect import (
    end_time,
    first_proposals,
    forecast_of,
    forecast_search,
    look_ahead,
    look_on,
    make_race,
    seconds_to,
)
from tunelab.tuning.sharing import computing_like, slots_for
from tunelab.tuning.slots import Slots
from tunelab.tuning.sources import FixedSource
from tunelab.tuning.speed import Load, Point

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"width": 4, "lr": 0.1},)


def draw(suggest):
    width = suggest.suggest_categorical("width", (4, 8, 16))
    arch = ArchSpec(StemSpec(width), ((BlockSpec("basic", width * 2, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=32, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""
OPTIONS = SearchOptions(trials=20, epochs=9, data=DataConfig(limit_train=100), max_params=10**6, max_mflops=40.0)


@pytest.fixture
def space(tmp_path: Path) -> str:
    file = tmp_path / "plain.py"
    file.write_text(SPACE)
    return str(file)


def calibration(slots: Slots, step: float = 0.01) -> calibrate.Calibration:
    points = tuple(Point(Load(0.1 * size, 1000.0 * size, 3, 32), step * size, step / 100) for size in (1, 2, 3))
    return calibrate.Calibration(slots, (), points, 3.0, 0.1, 4000.0, "as pretended")


def study_of(path: Path, measured: calibrate.Calibration | None, cpus: int) -> Study:
    info: dict[str, Any] = {"kind": "search", "hardware": {"cpus": cpus}}
    if measured is not None:
        info["calibration"] = json.loads(json.dumps(measured.to_json()))
    return Study.create(path, info)


@pytest.mark.usefixtures("no_calibration")
def test_the_first_proposals_are_those_of_the_search(space: str) -> None:
    """Trial by trial, the repeats of the baseline included, whose numbers no proposal has."""
    loaded, info = load_space(space), prepare(OPTIONS.data)
    source, race = make_source(loaded, OPTIONS, info, 0, None), make_race(OPTIONS, info, True)
    ahead = first_proposals(source, race, 12)
    assert [trial.number for trial in ahead] == list(range(13))
    assert [trial.number for trial in ahead if trial.repeat_of == 0] == [4]
    real, trials = make_source(loaded, OPTIONS, info, 0, None), dict[int, Trial]()
    for number in range(8):
        if number == 4:
            trials[4] = dataclasses.replace(trials[0], number=4, repeat_of=0)
            continue
        made = real.propose(number, trials)
        trials[number] = Trial(number, dict(ahead[number].config), dict(made.params), origin=made.origin)
        assert (dict(made.params), dict(made.stats)) == (ahead[number].params, ahead[number].stats)


def test_a_space_of_few_configurations_is_no_error(tmp_path: Path) -> None:
    few = SPACE.replace('suggest.suggest_float("lr", 0.001, 0.5, log=True)', "0.1").replace(', "lr": 0.1', "")
    (tmp_path / "few.py").write_text(few)
    source = make_source(load_space(str(tmp_path / "few.py")), OPTIONS, prepare(OPTIONS.data), 0, None)
    assert len(first_proposals(source, None, 12)) == 3


@pytest.mark.usefixtures("no_calibration")
def test_a_bound_on_memory_is_that_of_the_calibration(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = calibrate.calibrate

    def told(samples: Any, candidates: Any, probes: Any, limit: float, gpus: int, memory: int | None) -> Any:
        asked.append((limit, memory))
        return real(samples, candidates, probes, limit, gpus, memory)

    monkeypatch.setattr(calibrate, "calibrate", told)
    monkeypatch.setattr(prospect, "free_memory_mib", lambda: 9000.0)
    options = dataclasses.replace(OPTIONS, device="cpu")
    look_ahead(space, options, show_progress=False)
    look_ahead(space, dataclasses.replace(options, memory=2000 * 2**20), show_progress=False)
    assert asked == [(9000.0, None), (2000.0 + quota.RAY_MIB, 2000 * 2**20)]
    with pytest.raises(InputError, match="--memory: 0 MiB is too little"):
        look_ahead(space, dataclasses.replace(options, memory=1), show_progress=False)


def test_a_bound_on_memory_holds_when_a_search_goes_on(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "usable_cpus", lambda: 8)
    for module in (prospect, sharing):
        monkeypatch.setattr(module, "find_slots", lambda options: Slots(options.concurrent or 8, 1, 0.0, "cpu"))
    monkeypatch.setattr(prospect, "free_memory_mib", lambda: 90_000.0)
    info, mib = prepare(OPTIONS.data), 2**20
    four = Slots(4, 2, 0.0, "cpu", 100 * mib)
    measured = dataclasses.replace(calibration(four), layouts=(calibrate.Layout(four, 100.0, 1000.0),))
    options = dataclasses.replace(OPTIONS, memory=4400 * mib)
    found = []
    for number, (known, asked) in enumerate(
        [(measured, options), (measured, dataclasses.replace(options, concurrent=2)), (None, options)]
    ):
        study = study_of(tmp_path / f"study-{number}", known, 8)
        source = make_source(load_space(space), options, info, 0, None)
        found.append(look_on(study, source, asked, info, [], 0, again=asked.concurrent is None)[0])
    assert found == [four, Slots(2, 4, 0.0, "cpu", 1200 * mib), Slots(8, 1, 0.0, "cpu", 80 * mib)]
    like = study_of(tmp_path / "like", measured, 8)
    assert slots_for(options, like) == Slots(4, 1, 0.0, "cpu", 100 * mib)
    assert slots_for(dataclasses.replace(options, concurrent=1), None) == Slots(1, 1, 0.0, "cpu", 3930 * mib)
    with pytest.raises(InputError, match="--memory: 900 MiB is too little"):
        slots_for(dataclasses.replace(options, memory=900 * mib), like)


@pytest.mark.usefixtures("no_calibration")
def test_a_search_is_looked_at_before_it_starts(space: str) -> None:
    options = dataclasses.replace(OPTIONS, max_params=None, max_mflops=None, device="cpu")
    found = look_ahead(space, options, show_progress=False)
    assert found.has_baseline
    assert (found.options.max_params, found.options.max_mflops) == (1_000_000, 40.0)
    assert found.slots == found.calibration.slots
    plan = found.forecast.plan
    assert (plan.trials, plan.epochs, plan.repeats, plan.final_share, plan.baseline) == (20, 9, 1, 0.2, 0)
    assert (tuple(plan.rungs(9)), plan.concurrent) == ((1, 3), found.slots.concurrent)
    lines = found.describe(None, None)
    assert lines[0].startswith("forecast: 20 trials need ")
    assert lines[1] == found.calibration.reason
    plain = look_ahead(space, dataclasses.replace(options, scheduler="none", race=0.0), show_progress=False)
    assert (tuple(plain.forecast.plan.rungs(9)), plain.forecast.plan.repeats) == ((), 0)
    assert plain.forecast.total().expected > found.forecast.total().low
    assert "trials_that_fit" not in found.to_json()
    assert found.to_json(1e6)["trials_that_fit"] == 20


def test_the_trials_of_a_grid_share_the_machine(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are is in the file, not in the options."""
    asked = []

    def refuse(options: SearchOptions) -> list[Slots]:
        asked.append(options.trials)
        raise InputError("enough")

    monkeypatch.setattr(prospect, "find_layouts", refuse)
    file = tmp_path / "grid.yaml"
    file.write_text("width: [4, 8]\nlr: [0.1, 0.2]\n")
    for trials in (1, 50):
        with pytest.raises(InputError, match="enough"):
            look_ahead(space, dataclasses.replace(OPTIONS, trials=trials), False, GridRequest(file, True, True))
    with pytest.raises(InputError, match="enough"):
        look_ahead(space, dataclasses.replace(OPTIONS, trials=1, repeat=3), False, GridRequest(file, True, True))
    assert asked == [5, 50, 13], "each of them as often as asked"


@pytest.mark.parametrize("wrong", [{"max_params": 10}, {"data": DataConfig("npz:/nowhere.npz")}])
def test_what_is_refused_leaves_no_process(space: str, wrong: Mapping[str, Any]) -> None:
    before = {process.pid for process in psutil.Process().children()}
    with pytest.raises(InputError):
        look_ahead(space, dataclasses.replace(OPTIONS, **wrong), show_progress=False)
    assert {process.pid for process in psutil.Process().children()} <= before


def test_an_interrupt_leaves_no_process(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "calibrate", interrupt)
    before = {process.pid for process in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        look_ahead(space, dataclasses.replace(OPTIONS, concurrent=1, cpus_per_trial=1), show_progress=False)
    assert {process.pid for process in psutil.Process().children()} <= before


def test_a_dry_run_on_this_machine(space: str, runs_dir: Path) -> None:
    """With real processes, on real data."""
    options = dataclasses.replace(OPTIONS, trials=3, concurrent=1, cpus_per_trial=1, device="cpu")
    lines, found = forecast_search(space, options, "1000h")
    assert lines[0].startswith("forecast: 3 trials need ")
    assert lines[0].endswith("; there are 1000 h: all of them fit")
    assert lines[1].startswith("1 trial at a time with 1 thread: ")
    slots = Slots(**found["calibration"]["slots"])
    assert (slots.concurrent, slots.cpus, slots.gpus, slots.device) == (1, 1, 0.0, "cpu")
    assert slots.precision in precisions("cpu")
    assert f"; {slots.precision} {'channels_last' if slots.channels_last else 'contiguous'}: " in lines[1]
    again, _ = forecast_search(space, options, "1000h")
    assert again[1].rpartition("; ")[2] == lines[1].rpartition("; ")[2], "what was measured of the machine is kept"
    assert found["expected"] < 600
    assert not runs_dir.exists()


def test_trials_compute_as_in_the_study_on_its_machine_alone(make_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dataclasses.asdict(Slots(2, 1, 0.0, "cpu", precision="float32", channels_last=False))
    study = make_study([("COMPLETED", [0.1])], info={"slots": chosen})
    usual, on_gpu = Slots(4, 2, 0.0, "cpu"), Slots(1, 2, 1.0, "cuda")
    monkeypatch.setattr(sharing, "describe_hardware", lambda: study.info["hardware"])
    assert computing_like(usual, study) == Slots(4, 2, 0.0, "cpu", precision="float32", channels_last=False)
    assert computing_like(on_gpu, study) == on_gpu
    for other in ({"processor": "another"}, {"gpus": ["a GPU"]}):
        monkeypatch.setattr(sharing, "describe_hardware", lambda other=other: {**study.info["hardware"], **other})
        assert computing_like(usual, study) == usual
    assert computing_like(usual, make_study([], path=study.path.with_name("old"))) == usual, "begun before it was kept"


def test_what_was_measured_before_is_used_again(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "usable_cpus", lambda: 8)
    monkeypatch.setattr(prospect, "find_slots", lambda options: Slots(options.concurrent or 8, 1, 0.0, "cpu"))
    info = prepare(OPTIONS.data)
    numbers = itertools.count()

    def look(
        measured: calibrate.Calibration | None, cpus: int = 8, concurrent: int | None = None, again: bool = False
    ) -> Any:
        source = make_source(load_space(space), OPTIONS, info, 0, None)
        study = study_of(tmp_path / f"study-{next(numbers)}", measured, cpus)
        options = dataclasses.replace(OPTIONS, concurrent=concurrent)
        return look_on(study, source, options, info, [], 0, again=again or concurrent is None)

    measured = calibration(Slots(4, 2, 0.0, "cpu"))
    slots, forecast = look(measured)
    assert slots == measured.slots
    assert forecast.plan.concurrent == 4
    assert look(measured, cpus=2)[0] == Slots(8, 1, 0.0, "cpu"), "another machine"
    assert look(measured, concurrent=3)[0] == Slots(3, 2, 0.0, "cpu"), "asked for now: as many threads in all"
    assert look(measured, concurrent=3, again=True)[0] == measured.slots, "asked for when it was begun"
    monkeypatch.setattr(prospect, "free_memory_mib", lambda: 2800.0)
    layouts = (calibrate.Layout(measured.slots, 100.0, 1000.0),)
    assert look(dataclasses.replace(measured, layouts=layouts))[0].concurrent == 2, "no more than memory carries"
    assert look(None)[0] == Slots(8, 1, 0.0, "cpu"), "a study of an earlier version"
    slow = look(calibration(Slots(4, 2, 0.0, "cpu"), step=1.0))[1]
    assert slow.total().expected > 3 * forecast.total().expected


def test_a_resumed_search_learns_from_its_epochs(space: str, tmp_path: Path) -> None:
    info = prepare(OPTIONS.data)
    source = make_source(load_space(space), OPTIONS, info, 0, None)
    known = first_proposals(make_source(load_space(space), OPTIONS, info, 0, None), None, 10)
    for trial in known:
        trial.epochs.append(EpochMetrics(1, 1.0, 0.5, 1.0, 0.5, 0.1, 50.0, 1.0, 1.0))
        trial.status = TrialStatus.STOPPED
    study = study_of(tmp_path / "study", calibration(Slots(1, 1, 0.0, "cpu")), 1)
    _, fresh = look_on(study, source, OPTIONS, info, [], 0)
    source = make_source(load_space(space), OPTIONS, info, 0, None)
    _, taught = look_on(study, source, OPTIONS, info, known, 0)
    assert taught.total().expected > 2 * fresh.total().expected


@pytest.mark.parametrize(("sampler", "number"), [("model", 8), ("tpe", 0), ("random", 0)])
def test_the_models_proposals_are_told_from_those_before(
    space: str, tmp_path: Path, sampler: Literal["model", "tpe", "random"], number: int
) -> None:
    info = prepare(OPTIONS.data)
    options = dataclasses.replace(OPTIONS, sampler=sampler)
    study = study_of(tmp_path / "study", calibration(Slots(1, 1, 0.0, "cpu")), 1)
    given = [("grid", {"width": 4, "lr": 0.1 + place / 100}) for place in range(1, 11)]
    for first, expected in ((given[:2], number), (given, number and 11)):
        source = make_source(load_space(space), options, info, 0, None, first=first)
        assert look_on(study, source, options, info, [], 0)[1].plan.by_model == expected


@pytest.mark.parametrize("sampler", ["model", "tpe", "random"])
def test_later_trials_are_better_than_random_ones_and_not_than_known_ones(
    space: str, tmp_path: Path, sampler: Literal["model", "tpe", "random"]
) -> None:
    info = prepare(OPTIONS.data)
    options = dataclasses.replace(OPTIONS, sampler=sampler)
    study = study_of(tmp_path / "study", calibration(Slots(1, 1, 0.0, "cpu")), 1)
    given = [("grid", {"width": 4, "lr": 0.1 + place / 100}) for place in range(1, 11)]
    found = []
    for first in (given[:0], given[:3], given):
        source = make_source(load_space(space), options, info, 0, None, first=first)
        found.append(look_on(study, source, options, info, [], 0)[1].plan.learning)
    assert found == ([0, 0, 0] if sampler == "random" else [7 / 8, 4 / 8, 0]), "the baseline is known too"


def test_a_list_of_trainings_is_forecast_without_rungs(space: str) -> None:
    info = prepare(OPTIONS.data)
    drawn = first_proposals(make_source(load_space(space), OPTIONS, info, 0, None), None, 3)
    configs = [from_json(TrialConfig, trial.config) for trial in drawn]
    source = FixedSource(configs, make_check(OPTIONS, info))
    slots = Slots(3, 1, 0.0, "cpu")
    found = forecast_of(configs, source, info, slots, calibration(slots, step=2.0))
    assert (tuple(found.plan.rungs(9)), found.plan.trials, found.plan.final_share) == ((), 3, 0.0)
    assert found.total().expected > forecast_of(configs, source, info, slots, None).total().expected


def test_a_deadline_on_the_monotonic_clock() -> None:
    assert end_time(None) is None
    assert seconds_to(None) is None
    assert seconds_to(time.monotonic() - 5) == 0.0
    assert seconds_to(end_time("90s")) == pytest.approx(90, abs=5)
    with pytest.raises(InputError, match="--deadline 'soon'"):
        end_time("soon")
