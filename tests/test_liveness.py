from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.text import print_studies, print_study, study_rows, study_summary

from tunelab import liveness
from tunelab.journal import Journal
from tunelab.liveness import FILE, SILENT, SignsOfLife, last_sign

if TYPE_CHECKING:
    from tests.conftest import MakeStudy


def age_by(folder: Path, **changes: Any) -> None:
    """The sign in a folder is as it would be with these values; numbers are added."""
    content = json.loads((folder / FILE).read_text())
    for name, value in changes.items():
        content[name] = value if isinstance(value, str) else content[name] + value
    (folder / FILE).write_text(json.dumps(content))


def test_a_sign_tells_who_lives(tmp_path: Path) -> None:
    with SignsOfLife(tmp_path).given():
        sign = last_sign(tmp_path)
        assert sign is not None
        assert (sign.pid, sign.host, sign.silent) == (os.getpid(), socket.gethostname(), False)
        assert 0 <= sign.age < 60
        assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    assert last_sign(tmp_path) is None


def test_signs_are_renewed_and_not_at_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now)
    with SignsOfLife(tmp_path).given() as life:
        first = (tmp_path / FILE).stat().st_mtime_ns
        life.give()
        assert (tmp_path / FILE).stat().st_mtime_ns == first
        now += 60
        sign = last_sign(tmp_path)
        assert sign is not None
        assert sign.age == 60
        life.give()
        sign = last_sign(tmp_path)
        assert sign is not None
        assert sign.age == 0


def test_a_clock_that_jumps_does_not_age_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SignsOfLife(tmp_path).given():
        sign = last_sign(tmp_path)
        assert sign is not None
        ahead = time.time() + 86400
        monkeypatch.setattr(liveness.time, "time", lambda: ahead)
        assert sign.age < 60


def test_of_another_machine_the_time_of_day_tells(tmp_path: Path) -> None:
    with SignsOfLife(tmp_path).given():
        age_by(tmp_path, boot="another", time=-300.0)
        sign = last_sign(tmp_path)
        assert sign is not None
        assert 300 <= round(sign.age, 2) < 360, "the sign's time is rounded"


def test_a_folder_that_takes_no_sign_is_no_error(tmp_path: Path) -> None:
    with SignsOfLife(tmp_path / "none").given() as life:
        life.give()
    assert last_sign(tmp_path / "none") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\0" * 512])
def test_what_is_no_sign_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert last_sign(tmp_path) is None


@pytest.mark.parametrize(
    "wrong",
    [{"pid": "1"}, {"pid": -1}, {"pid": True}, {"host": "a\x1b[2J"}, {"host": 5}, {"boot": []}, {"time": "now"},
     {"steady": None}, {"host": "x" * 600}],
)  # fmt: skip
def test_what_a_stranger_wrote_is_not_believed(tmp_path: Path, wrong: dict[str, Any]) -> None:
    sign = {"pid": 5, "host": "box", "boot": "1", "steady": 1.0, "time": 2.0}
    (tmp_path / FILE).write_text(json.dumps(sign).ljust(512))
    assert last_sign(tmp_path) is not None
    (tmp_path / FILE).write_text(json.dumps({**sign, **wrong}))
    assert last_sign(tmp_path) is None


@pytest.mark.timeout(30)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    assert last_sign(tmp_path) is None
    with SignsOfLife(tmp_path).given() as life:
        life.give()


def test_list_and_show_say_how_long_ago_it_was(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study([("RUNNING", [0.5])], asked=2)
    journal = Journal.open(study.path)
    with SignsOfLife(study.path).given():
        print_studies(study_rows([study]))
        print_study(study, study_summary(study))
        told = capsys.readouterr().out
        said = f"running (process {os.getpid()} on {socket.gethostname()}, last sign of life "
        assert told.count(said) == 2
        assert "seems to hang" not in told
        age_by(study.path, steady=-SILENT - 60)
        print_studies(study_rows([study]))
        print_study(study, study_summary(study))
        told = capsys.readouterr().out
        assert told.count("last sign of life 3 min ago: it seems to hang)") == 2
        assert told.count(f"`kill {os.getpid()}`") == 2
        journal.close()
        print_studies(study_rows([study]))
        assert "sign of life" not in capsys.readouterr().out, "no process writes it"
