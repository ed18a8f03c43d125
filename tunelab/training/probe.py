"""Measures in a process of its own: `python -m tunelab.training.probe`.

A driver starts several of these, so that trials can be timed at once, and talks to each as `tunelab.training.rehearsal`
tells, which says hello when everything is imported, and measures when the driver tells all of them to.

The process ends when its standard input does, at once and wherever it stands, so that it never outlives its driver:
torch, which takes many seconds on a busy machine, is imported only when that is being watched.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TextIO


def _lines(stream: TextIO) -> Iterator[Mapping[str, Any]]:
    """The lines of `stream` as they come; from now on the process ends with it, wherever it stands."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return (json.loads(line) for line in iter(waiting.get, None))


def main() -> None:
    """Serves standard input; whatever else is written to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = _lines(sys.stdin)
    from tunelab.training import rehearsal

    rehearsal.prepare()
    rehearsal.serve(requests, answers)


if __name__ == "__main__":
    main()
