"""What a person sees while a search runs: one live display on a terminal, one line per ended trial elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunelab.records import Trial, TrialStatus
from tunelab.standings import Place, places
from tunelab.study import describe_repeats, proposed
from tunelab.tuning.forecast import Range

_COLOURS = {
    TrialStatus.COMPLETED: "green",
    TrialStatus.STOPPED: "yellow",
    TrialStatus.DIVERGED: "magenta",
    TrialStatus.FAILED: "red",
}


_RANKED = (TrialStatus.COMPLETED, TrialStatus.DIVERGED, TrialStatus.FAILED)
"""A ranking counts these trials, the last two as runs that were lost."""
_FEW = 100  # so many of them are ranked anew whenever there is one more; our choice


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Something that concerns the whole search."""

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost and will be handed out again."""

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""


class _LastingConsole(Console):
    """Says nothing more when nobody reads it; rich's own would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """Trials ended, running, stopped and failed, the best so far, time spent and left. Use it as a context.

    Args:
        stream: where to; a live display if it is a terminal.
        title: what is searched, on which data.
        total: how many trials there are to be.
        known: the trials of an earlier start.
        val_images: on how many images scores are measured, to judge the noise between runs; 0 if that is not known.
        left: how much longer it takes, given all trials so far; None: nothing is said of it.
    """

    def __init__(
        self,
        stream: TextIO,
        title: str,
        total: int,
        known: list[Trial],
        val_images: int = 0,
        left: Callable[[Collection[Trial]], Range] | None = None,
    ) -> None:
        self._console = _LastingConsole(file=stream, highlight=False, markup=False, emoji=False)
        self._title = title
        self._total = total
        self._left = left
        self._val_images = val_images
        self._trials = {trial.number: trial for trial in known}
        self._running: set[int] = set()
        self._counted = Counter(trial.status for trial in proposed(known) if trial.status.ended)
        self._open = {trial.number for trial in known if not trial.status.ended}
        self._ranked = {trial.number: trial for trial in known if trial.status in _RANKED}
        self._best: Place | None = None
        self._is_old = True  # what is known of the best one
        self._asked = (-math.inf, 0.0)  # when it was looked for, and how long that took
        self._began = time.monotonic()
        self._live = Live(self, console=self._console, refresh_per_second=2) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is None:
            self._print(self._title)
        else:
            with contextlib.suppress(OSError):
                self._live.start(refresh=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()

    def _print(self, line: Text | str) -> None:
        """Prints above the live display; a terminal that has gone away does not end a search."""
        with contextlib.suppress(OSError):
            self._console.print(line, soft_wrap=True)

    def say(self, line: str) -> None:
        """Something that concerns the whole search."""
        self._print(line)

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        self._trials[trial.number] = trial
        self._running.add(trial.number)
        self._open.add(trial.number)

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost and will be handed out again."""
        self._running.discard(trial.number)
        self._print(f"note: trial {trial.number}: {why}")

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        self._count(trial)
        line = Text(f"trial {trial.number:>3} ")
        if trial.repeat_of is not None:
            line.append(f"(trial {trial.repeat_of} again) ")
        line.append(f"{trial.status.value.lower():<9}", _COLOURS[trial.status])
        line.append(f" {_scored(trial)} after {len(trial.epochs)} epochs")
        if trial.reason:
            line.append(f" ({trial.reason})")
        if self._live is None:
            line.append(f"  [{self._summary()}]")
            self._print(line)
        elif trial.status in (TrialStatus.FAILED, TrialStatus.DIVERGED):
            self._print(line)

    def _count(self, trial: Trial) -> None:
        self._running.discard(trial.number)
        self._open.discard(trial.number)
        if trial.number not in self._trials:  # it is no part of the search any more
            return
        if trial.repeat_of is None:
            self._counted[trial.status] += 1
        if trial.status in _RANKED:
            self._ranked[trial.number] = trial
            self._is_old = True

    def _find_best(self) -> Place | None:
        """The first of the ranking, which changes when a trial ends that counts; of many it costs 2% of the time."""
        now = time.monotonic()
        made, cost = self._asked
        if self._is_old and (len(self._ranked) <= _FEW or now - made >= 50 * cost):
            self._is_old = False  # before: a trial that ends meanwhile is another reason
            ranked = places(list(self._ranked.values()), self._val_images)
            self._best = ranked[0] if ranked else None
            self._asked = (now, time.monotonic() - now)
        return self._best

    def _counts(self) -> dict[TrialStatus, int]:
        """How many configurations have each status."""
        opened = proposed([self._trials[number] for number in list(self._open)])  # another thread may change it
        counts = self._counted.copy() + Counter(trial.status for trial in opened)
        return {status: counts[status] for status in TrialStatus if counts[status]}

    def __rich__(self) -> Group:
        """The live display."""
        done = self._counted.total()
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=self._total, completed=done, width=60))
        running = Table.grid(padding=(0, 2))
        for number in sorted(self._running):
            trial = self._trials[number]
            if trial.status is not TrialStatus.RUNNING:  # it waits at a rung
                continue
            running.add_row(
                f"  trial {number}",
                f"epoch {len(trial.epochs)}/{trial.config['train']['epochs']}",
                _scored(trial),
                f"{trial.stats.get('params', 0) / 1e6:.2f}M parameters",
            )
        return Group(Text(self._title, style="bold"), bar, Text(self._summary()), running)

    def _summary(self) -> str:
        counts = self._counts()
        done = self._counted.total()
        said = [f"{done}/{self._total} trials"]
        said += [f"{count} {status.value.lower()}" for status, count in counts.items()]
        said += describe_repeats(len(self._trials) - sum(counts.values()))
        first = self._find_best()
        if first is not None:
            best, standing = first.trial, first.standing
            mean = f", mean of {standing.runs} runs" if standing.runs > 1 else ""
            said.append(f"best {_scored(best, standing.mean)} (trial {best.number}{mean})")
        said.append(f"{duration(time.monotonic() - self._began)} spent")
        if self._left is not None and (done < self._total or self._running):
            left = self._left(self._trials.values())
            said.append(f"about {duration(left.expected)} left ({duration(left.low)} to {duration(left.high)})")
        return ", ".join(said)


class ImagesBar:
    """A bar on a terminal while something is done with many images; it goes when it is. Use it as a context."""

    def __init__(self, stream: TextIO, what: str) -> None:
        console = Console(file=stream)
        columns = (what, BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> ImagesBar:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So many of all images are done."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)


class MeasuringLine:
    """What is measured at present, in one line of a terminal; elsewhere a line for what was. Use it as a context.

    Nothing redraws it by itself, which would disturb what is measured.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = _LastingConsole(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> MeasuringLine:
        if self._console.is_terminal:
            with contextlib.suppress(OSError):
                self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._console.is_terminal:
            with contextlib.suppress(OSError):
                self._live.stop()

    def at_work(self, what: str) -> None:
        """This is measured now."""
        if self._console.is_terminal:
            with contextlib.suppress(OSError):
                self._live.update(Text(what), refresh=True)

    def done(self, what: str) -> None:
        """This was measured."""
        if not self._console.is_terminal:
            with contextlib.suppress(OSError):
                self._console.print(what, soft_wrap=True)


def _scored(trial: Trial, mean: float | None = None) -> str:
    """The score of a trial or of all its runs, and that it is of the training images where nothing is held out."""
    nothing_held_out = bool(trial.epochs) and trial.epochs[-1].val_accuracy is None
    score = percent(trial.score if mean is None else mean)
    return f"{score} of the training images" if nothing_held_out else score


def percent(score: float | None) -> str:
    """A score in percent with one decimal, or a dash."""
    return "-" if score is None else f"{100 * score:.1f}%"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 45s, 3m 20s, 2h 05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
