from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunelab.training import pulse as module
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.pulse import Beat, NoBeats, Phase, Pulse, age, read_beat, stacks_path, started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0007.beat"


@pytest.fixture
def pulse(path: Path) -> Iterator[Pulse]:
    made = Pulse(path, 7, least=0.5, pause=600.0)
    yield made
    made.close()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def beat(path: Path) -> Beat:
    found = read_beat(path)
    assert found is not None
    return found


def stepping(monkeypatch: pytest.MonkeyPatch, seconds: Iterable[float]) -> None:
    """Each look at the clock is so much later."""
    times = iter(seconds)
    now = 100.0

    def clock() -> float:
        nonlocal now
        now += next(times, 0.0)
        return now

    monkeypatch.setattr(module.time, "monotonic", clock)


def test_another_process_sees_who_beats_and_what_for(pulse: Pulse, path: Path) -> None:
    before = time.monotonic()
    pulse.enter("opening the data")
    seen = beat(path)
    assert (seen.number, seen.pid, seen.phase) == (7, os.getpid(), "opening the data")
    assert seen.started == started(os.getpid())
    assert before <= seen.at <= time.monotonic()
    assert (seen.limit, seen.median) == (600.0, 0.0)


def test_nothing_is_expected_of_one_that_waits(pulse: Pulse, path: Path) -> None:
    pulse.enter("idle")
    assert beat(path).limit == 0.0
    pulse.enter("compiling")
    pulse.close()
    assert (beat(path).phase, beat(path).limit) == ("idle", 0.0)


def test_every_step_beats(pulse: Pulse, path: Path) -> None:
    counts = [beat(path).count for _ in pulse.each(range(4), "training")]
    assert [count - counts[0] for count in counts] == [0, 1, 2, 3]
    assert beat(path).count == counts[-1] + 1


def test_the_limit_follows_the_median(pulse: Pulse, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepping(monkeypatch, [0.0] + [2.0] * 60)
    list(pulse.each(range(60), "training"))
    assert (beat(path).limit, beat(path).median) == (20.0, 2.0)


def test_the_limit_has_a_least(pulse: Pulse, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepping(monkeypatch, [0.0] + [0.01] * 60)
    list(pulse.each(range(60), "training"))
    assert beat(path).limit == 0.5
    assert beat(path).median == pytest.approx(0.01)


def test_first_steps_that_compile_do_not_count(pulse: Pulse, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them say nothing, and later they are no more than four of many."""
    stepping(monkeypatch, [0.0, 90.0, 30.0, 2.0, 2.0, *[2.0] * 10])
    limits = [beat(path).limit for _ in pulse.each(range(14), "training")]
    assert limits[:5] == [600.0] * 5
    assert beat(path).limit == 20.0


def test_phases_have_limits_of_their_own(pulse: Pulse, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepping(monkeypatch, [0.0] + [2.0] * 30)
    list(pulse.each(range(30), "training"))
    for _ in pulse.each(range(1), "validating"):
        assert beat(path).limit == 600.0
    pulse.enter("waiting for the disk")
    assert beat(path).limit == 600.0
    for _ in pulse.each(range(1), "training"):
        assert beat(path).limit == 20.0


def test_a_loop_that_is_left_early_closes_what_it_went_through(pulse: Pulse) -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    for _ in pulse.each(items(), "training"):
        break
    assert closed == [True]


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b"x" * 80, b"short", os.urandom(4000)])
def test_what_is_no_beat_is_none(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_beat(path) is None


def test_there_is_no_beat_without_a_file(path: Path) -> None:
    assert read_beat(path) is None


def test_a_process_is_told_from_others() -> None:
    mine, other = started(os.getpid()), started(os.getppid())
    assert mine is not None
    assert other is not None
    assert other <= mine
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert started(process.pid) is None
    assert age(process.pid) is None


def test_the_age_of_a_process_is_that_of_the_clock() -> None:
    began = psutil.Process().create_time()
    before, found, after = time.time(), age(os.getpid()), time.time()
    assert found is not None
    assert before - began - 2 <= found <= after - began + 2, "to a second or two: the clock may have been set"


@pytest.mark.parametrize("hang", ["while True: pass", "time.sleep(60)", "sum(itertools.repeat(1))"])
def test_the_stacks_come_whatever_the_process_does(path: Path, hang: str) -> None:
    code = f"""
    import itertools, pathlib, sys, time
    from tunelab.training.pulse import Pulse

    def stuck_here():
        print("ready", flush=True)
        {hang}

    pulse = Pulse(pathlib.Path(sys.argv[1]), 7)
    stuck_here()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            text, end = "", time.monotonic() + 30
            os.kill(process.pid, signal.SIGUSR1)
            while "in <module>" not in text and time.monotonic() < end:
                time.sleep(0.02)
                text = stacks_path(path).read_text()
            assert "in stuck_here" in text
            assert process.poll() is None
        finally:
            process.kill()


class Heard:
    """Beats that are only counted."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.steps: dict[Phase, int] = {}

    def enter(self, phase: Phase) -> None:
        self.phases.append(phase)

    def each(self, items: Iterable[Any], phase: Phase) -> Iterator[Any]:
        self.enter(phase)
        for item in items:
            yield item
            self.steps[phase] = self.steps.get(phase, 0) + 1


def test_a_training_beats_at_each_step_and_tells_what_it_does(make_config: Any, tmp_path: Path) -> None:
    heard = Heard()
    trainer = Trainer(make_config(epochs=1), device="cpu", folder=tmp_path, pulse=heard)
    trainer.run_epoch()
    trainer.close()
    assert heard.phases == [
        "opening the data",
        "building the network",
        "training",
        "summing up the epoch",
        "validating",
        "looking at the epoch",
        "waiting for the disk",
    ]
    assert heard.steps == {"training": 400 // 64, "validating": 1}


def test_a_training_is_the_same_with_and_without(make_config: Any, pulse: Pulse) -> None:
    plain = fit(make_config(), device="cpu")
    trainer = Trainer(make_config(), device="cpu", pulse=pulse)
    watched = [trainer.run_epoch() for _ in range(2)]
    trainer.close()
    assert [(one.train_loss, one.val_loss) for one in watched] == [(one.train_loss, one.val_loss) for one in plain]


def test_without_beats_the_items_are_the_items() -> None:
    items = [1, 2]
    assert NoBeats().each(items, "training") is items
