from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.records import Trial
from tunelab.study import Study
from tunelab.tuning import calibrate, hardware, packing, sharing
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.packing import filled, pack, pack_team
from tunelab.tuning.slots import Slots
from tunelab.tuning.speed import Point

TWO_BY_ONE, ONE_BY_TWO = Slots(2, 1, 0.0, "cpu"), Slots(1, 2, 0.0, "cpu")
MIB = 2**20


class Machine:
    """Two processors; `images` are the images per second of all trainings of a layout together."""

    def __init__(self) -> None:
        self.images = {TWO_BY_ONE: 260.0, ONE_BY_TWO: 205.0}
        self.memory = 300.0
        self.measured = 0
        self.failure = ""

    def calibrate(
        self, samples: Any, layouts: Sequence[Slots], _probes: Any, limit: float, *_more: Any
    ) -> calibrate.Calibration:
        self.measured += 1
        if self.failure:
            raise TunelabError(self.failure)
        found = tuple(calibrate.Layout(slots, self.images[slots], self.memory) for slots in layouts)
        fastest = calibrate.choose(found, limit)
        step = 64 * fastest.concurrent / self.images[fastest]
        return calibrate.Calibration(fastest, found, (Point(samples[0].load, step),), 2.0, 0.1, limit, "as pretended")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(calibrate, "calibrate", made.calibrate)
    monkeypatch.setattr(packing, "Probes", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(packing, "free_memory_mib", lambda: 9000.0)
    for module in (hardware, sharing):
        monkeypatch.setattr(module, "usable_cpus", lambda: 2)
    return made


def trials(count: int) -> list[Trial]:
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8),),))
    config = to_json(TrialConfig(arch, TrainConfig(batch_size=64)))
    return [Trial(number, config, stats={"mflops": 1.0, "activations": 500, "convs": 3}) for number in range(count)]


def options(count: int, **given: Any) -> SearchOptions:
    return SearchOptions(trials=count, device="cpu", **given)


def begun(path: Path, found: packing.Packing, count: int, cpus: int = 2) -> Study:
    """A list of trainings that was begun so."""
    known = None if found.measured is None else json.loads(json.dumps(found.measured.to_json()))
    info = {
        "options": {"trials": count},
        "slots": dataclasses.asdict(found.slots),
        "hardware": {"processor": "any", "cpus": cpus, "gpus": []},
    }
    return Study.create(path, {**info, **({"calibration": known} if known else {})})


def test_trainings_run_side_by_side_where_they_are_through_sooner_so(machine: Machine) -> None:
    """2 x 1 thread: 130 images/s each, 1 x 2 threads: 205. Two rounds of the one for 3 trainings take 2 / 130."""
    assert [filled(TWO_BY_ONE, count) for count in (1, 2, 3, 4)] == [0.5, 1.0, 0.75, 1.0]
    assert pack(trials(2), options(2), None, None).slots == TWO_BY_ONE
    three = pack(trials(3), options(3), None, None)
    assert three.slots == ONE_BY_TWO
    assert three.measured is not None
    assert three.measured.reason.startswith("1 trial at a time with 2 threads: 205 images/s against 195 with 2 x 1 th")
    assert pack(trials(4), options(4), None, None).slots == TWO_BY_ONE
    machine.images[ONE_BY_TWO] = 190.0
    assert pack(trials(3), options(3), None, None).slots == TWO_BY_ONE


def test_what_was_measured_is_told_of_the_way_that_was_chosen(machine: Machine) -> None:
    """Of 3 trainings the one by two is chosen, and the points are those of two by one."""
    (point,) = pack(trials(3), options(3), None, None).measured.points  # type: ignore[union-attr]
    assert point.step == pytest.approx(64 / 205)
    (point,) = pack(trials(2), options(2), None, None).measured.points  # type: ignore[union-attr]
    assert point.step == pytest.approx(64 / 130)


def test_no_more_run_at_once_than_fit_into_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.memory = 5000.0
    assert pack(trials(2), options(2), None, None).slots == ONE_BY_TWO
    machine.memory = 300.0
    bounded = pack(trials(2), options(2, memory=500 * MIB), None, None)
    assert bounded.slots == dataclasses.replace(ONE_BY_TWO, memory=200 * MIB)
    with pytest.raises(InputError, match="--memory"):
        pack(trials(2), options(2, memory=100 * MIB), None, None)


def test_one_training_has_all_processors_and_nothing_is_measured(machine: Machine) -> None:
    assert pack(trials(1), options(1), None, None) == packing.Packing(ONE_BY_TWO)
    assert machine.measured == 0


def test_where_nothing_can_be_measured_they_run_as_usual(machine: Machine) -> None:
    machine.failure = "no trial could be measured: no such thing"
    assert pack(trials(3), options(3), None, None) == packing.Packing(TWO_BY_ONE)


def test_trainings_go_on_with_the_threads_that_they_began_with(machine: Machine, tmp_path: Path) -> None:
    three = pack(trials(3), options(3), None, None)
    study = begun(tmp_path / "three", three, 3)
    machine.images[ONE_BY_TWO] = 1.0
    assert pack(trials(1), options(3), None, study) == three
    assert pack([], options(3), None, study).slots == ONE_BY_TWO
    assert machine.measured == 1


def test_more_trainings_than_before_are_measured_again(machine: Machine, tmp_path: Path) -> None:
    one = pack(trials(1), options(1), None, None)
    study = begun(tmp_path / "one", one, 1)
    more = pack(trials(2), options(3), None, study)
    assert (more.slots, more.again) == (TWO_BY_ONE, True)
    assert pack(trials(1), options(2), None, study) == dataclasses.replace(one, again=True)


def test_on_another_machine_they_are_measured_again(machine: Machine, tmp_path: Path) -> None:
    study = begun(tmp_path / "two", packing.Packing(Slots(8, 2, 0.0, "cpu")), 2, cpus=16)
    assert pack(trials(2), options(2), None, study).slots == TWO_BY_ONE


def test_going_on_with_less_free_memory_runs_fewer_at_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun(tmp_path / "two", pack(trials(2), options(2), None, None), 2)
    monkeypatch.setattr(packing, "free_memory_mib", lambda: 1200.0)
    assert pack(trials(2), options(2), None, study).slots == dataclasses.replace(TWO_BY_ONE, concurrent=1)


TEAM = Slots(1, 1, 0.0, "cpu", processes=2)


def test_a_team_has_what_each_of_its_processes_is_left(machine: Machine, tmp_path: Path) -> None:
    asked = dataclasses.replace(options(1), memory=1200 * MIB)
    assert pack_team(TEAM, trials(1), options(1), None, None) == packing.Packing(TEAM)
    each = pack_team(TEAM, trials(1), asked, None, None).slots
    assert (each.processes, each.concurrent, each.memory) == (2, 1, 130 * MIB)
    with pytest.raises(InputError, match=r"--memory: 900 MiB is too little for 2 processes .*; there is room for 1"):
        pack_team(TEAM, trials(1), dataclasses.replace(asked, memory=900 * MIB), None, None)


def test_what_is_finished_keeps_by_how_many_it_was_trained(machine: Machine, tmp_path: Path) -> None:
    study = begun(tmp_path / "one", pack(trials(1), options(1), None, None), 1)
    assert not pack_team(TEAM, [], options(1), None, study).again
    assert pack_team(TEAM, trials(1), options(1), None, study).again
    assert pack([], options(1), None, begun(tmp_path / "two", packing.Packing(TEAM), 1)).again is False
