"""The clock: its zone, its date, whether it jumps, and whether the machine sleeps."""

from __future__ import annotations

import ctypes
import datetime
import os
import time
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunelab.doctor.findings import MachineFinding, error, ok, warning

_RELEASED = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)  # no tunelab is older
_DRIFT = 0.05  # seconds that two clocks may differ by after a short wait (our choice)
_SLEPT = 60.0  # seconds that the machine was suspended for since it started (our choice)
_UNSYNCHRONISED = 5  # what adjtimex(2) answers: TIME_ERROR


@dataclass(frozen=True)
class Clocks:
    """The clocks at one moment, in seconds: of the day, steady, and steady with suspended time (None: unknown)."""

    wall: float
    monotonic: float
    boot: float | None


def read_clocks() -> Clocks:
    """The clocks now."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None
    return Clocks(time.time(), time.monotonic(), boot)


def find_zone(environ: Mapping[str, str]) -> list[MachineFinding]:
    """The time zone that a deadline such as 07:30 is read in; a TZ that nobody knows is UTC without a word."""
    now = datetime.datetime.now().astimezone()
    said = f"{now:%Y-%m-%d %H:%M} {now.tzname()} (UTC{now:%z})"
    given = environ.get("TZ", "").lstrip(":")
    if given and not given.startswith("/") and "/" in given:
        try:
            zoneinfo.ZoneInfo(given)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            mend = "export TZ=Europe/Berlin, or install tzdata; a deadline such as 07:30 is in UTC until then"
            return [warning("time zone", f"TZ={given} is not known here: {said}", mend)]
    return [ok("time zone", said)]


def find_clock(before: Clocks, after: Clocks, synchronised: bool | None = None) -> list[MachineFinding]:
    """Whether the clocks go alike and the date can be right.

    Args:
        before: the clocks.
        after: the clocks a moment later.
        synchronised: whether the kernel says that the clock is kept by NTP; None if it does not say.
    """
    date = datetime.datetime.fromtimestamp(after.wall, datetime.timezone.utc)
    drift = (after.wall - before.wall) - (after.monotonic - before.monotonic)
    mend = "timedatectl set-ntp true, or start chronyd"
    if date < _RELEASED:
        return [error("clock", f"it says {date:%Y-%m-%d}, which is past", mend)]
    if abs(drift) > _DRIFT:
        took = after.monotonic - before.monotonic
        said = f"the time of day moved {drift:+.2f} s against the steady clock in {took:.1f} s"
        return [warning("clock", said, f"{mend}; deadlines such as 07:30 move with it")]
    kept = {True: ", kept by NTP", False: ", not kept by NTP", None: ""}[synchronised]
    found = [ok("clock", f"steady{kept}")]
    if after.boot is not None and after.boot - after.monotonic > _SLEPT:
        hours = (after.boot - after.monotonic) / 3600
        said = f"the machine was suspended for {hours:.1f} h since it started; a search stands still meanwhile"
        found.append(warning("sleep", said, "systemd-inhibit --what=sleep:idle tunelab search ..."))
    return found


def is_synchronised(ask: Callable[[], int] | None = None) -> bool | None:
    """Whether the kernel's clock is kept by NTP; None where that cannot be asked."""
    try:
        state = (ask or _adjtimex)()
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _UNSYNCHRONISED


def _adjtimex() -> int:
    if os.uname().sysname != "Linux":
        return -1
    nothing_changed = ctypes.create_string_buffer(512)  # larger than struct timex; `modes` 0 only reads
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(nothing_changed))
