"""The process that starts a search again, with commands that are no searches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunelab.cli import run
from tunelab.supervision import ATTEMPTS, VARIABLE, is_supervised, tell
from tunelab.tuning.watchdog import LIMITS_VARIABLE

CODE = """
import json, os, pathlib, signal, sys, time
from tunelab import liveness, supervision

supervision._WAIT = 0.1
folder = pathlib.Path(sys.argv[1])
study = folder / "study"


def run(words):
    calls = folder / "calls"
    with calls.open("a") as file:
        print(json.dumps(words), file=file)
    number = len(calls.read_text().splitlines())
    study.mkdir(exist_ok=True)
    supervision.tell(study=str(study))
    return act(number)


def progress():
    with (study / "journal.jsonl").open("a") as file:
        print('{"crc":"0","event":"result"}', file=file)


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def wait(status):
    def leave(number, frame):
        (folder / "signals").open("a").write(f"{number} ")
        sys.exit(status)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    (folder / "ready").touch()
    time.sleep(1000)


ACT
status = supervision.supervise(run, ["search", "arch", "--supervise"], DEADLINE, ["--json"])
assert not {"torch", "ray", "optuna"} & set(sys.modules)
sys.exit(status)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Supervises calls of a function: `act(number)` is what the command does the first, second ... time."""
    opened: list[subprocess.Popen[str]] = []

    def begin(act: str, deadline: str | None = None, **more: str) -> subprocess.Popen[str]:
        code = CODE.replace("ACT", textwrap.dedent(act)).replace("DEADLINE", repr(deadline))
        command = [sys.executable, "-c", code, str(tmp_path)]
        environment = {**os.environ, **more}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        opened.append(process)
        return process

    yield begin
    for process in opened:
        process.kill()
        process.communicate()


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("status", [0, 1, 2, 3, 130])
def test_what_leaves_by_itself_is_not_started_again(start: Start, tmp_path: Path, status: int) -> None:
    process = start(f"act = lambda number: print('said') or {status}")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (status, "said\n", "")
    assert calls(tmp_path) == [["search", "arch", "--supervise"]]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("die()", "the search was ended by SIGKILL"),
        ("die(signal.SIGSEGV)", "the search was ended by SIGSEGV"),
        ("os._exit(1)", "the search ended without a word (exit status 1)"),
        ("supervision.tell(again='Ray was gone'); return 3", "Ray was gone"),
        ("supervision.tell(again='the cluster was not fit'); return 2", "the cluster was not fit"),
        ("supervision.tell(again='Ray was gone'); os._exit(3)", "the search ended without a word (exit status 3)"),
    ],
)
def test_what_dies_is_gone_on_with(start: Start, tmp_path: Path, end: str, why: str) -> None:
    process = start(f"def act(number):\n    if number == 1:\n        {end}\n    return 0\n")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert calls(tmp_path)[1:] == [["resume", str(tmp_path / "study"), "--json"]]
    assert err.startswith(f"tunelab: {why}; it is started again: tunelab resume ")


def test_three_deaths_without_progress_are_enough(start: Start, tmp_path: Path) -> None:
    process = start("act = lambda number: die()")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert len(calls(tmp_path)) == ATTEMPTS
    assert err.splitlines()[-1].endswith(f"without progress; `tunelab resume {tmp_path / 'study'}` goes on")


def test_a_cluster_that_stays_unfit_is_tried_again_as_often(start: Start, tmp_path: Path) -> None:
    process = start("act = lambda number: supervision.tell(again='the cluster was not fit') or 2")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert len(calls(tmp_path)) == ATTEMPTS
    assert err.splitlines()[-1].startswith("tunelab: the cluster was not fit, 3 times in a row without progress; ")


def test_a_cluster_that_is_unfit_from_the_start_is_told_at_once(start: Start, tmp_path: Path) -> None:
    tells = "def tells(**facts):\n    if 'study' not in facts:\n        told(**facts)\n"
    act = f"told = supervision.tell\n{tells}supervision.tell = tells\n"
    process = start(f"{act}act = lambda number: told(again='the cluster was not fit') or 2")
    process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(calls(tmp_path)) == 1


def test_progress_gives_new_attempts(start: Start, tmp_path: Path) -> None:
    process = start("def act(number):\n    if number == 6:\n        return 0\n    progress()\n    die()\n")
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert len(calls(tmp_path)) == 6


def test_what_is_left_of_the_deadline_goes_along(start: Start, tmp_path: Path) -> None:
    process = start("act = lambda number: die() if number == 1 else 0", deadline="1h")
    process.communicate(timeout=300)
    (resumed,) = calls(tmp_path)[1:]
    assert resumed[-2] == "--deadline"
    assert 3500 <= int(resumed[-1].removesuffix("s")) < 3600


def test_after_the_deadline_nothing_is_started(start: Start, tmp_path: Path) -> None:
    process = start("act = lambda number: time.sleep(1.1) or die()", deadline="1s")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "the deadline has passed" in err
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_ends_it(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """To the whole group, as a terminal does it."""
    process = start("act = lambda number: wait(130)")
    end = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "")
    assert (tmp_path / "signals").read_text().split() == [str(int(number))]
    assert len(calls(tmp_path)) == 1


def test_what_gives_no_sign_of_life_is_ended(start: Start, tmp_path: Path) -> None:
    act = """
    def act(number):
        if number == 1:
            with liveness.SignsOfLife(study).given():
                time.sleep(1000)
        return 0
    """
    process = start(act, **{LIMITS_VARIABLE: '{"driver": 1.5}'})
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert err.startswith("tunelab: the search gave no sign of life for 2 s and was ended; it is started again")
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize(("address", "told"), [("127.0.0.1:1", b'{"again": "the cluster was not fit"}\n'), ("no", b"")])
def test_a_command_tells_that_a_cluster_is_not_fit_but_not_of_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch, address: str, told: bytes
) -> None:
    read, write = os.pipe()
    monkeypatch.setenv(VARIABLE, f"{write}:{os.getpid()}")
    assert run(["doctor", "--address", address]) == 2
    os.close(write)
    assert os.read(read, 100) == told
    os.close(read)


def test_nobody_is_told_of_a_process_that_is_not_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by a process that has inherited the variable."""
    assert not is_supervised()
    read, write = os.pipe()
    monkeypatch.setenv(VARIABLE, f"{write}:{os.getppid()}")
    tell(left=0)
    os.close(write)
    assert os.read(read, 100) == b""
    os.close(read)
