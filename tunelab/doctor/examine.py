"""Runs the checks, each row of them in a process that is given up when one takes too long; nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from tunelab.doctor import traces
from tunelab.doctor.checks import CHECKS, Asked, Check
from tunelab.doctor.findings import MachineFinding, error, warning, worst_first

COMMAND = (sys.executable, "-m", "tunelab.doctor.child")
_START = 10.0  # seconds that a process may take to start, beside the limit of its first check (our choice)
_MARK = "TUNELAB_DOCTOR"  # a variable that every process of an examination inherits, by which it is found
_TOO_LATE = "no answer within"
_GOODBYE = 3.0  # seconds that the last processes of a Ray which was stopped may take to end (our choice)


def examine(asked: Asked, names: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> list[MachineFinding]:
    """What the checks find on this machine, worst first; nothing is printed, and no process or file stays.

    A check that raises, dies or takes longer than its limit is a finding, and the others go on. The last of these
    is an error, but a warning where other programs take the processors.

    Args:
        asked: what is looked at; `scratch` is filled in here.
        names: of checks; by default all, "data" only if there is some.
        command: what is run, for tests.
    """
    names = [name for name in names or CHECKS if name != "data" or asked.data]
    mark = secrets.token_hex(8)
    found: list[MachineFinding] = []
    with traces.leaving_no_folders(*traces.cache_folders(os.environ)), _scratch() as folder:
        examination = _Examination(dataclasses.replace(asked, scratch=folder), mark, command)
        try:
            for lanes in _lanes(names):
                with ThreadPoolExecutor(len(lanes)) as pool:
                    try:
                        for some in pool.map(examination.look, lanes):
                            found += some
                    except BaseException:
                        examination.stopped.set()
                        raise
        finally:
            left = remove_marked(mark)
    if left:
        said = f"{', '.join(left)} did not end by themselves within {_GOODBYE:.0f} s and were killed"
        mend = "run tunelab doctor again; searches may leave some, too"
        found.append(dataclasses.replace(warning("end of the checks", said, mend), group="leftovers"))
    return worst_first(_excused(found))


def _excused(findings: Sequence[MachineFinding]) -> list[MachineFinding]:
    """The findings; what came too late is a warning where other programs take the processors."""
    if not any(one.name == "load" and one.verdict == "warning" for one in findings):
        return list(findings)
    return [
        dataclasses.replace(one, verdict="warning") if one.measured.startswith(_TOO_LATE) else one for one in findings
    ]


def _lanes(names: Sequence[str]) -> list[list[list[str]]]:
    """What runs one after another, of each what runs beside each other, of each the checks in their order."""
    lanes: dict[str, list[str]] = {}
    for name in names:
        lanes.setdefault(CHECKS[name].lane, []).append(name)
    first = lanes.pop("first", None)
    return [step for step in ([first] if first else [], list(lanes.values())) if step]


class _Examination:
    """One run of the checks. `stopped` ends what is under way."""

    def __init__(self, asked: Asked, mark: str, command: Sequence[str]) -> None:
        self.stopped = threading.Event()
        self._asked, self._mark, self._command = asked, mark, command

    def look(self, names: Sequence[str]) -> list[MachineFinding]:
        """What these checks find, one after another; one that must be given up does not stop those after it."""
        found: list[MachineFinding] = []
        left = list(names)
        while left and not self.stopped.is_set():
            child = _Child(self._command, self._asked, left, self._mark)
            try:
                found += self._listen(child, left)
            finally:
                child.end()
        return found

    def _listen(self, child: _Child, left: list[str]) -> list[MachineFinding]:
        """What a process answers; takes the checks out of `left` that it answered, and the one that it failed at."""
        found: list[MachineFinding] = []
        starting = _START
        while left:
            name = left[0]
            line = child.answer(CHECKS[name].limit + starting, self.stopped)
            left.pop(0)
            if line is None:
                return [*found, child.given_up(name, CHECKS[name])]
            found += [MachineFinding.from_json(one) for one in json.loads(line)["findings"]]
            starting = 0.0
        return found


class _Child:
    """A process of a session of its own that runs some checks."""

    def __init__(self, command: Sequence[str], asked: Asked, names: Sequence[str], mark: str) -> None:
        self._rest = b""
        self._complaints = tempfile.TemporaryFile(dir=asked.scratch) if asked.scratch else None  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints or subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, _MARK: mark},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died at once, which is seen when it does not answer
            self._process.stdin.write(json.dumps({"asked": asked.to_json(), "names": names}).encode() + b"\n")

    def answer(self, patience: float, stopped: threading.Event) -> bytes | None:
        """The next line, None if none comes in time."""
        assert self._process.stdout is not None
        until = time.monotonic() + patience
        while b"\n" not in self._rest:
            if stopped.is_set() or time.monotonic() > until:
                return None
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                some = os.read(self._process.stdout.fileno(), 65536)
                if not some:
                    return None
                self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def given_up(self, name: str, check: Check) -> MachineFinding:
        """A finding in place of an answer: the process died, or took too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        code = self._process.returncode
        if code is None:
            mend = "run it again when the machine has less to do; if it stays so, look at the disk (dmesg), the driver"
            finding = error(name, f"{_TOO_LATE} {check.limit:.0f} s", mend)
        else:
            how = f"signal {-code}" if code < 0 else f"status {code}"
            said = f"the check's process died with {how}{self._last_words()}"
            finding = error(name, said, "see dmesg for what was killed; reinstall what the last line names")
        return dataclasses.replace(finding, group=check.group)

    def _last_words(self) -> str:
        if self._complaints is None:
            return ""
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""

    def end(self) -> None:
        """Ends the process and all that it started; one that not even SIGKILL ends is not waited for."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self._process.pid).children(recursive=True)
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def remove_marked(mark: str, patience: float = _GOODBYE) -> list[str]:
    """Waits for the processes of an examination to end, kills the rest and names it."""
    until = time.monotonic() + patience
    while True:
        left = [process for process in psutil.process_iter() if _is_marked(process, mark)]
        if not left or time.monotonic() > until:
            break
        time.sleep(0.1)
    names = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.name()} {process.pid}")
            process.kill()
    psutil.wait_procs(left, timeout=1.0)
    return names


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and bool(process.environ().get(_MARK) == mark)
    except (psutil.Error, OSError):
        return False  # gone, or of another user


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder of this user's alone with a short path, "" where none can be made; removed afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            from tunelab.tuning.ray_home import claimed_folder  # here, so that a broken package is a finding

            folder = str(stack.enter_context(claimed_folder()))
        except (OSError, ImportError):  # FileNotFoundError among them: no temporary folder can be written
            folder = ""
        yield folder
