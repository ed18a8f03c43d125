"""The command `doctor`: its report, its JSON, its exit status, and one real run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tunelab.cli import run
from tunelab.commands.checking import report
from tunelab.config import DataConfig
from tunelab.doctor import cluster, examine
from tunelab.doctor.checks import Asked
from tunelab.doctor.findings import MachineFinding, error, ok, warning
from tunelab.tuning.node_findings import NodeFinding
from tunelab.tuning.site import Site

FOUND = [error("disk", "full " * 30, "free some"), warning("load", "busy", "wait"), ok("clock", "steady")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What the checks are asked; they find FOUND."""
    seen: list[Asked] = []

    def pretend(asked: Asked) -> Sequence[MachineFinding]:
        seen.append(asked)
        return FOUND

    monkeypatch.setattr(examine, "examine", pretend)
    return seen


def test_the_report_is_worst_first_with_the_mends() -> None:
    lines = report(FOUND, 80)
    assert lines[0] == "a search would not run:"
    assert [line for line in lines if "->" in line] == ["     -> free some", "     -> wait"]
    assert lines.index("a search runs, but:") < lines.index("fine:") < lines.index("  clock: steady")
    assert max(map(len, lines)) <= 80
    assert "fit" not in lines[-1]


def test_the_report_of_a_fit_machine() -> None:
    assert report(FOUND[2:], 80)[-1] == "This machine is fit for a search."
    assert report(FOUND[1:], 80)[-1] == "This machine is fit for a search as it is; with the mends it is better."


def test_an_error_is_exit_status_1(asked: list[Asked], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--data", "digits", "--data", "mnist", "--data-dir", "/d", "--runs-dir", str(tmp_path)]
    assert run(words) == 1
    out, err = capfd.readouterr()
    assert err == "tunelab: a search would not run on this machine (1 error)\n"
    assert "disk: full" in out
    assert asked == [Asked(str(tmp_path), ("digits", "mnist"), "/d")]


def test_warnings_are_exit_status_0(
    asked: list[Asked], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(examine, "examine", lambda _asked: FOUND[1:])
    assert run(["doctor"]) == 0
    assert "load: busy" in capfd.readouterr().out


def test_json_has_the_findings(asked: list[Asked], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 1
    plain = json.loads(capfd.readouterr().out)
    assert plain["fit"] is False
    assert [MachineFinding.from_json(one) for one in plain["findings"]] == FOUND


def test_an_address_asks_the_nodes_of_a_cluster(
    asked: list[Asked], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def pretend(site: Site, folder: Path, data: dict[DataConfig, str], *, build: bool) -> object:
        seen.append((site.address, folder, list(data), build))
        return None, [
            NodeFinding("10.0.0.3", "node", "8 processors"),
            NodeFinding("10.0.0.2", "storage", "/runs is read-only there", "error", "remount it"),
        ]

    monkeypatch.setattr(cluster, "reach", lambda site: site)
    monkeypatch.setattr(cluster, "is_open", lambda _address: False)
    monkeypatch.setattr(cluster, "look_at_nodes", pretend)
    words = ["--address", "head:6379", "--data", f"folder:{tmp_path}/none", "--runs-dir", str(tmp_path)]
    assert run(["doctor", *words]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        "a search would not run:",
        "  10.0.0.2: storage: /runs is read-only there",
        "     -> remount it",
        "fine:",
        "  10.0.0.3: 8 processors",
    ]
    assert err == "tunelab: a search would not run on this cluster (1 error)\n"
    assert seen == [("head:6379", tmp_path, [DataConfig(name=f"folder:{tmp_path}/none")], False)]
    assert asked == [], "this machine is not looked at"


@pytest.mark.parametrize("address", ["nonsense", "host:70000", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_no_cluster_is_is_one_line(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--address", address]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert address in err


@pytest.mark.slow
def test_a_real_run_starts_ray_and_leaves_nothing(tmp_path: Path) -> None:
    """A machine under load may take longer than the checks allow: then that is a finding, and still nothing is left."""
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [sys.executable, "-m", "tunelab.cli", "doctor", "--json", "--runs-dir", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    plain = json.loads(done.stdout)
    assert done.returncode == (0 if plain["fit"] else 1), done.stderr
    by_name = {one["name"]: one for one in plain["findings"]}
    (ray,) = [one for one in plain["findings"] if one["group"] == "Ray"]
    assert "started and ran a task" in ray["measured"] or "no answer within" in ray["measured"], ray
    assert by_name["time zone"]["group"] == "clock"
    assert list(tmp_path.iterdir()) == []
    new = [process for process in psutil.process_iter() if process.pid not in before]
    assert not [process for process in new if _is_ours(process)]


@pytest.mark.slow
def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    begun = [sys.executable, "-m", "tunelab.cli", "doctor", "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not psutil.Process(process.pid).children():
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err.strip()) == (130, "", "tunelab: interrupted")
    assert psutil.wait_procs(children, timeout=10)[1] == []


def _is_ours(process: psutil.Process) -> bool:
    try:
        return "TUNELAB_DOCTOR" in process.environ()
    except psutil.Error:
        return False
