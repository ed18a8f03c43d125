from __future__ import annotations

import datetime

import pytest

from tunelab.doctor.clock import Clocks, find_clock, find_zone, is_synchronised, read_clocks

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc).timestamp()
BEFORE = Clocks(NOW, 50.0, 50.0)


@pytest.mark.parametrize(
    ("after", "verdicts", "said"),
    [
        (Clocks(NOW + 1, 51.0, 51.0), {"clock": "ok"}, "steady"),
        (Clocks(NOW + 1, 51.0, None), {"clock": "ok"}, "steady"),
        (Clocks(NOW + 3601, 51.0, 51.0), {"clock": "warning"}, "moved +3600.00 s"),
        (Clocks(NOW - 1, 51.0, 51.0), {"clock": "warning"}, "moved -2.00 s"),
        (Clocks(0.0, 51.0, 51.0), {"clock": "error"}, "1970-01-01"),
        (Clocks(NOW + 1, 51.0, 51.0 + 7200), {"clock": "ok", "sleep": "warning"}, "steady"),
    ],
)
def test_clocks(after: Clocks, verdicts: dict[str, str], said: str) -> None:
    found = find_clock(BEFORE, after)
    assert {one.name: one.verdict for one in found} == verdicts
    assert said in found[0].measured
    assert all(one.mend for one in found if one.verdict != "ok")


@pytest.mark.parametrize(("answer", "expected"), [(0, True), (5, False), (-1, None)])
def test_what_the_kernel_says_of_ntp(answer: int, expected: bool | None) -> None:
    assert is_synchronised(lambda: answer) is expected
    (found,) = find_clock(BEFORE, Clocks(NOW + 1, 51.0, 51.0), expected)
    assert ("NTP" in found.measured) == (expected is not None)


def test_a_kernel_that_cannot_be_asked() -> None:
    def fail() -> int:
        raise OSError

    assert is_synchronised(fail) is None
    assert is_synchronised() in (True, False, None)


def test_a_zone_that_nobody_knows() -> None:
    (found,) = find_zone({"TZ": "Europe/Nowhere"})
    assert (found.verdict, "TZ=Europe/Nowhere" in found.measured) == ("warning", True)
    assert [one.verdict for one in find_zone({})] == ["ok"]
    assert [one.verdict for one in find_zone({"TZ": "CET-1CEST"})] == ["ok"]


def test_the_clocks_of_this_machine() -> None:
    first = read_clocks()
    assert read_clocks().monotonic >= first.monotonic
