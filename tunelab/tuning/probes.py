"""Processes that measure: `tunelab.training.probe`, as many at once as trials will run, timed together.

None of them outlives the driver: each ends with its standard input, and leaving the context kills them.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

COMMAND = (sys.executable, "-m", "tunelab.training.probe")
PATIENCE = 120.0  # seconds for one answer: a slow disk, a large data set, a machine under load; our choice


class ProbeError(Exception):
    """A measurement failed; the message says why, in one line."""


class TooSlowError(ProbeError):
    """An answer did not come in time."""


class Probes:
    """Up to `count` processes. Use it as a context; they start when it is entered and are gone when it is left.

    Args:
        count: how many can be asked at once.
        command: what is run, for tests.
    """

    def __init__(self, count: int, command: Sequence[str] = COMMAND) -> None:
        self._count = count
        self._command = command
        self._processes: list[_Process] = []

    def __enter__(self) -> Probes:
        try:
            while len(self._processes) < self._count:
                self._processes.append(_Process(self._command))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.close()
        self._processes = []

    def wait(self) -> float:
        """Waits until all have started; seconds that the slowest took.

        Raises:
            ProbeError: one does not start.
        """
        return max(process.begun() for process in self._processes)

    def build(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Builds one trial in each of the first processes, and waits until all can be timed.

        Raises:
            ProbeError: one failed or died, the cause is named; all that were asked are started anew.
        """
        self._ask(requests, "ready")

    def measure(
        self, count: int, threads: int, seconds: float, patience: float = PATIENCE, *, full_validation: bool = False
    ) -> list[dict[str, Any]]:
        """Times the trials of the first `count` processes, all at the same time; what each found.

        Args:
            count: how many.
            threads: of each.
            seconds: how long each is to train.
            patience: so many seconds later there must be an answer.
            full_validation: each is to validate as many images at once as a training does.

        Raises:
            ProbeError: as for `build`.
        """
        request = {"go": True, "threads": threads, "seconds": seconds, "full_validation": full_validation}
        return self._ask([request] * count, "measured", patience)

    def _ask(self, requests: Sequence[Mapping[str, Any]], kind: str, patience: float = PATIENCE) -> list[Any]:
        asked = list(zip(self._processes, requests, strict=False))
        try:
            for process, _ in asked:
                process.begun()
            for process, request in asked:
                process.say(request)
            return [process.expect(kind, patience) for process, _ in asked]
        except ProbeError:
            self._start_anew(len(asked))  # those that did not fail are in the middle of something
            raise

    def _start_anew(self, count: int) -> None:
        for index in range(count):
            self._processes[index].kill()
            self._processes[index].close()
            self._processes[index] = _Process(self._command)


class _Process:
    """One process, its answers read by a thread so that waiting for one has an end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._started = time.monotonic()
        self._first_word = 0.0
        self._begun = False
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        # In a session of its own: Ctrl-C is for the driver, which ends it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begun(self) -> float:
        """Waits until it has started; how many seconds it took."""
        if not self._begun:
            self.expect("hello")
            self._begun = True
        return self._first_word - self._started

    def say(self, content: Mapping[str, Any]) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(content) + "\n")
            stream.flush()
        except OSError:
            raise ProbeError(self._epitaph()) from None

    def expect(self, kind: str, patience: float = PATIENCE) -> Any:
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            raise TooSlowError(f"no answer within {patience:.0f} s") from None
        if line is None:
            raise ProbeError(self._epitaph())
        answer = json.loads(line)
        if kind not in answer:
            raise ProbeError(str(answer.get("error", line)))
        return answer[kind]

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not yet written to a process that is gone
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._first_word = self._first_word or time.monotonic()
            self._answers.put(line)
        self._answers.put(None)

    def _epitaph(self) -> str:
        """Why it is gone."""
        status = self._process.wait()
        if status < 0:
            return f"the process was killed by signal {-status}" + (": out of memory?" if status == -9 else "")
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with status {status}: {lines[-1] if lines else 'no word'}"
