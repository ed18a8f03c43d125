"""Processes of a search are killed: its driver, its workers, Ray's own. Nothing that has ended is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunelab.records import TrialStatus

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_driver_loses_nothing(fault: Fault) -> None:
    """Row 1: first before any trial has ended, then twice later, once while its workers cannot hear of it."""
    fault.order({"do": "sleep", "seconds": 0.2})
    fault.search(trials=4, epochs=4)
    fault.wait_until(lambda: fault.results() >= 1)
    fault.kill()
    fault.order({"do": "stop", "trial": 0, "epoch": 4}, {"do": "hold", "trial": 1, "epoch": 4})
    fault.resume()
    fault.wait_until(lambda: fault.trained("stop") and fault.trained("hold"))
    fault.kill()
    fault.check_nothing_is_left()
    fault.order()
    fault.resume()
    out, _ = fault.end(0)
    assert "4 of 4 trials begun" in out
    fault.check_books()
    fault.check_nothing_is_left()


def test_what_ends_one_trial_ends_no_other(fault: Fault) -> None:
    """Rows 7 to 10: one that is killed once, one whose every process is, one that raises, two that cannot work.

    One is killed when its checkpoint is on the disk: no epoch of it is trained again. The other may be killed while its
    checkpoint is being written, in each of the two tries that another follows.
    """
    fault.order(
        {"do": "kill", "trial": 1, "epoch": 3, "times": 1, "saved": True},
        {"do": "kill", "trial": 2, "epoch": 2},
        {"do": "raise", "trial": 3, "epoch": 2},
    )
    fault.search(trials=7, epochs=4, kinds=("good", "good", "good", "raises", "diverges"))
    fault.end(0)
    trials = fault.check_books(retrained=2)
    assert [epoch for epoch, times in fault.trained().items() if times > 1] in ([], [(2, 1)])
    good, lost = [trials[number] for number in (0, 1, 6)], trials[2]
    assert {trial.status for trial in good} == {TrialStatus.COMPLETED}
    assert fault.trained("begin")[1, 3] == 2, "it went on from its checkpoint"
    assert (lost.status, len(lost.epochs)) == (TrialStatus.FAILED, 1)
    assert fault.trained("kill") == {(1, 3): 1, (2, 2): 3}, "two retries"
    assert (trials[3].status, len(trials[3].epochs)) == (TrialStatus.FAILED, 1)
    assert trials[3].reason == "ValueError: provoked"
    assert fault.trained("raise") == {(3, 2): 1}, "an error comes again: no retry"
    assert trials[4].status is TrialStatus.FAILED
    assert trials[4].reason.startswith("InputError: optimizer 'nothing' is unknown")
    assert trials[5].status is TrialStatus.DIVERGED
    assert trials[5].reason.startswith("epoch 1: the training loss became")
    fault.check_nothing_is_left()


def test_trials_that_all_fail_end_the_search_with_their_cause(fault: Fault) -> None:
    """Row 11: five, and not the whole night; the record is whole, and the search can go on when it is mended."""
    fault.order({"do": "raise"})
    fault.search(trials=9, epochs=2, concurrent=1)
    _, err = fault.end(1)
    last = err.splitlines()[-1]
    assert last.startswith("tunelab: 5 trials in a row failed with: ValueError: provoked; `tunelab show ")
    assert last.endswith(f"`tunelab resume {fault.study}` goes on")
    assert len(fault.events("ended")) == 5
    assert {trial.status for trial in fault.trials() if trial.status.ended} == {TrialStatus.FAILED}
    fault.order()
    fault.resume()
    fault.end(0)
    fault.check_books()
    fault.check_nothing_is_left()
