"""Trials that hang, and a Ray that is gone, in searches on a real Ray."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tunelab.journal import is_locked
from tunelab.records import TrialStatus
from tunelab.tuning.watchdog import LIMITS_VARIABLE, STACKS

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def limits(**seconds: float) -> dict[str, str]:
    """The environment in which these limits hold in place of the usual ones."""
    return {LIMITS_VARIABLE: json.dumps({"look": 0.2, "pause": 12.0, **seconds})}


def test_trials_that_hang_are_ended_and_retried_once(fault: Fault) -> None:
    """One sleeps, one computes for ever each time, one is stopped, one is in a long call of C."""
    fault.order(
        {"do": "sleep", "seconds": 10_000, "trial": 0, "epoch": 2, "times": 1},
        {"do": "busy", "trial": 1, "epoch": 3},
        {"do": "stop", "trial": 2, "epoch": 1, "times": 1},
        {"do": "multiply", "size": 40_000, "trial": 3, "epoch": 2, "times": 1},
    )
    fault.search(**limits())
    fault.end(0, 300)
    trials = fault.trials()
    assert [trial.status for trial in trials] == [
        TrialStatus.COMPLETED,
        TrialStatus.FAILED,
        *[TrialStatus.COMPLETED] * 2,
    ]
    assert [[retry["cause"] for retry in trial.retries] for trial in trials] == [["hung"]] * 4
    assert [trial.retries[0]["epoch"] for trial in trials] == [1, 2, 0, 1]
    for trial in trials:
        why, stacks = trial.retries[0]["why"], fault.study / "trials" / f"{trial.number:04d}" / STACKS
        assert "no sign of life for 1" in why
        assert "(limit 12 s) in " in why
        assert stacks.exists() == (trial.number != 2)
        assert ("was stopped from outside" if trial.number == 2 else f"see trials/{trial.number:04d}/{STACKS}") in why
    assert "in _busy" in (fault.study / "trials" / "0001" / STACKS).read_text()
    assert "in _multiply" in (fault.study / "trials" / "0003" / STACKS).read_text()
    assert trials[1].reason.startswith("ended by the watchdog 2 times: no sign of life")
    fault.check_nothing_is_left()


def test_a_trial_that_takes_too_long_is_ended(fault: Fault) -> None:
    """Steps go on, but it never ends: twice it takes longer than it may."""
    fault.order({"do": "sleep", "seconds": 8, "trial": 0})
    fault.search("--trial-timeout", "15s", trials=2, epochs=6, **limits(pause=300.0))
    fault.end(0, 200)
    slow, quick = fault.trials()
    assert slow.status is TrialStatus.FAILED
    assert "longer than --trial-timeout allows (15 s)" in slow.reason
    assert quick.status is TrialStatus.COMPLETED
    fault.check_nothing_is_left()


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_without_its_head_the_search_pauses(fault: Fault, name: str) -> None:
    """Nobody is retried for it, one line says how to go on, and that works."""
    fault.order({"do": "sleep", "seconds": 0.3})
    fault.search(trials=3, epochs=6, concurrent=1, **limits(pause=300.0))
    fault.wait_until(lambda: fault.results() >= 3)
    (head,) = [process for process in fault.machine.processes(f"/{name}") if process.name() == name]
    os.kill(head.pid, signal.SIGKILL)
    _, err = fault.end(3, 120)
    last = err.strip().splitlines()[-1]
    assert f"Ray's process {name} is gone" in last
    assert f"`tunelab resume {fault.study}`" in last
    assert [retry for trial in fault.trials() for retry in trial.retries] == []
    fault.kills += 1
    fault.order()
    fault.resume()
    fault.end(0)
    assert all(trial.status is TrialStatus.COMPLETED for trial in fault.check_books())
    fault.check_nothing_is_left()


def test_a_supervised_search_is_started_again_when_it_hangs_and_when_it_dies(fault: Fault) -> None:
    fault.order({"do": "sleep", "seconds": 0.3})
    fault.search("--supervise", trials=4, epochs=6, concurrent=1, **limits(driver=25.0, pause=300.0))
    drivers: set[int] = set()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        fault.wait_until(lambda: is_locked(fault.study) and driver(fault) not in {0, *drivers}, 300)
        known = fault.results()
        fault.wait_until(lambda known=known: fault.results() >= known + 2, 300)
        drivers.add(driver(fault))
        os.kill(driver(fault), number)
        fault.kills += 1
    _, err = fault.end(0, 300)
    assert "gave no sign of life for 25 s and was ended; it is started again: tunelab resume" in err
    assert "was ended by SIGKILL; it is started again: tunelab resume" in err
    assert all(trial.status is TrialStatus.COMPLETED for trial in fault.check_books())


def driver(fault: Fault) -> int:
    """The process that writes the study; 0 while it has not put its number down."""
    words = (fault.study / "lock").read_text().split()
    return int(words[1]) if words else 0


def test_a_ray_that_does_not_answer_is_noticed(fault: Fault) -> None:
    """Its two head processes live, and do nothing."""
    fault.order({"do": "sleep", "seconds": 0.3})
    fault.search(trials=3, epochs=6, concurrent=1, **limits(ray=4.0, end=4.0, pause=300.0))
    fault.wait_until(lambda: fault.results() >= 2)
    for process in (fault.machine.gcs(), fault.machine.raylet()):
        process.suspend()
    _, err = fault.end(3, 120)
    assert "Ray has not answered for" in err.strip().splitlines()[-1]
    fault.kills += 1
    fault.order()
    fault.resume()
    fault.end(0)
    fault.check_books()
