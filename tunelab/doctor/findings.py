"""What a check found: measured values with a verdict and the mend, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "error"]
VERDICTS: tuple[Verdict, ...] = ("error", "warning", "ok")
"""Worst first: a search would not run; it runs, but worse than it could; nothing to mend."""


@dataclass(frozen=True)
class MachineFinding:
    """One thing that was looked at: what was measured, how that is judged, and how it is mended ("" where it is ok).

    `group` is what the check is about, such as "memory"; `examine` fills it in.
    """

    name: str
    measured: str
    verdict: Verdict = "ok"
    mend: str = ""
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> MachineFinding:
        """What `to_json` gave."""
        return cls(**plain)


def ok(name: str, measured: str) -> MachineFinding:
    """Nothing to mend."""
    return MachineFinding(name, measured)


def warning(name: str, measured: str, mend: str) -> MachineFinding:
    """A search runs, but slower than it could, or with a risk."""
    return MachineFinding(name, measured, "warning", mend)


def error(name: str, measured: str, mend: str) -> MachineFinding:
    """A search would not run."""
    return MachineFinding(name, measured, "error", mend)


def worst_first(findings: Iterable[MachineFinding]) -> list[MachineFinding]:
    """Errors, then warnings, then what is ok; in their order otherwise."""
    return sorted(findings, key=lambda one: VERDICTS.index(one.verdict))


def is_fit(findings: Iterable[MachineFinding]) -> bool:
    """True if a search would run."""
    return all(one.verdict != "error" for one in findings)
