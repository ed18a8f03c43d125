from __future__ import annotations

import io
import re
from collections.abc import Collection
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning import progress as module
from tunelab.tuning.forecast import Range
from tunelab.tuning.listeners import Told
from tunelab.tuning.progress import MeasuringLine, Progress, Silent, duration, percent


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as this module sees it, moved by hand."""
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def trial(number: int, status: str = "RUNNING", scores: tuple[float, ...] = (), reason: str = "") -> Trial:
    epochs = [EpochMetrics(n, 1.0, 0.0, 1.0, score, 0.1, 1.0, 1.0, 1.0) for n, score in enumerate(scores, start=1)]
    stats = {"params": 1_250_000}
    return Trial(number, {"train": {"epochs": 4}}, {}, TrialStatus(status), reason, epochs, stats=stats)


def shown(stream: io.StringIO) -> list[str]:
    """The text without colours and cursor movements, as lines."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()


def run(progress: Progress, *ends: Trial) -> None:
    for one in ends:
        status, one.status = one.status, TrialStatus.RUNNING
        progress.started(one)
        one.status = status
        progress.ended(one)


def make(stream: io.StringIO, total: int = 4, known: list[Trial] | None = None, **other: Any) -> Progress:
    return Progress(stream, "arch on digits: 4 trials -> runs/x", total, known or [], **other)


def test_one_line_per_ended_trial_where_there_is_no_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    with make(stream) as progress:
        one, other = trial(0), trial(1)
        progress.started(one)
        progress.started(other)
        clock.now += 60
        one.epochs += trial(0, scores=(0.5, 0.75)).epochs
        progress.reported(one)
        one.status = TrialStatus.COMPLETED
        progress.ended(one)
        clock.now += 30
        other.status, other.reason = TrialStatus.FAILED, "ValueError: [bold]no[/bold] room"
        progress.ended(other)
    assert shown(stream) == [
        "arch on digits: 4 trials -> runs/x",
        "trial   0 completed 75.0% after 2 epochs  "
        "[1/4 trials, 1 running, 1 completed, best 75.0% (trial 0), 1m 00s spent]",
        "trial   1 failed    - after 0 epochs (ValueError: [bold]no[/bold] room)  "
        "[2/4 trials, 1 completed, 1 failed, best 75.0% (trial 0), 1m 30s spent]",
    ]
    assert "\x1b" not in stream.getvalue()


def test_the_title_is_shown_as_it_is() -> None:
    """A path may hold what rich reads as markup, and be longer than a line."""
    stream = io.StringIO()
    title = "arch on folder:/data/[old]/[/x] " + "word " * 40
    with Progress(stream, title, 1, []):
        pass
    assert stream.getvalue() == title + "\n"


def test_trials_of_an_earlier_start_count(clock: Clock) -> None:
    stream = io.StringIO()
    known = [trial(0, "COMPLETED", (0.5,)), trial(1, "STOPPED", (0.9,)), trial(2, "DIVERGED", reason="nan")]
    with make(stream, known=known) as progress:
        clock.now += 10
        run(progress, trial(3, "STOPPED", (0.1,)))
    assert shown(stream)[-1].endswith(
        "[4/4 trials, 1 completed, 2 stopped, 1 diverged, best 50.0% (trial 0), 10s spent]"
    )


def test_repeats_are_counted_apart(clock: Clock) -> None:
    stream = io.StringIO()
    with make(stream, known=[trial(0, "COMPLETED", (0.5,)), trial(1, "STOPPED", (0.9,))]) as progress:
        again = trial(2, "COMPLETED", (0.4,))
        again.repeat_of = 0
        run(progress, again, trial(3, "COMPLETED", (0.41,)))
    first, second = shown(stream)[-2:]
    assert first.startswith("trial   2 (trial 0 again) completed 40.0% after 1 epochs")
    assert "[2/4 trials, 1 completed, 1 stopped, 1 repeat, best 45.0% (trial 0, mean of 2 runs)" in first
    assert "[3/4 trials, 2 completed, 1 stopped, 1 repeat, best 45.0% (trial 0, mean of 2 runs)" in second


def test_the_time_left_has_a_range(clock: Clock) -> None:
    stream, asked = io.StringIO(), []

    def left(trials: Collection[Trial]) -> Range:
        asked.append(len(trials))
        return Range(60.0, 80.0, 125.0)

    with make(stream, total=2, known=[trial(7, "STOPPED", (0.5,))], left=left) as progress:
        run(progress, trial(0, "COMPLETED", (0.5,)))
    assert shown(stream)[-1].endswith("0s spent]"), "all have ended"
    assert asked == []
    with make(stream, total=9, known=[trial(7, "STOPPED", (0.5,))], left=left) as progress:
        run(progress, trial(0, "COMPLETED", (0.5,)))
    assert shown(stream)[-1].endswith("0s spent, about 1m 20s left (1m 00s to 2m 05s)]")
    assert asked == [2]
    with make(stream, total=1, left=left) as progress:
        again = trial(1)
        again.repeat_of = 0
        progress.started(again)
        run(progress, trial(0, "COMPLETED", (0.5,)))
    assert "left (" in shown(stream)[-1], "a repeat is under way"


def test_several_listeners_are_told() -> None:
    heard: list[str] = []

    class Ear(Silent):
        def __init__(self, name: str) -> None:
            self.name = name

        def started(self, trial: Trial) -> None:
            heard.append(f"{self.name} {trial.number} started")

        def reported(self, trial: Trial) -> None:
            heard.append(f"{self.name} {trial.number} reported")

        def retried(self, trial: Trial, why: str) -> None:
            heard.append(f"{self.name} {trial.number} {why}")

        def ended(self, trial: Trial) -> None:
            heard.append(f"{self.name} {trial.number} ended")

    told = Told(Ear("left"), Ear("right"))
    told.started(trial(3))
    told.reported(trial(3))
    told.retried(trial(3), "lost")
    told.ended(trial(3))
    assert heard == [
        f"{ear} 3 {what}" for what in ("started", "reported", "lost", "ended") for ear in ("left", "right")
    ]


def test_a_trial_that_waits_is_not_shown_as_running(clock: Clock) -> None:
    stream = Terminal()
    with make(stream) as progress:
        one, other = trial(0), trial(1)
        progress.started(one)
        progress.started(other)
        one.status = TrialStatus.PAUSED
    assert not any(line.startswith("  trial 0") for line in shown(stream)[-4:])
    assert shown(stream)[-1].startswith("  trial 1")


def test_every_way_to_end_can_be_shown() -> None:
    for status in TrialStatus:
        if status.ended:
            stream = io.StringIO()
            with make(stream) as progress:
                run(progress, trial(0, status.value, (0.5,)))
            assert f"trial   0 {status.value.lower()}" in shown(stream)[-1]


def test_a_terminal_has_one_live_display(clock: Clock) -> None:
    stream = Terminal()
    with make(stream) as progress:
        one = trial(0, scores=(0.25,))
        progress.started(one)
        run(progress, trial(1, "COMPLETED", (0.5,)), trial(2, "FAILED", reason="no room"))
        clock.now += 5
    text = shown(stream)
    assert any(line.startswith("trial   2 failed") and "no room" in line for line in text)
    assert not any(line.startswith("trial   1") for line in text), "only what went wrong stays in the scrollback"
    title, bar, *summary, running = text[-4:]
    assert title == "arch on digits: 4 trials -> runs/x"
    assert set(bar.strip()) <= set("━╸╺")
    assert " ".join(line.strip() for line in summary) == (
        "2/4 trials, 1 running, 1 completed, 1 failed, best 50.0% (trial 1), 5s spent"
    )
    assert re.fullmatch(r"  trial 0 +epoch 1/4 +25\.0% +1\.25M parameters", running.rstrip())


def test_nothing_is_shown_by_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with Silent() as silent:
        silent.started(trial(0))
        silent.reported(trial(0))
        silent.ended(trial(0))
    assert capfd.readouterr() == ("", "")


def test_the_display_ends_with_an_exception() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), make(stream):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\x1b[?25h"), "the cursor is back"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (200, "3m 20s"), (3600, "1h 00m"), (90_061, "25h 01m")],
)
def test_lengths_of_time(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_percents() -> None:
    assert [percent(score) for score in (None, 0.0, 0.1234, 1.0)] == ["-", "0.0%", "12.3%", "100.0%"]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_terminal_that_has_gone_away_does_not_end_a_search(kind: type[io.StringIO]) -> None:
    class Gone(kind):  # type: ignore[misc, valid-type]
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with Progress(Gone(), "a title", 2, []) as progress:
        run(progress, trial(0, "COMPLETED", (0.5,)), trial(1, "FAILED", reason="it broke"))


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO(), "3 of 4: fast\n"), (Terminal(), "measuring 3 of 4")])
def test_measuring_is_one_line_that_changes_or_a_line_for_each_point(stream: io.StringIO, shown: str) -> None:
    with MeasuringLine(stream) as line:
        line.at_work("measuring 3 of 4")
        line.done("3 of 4: fast")
    said = stream.getvalue()
    assert shown in said
    assert ("measuring" in said) != ("fast" in said)
    if stream.isatty():
        assert said.endswith("\x1b[2K"), "the line is gone at the end"


def test_a_terminal_that_is_gone_does_not_end_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    with MeasuringLine(stream) as line:
        monkeypatch.setattr(stream, "write", lambda text: (_ for _ in ()).throw(OSError(5, "gone")))
        line.at_work("measuring 3 of 4")
        line.done("3 of 4: fast")
