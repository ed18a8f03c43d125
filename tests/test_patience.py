"""Foreign code that does not return is told of, and broken off in the main thread."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from tunelab import patience
from tunelab.cli import run

SPACE = """
import time
from tunelab.config import TrialConfig
SUMMARY, VERSION, BASELINES = "hangs", 1, ()
def draw(suggest):
    while True:
        time.sleep(0.01)
"""


def test_a_draw_that_never_returns_is_told_of_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], no_calibration: None
) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)  # pytest-timeout's, which this test does without
    monkeypatch.setattr(patience, "TELLS_AFTER", 0.2)
    monkeypatch.setattr(patience, "ENDS_AFTER", 0.5)
    (tmp_path / "hangs.py").write_text(SPACE)
    before, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    assert run(["search", str(tmp_path / "hangs.py"), "--dry-run"]) == 2
    assert time.monotonic() - begun < 60
    said = capfd.readouterr().err
    assert f"the space 'hangs' ({tmp_path / 'hangs.py'}, line 5) has not returned for 0.2 seconds" in said
    assert f"the space 'hangs' ({tmp_path / 'hangs.py'}, line 5) did not return within 0.5 seconds" in said
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_elsewhere_than_in_the_main_thread_it_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "TELLS_AFTER", 0.05)

    def wait() -> None:
        with patience.limited("the space 'slow'"):
            time.sleep(0.3)
        with patience.limited("the space 'fast'"):
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert capfd.readouterr().err == "note: the space 'slow' has not returned for 0.05 seconds\n"


def test_work_that_takes_long_is_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    with patience.told_if_long("note: quick", 300.0):
        pass
    assert capfd.readouterr().err == ""
    said = ""
    with patience.told_if_long("note: slow", 0.01):
        while not said.endswith("\n"):  # as long as it takes
            time.sleep(0.01)
            said += capfd.readouterr().err
    assert said + capfd.readouterr().err == "note: slow\n"
