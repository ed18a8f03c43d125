"""Processes of a search are killed: its driver, its workers, Ray's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_killed_driver_loses_nothing(fault: Fault) -> None:
    """Row 1: at several moments, of which the first two are before any trial has ended."""
    fault.order({"do": "sleep", "seconds": 0.2})
    fault.search(trials=4, epochs=4)
    fault.wait_until(lambda: fault.results() >= 1)
    fault.kill()
    for more in (2, 5):
        before = fault.results()
        fault.resume()
        fault.wait_until(lambda before=before, more=more: fault.results() >= before + more)  # type: ignore[misc]
        fault.kill()
    fault.resume()
    out, _ = fault.end(0)
    assert "4 of 4 trials begun" in out
    fault.check_books()
    fault.check_nothing_is_left()
