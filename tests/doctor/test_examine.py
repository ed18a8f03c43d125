"""Checks in processes of their own: what hangs, dies or raises is a finding, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tunelab.doctor import checks, examine
from tunelab.doctor.checks import CHECKS, Asked, Check
from tunelab.doctor.child import run
from tunelab.doctor.examine import _lanes
from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.tuning import ray_home

NAMES = ["clock", "environment", "limits"]
# A process that answers as `tunelab.doctor.child` does, but for what one of its checks is made to do.
CHILD = """
import json, os, subprocess, sys, time
request = json.loads(sys.stdin.readline())
for name in request["names"]:
    if name == "environment":
        {misdeed}
    finding = dict(name=name, measured="seen", verdict="ok", mend="", group="g")
    print(json.dumps(dict(check=name, findings=[finding])), flush=True)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, empty."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(ray_home, "temporary_parent", lambda: folder)
    return folder


def look(misdeed: str) -> dict[str, MachineFinding]:
    """What is found when one check of three does something else than answer."""
    found = examine.examine(Asked(), NAMES, (sys.executable, "-c", CHILD.format(misdeed=misdeed)))
    return {one.name: one for one in found}


def limit(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(examine, "_START", 0.0 if seconds < 1 else 10.0)
    check = CHECKS["environment"]
    monkeypatch.setitem(CHECKS, "environment", Check(check.group, seconds, check.lane, check.look))


def test_answers_are_collected_and_nothing_is_left(temporary: Path) -> None:
    found = look("pass")
    assert {name: one.measured for name, one in found.items()} == dict.fromkeys(NAMES, "seen")
    assert list(temporary.iterdir()) == []


def test_a_check_that_hangs_is_a_finding_and_the_next_goes_on(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1.0)
    found = look("time.sleep(600)")
    assert [found[name].verdict for name in NAMES] == ["ok", "error", "ok"]
    assert found["environment"].measured == "no answer within 1 s"
    assert found["environment"].group == CHECKS["environment"].group
    assert found["environment"].mend
    assert list(temporary.iterdir()) == []


def test_a_check_that_takes_long_on_a_busy_machine_is_a_warning(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1.0)
    found = look("time.sleep(600)")["environment"]
    idle, busy = ok("load", "0 of 2"), warning("load", "2 of 2", "end them")
    broken = error("disk", "full", "free some")
    assert [one.verdict for one in examine._excused([idle, found, broken])] == ["ok", "error", "error"]
    assert [one.verdict for one in examine._excused([busy, found, broken])] == ["warning", "warning", "error"]


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [
        ("os.kill(os.getpid(), 11)", "died with signal 11"),
        ("raise SystemExit('libcudart.so is missing')", "died with status 1: libcudart.so is missing"),
    ],
)
def test_a_check_that_dies_is_a_finding_and_the_next_goes_on(temporary: Path, misdeed: str, said: str) -> None:
    found = look(misdeed)
    assert [found[name].verdict for name in NAMES] == ["ok", "error", "ok"]
    assert said in found["environment"].measured


def test_what_a_check_started_is_ended_and_named(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = "subprocess.Popen(['sleep', '601'], start_new_session=True, stdout=subprocess.DEVNULL)"
    monkeypatch.setattr(examine.remove_marked, "__defaults__", (0.2,))
    found = look(f"{begun}; os.fork() and os._exit(0)")  # so that its parent is gone
    assert "sleep" in found["end of the checks"].measured
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "601"]]


def test_no_temporary_folder_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(ray_home, "temporary_parent", fail)
    assert {one.verdict for one in look("pass").values()} == {"ok"}


def test_a_check_that_raises_is_a_finding() -> None:
    def fail(_asked: Asked) -> list[MachineFinding]:
        raise PermissionError("not yours\nat all")

    (found,) = run("limits", Check("limits", 1.0, "system", fail), Asked())
    assert (found["name"], found["verdict"]) == ("limits", "error")
    assert found["measured"] == "the check failed: PermissionError: not yours"
    (found,) = run("limits", Check("limits", 1.0, "system", lambda _asked: [ok("a", "b")]), Asked())
    assert found["verdict"] == "ok"


def test_a_package_that_is_broken_is_a_finding_of_what_needs_it(tmp_path: Path, temporary: Path) -> None:
    for name in ("optuna", "ray"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise ImportError('it is broken')\n")
    code = (
        "import json; from tunelab.doctor.examine import examine; from tunelab.doctor.checks import Asked;"
        "print(json.dumps([one.to_json() for one in examine(Asked(), ['versions', 'ray'])]))"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environ)
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["ray"]["verdict"] == "error", done.stderr
    assert "it is broken" in found["ray"]["measured"]
    assert found["versions"]["verdict"] == "ok"


def test_the_load_is_measured_before_anything_else_runs() -> None:
    lanes = _lanes(list(CHECKS))
    assert lanes[0] == [["processors", "leftovers", "studies"]]
    assert sorted(name for step in lanes for lane in step for name in lane) == sorted(CHECKS)
    assert ["ray"] in lanes[1]
    assert _lanes(["limits"]) == [[["limits"]]]


def test_data_is_looked_at_only_if_there_is_some(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(examine, "_lanes", lambda names: seen.append(list(names)) or [])
    examine.examine(Asked())
    examine.examine(Asked(data=("digits",)))
    assert [("data" in names) for names in seen] == [False, True]


def test_what_is_asked_there_and_back() -> None:
    asked = Asked("/runs", ("digits", "folder:/a"), "/data", "/tmp/x")
    assert Asked.from_json(asked.to_json()) == asked


def test_the_process_ends_with_who_started_it() -> None:
    code = (
        "import subprocess, sys, json;"
        "p = subprocess.Popen([sys.executable, '-m', 'tunelab.doctor.child'], stdin=subprocess.PIPE);"
        "p.stdin.write(json.dumps({'asked': {'data': [], 'runs_dir': '', 'data_dir': None, 'scratch': ''},"
        " 'names': ['clock'] * 500}).encode() + b'\\n'); p.stdin.flush(); print(p.pid, flush=True);"
        "import os; os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
    )
    pid = int(done.stdout.split()[0])
    until = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "it runs on"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_real_checks(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but Ray, with a cache that is not there: each answers, and no folder is made."""
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    for name, check in checks.CHECKS.items():  # a machine that does other things at the same time
        monkeypatch.setitem(CHECKS, name, Check(check.group, 90.0, check.lane, check.look))
    names = [name for name in CHECKS if name != "ray"]
    found = examine.examine(Asked(str(tmp_path / "runs"), ("digits",)), names)
    assert not [one for one in found if "check failed" in one.measured or "no answer" in one.measured], found
    assert {one.group for one in found} == {check.group for name, check in CHECKS.items() if name != "ray"}
    assert "data digits" in {one.name for one in found}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
    assert list(temporary.iterdir()) == []
    assert os.environ.get("TUNELAB_DOCTOR") is None
