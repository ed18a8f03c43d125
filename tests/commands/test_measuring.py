"""`tunelab profile`, with real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image

from tunelab.cli import run
from tunelab.tuning import profile as measuring
from tunelab.tuning.profile import Figures, Point, Setting

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SCORES = [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Setting]]:
    """Nothing is measured: a batch of 64 has no room, 48 is interrupted, every other is as fast; what was asked."""
    from tunelab.analysis import profile

    asked: list[tuple[Any, Setting]] = []

    def measure(subject: Any, setting: Setting, *_more: Any) -> Point:
        asked.append((subject, setting))
        if setting.batch_size == 48:
            raise KeyboardInterrupt
        if setting.batch_size == 64:
            return Point(setting, failed="out of memory")
        return Point(setting, Figures(0.1, 1.0, 100.0, 300.0, None, 5))

    monkeypatch.setattr(profile, "measure", measure)
    monkeypatch.setattr(measuring, "usable_cpus", lambda: 2)
    return asked


@pytest.mark.slow
def test_two_points_are_measured_and_nothing_is_left_running(
    make_study: MakeStudy, capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("COMPLETED", SCORES), ("STOPPED", SCORES[:1])])
    words = ["--batch-sizes", "64,16", "--threads", "1", "--device", "cpu", "--seconds", "0.1", "--json"]
    assert run(["profile", *words]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    folder = study.path / "profile" / "trial0000"
    assert found["folder"] == str(folder)
    assert [(row["batch_size"], row["failed"]) for row in found["points"]] == [(16, ""), (64, "")]
    assert [line.partition(":")[0] for line in err.splitlines()] == ["1 of 2", "2 of 2"]
    for row in found["points"]:
        assert row["seconds_per_epoch"] > (100 // row["batch_size"]) * row["seconds_per_step"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["seconds_per_step"])
        assert row["epochs_per_hour"] == pytest.approx(3600 / row["seconds_per_epoch"])
        assert row["peak_host_mib"] > 50
        assert row["peak_device_mib"] is None
        assert row["steps_timed"] >= 1
    with (folder / "profile.csv").open(newline="") as stream:
        assert [float(row["seconds_per_step"]) for row in csv.DictReader(stream)] == [
            row["seconds_per_step"] for row in found["points"]
        ]
    for name in ("epoch_time.png", "peak_memory.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
    assert [child for child in psutil.Process().children() if "tunelab.training.probe" in child.cmdline()] == []


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_ends_the_process_that_measures(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    make_study([("COMPLETED", SCORES)])
    code = "import sys; from tunelab.cli import run; sys.exit(run(sys.argv[1:]))"
    words = ["profile", "--batch-sizes", "16,32,64", "--threads", "1", "--device", "cpu", "--seconds", "0.1"]
    command = [sys.executable, "-c", code, *words, "--out", str(tmp_path / "out")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    with driver:
        table = tmp_path / "out" / "profile.csv"
        ends = time.monotonic() + 200
        while not table.exists() and time.monotonic() < ends:
            time.sleep(0.05)
        measures = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 130, err
    rows = table.read_text().splitlines()[1:]
    assert rows[0].startswith("cpu,1,16,")
    assert err.splitlines()[-1] == (
        f"tunelab: interrupted after {len(rows)} of 3 points; {tmp_path / 'out'} has what was measured"
    )
    assert "recommended: cpu, 1 thread, batch " in out
    assert (tmp_path / "out" / "epoch_time.png").exists()
    psutil.wait_procs(measures, timeout=20)
    assert [process for process in measures if process.is_running()] == []


def test_a_point_that_fails_is_a_row_and_the_rest_is_measured(
    make_study: MakeStudy, pretended: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("STOPPED", SCORES[:1]), ("COMPLETED", SCORES)])
    assert run(["profile"]) == 0
    assert [(one.device, one.threads, one.batch_size) for _, one in pretended] == [
        ("cpu", threads, size) for threads in (1, 2) for size in (8, 16, 32, 64)
    ]
    out, _ = capfd.readouterr()
    assert "study, trial 1" in out
    assert out.count("out of memory") == 2
    assert f"files: {study.path / 'profile' / 'trial0001'}" in out
    assert run(["profile", "0", "--batch-sizes", "64", "--threads", "1"]) == 1
    out, err = capfd.readouterr()
    assert "out of memory" in out
    assert err.splitlines()[-1] == "tunelab: nothing could be measured: out of memory"
    assert (study.path / "profile" / "trial0000" / "profile.csv").exists()
    assert run(["profile", "study", "0", "--batch-sizes", "48", "--threads", "1"]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "tunelab: interrupted after 0 of 1 points"


def test_without_a_study_the_usual_baseline_is_measured_and_that_is_said(
    pretended: list[Any],
    tmp_path: Path,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["profile", "--batch-sizes", "32", "--threads", "2"]) == 0
    out, err = capfd.readouterr()
    assert err.splitlines()[0] == (
        f"note: there is no study in {runs_dir}; this is the baseline of the space arch on digits "
        "(--space and --data name others)"
    )
    assert out.startswith("baseline of arch on digits: 3x3-16 [basic x2, /2 basic")
    assert out.splitlines()[-1] == "files: profile-arch-digits"
    assert (tmp_path / "profile-arch-digits" / "profile.csv").exists()
    assert not runs_dir.exists()


def test_a_space_is_measured_on_data_of_ones_choice(
    pretended: list[Any],
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_study([("COMPLETED", SCORES)])
    monkeypatch.chdir(tmp_path)
    words = ["--limit-train", "300", "--batch-sizes", "32", "--threads", "1", "--device", "cpu"]
    assert run(["profile", "--space", "arch", *words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert "note" not in err
    assert json.loads(out)["configuration"]["space"] == "arch"
    ((subject, _),) = pretended
    assert subject.info.counts["train"] == 300
    assert (tmp_path / "profile-arch-digits" / "profile.json").exists()
