"""Trials that hang, as processes without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import textwrap
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tunelab.records import Trial, TrialStatus
from tunelab.training.pulse import Beat, beat_path, read_beat
from tunelab.tuning import watchdog as module
from tunelab.tuning.machine import Machine
from tunelab.tuning.watchdog import LIMITS_VARIABLE, STACKS, Limits, Watchdog, describe, patrol

LIMITS = Limits(least=5.0, pause=10.0, begin=20.0, trial=100.0)
TRIAL = Trial(7, {"train": {"epochs": 10}})
CODE = """
import itertools, os, pathlib, subprocess, sys, time
from tunelab.training.pulse import Pulse

pulse = Pulse(pathlib.Path(sys.argv[1]), 7, least=5.0, pause=10.0)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
for _ in pulse.each(range(10), "training"):
    pass


def stuck():
    print(child.pid, flush=True)
    {hang}


for _ in pulse.each([0], "training"):
    stuck()
"""
HANGS = {
    "sleep": "time.sleep(1000)",
    "busy": "while True: pass",
    "call": "sum(itertools.repeat(1))",  # with the interpreter's lock: no other thread of it runs
    "stopped": "os.kill(os.getpid(), 19)",
}


class Pace:
    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def seconds(self, trial: Trial, epochs: int) -> float | None:
        assert epochs == 10
        return self._seconds


@pytest.fixture
def beats(tmp_path: Path) -> Path:
    return tmp_path / "beats"


@pytest.fixture
def machine(beats: Path) -> Machine:
    beats.mkdir()
    made = Machine()
    made.open(beats)
    return made


@pytest.fixture
def watchdog(tmp_path: Path, machine: Machine) -> Watchdog:
    asked = iter(range(10**6))
    made = Watchdog(
        lambda number: tmp_path / f"{number}", None, asked=lambda: next(asked), limits=LIMITS, reach=machine
    )
    made.started(TRIAL)
    return made


Start = Callable[[str], tuple[subprocess.Popen[str], psutil.Process]]


@pytest.fixture
def start(beats: Path) -> Iterator[Start]:
    """Starts a process that beats for trial 7 and then hangs, with a child of its own."""
    opened: list[subprocess.Popen[str]] = []
    children: list[psutil.Process] = []

    def begin(hang: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        code = textwrap.dedent(CODE).replace("{hang}", HANGS[hang])
        command = [sys.executable, "-c", code, str(beat_path(beats, 7))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        opened.append(process)
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        children.append(child)
        if hang == "stopped":
            while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
        return process, child

    yield begin
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    for process in opened:
        process.kill()
        process.communicate()


def look(watchdog: Watchdog, seconds: int) -> None:
    """So many seconds pass, without anybody waiting for them."""
    for _ in range(seconds):
        watchdog.look(1.0)


def has_ended(process: psutil.Process) -> bool:
    """True if a process that was killed is gone, or a zombie, after a moment."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
                continue
        return True
    return False


@pytest.mark.parametrize("hang", HANGS)
def test_what_hangs_is_ended_with_its_children(watchdog: Watchdog, start: Start, tmp_path: Path, hang: str) -> None:
    process, child = start(hang)
    look(watchdog, 6)  # the first look sees a beat
    assert process.poll() is None
    assert watchdog.testify(7) is None
    look(watchdog, 1)
    assert process.wait(10) == -signal.SIGKILL
    assert has_ended(child)
    loss = watchdog.testify(7)
    assert loss is not None
    assert loss.cause == "hung"
    assert loss.why.startswith("no step for 6 s (limit 5 s, median ")
    assert " in training; " in loss.why
    if hang == "stopped":
        assert loss.why.endswith(f"its process {process.pid} was stopped from outside, so there are no stacks")
        assert not (tmp_path / "7").exists()
    else:
        assert loss.why.endswith(f"see {tmp_path.name}/7/stacks.txt")
        stacks = (tmp_path / "7" / STACKS).read_text()
        assert stacks.startswith(f"trial 7, process {process.pid} on ")
        assert "in stuck" in stacks
        assert (tmp_path / "7").stat().st_mode & 0o077 == 0
    assert watchdog.testify(7) is None, "told once"


def test_time_in_which_nobody_looked_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a suspended night: only what was watched counts."""
    seconds: list[float] = []
    clock = iter([0.0, *(1000.0 * step for step in range(1, 10**4))])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))

    class Counts:
        def look(self, watched: float) -> None:
            seconds.append(watched)

    with patrol([Counts()], 0.01):
        deadline = time.perf_counter() + 10
        while not seconds and time.perf_counter() < deadline:
            time.sleep(0.01)
    assert set(seconds) == {0.02}


def test_one_that_moves_is_left_alone(watchdog: Watchdog, start: Start, beats: Path) -> None:
    process, _ = start("sleep")
    file = beat_path(beats, 7)
    for count in range(20):
        content = bytearray(file.read_bytes())
        memoryview(content).cast("d")[5] = float(count)
        file.write_bytes(content)
        look(watchdog, 4)
    assert process.poll() is None


def test_another_process_with_the_same_number_is_left_alone(watchdog: Watchdog, start: Start, beats: Path) -> None:
    """The one that beat has ended, and its number belongs to another one now."""
    process, _ = start("sleep")
    file = beat_path(beats, 7)
    content = bytearray(file.read_bytes())
    memoryview(content).cast("d")[2] -= 1.0
    file.write_bytes(content)
    look(watchdog, 15)
    assert process.poll() is None
    assert watchdog.testify(7) is None


def test_trials_that_have_ended_are_not_watched(watchdog: Watchdog, start: Start) -> None:
    process, _ = start("sleep")
    watchdog.ended(TRIAL)
    look(watchdog, 50)
    assert process.poll() is None


def test_a_trial_may_not_take_longer_than_was_asked_for(tmp_path: Path, machine: Machine, start: Start) -> None:
    watchdog = Watchdog(lambda number: tmp_path / f"{number}", None, timeout=3.0, limits=LIMITS, reach=machine)
    watchdog.started(TRIAL)
    process, _ = start("sleep")
    look(watchdog, 4)
    assert process.wait(10) == -signal.SIGKILL
    loss = watchdog.testify(7)
    assert loss is not None
    said = "it has taken 4 s, longer than --trial-timeout allows (3 s)"
    assert loss.why == f"{said}; see {tmp_path.name}/7/stacks.txt"


@pytest.mark.parametrize(("forecast", "bound"), [(1.0, 100.0), (30.0, 600.0), (None, float("inf"))])
def test_the_forecast_bounds_a_trial(tmp_path: Path, forecast: float | None, bound: float) -> None:
    watchdog = Watchdog(lambda number: tmp_path, Pace(forecast), limits=LIMITS)
    assert watchdog._bound(TRIAL)[0] == bound


def test_a_trial_with_which_no_process_begins_is_lost(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    ended: list[Any] = []
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive=False: found)
    monkeypatch.setattr("tunelab.tuning.machine.end_tree", ended.append)
    look(watchdog, 21)
    assert watchdog.testify(7) is None, "there is nothing that could be ended"
    found += [SimpleNamespace(pid=1, cmdline=lambda: ["ray::IDLE"]), SimpleNamespace(pid=2, cmdline=lambda: ["raylet"])]
    look(watchdog, 20)
    assert watchdog.testify(7) is None
    look(watchdog, 1)
    assert ended == found[:1]
    loss = watchdog.testify(7)
    assert loss is not None
    assert loss.why == "no process has begun with it for 21 s"


def test_a_paused_trial_is_not_watched(tmp_path: Path, machine: Machine, start: Start) -> None:
    """Its process trains other trials meanwhile, and was ended for it."""
    trial = dataclasses.replace(TRIAL)
    watchdog = Watchdog(lambda number: tmp_path / f"{number}", None, timeout=3.0, limits=LIMITS, reach=machine)
    watchdog.started(trial)
    process, _ = start("sleep")
    trial.status = TrialStatus.PAUSED
    look(watchdog, 50)
    assert process.poll() is None
    trial.status = TrialStatus.RUNNING
    watchdog.started(trial)
    assert watchdog.testify(7) is None


def test_what_waits_takes_no_time(tmp_path: Path, beats: Path, machine: Machine, start: Start) -> None:
    watchdog = Watchdog(lambda number: tmp_path / f"{number}", None, timeout=3.0, limits=LIMITS, reach=machine)
    watchdog.started(TRIAL)
    process, _ = start("sleep")
    file = beat_path(beats, 7)
    content = bytearray(file.read_bytes())
    memoryview(content).cast("d")[6:8] = array("d", [0.0, 0.0])  # idle, without a limit
    file.write_bytes(content)
    look(watchdog, 50)
    assert process.poll() is None
    assert watchdog.testify(7) is None


def test_the_process_of_an_earlier_attempt_is_left_alone(tmp_path: Path, machine: Machine, start: Start) -> None:
    """It lives, and trains another trial, while this one waits for a process."""
    watchdog = Watchdog(lambda number: tmp_path / f"{number}", None, timeout=3.0, limits=LIMITS, reach=machine)
    watchdog.started(TRIAL)
    process, _ = start("sleep")
    watchdog.retried(TRIAL, "out of memory")
    watchdog.started(TRIAL)
    look(watchdog, 10)
    assert process.poll() is None
    assert watchdog.testify(7) is None


def test_one_that_has_no_room_to_beat_is_left_alone(
    watchdog: Watchdog, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_room", lambda: False)
    look(watchdog, 100)
    assert watchdog.testify(7) is None
    monkeypatch.undo()
    watchdog.reported(TRIAL)
    look(watchdog, 100)
    assert watchdog.testify(7) is None


def test_while_ray_asks_nothing_no_process_can_begin(tmp_path: Path, machine: Machine) -> None:
    watchdog = Watchdog(lambda number: tmp_path, None, asked=lambda: 1, limits=LIMITS, reach=machine)
    watchdog.started(TRIAL)
    look(watchdog, 100)
    assert watchdog.testify(7) is None


def test_limits_of_tests_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.usual() == Limits()
    monkeypatch.setenv(LIMITS_VARIABLE, '{"least": 2, "ray": 4.5}')
    assert Limits.usual() == Limits(least=2, ray=4.5)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0.2 s"), (93, "93 s"), (1200, "20 min"), (9000, "2.5 h"), (0.00123, "0.0012 s")]
)
def test_lengths_of_time(seconds: float, said: str) -> None:
    assert describe(seconds) == said


def test_a_beat_is_read_whole(start: Start, beats: Path, watchdog: Watchdog) -> None:
    process, _ = start("sleep")
    seen: Any = read_beat(beat_path(beats, 7))
    assert isinstance(seen, Beat)
    assert (seen.number, seen.pid, seen.phase, seen.limit) == (7, process.pid, "training", 5.0)
