"""Optuna's dashboard on a journal that it cannot write."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.errors import InputError
from tunelab.tuning.optuna_view import OptunaView, Reading


def search(path: Path, name: str, trials: int = 1) -> optuna.Study:
    """Adds so many trials to a journal."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("lr", 0.1, 0.2), n_trials=trials)
    return study


def ask(app: Callable[..., Any], path: str, method: str = "GET", content: bytes = b"") -> tuple[str, bytes]:
    """The status and the content of an answer."""
    seen: list[str] = []
    environ = {
        "PATH_INFO": path,
        "REQUEST_METHOD": method,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    answer = app(environ, lambda status, headers, *more: seen.append(status))
    content = b"".join(answer)
    if hasattr(answer, "close"):  # as servers do
        answer.close()
    return seen[0], content


def names(app: Callable[..., Any]) -> list[str]:
    return [study["study_name"] for study in json.loads(ask(app, "/api/studies")[1])["study_summaries"]]


def trials_of(app: Callable[..., Any]) -> int:
    return len(json.loads(ask(app, "/api/studies/0")[1])["trials"])


def test_it_follows_a_journal_that_grows(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    search(journal, "night", 2)
    view = OptunaView(journal)
    assert names(view) == ["night"]
    assert trials_of(view) == 2
    search(journal, "night", 3)
    end = time.monotonic() + 200
    while trials_of(view) != 5:  # Optuna's dashboard keeps what it has read for two seconds
        assert time.monotonic() < end
        time.sleep(0.2)
    assert ask(view, "/dashboard")[0] == "200 OK"


def test_a_line_that_is_not_written_to_its_end_is_waited_for(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    search(journal, "night", 2)
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(content[:-3])
    reading = Reading(journal)
    assert len(list(reading.read_logs(0))) == len(lines) - 1
    assert list(reading.read_logs(len(lines) - 1)) == []
    journal.write_bytes(content)
    assert list(reading.read_logs(len(lines) - 1)) == [json.loads(lines[-1])]
    assert list(reading.read_logs(1)) == [json.loads(line) for line in lines[1:]]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_journal_that_is_made_anew_is_read_anew(tmp_path: Path, in_place: bool) -> None:
    journal, other = tmp_path / "optuna.journal", tmp_path / "other"
    search(journal, "night", 3)
    view = OptunaView(journal)
    assert names(view) == ["night"]
    search(other, "day")
    if in_place:
        journal.write_bytes(other.read_bytes())
    else:
        other.replace(journal)
    assert names(view) == ["day"]
    journal.unlink()
    assert names(view) == ["day"], "until there is another"


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("PUT", "/api/studies/0/note", {"body": "mine", "version": 1}),
        ("PUT", "/api/studies/0/0/note", {"body": "mine", "version": 1}),
        ("POST", "/api/studies", {"study_name": "mine", "directions": ["minimize"]}),
        ("POST", "/api/studies/0/rename", {"study_name": "mine"}),
        ("POST", "/api/trials/0/user-attrs", {"user_attrs": {"mine": 1}}),
        ("DELETE", "/api/studies/0", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_it_cannot_write(tmp_path: Path, method: str, path: str, content: dict[str, Any]) -> None:
    """Whatever is asked for; the door before it lets no such request through at all."""
    journal = tmp_path / "optuna.journal"
    search(journal, "night")
    before = journal.read_bytes()
    view = OptunaView(journal)
    status, _ = ask(view, path, method, json.dumps(content).encode())
    assert status.startswith("500"), "the request is one that writes"
    assert journal.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [journal.name]
    assert names(view) == ["night"], "and it goes on"


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    with pytest.raises(InputError, match="no journal of Optuna's"):
        OptunaView(journal)
    assert not journal.exists()
    journal.write_text('{"op_code": 0}\n')
    with pytest.raises(InputError, match=r"optuna\.journal cannot be read: KeyError"):
        OptunaView(journal)
    journal.write_text("{\n")
    with pytest.raises(InputError, match="cannot be read: JSONDecodeError"):
        OptunaView(journal)


def test_without_its_package_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(InputError, match=r"python -m pip install optuna-dashboard$"):
        OptunaView(tmp_path / "optuna.journal")
