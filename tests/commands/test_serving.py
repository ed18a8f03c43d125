"""The command `dashboard`, in a process of its own, as a browser sees it."""

from __future__ import annotations

import hashlib
import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.study import Study
from tunelab.tuning.sessions import Sessions

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

TRIALS = [("COMPLETED", (0.2, 0.4, 0.6, 0.8)), ("STOPPED", (0.1,))]


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """One with events and with a journal of Optuna's."""
    made = make_study(TRIALS)
    sessions = Sessions(made.name, made.trial_folder, made.list_trials())
    for trial in made.list_trials():
        made.trial_folder(trial.number).mkdir(parents=True)
        sessions.ended(trial)
    backend = JournalFileBackend(str(made.path / "optuna.journal"))
    optuna.create_study(study_name="plain", storage=JournalStorage(backend)).optimize(lambda _trial: 0.5, n_trials=2)
    return made


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def run(*words: str, **more: str) -> subprocess.Popen[str]:
        code = "import sys; from tunelab.cli import run; sys.exit(run(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "dashboard", *words]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **more}))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    found: dict[str, str] = json.loads(line)
    return found


def browser() -> Callable[..., str]:
    """Asks for addresses with the cookies that it was given."""
    jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)

    def ask(address: str, method: str = "GET") -> str:
        with opener.open(urllib.request.Request(address, method=method), timeout=300) as answer:
            content: str = answer.read().decode("utf-8", "replace")
            return content

    return ask


def content_of(folder: Path) -> dict[str, str]:
    """Everything in a folder, with what it holds and when it was changed."""
    return {
        str(path.relative_to(folder)): f"{path.lstat().st_mtime_ns} {path.lstat().st_mode} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.slow
def test_all_of_it_is_served_on_loopback_and_nothing_in_the_study_changes(
    study: Study, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    before = content_of(study.path)
    process = start(str(study.path), "--json", TMPDIR=str(tmp_path))
    found = addresses(process)
    ask = browser()
    page = ask(found["page"])
    assert "1 completed, 1 stopped" in page
    places = {name: address.partition("?")[0] for name, address in found.items()}
    assert all(f'href="{places[name]}"' in page for name in ("tensorboard", "optuna"))
    assert json.loads(ask(f"{places['page']}state.json"))["best"][0]["mean"] == 0.8
    assert "<title>TensorBoard</title>" in ask(places["tensorboard"]), "one cookie opens all of them"
    assert json.loads(ask(f"{places['tensorboard']}data/logdir"))["logdir"] == str(study.path)
    assert json.loads(ask(f"{places['tensorboard']}data/plugins_listing"))["hparams"]["enabled"] is True
    assert "<div" in ask(f"{places['optuna']}dashboard")
    shown = json.loads(ask(f"{places['optuna']}api/studies/0"))
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Complete"]
    with pytest.raises(urllib.error.HTTPError, match="405"):
        ask(f"{places['optuna']}api/studies/0", "DELETE")
    for address in places.values():
        with pytest.raises(urllib.error.HTTPError, match="403"):
            browser()(address)

    own = psutil.Process(process.pid)
    listening = [one.laddr for one in own.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
    assert len(listening) == 3
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert own.children(recursive=True) == [], "so that none is left if this one is killed"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")
    assert content_of(study.path) == before
    assert list(tmp_path.glob(".tensorboard*")) == []


@pytest.mark.slow
def test_without_its_package_optunas_is_left_out_with_a_line(
    study: Study, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "lacks").mkdir()
    (tmp_path / "lacks" / "optuna_dashboard.py").write_text("raise ImportError('it is not there')\n")
    process = start(str(study.path), "--port", "0", PYTHONPATH=str(tmp_path / "lacks"))
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(3)]
    assert [line.partition(":")[0] for line in shown] == ["The page", "TensorBoard", "Ctrl-C ends it.\n"]
    page = browser()(shown[0].partition(": ")[2].strip())
    assert "python -m pip install optuna-dashboard" in page
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert err.splitlines() == [
        "note: Optuna's dashboard needs a package that is not installed: python -m pip install optuna-dashboard"
    ]


def test_what_cannot_be_read_is_refused_before_anything_is_served(
    make_study: MakeStudy, capfd: pytest.CaptureFixture[str]
) -> None:
    from tunelab.cli import run

    study = make_study(TRIALS)
    (study.path / "journal.jsonl").write_text("[]\n[]\n")
    assert run(["dashboard", str(study.path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "journal.jsonl" in err
