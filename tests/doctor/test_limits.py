from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunelab.doctor import limits
from tunelab.doctor.limits import count_threads, find_file_size, find_open_files, find_processes


def limited(which: str, soft: int, hard: int, call: str) -> list[dict[str, Any]]:
    """What a process finds that has set itself a limit."""
    code = (
        "import resource, json; from tunelab.doctor.limits import *;"
        f"resource.setrlimit(resource.{which}, ({soft}, {hard}));"
        f"print(json.dumps([one.to_json() for one in {call}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "mend"),
    [
        (4096, 4096, "ok", ""),
        (512, 4096, "warning", "ulimit -n 4096"),
        (100, 4096, "error", "ulimit -n 4096"),
        (512, 600, "warning", "/etc/security/limits.conf"),
    ],
)
def test_open_files(soft: int, hard: int, verdict: str, mend: str) -> None:
    (found,) = limited("RLIMIT_NOFILE", soft, hard, "find_open_files(2)")
    assert found["verdict"] == verdict
    assert mend in found["mend"]
    assert found["measured"].startswith(f"{soft} (at most {hard})")


def test_more_trials_want_more_files() -> None:
    (found,) = limited("RLIMIT_NOFILE", 1024, 1024, "find_open_files(64)")
    assert (found["verdict"], "64 trials at once want 4608" in found["measured"]) == ("warning", True)


def test_a_small_limit_of_files_sizes() -> None:
    assert limited("RLIMIT_FSIZE", 2**20, 2**20, "find_file_size()")[0]["verdict"] == "error"
    assert limited("RLIMIT_FSIZE", 2**28, 2**28, "find_file_size()")[0]["verdict"] == "warning"


def test_no_limit_of_files_sizes_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _which: (limits.resource.RLIM_INFINITY,) * 2)
    assert find_file_size() == []
    assert find_open_files(2)[0].measured == "unlimited (at most unlimited)"


@pytest.mark.parametrize(("used", "verdict"), [(100, "ok"), (800, "warning"), (950, "error")])
def test_processes_of_an_ordinary_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, verdict: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _which: (1000, 5000))
    (found,) = find_processes(2, used=used, root=tmp_path)
    assert found.verdict == verdict
    assert f"{1000 - used} more allowed" in found.measured
    assert ("ulimit -u" in found.mend) == (verdict != "ok")


def test_root_is_not_held_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _which: (10, 10))
    assert [one.measured for one in find_processes(2, used=9, root=tmp_path)] == ["no limit"]


@pytest.mark.parametrize(("most", "verdict"), [("max", "ok"), ("1000", "ok"), ("300", "warning"), ("120", "error")])
def test_processes_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, verdict: str) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (group / "pids.max").write_text(most)
    (group / "pids.current").write_text("50\n")
    (found,) = find_processes(2, root=tmp_path)
    assert found.verdict == verdict
    assert ("--pids-limit" in found.mend) == (verdict != "ok")


def test_the_threads_of_this_user_are_counted() -> None:
    assert count_threads() >= 1
