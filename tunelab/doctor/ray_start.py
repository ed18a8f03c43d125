"""Ray itself: started with a search's settings, given one task, and stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.errors import TunelabError
from tunelab.tuning.ray_home import rehearse

_PATIENCE = 25.0  # seconds for the first task of a Ray that has started (our choice)
_SLOW = 10.0  # seconds; 3 to 5 are usual (our choice)


def find_ray(
    scratch: str, start: Callable[[Path, Path, float], tuple[float, float]] = rehearse
) -> list[MachineFinding]:
    """Whether Ray starts, works and stops.

    Args:
        scratch: an empty folder for its files, "" if there is none.
        start: as `ray_home.rehearse`.
    """
    if not scratch:
        return [error("Ray", "not started: there is no temporary folder", "export TMPDIR=/a/folder/with/room")]
    folder = Path(scratch)
    log = folder / "ray.log"
    try:
        up, down = start(folder, log, _PATIENCE)
    except TunelabError as wrong:
        mend = "mend the other findings first, and run tunelab doctor again"
        return [error("Ray", f"{wrong}{_last_words(log)}", mend)]
    said = f"started and ran a task in {up:.1f} s, stopped in {down:.1f} s"
    if up > _SLOW:
        return [warning("Ray", said, "see the load and the disk of the temporary folder; put Python on a local disk")]
    return [ok("Ray", said)]


def _last_words(log: Path) -> str:
    """The last line of Ray's that tells of an error, "" if there is none."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if "error" in line.lower()]
    except OSError:
        return ""
    return f" ({re.sub(r'[^ -~]', '', lines[-1])[:200]})" if lines else ""
