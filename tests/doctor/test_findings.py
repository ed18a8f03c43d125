from __future__ import annotations

from tunelab.doctor.findings import MachineFinding, error, is_fit, ok, warning, worst_first

FOUND = [ok("a", "1"), warning("b", "2", "do"), error("c", "3", "do"), warning("d", "4", "do")]


def test_worst_first_in_their_order_otherwise() -> None:
    assert [one.name for one in worst_first(FOUND)] == ["c", "b", "d", "a"]


def test_warnings_are_fit_and_errors_are_not() -> None:
    assert is_fit([])
    assert is_fit(FOUND[:2])
    assert not is_fit(FOUND)


def test_there_and_back() -> None:
    assert [MachineFinding.from_json(one.to_json()) for one in FOUND] == FOUND
