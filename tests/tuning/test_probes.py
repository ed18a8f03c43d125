from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tunelab.tuning import probes as module
from tunelab.tuning.probes import ProbeError, Probes

# Answers as `tunelab.training.probe` does, at once; `do` in a configuration makes it misbehave.
FAKE = """
import json, os, sys, time
say = lambda content: print(json.dumps(content), flush=True)
say({"hello": True})
do = ""
for line in sys.stdin:
    asked = json.loads(line)
    if "go" in asked:
        if do == "slow":
            time.sleep(60)
        say({"measured": {"pid": os.getpid(), "at": time.monotonic(), "threads": asked["threads"]}})
        continue
    do = asked.get("do", "")
    if do == "die":
        sys.exit("no room")
    if do == "killed":
        os.kill(os.getpid(), 9)
    say({"error": "ValueError: it cannot"} if do == "fail" else {"ready": True})
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    file = tmp_path / "fake_probe.py"
    file.write_text(FAKE)
    return [sys.executable, str(file)]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "fake_probe.py" in " ".join(child.cmdline())]


def test_processes_measure_together_and_are_gone_afterwards(command: list[str]) -> None:
    with Probes(3, command) as probes:
        assert 0 < probes.wait() < 60
        assert len(children()) == 3
        probes.build([{}] * 3)
        found = probes.measure(3, 2, 0.1)
        assert len({one["pid"] for one in found}) == 3
        assert {one["threads"] for one in found} == {2}
        assert len(probes.measure(1, 1, 0.1)) == 1
    assert children() == []


def test_they_do_not_hear_of_ctrl_c(command: list[str]) -> None:
    with Probes(1, command) as probes:
        probes.wait()
        assert os.getpgid(children()[0].pid) != os.getpgid(0)


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("die", "the process ended with status 1: no room"),
        ("killed", "the process was killed by signal 9: out of memory?"),
        ("fail", "ValueError: it cannot"),
    ],
)
def test_a_failure_names_its_cause_and_the_next_question_works(command: list[str], do: str, said: str) -> None:
    with Probes(2, command) as probes:
        with pytest.raises(ProbeError) as failed:
            probes.build([{}, {"do": do}])
        assert str(failed.value) == said
        probes.build([{}, {}])
        assert len(probes.measure(2, 1, 0.1)) == 2
    assert children() == []


def test_one_that_does_not_answer_is_given_up(command: list[str]) -> None:
    with Probes(2, command) as probes:
        probes.build([{}, {"do": "slow"}])
        begun = time.monotonic()
        with pytest.raises(ProbeError, match="no answer within 1 s"):
            probes.measure(2, 1, 0.1, patience=1.0)
        assert time.monotonic() - begun < 30
        probes.build([{}, {}])
    assert children() == []


def test_one_that_does_not_start_says_why() -> None:
    with (
        Probes(1, [sys.executable, "-c", "import nothing_of_that_name"]) as probes,
        pytest.raises(ProbeError, match="status 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ):
        probes.wait()


def test_one_that_cannot_be_started_leaves_none_behind(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = module._Process, []

    def start(given: list[str]) -> module._Process:
        if len(started) == 2:
            raise OSError(11, "no more processes")
        started.append(real(given))
        return started[-1]

    monkeypatch.setattr(module, "_Process", start)
    with pytest.raises(OSError, match="no more processes"), Probes(3, command):
        pass
    assert len(started) == 2
    assert children() == []


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_is_stopped_leaves_none_behind(command: list[str], signal_: signal.Signals) -> None:
    """Real processes, which end with their input; the driver is stopped while they start."""
    code = (
        "import time; from tunelab.tuning.probes import Probes\nwith Probes(2): print('up', flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    with driver.stdout:
        assert driver.stdout.readline() == "up\n"
        mine = psutil.Process(driver.pid).children(recursive=True)
        assert len(mine) == 2
        driver.send_signal(signal_)
        driver.wait(timeout=20)
    psutil.wait_procs(mine, timeout=20)
    assert [process for process in mine if process.is_running()] == []
