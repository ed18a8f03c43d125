"""A process of its own for a row of checks: `python -m tunelab.doctor.child`.

It reads one line of JSON, what is asked and the names of checks, and answers a line per check as soon as it is done. It
ends with its standard input, so that it does not outlive who started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from tunelab.doctor.checks import CHECKS, Asked, Check
from tunelab.doctor.findings import error


def main() -> None:
    """Answers what standard input asks for; everything that libraries print goes nowhere."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        asked = Asked.from_json(request["asked"])
        for name in request["names"]:
            found = [{**one, "group": CHECKS[name].group} for one in run(name, CHECKS[name], asked)]
            answers.write(json.dumps({"check": name, "findings": found}) + "\n")
            answers.flush()
    os._exit(0)  # the libraries have nothing to tidy up, and some take a second for it


def run(name: str, check: Check, asked: Asked) -> list[dict[str, Any]]:
    """What a check finds; one that fails is a finding too."""
    try:
        found = check.look(asked)
    except Exception as wrong:  # whatever a broken machine brings
        lines = str(wrong).strip().splitlines()
        said = f"the check failed: {type(wrong).__name__}: {lines[0] if lines else ''}"
        found = [error(name, said[:300], "mend what it says; if it says nothing, report it as a bug of tunelab")]
    return [one.to_json() for one in found]


def _end_with_input() -> None:
    sys.stdin.read()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
