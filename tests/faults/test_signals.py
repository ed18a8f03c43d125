"""Signals stop a search within 15 seconds, wherever it stands, and nothing of it is left."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SOON = 15.0


def stop(fault: Fault, number: signal.Signals, *, group: bool = False) -> str:
    """Sends the signal and waits for the end; the last line that the command said."""
    fault.signal(number, group=group)
    sent = time.monotonic()
    _, err = fault.end(130 if number is signal.SIGINT else 3, 60)
    assert time.monotonic() - sent < SOON + 5, "5 s for a machine that does other things too"
    return err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_the_machine_is_measured(fault: Fault, number: signal.Signals) -> None:
    """Rows 5 and 6: nothing has been made yet."""
    fault.search(quick=False)
    fault.wait_until(lambda: len(fault.machine.processes("tunelab.training.probe")) == 2)
    said = stop(fault, number)
    assert said == ("tunelab: interrupted" if number is signal.SIGINT else f"tunelab: stopped ({number.name})")
    assert not fault.study.exists()
    fault.check_nothing_is_left()


def test_while_ray_starts_and_while_an_epoch_takes_minutes(fault: Fault) -> None:
    """Rows 5 and 6: no result can come, and Python answers nothing in a worker; the search can be resumed."""
    fault.search(trials=3, epochs=3)
    fault.wait_until(lambda: fault.machine.processes("/gcs_server"))
    assert stop(fault, signal.SIGHUP, group=True).startswith("tunelab: stopped before the end (SIGHUP): 3 trials are ")

    fault.order({"do": "hold", "epoch": 2})
    fault.resume()
    fault.wait_until(lambda: len(fault.trained("hold")) == 2)
    said = stop(fault, signal.SIGTERM)
    assert said.startswith("tunelab: stopped before the end (SIGTERM): ")
    assert said.endswith(f"`tunelab resume {fault.study}` goes on")
    fault.kills += 1

    fault.order({"do": "stop", "epoch": 2})
    fault.resume()
    fault.wait_until(lambda: len(fault.trained("stop")) == 2)
    assert stop(fault, signal.SIGINT, group=True).startswith("tunelab: stopped before the end (SIGINT): ")
    fault.kills += 1

    fault.order()
    fault.resume()
    fault.end(0)
    fault.check_books()
    fault.check_nothing_is_left()


def test_a_second_signal_ends_it_at_once(fault: Fault) -> None:
    fault.order({"do": "hold", "epoch": 2})
    fault.search(trials=2, epochs=3)
    fault.wait_until(lambda: len(fault.trained("hold")) == 2)
    fault.signal(signal.SIGINT, group=True)
    time.sleep(0.3)
    fault.signal(signal.SIGTERM)
    assert fault.command is not None
    fault.command.wait(4)  # less than the calls that hold take, and than those take that Ray's end would wait for
    fault.end(-signal.SIGTERM, 60)
    fault.kills += 1
