"""What a killed process leaves running, ended by a program beside it; real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tunelab.tuning import survivors

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

CODE = """
import subprocess, sys, time
from pathlib import Path
from tunelab.tuning import survivors

folder = Path(sys.argv[1])
quiet = subprocess.DEVNULL  # nobody waits for the end of their output
sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
with survivors.ended(folder):
    one = subprocess.Popen(sleep, env={"FOLDER": str(folder / "ray")}, start_new_session=True, stdout=quiet)
    other = subprocess.Popen([*sleep, str(folder)], env={}, start_new_session=True, stdout=quiet)
    foreign = subprocess.Popen(sleep, env={"FOLDER": str(folder.parent)}, start_new_session=True, stdout=quiet)
    with (folder / "log").open("w") as log:
        titled = subprocess.Popen(["ray::Agent", *sleep[1:]], executable=sys.executable, env={}, stdout=log)
    print(one.pid, other.pid, foreign.pid, titled.pid, flush=True)
    if sys.argv[2] == "killed":
        time.sleep(1000)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]]]:
    """Runs CODE, and gives it and the four processes that it has started."""
    begun: list[psutil.Process] = []

    def run_code(how: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        (tmp_path / "private").mkdir()
        command = [sys.executable, "-c", CODE, str(tmp_path / "private"), how]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        found = [psutil.Process(int(word)) for word in driver.stdout.readline().split()]
        begun.extend(found)
        return driver, found

    yield run_code
    for process in begun:
        if process.is_running():
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ignored_signals(process: psutil.Process) -> int:
    """As bits, the lowest one that of signal 1."""
    words = Path(f"/proc/{process.pid}/status").read_text().split()
    return int(words[words.index("SigIgn:") + 1], 16)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_nothing_outlives_a_process_that_is_killed(
    run: Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]], tmp_path: Path
) -> None:
    driver, (one, other, foreign, titled) = run("killed")
    (watch,) = (child for child in psutil.Process(driver.pid).children() if survivors.__file__ in child.cmdline())
    wait_until(lambda: bool(ignored_signals(watch) & 1 << signal.SIGTERM - 1))
    watch.terminate()  # it has to outlive what ends the driver
    driver.kill()
    driver.communicate()
    wait_until(lambda: not any(map(lives, (one, other, titled))))
    wait_until(lambda: not lives(watch))
    assert not (tmp_path / "private").exists()
    assert lives(foreign)


def test_who_ends_in_order_has_ended_what_it_started(
    run: Callable[[str], tuple[subprocess.Popen[str], list[psutil.Process]]], tmp_path: Path
) -> None:
    driver, processes = run("in order")
    driver.communicate(timeout=30)
    assert driver.returncode == 0
    assert all(map(lives, processes)), "nobody else decides what is left"
    assert (tmp_path / "private").exists()


def test_what_ends_by_itself_is_waited_for(tmp_path: Path) -> None:
    """A worker may be writing its last checkpoint."""
    folder = tmp_path / "private"
    folder.mkdir()
    code = f"import pathlib, time; time.sleep(1); pathlib.Path({str(tmp_path / 'written')!r}).touch()"
    worker = subprocess.Popen([sys.executable, "-c", code], env={"FOLDER": str(folder)})
    wait_until(lambda: worker.pid in survivors.find(str(folder)))
    survivors.end(str(folder), grace=20.0)
    assert (tmp_path / "written").exists()
    assert worker.wait(5) == 0
    assert os.getpid() not in survivors.find(sys.executable), "not this process, whatever it names"
