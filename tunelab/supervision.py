"""A small process that starts a search, and starts it again when it dies or hangs, not when it was told to stop.

The search runs in a child, which tells it through a pipe: the study's folder, that it is to be gone on with, and the
exit status with which it left by itself. Neither torch nor Ray is ever loaded in the parent.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tunelab.liveness import last_sign
from tunelab.tuning.machine import end_tree
from tunelab.tuning.options import seconds_until
from tunelab.tuning.watchdog import Limits

VARIABLE = "TUNELAB_SUPERVISED"
"""Where a supervised process tells of itself: the descriptor of the pipe and its own number, with a colon between."""
ATTEMPTS = 3
"""So many starts in a row without progress in the record are enough (our choice)."""
_LOOK = 0.2  # seconds
_SURE = 20  # looks in a row at which the child seems to hang: after a suspended night it needs a moment (our choice)
_REST = 2.0  # seconds before the next start, in which Ray's last processes end
_WAIT = 60.0  # likewise, where a cluster is not fit or does not answer: machines start meanwhile (our choice)
_CAN_BE_RESUMED = 3
_UNFIT = 2
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_supervised() -> bool:
    """True in a process that is supervised."""
    return os.environ.get(VARIABLE, "").endswith(f":{os.getpid()}")


def tell(**facts: str | int | bool) -> None:
    """Tells the supervising process, if there is one: `study`, `again` (why to go on with it), `left` (exit status)."""
    if is_supervised():
        with contextlib.suppress(OSError, ValueError):
            os.write(int(os.environ[VARIABLE].partition(":")[0]), json.dumps(facts).encode() + b"\n")


@dataclass
class _Child:
    """A process that searches, and what it has told so far."""

    pid: int
    pipe: int
    facts: dict[str, Any] = field(default_factory=dict)
    _unread: bytes = b""

    def listen(self) -> None:
        """Takes in what it has told since."""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.pipe, 65536):
                self._unread += more
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self.facts |= json.loads(line)

    def hangs(self, seconds: float) -> bool:
        """True if its last sign of life is so old. Before the first it may take as long as it wants."""
        sign = last_sign(Path(self.facts["study"])) if "study" in self.facts else None
        return sign is not None and sign.pid == self.pid and sign.age > seconds


def supervise(
    run: Callable[[list[str]], int], arguments: Sequence[str], deadline: str | None, kept: Sequence[str] = ()
) -> int:
    """Runs a command that searches, goes on with the search when its process dies or hangs, and gives its exit status.

    It is not gone on with after a signal to this process, which is passed on; nor when it ends by itself, unless it
    says so because of Ray or a cluster that is not fit now, and the study has been begun; nor when it has ended
    `ATTEMPTS` times in a row without progress in the record.

    Args:
        run: runs a command line in the child.
        arguments: the command line.
        deadline: of the search; a length of time begins now.
        kept: words of the command line that `tunelab resume STUDY` is to have too.

    Raises:
        InputError: the deadline is none.
    """
    ends = None
    if deadline is not None:
        ends = time.monotonic() + seconds_until(deadline, datetime.datetime.now())
    words, in_vain, study = list(arguments), 0, ""
    with _signals_passed_on() as relay:
        while True:
            before = _progress(study)
            child = _start(run, words, relay)
            status, why = _wait(child, relay)
            study = child.facts.get("study", study)
            unfit = status == _UNFIT
            if relay.stopped or not why or (unfit and not study):
                return status
            in_vain = 0 if _progress(study) > before else in_vain + 1
            if in_vain < ATTEMPTS and not relay.rest(_WAIT if unfit else _REST, ends):
                return status
            said = f"`tunelab resume {study}` goes on" if study else "nothing had been begun"
            left = None if ends is None else ends - time.monotonic()
            if in_vain >= ATTEMPTS:
                _say(f"{why}, {ATTEMPTS} times in a row without progress; {said}")
                return _CAN_BE_RESUMED if study else 1
            if left is not None and left < 1:
                _say(f"{why}, and the deadline has passed; {said}")
                return _CAN_BE_RESUMED
            if study:
                words = ["resume", study, *kept, *([] if left is None else ["--deadline", f"{int(left)}s"])]
            _say(f"{why}; it is started again: tunelab {' '.join(words)}")


class _Relay:
    """Passes signals on to the child, and remembers that there was one."""

    def __init__(self) -> None:
        self.stopped = False
        self.child: int | None = None
        self.before: dict[int, Any] = {}

    def pass_on(self, number: int, _frame: object) -> None:
        self.stopped = True
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, number)

    def rest(self, seconds: float, ends: float | None) -> bool:
        """Waits, until the time `ends` at most, and says whether it goes on: no signal has come."""
        end = time.monotonic() + seconds
        end = end if ends is None else min(end, ends)
        while not self.stopped and time.monotonic() < end:
            time.sleep(_LOOK)
        return not self.stopped


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[_Relay]:
    """Signals that are not ignored are passed on; what they did before is done again afterwards."""
    relay = _Relay()
    for one in _PASSED_ON:
        if signal.getsignal(one) != signal.SIG_IGN:
            relay.before[one] = signal.signal(one, relay.pass_on)
    try:
        yield relay
    finally:
        for number, handler in relay.before.items():
            signal.signal(number, handler)


def _start(run: Callable[[list[str]], int], words: list[str], relay: _Relay) -> _Child:
    """A child that runs a command line, in a session of its own: Ctrl-C reaches it through this process alone."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # none is lost between the two
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setsid()
        for number, handler in relay.before.items():
            signal.signal(number, handler)
        os.environ[VARIABLE] = f"{write}:{os.getpid()}"
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        _run_and_leave(run, words)
    os.close(write)
    os.set_blocking(read, False)
    relay.child = pid
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    return _Child(pid, read)


def _run_and_leave(run: Callable[[list[str]], int], words: list[str]) -> None:
    """Runs a command line in the child, and ends it."""
    status = 1
    try:
        status = run(words)
        tell(left=status)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(child: _Child, relay: _Relay) -> tuple[int, str]:
    """The exit status of the child, as a shell has it, and why it is to be gone on with; "" if it is not."""
    limit, hanging, hung = Limits.usual().driver, 0, False
    while True:
        pid, ended = os.waitpid(child.pid, os.WNOHANG)
        child.listen()
        if pid:
            break
        hanging = hanging + 1 if child.hangs(limit) else 0
        if hanging >= _SURE and not hung:
            hung = True
            end_tree(psutil.Process(child.pid))
        time.sleep(_LOOK)
    relay.child = None
    os.close(child.pipe)
    code = os.waitstatus_to_exitcode(ended)
    if hung:
        return _CAN_BE_RESUMED, f"the search gave no sign of life for {limit:.0f} s and was ended"
    if code < 0:
        return 128 - code, f"the search was ended by {_name(-code)}"
    if code and "left" not in child.facts:
        return code, f"the search ended without a word (exit status {code})"
    return code, str(child.facts.get("again", "")) if code else ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _progress(study: str) -> int:
    """How many epochs and ends of trials the record of a study holds."""
    try:
        record = (Path(study) / "journal.jsonl").read_bytes() if study else b""
    except OSError:
        return 0
    return record.count(b'"event":"result"') + record.count(b'"event":"ended"')


def _say(what: str) -> None:
    print(f"tunelab: {what}", file=sys.stderr, flush=True)
