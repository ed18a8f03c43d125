"""A search with Ray's dashboard, on a real Ray: who can reach what, and what is shown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunelab import ray_address
from tunelab.tuning.memory_guard import _is_trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent.parent
SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY, VERSION, BASELINES = "one block", 1, ()


def draw(suggest):
    lr = suggest.suggest_float("lr", 0.001, 0.5, log=True)
    return TrialConfig(ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),)), TrainConfig(batch_size=16, lr=lr))
"""
LINE = re.compile(
    r"Ray's dashboard: http://(127\.0\.0\.1:\d+) \(it asks for a token; `cat (/\S+)` shows it\);"
    r" metrics: http://(127\.0\.0\.1:\d+)/metrics"
)


class Shown:
    """A search that runs, and what it said of its dashboard."""

    def __init__(self, process: subprocess.Popen[bytes], study: Path, said: re.Match[str]) -> None:
        self.process, self.study = process, study
        self.dashboard, self.metrics = said[1], said[3]
        self.token_file = Path(said[2])
        self.token = self.token_file.read_text()

    def ask(self, path: str, token: str | None = None) -> Any:
        """What the dashboard answers."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{self.dashboard}{path}", headers=headers), timeout=300
        ) as answer:
            return json.loads(answer.read())

    def processes(self) -> list[psutil.Process]:
        """The search and all that it has started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


def wait_for(look: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What `look` gives as soon as it is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)
    return found


def runs(process: psutil.Process) -> bool:
    """True if it has not ended: whoever it belongs to now may leave it as a zombie, or have another of its number."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """While it starts, port 8265 is taken, by this process or by another."""
    folder = tmp_path_factory.mktemp("shown")
    temporary = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # short: Ray puts sockets below it
    (folder / "small.py").write_text(SPACE)
    command = [sys.executable, "-m", "tunelab.cli", "search", str(folder / "small.py"), "--trials", "5000"]
    options = ["--epochs", "4", "--limit-train", "200", "--concurrent", "1", "--telemetry", "off", "--dashboard"]
    more = {"TMPDIR": str(temporary), "PROVOKED_QUICK": "1", "RAY_metrics_report_interval_ms": "1000"}
    more["PYTHONPATH"] = str(ROOT / "benchmarks" / "provoked")
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8265))
            taken.listen()
        except OSError:
            pass  # somebody else has it
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                [*command, *options, "--study", str(folder / "study")],
                env={**os.environ, **more},
                stderr=said,
                stdout=said,
                start_new_session=True,
            )
        try:
            line = wait_for(lambda: process.poll() is not None or LINE.search((folder / "said").read_text()))
            assert line is not True, (folder / "said").read_text()
            yield Shown(process, folder / "study", line)
        finally:
            left: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                left = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            try:
                wait_for(lambda: not any(map(runs, left)), 90)
            finally:
                for one in filter(runs, left):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                shutil.rmtree(temporary, ignore_errors=True)


def trials(shown: Shown) -> list[psutil.Process]:
    return [process for process in shown.processes() if _is_trial(process.pid)]


def test_everything_listens_on_loopback_alone(
    shown: Shown, sockets_beyond: Callable[[Iterable[psutil.Process]], list[str]]
) -> None:
    wait_for(lambda: trials(shown))
    assert sockets_beyond(shown.processes()) == []


def test_the_dashboard_is_at_another_port_if_its_own_is_taken_and_wants_the_token(shown: Shown) -> None:
    assert shown.dashboard != "127.0.0.1:8265"
    for wrong in (None, "0" * 64):
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            shown.ask("/api/v0/actors", wrong)
    assert shown.ask("/api/v0/actors", shown.token)["result"] is True


def test_the_token_is_in_its_own_file_alone(shown: Shown) -> None:
    assert shown.token_file.stat().st_mode & 0o077 == 0
    assert shown.token_file.parent.stat().st_mode & 0o077 == 0
    folders = shown.study.parent, shown.token_file.parent
    beside = [Path(found, name) for one in folders for found, _, names in os.walk(one) for name in names]
    holding = []
    for file in beside:
        with contextlib.suppress(FileNotFoundError):  # what is written for a moment alone
            if file.is_file() and shown.token.encode() in file.read_bytes():
                holding.append(file)
    assert holding == [shown.token_file]


def test_the_study_says_where_the_dashboard_is(shown: Shown) -> None:
    found = ray_address.find(shown.study)
    assert found is not None
    assert (found.dashboard, found.metrics, found.token) == (shown.dashboard, shown.metrics, str(shown.token_file))
    assert (shown.study / ray_address.FILE).stat().st_mode & 0o077 == 0


def test_trials_have_readable_names(shown: Shown) -> None:
    """In the title of the process, which goes with the trial, and in what Ray calls the actor for good."""

    def titles() -> set[str]:
        return {title for process in trials(shown) if "(small-0" in (title := process.cmdline()[0])}

    first = wait_for(titles)
    assert all(re.fullmatch(r"ray::TrialWorker\(small-\d{4}\)\.train", title) for title in first)
    assert wait_for(lambda: titles() - first), "the title is that of the trial that it trains now"
    actors = shown.ask("/api/v0/actors?detail=1", shown.token)["data"]["result"]["result"]
    assert any(re.fullmatch(r"small-\d{4} and later", actor["repr_name"]) for actor in actors)


def test_the_numbers_of_the_search_are_on_the_metrics_endpoint(shown: Shown) -> None:
    names = ("best_accuracy_ratio", "trials", "images_per_second", "epochs_total")

    def read() -> dict[str, list[str]]:
        with urllib.request.urlopen(f"http://{shown.metrics}/metrics", timeout=300) as answer:
            lines = answer.read().decode().splitlines()
        found = {name: [line for line in lines if line.startswith(f"ray_tunelab_{name}{{")] for name in names}
        running = [line for line in found["trials"] if 'state="running"' in line and not line.endswith(" 0.0")]
        done = [line for line in found["trials"] if 'state="completed"' in line and not line.endswith(" 0.0")]
        return found if running and done and all(found.values()) else {}

    found = wait_for(read)
    for lines in found.values():
        assert all('study="study"' in line for line in lines)
    assert 0 < float(found["best_accuracy_ratio"][0].split()[-1]) <= 1
    assert float(found["epochs_total"][0].split()[-1]) >= 1
