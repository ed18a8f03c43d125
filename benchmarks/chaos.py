"""Searches that are killed with -9 at random moments, up to three times each, and resumed to their ends: what is lost?

    python benchmarks/chaos.py --searches 50 --parallel 2

Each is a search of short trials, two at a time, by the command, in processes of its own. What is killed is the driver
or a process that trains, as the dice say; the moment is a random one while the search begins, or after a random number
of epochs. A killed driver is followed by `tunelab resume`. After each kill the record is read, and at the end it must
hold every trial that had ended before, with the same epochs and scores; no configuration and no epoch of a trial twice;
an end for every trial. Of what was really trained (`provoked/sitecustomize.py` has each worker tell) at most one epoch
for each running trial and kill may be trained again. No process may be left 15 seconds after a driver is gone, and no
temporary folder at the end. The exit status is 1 if any of this fails; the study is kept then, and named. Ctrl-C ends
it with the table so far.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tunelab.journal import read_journal
from tunelab.records import Trial
from tunelab.study import load, proposed

MARK = "TUNELAB_CHAOS"
CONCURRENT = 2
EPOCHS = 4
GONE = 15.0  # seconds until no process of a killed driver is left
LONGEST = 600.0  # seconds for one start of a search; our choice
SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"width": 8, "lr": 0.1},)


def draw(suggest):
    width = suggest.suggest_int("width", 4, 16)
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", width, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=16, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""


@dataclass
class Outcome:
    """What came of one search, or of several together."""

    searches: int = 0
    trials: int = 0
    failed: int = 0
    drivers_killed: int = 0
    workers_killed: int = 0
    resumes: int = 0
    lost: int = 0
    same_configurations: int = 0
    same_epochs: int = 0
    trained_twice: int = 0
    too_often: int = 0
    not_ended: int = 0
    processes_left: int = 0
    folders_left: int = 0
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Adds another's numbers to these."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def harm(self) -> int:
        """What may not be; 0 is as it should be."""
        doubled = self.same_configurations + self.same_epochs + self.too_often
        return self.lost + doubled + self.not_ended + self.processes_left + self.folders_left


WORDS = {
    "searches": "searches",
    "trials": "trials ended",
    "failed": "of these FAILED, their process killed more than twice",
    "drivers_killed": "drivers killed",
    "workers_killed": "workers killed",
    "resumes": "resumes",
    "lost": "finished trials lost or changed",
    "same_configurations": "configurations twice",
    "same_epochs": "epochs in the record twice",
    "trained_twice": "epochs trained twice",
    "too_often": "of these beyond one for each running trial and kill",
    "not_ended": "trials without an end, and searches that failed",
    "processes_left": "processes left",
    "folders_left": "temporary folders left",
    "seconds": "seconds, of all searches together",
}


class StoppedError(Exception):
    """Ctrl-C has come."""


class Search:
    """One search under fire.

    Args:
        folder: an empty one of its own.
        trials: how many.
        luck: decides whom and when.
        stop: set when all is to end.
    """

    def __init__(self, folder: Path, trials: int, luck: random.Random, stop: threading.Event) -> None:
        self.outcome = Outcome(searches=1)
        self._folder = folder
        self._study = folder / "study"
        self._trials = trials
        self._luck = luck
        self._stop = stop
        self._mark = uuid.uuid4().hex
        self._temporary = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # short: Ray puts sockets below it
        self._ended: dict[int, tuple[Any, ...]] = {}
        (folder / "small.py").write_text(SPACE, encoding="utf-8")

    def run(self) -> Outcome:
        """Searches, kills and resumes to the end, and looks at what is left."""
        begun = time.monotonic()
        process = self._start()
        try:
            for _ in range(self._luck.randint(1, 3)):
                worker = self._luck.random() < 0.5
                if not self._wait_for_a_moment(process, worker):
                    break
                victim = self._victim(process, worker)
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                if victim.pid == process.pid:
                    process.communicate()
                    self.outcome.drivers_killed += 1
                    self._expect_nothing_runs()
                    self._compare()
                    process = self._start()
                else:
                    self.outcome.workers_killed += 1
            self._wait(process, lambda: False)
            out, err = process.communicate()
            if process.returncode:
                self.outcome.not_ended += 1
                (self._folder / "said.txt").write_text(out + err, encoding="utf-8")
            self._expect_nothing_runs()
            self._compare()
            self._check()
        finally:
            for one in self._processes():
                with contextlib.suppress(psutil.Error):
                    one.kill()
            process.communicate()
            shutil.rmtree(self._temporary, ignore_errors=True)
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _start(self) -> subprocess.Popen[str]:
        """The search, or its resume where there is a study."""
        words = ["search", str(self._folder / "small.py"), "--study", str(self._study), "--limit-train", "100"]
        words += ["--trials", str(self._trials), "--epochs", str(EPOCHS), "--concurrent", str(CONCURRENT)]
        if (self._study / "study.json").exists():
            words = ["resume", str(self._study)]
            self.outcome.resumes += 1
        given = {
            MARK: self._mark,
            "TMPDIR": str(self._temporary),
            "TUNELAB_CACHE": str(self._folder.parent / "cache"),
            "PYTHONPATH": str(Path(__file__).resolve().parent / "provoked"),
            "PROVOKED_LOG": str(self._folder / "log"),
        }
        return subprocess.Popen(
            [sys.executable, "-c", "from tunelab.cli import main; main()", *words],
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this program
        )

    def _wait_for_a_moment(self, process: subprocess.Popen[str], training: bool) -> bool:
        """False if the search ended before; where workers are `training`, or anywhere."""
        if not training and self._luck.random() < 0.25:
            at = time.monotonic() + self._luck.uniform(0, 10)
            return self._wait(process, lambda: time.monotonic() > at)
        more = self._results() + self._luck.randint(1, max(1, self._trials))
        at = self._luck.uniform(0, 0.3)
        reached = self._wait(process, lambda: self._results() >= more)
        time.sleep(at if reached else 0.0)
        return reached and process.poll() is None

    def _wait(self, process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
        """Until the condition holds; False if the process ends before, or is ended because it takes far too long."""
        end = time.monotonic() + LONGEST
        while process.poll() is None and time.monotonic() < end:
            if self._stop.is_set():
                raise StoppedError
            if condition():
                return True
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()  # which is told by its exit status
        return False

    def _victim(self, process: subprocess.Popen[str], worker: bool) -> psutil.Process:
        """A process that trains, if it is to be one and there is any; else the driver."""
        workers = [one for one in self._processes() if _title(one).startswith("ray::")]
        return self._luck.choice(workers) if worker and workers else psutil.Process(process.pid)

    def _processes(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if _mark_of(one) == self._mark]

    def _expect_nothing_runs(self) -> None:
        end = time.monotonic() + GONE
        while (left := self._processes()) and time.monotonic() < end:
            time.sleep(0.1)
        self.outcome.processes_left += len(left)

    def _results(self) -> int:
        journal = self._study / "journal.jsonl"
        return journal.read_bytes().count(b'"event":"result"') if journal.exists() else 0

    def _compare(self) -> None:
        """Counts the trials that had ended before and are not what they were."""
        if not (self._study / "study.json").exists():
            return
        now = {trial.number: _content(trial) for trial in load(self._study).list_trials() if trial.status.ended}
        self.outcome.lost += sum(now.get(number) != before for number, before in self._ended.items())
        self._ended = now

    def _check(self) -> None:
        """Counts what may not be at the end."""
        found, trials = self.outcome, load(self._study).list_trials()
        own = proposed(trials)
        found.trials = sum(trial.status.ended for trial in trials)
        found.failed = sum(trial.status.value == "FAILED" for trial in trials)
        found.not_ended += len(trials) - found.trials + max(0, self._trials - len(own))
        configurations = {json.dumps({**trial.config, "seed": 0}, sort_keys=True) for trial in own}
        found.same_configurations = len(own) - len(configurations)
        events = [one for one in read_journal(self._study / "journal.jsonl") if one["event"] == "result"]
        found.same_epochs = len(events) - len({(one["trial"], one["metrics"]["epoch"]) for one in events})
        log = self._folder / "log"
        told = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        trained = Counter((one["trial"], one["epoch"]) for one in told if one["what"] == "end")
        found.trained_twice = sum(times - 1 for times in trained.values())
        allowed = CONCURRENT * found.drivers_killed + found.workers_killed
        found.too_often = max(0, found.trained_twice - allowed)
        found.folders_left = len(list(self._temporary.glob("tunelab-*")))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None  # gone, or somebody else's


def _content(trial: Trial) -> tuple[Any, ...]:
    return (trial.status.value, trial.reason, trial.config, [metrics.to_json() for metrics in trial.epochs])


def table(found: Outcome) -> str:
    """The sums in words, a line each."""
    rows = [(getattr(found, name), words) for name, words in WORDS.items()]
    return "\n".join(f"{number:>10.0f}  {words}" for number, words in rows)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def survive(folder: Path, searches: int, trials: int, seed: int, parallel: int) -> tuple[Outcome, bool]:
    """Runs so many searches, `parallel` at once, and tells of each on standard error.

    Returns:
        The sums, and whether all of them were run.
    """
    total, stop = Outcome(), threading.Event()

    def one(number: int) -> Outcome | None:
        here = folder / f"search-{number:03d}"
        here.mkdir()
        try:
            found = Search(here, trials, random.Random(f"{seed} {number}"), stop).run()
        except StoppedError:
            return None
        print(f"search {number}: {_short(found)}", file=sys.stderr, flush=True)
        if not found.harm:
            shutil.rmtree(here)
        return found

    with ThreadPoolExecutor(parallel) as pool:
        futures: list[Future[Outcome | None]] = [pool.submit(one, number) for number in range(searches)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            stop.set()
            for future in futures:
                future.cancel()
            if not isinstance(error, KeyboardInterrupt):
                raise
    for future in futures:
        if not future.cancelled() and (found := future.result()) is not None:
            total.add(found)
    return total, total.searches == searches


def _short(found: Outcome) -> str:
    kills = f"{found.drivers_killed} drivers and {found.workers_killed} workers killed"
    good = "nothing lost" if not found.harm else "HARMED: " + str(dataclasses.asdict(found))
    return f"{found.trials} trials, {kills}, {found.resumes} resumes, {found.seconds:.0f} s; {good}"


def main() -> int:
    """Runs the searches and prints the table; 1 if anything was lost, doubled or left, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--trials", type=int, default=12, help="of each search")
    parser.add_argument("--seed", type=int, default=0, help="of the dice")
    parser.add_argument("--parallel", type=int, default=1, help="searches at once")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    begun = time.monotonic()
    with interruptible():
        found, whole = survive(folder, options.searches, options.trials, options.seed, options.parallel)
    print(f"{found.searches} of {options.searches} searches of {options.trials} trials of {EPOCHS} epochs were run,")
    print(f"{options.parallel} at once on {os.cpu_count()} CPUs, seed {options.seed}: {time.monotonic() - begun:.0f} s")
    print(table(found))
    if found.harm:
        print(f"the studies that were harmed are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0 if whole else 130


if __name__ == "__main__":
    sys.exit(main())
