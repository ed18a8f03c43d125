from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from tunelab.config import DataConfig, from_json, to_json
from tunelab.errors import InputError
from tunelab.tuning.options import LIMITS, SearchOptions, fill_in, seconds_until, timeout_of

NOON = datetime.datetime(2026, 11, 21, 12, 0, 0, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [
        ("8h", 8 * 3600),
        ("90m", 5400),
        ("45s", 45),
        ("1.5h", 5400),
        ("0.5 s", 0.5),
        (" 2m ", 120),
        ("12:30", 1800),
        ("13:00:30", 3630),
        ("11:59", 24 * 3600 - 60),
        ("12:00", 24 * 3600),
        ("07:30", 19.5 * 3600),
        ("00:00", 12 * 3600),
    ],
)
def test_a_deadline_is_a_length_or_a_time_of_day(deadline: str, seconds: float) -> None:
    assert seconds_until(deadline, NOON) == seconds


@pytest.mark.parametrize(
    "deadline", ["", "8", "tomorrow", "0h", "0.0m", "-1h", "8d", "25:00", "7:3", "1e3h", "inf", "h"]
)
def test_anything_else_is_refused(deadline: str) -> None:
    with pytest.raises(InputError, match="neither a length such as 8h, 90m or 45s nor a time of day") as refused:
        seconds_until(deadline, NOON)
    assert repr(deadline) in str(refused.value)


@pytest.mark.parametrize(("night", "hours"), [((2027, 3, 27), 8.5), ((2027, 10, 30), 10.5), ((2027, 6, 1), 9.5)])
def test_the_clock_may_be_put_forward_or_back_at_night(
    monkeypatch: pytest.MonkeyPatch, night: tuple[int, int, int], hours: float
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert seconds_until("07:30", datetime.datetime(*night, 22, 0)) == hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_time_of_another_zone_is_refused() -> None:
    """It would be taken for a time of this one."""
    with pytest.raises(InputError, match="07:30"):
        seconds_until("07:30+05:00", NOON)


def test_options_come_back_from_the_study() -> None:
    options = SearchOptions(trials=3, data=DataConfig(name="mnist", image_size=20), max_mflops=2.5, sampler="random")
    assert from_json(SearchOptions, to_json(options)) == options
    assert from_json(SearchOptions, {}) == SearchOptions()


ASKED: dict[str, Any] = {"trials": None, "scheduler": None, "race": None, "repeat": 1}


@pytest.mark.parametrize(("memory", "size"), [("8GiB", 2**33), ("500MB", 500_000_000), (12345, 12345), (None, None)])
def test_memory_is_kept_in_bytes(memory: Any, size: int | None) -> None:
    values, _ = fill_in({**ASKED, "memory": memory}, None)
    options = from_json(SearchOptions, values)
    assert options.memory == size
    assert from_json(SearchOptions, to_json(options)) == options


def test_an_older_study_has_no_bound_on_memory() -> None:
    plain = to_json(SearchOptions())
    del plain["memory"]
    assert from_json(SearchOptions, plain).memory is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 0},
        {"trials": 0},
        {"trials": 1_000_001},
        {"epochs": 0},
        {"seed": -1},
        {"concurrent": 0},
        {"cpus_per_trial": 0},
        {"gpus_per_trial": 0},
        {"device": "tpu"},
        {"sampler": "grid"},
        {"scheduler": "hyperband"},
        {"max_params": 0},
        {"max_mflops": 0},
        {"max_mflops": float("inf")},
        {"telemetry": "everything"},
        {"data": {"image_size": 3}},
        {"trails": 3},
    ],
)
def test_wrong_options_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"SearchOptions: {next(iter(wrong))}"):
        from_json(SearchOptions, wrong)


def test_there_are_limits_for_every_device() -> None:
    assert set(LIMITS) == {"cpu", "cuda"}
    assert LIMITS["cpu"] < LIMITS["cuda"]


@pytest.mark.parametrize(
    ("given", "seconds"), [("2h", 7200.0), (" 1.5 m ", 90.0), ("45s", 45.0), (30, 30), (None, None)]
)
def test_a_timeout_is_a_length(given: str | float | None, seconds: float | None) -> None:
    assert timeout_of(given) == seconds


@pytest.mark.parametrize(
    "given", ["07:30", "0h", "-1h", "2", "h", "", "nan h", "1e3s", 0, -1.0, float("inf"), float("nan")]
)
def test_any_other_timeout_is_refused(given: str | float) -> None:
    with pytest.raises(InputError, match=r"trial.timeout"):
        timeout_of(given)
