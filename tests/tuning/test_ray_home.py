"""What surrounds Ray; searches on real Ray are in test_search_on_ray.py."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tunelab.errors import InputError
from tunelab.tuning import ray_home


def test_folders_of_killed_searches_are_removed_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray_home, "LONGEST_TEMPORARY", 1000)
    abandoned = tmp_path / "tunelab-dead"
    abandoned.mkdir()
    (abandoned / "in-use").touch()
    unclaimed = tmp_path / "tunelab-x7_abcde"
    unclaimed.mkdir()  # by a process that was killed right afterwards
    foreign = tmp_path / "tunelab-mine"
    foreign.mkdir()
    with ray_home.private_folder() as first:
        assert not abandoned.exists()
        assert not unclaimed.exists()
        assert first.stat().st_mode & 0o077 == 0
        with ray_home.private_folder() as second:
            assert first.exists(), "another search of this user runs in it"
            assert second != first
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name]


def test_a_folder_that_another_search_takes_for_abandoned_is_claimed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both moments: before its file is there, and before that is locked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray_home, "LONGEST_TEMPORARY", 1000)
    flock, mkdtemp, made = fcntl.flock, tempfile.mkdtemp, []

    def make(**given: str) -> str:
        made.append(mkdtemp(**given))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    def lock(descriptor: int, kind: int) -> None:
        if len(made) == 2 and kind == fcntl.LOCK_EX:
            shutil.rmtree(made[1])
        flock(descriptor, kind)

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    with ray_home.claimed_folder() as folder:
        assert str(folder) == made[2]
        assert [path.name for path in folder.iterdir()] == [ray_home.IN_USE]
    assert list(tmp_path.iterdir()) == []


def test_the_token_is_private_and_the_environment_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    before = dict(os.environ)
    with ray_home.environment(tmp_path):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o077 == 0
        assert len(token.read_text()) == 64
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert dict(os.environ) == before


@pytest.mark.parametrize(("dashboard", "collects"), [(False, "0"), (True, "1")])
def test_metrics_are_collected_for_a_dashboard_alone(dashboard: bool, collects: str, tmp_path: Path) -> None:
    name = "RAY_enable_metrics_collection"
    with ray_home.environment(tmp_path, dashboard=dashboard):
        assert os.environ[name] == collects


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """The free bytes of three folders, in which a search looks for a place in this order."""
    free = {tmp_path / name: 10 * ray_home.ROOM_BYTES for name in ("usual", "memory", "study")}
    usual, memory, _study = free
    for folder in (usual, memory):
        folder.mkdir()
    monkeypatch.setattr(ray_home, "_candidates", lambda study: [usual, memory] + ([study] if study else []))
    monkeypatch.setattr(ray_home, "free_bytes", lambda folder: free.get(folder, 10 * ray_home.ROOM_BYTES))
    monkeypatch.setattr(ray_home, "LONGEST_TEMPORARY", 1000)
    return free


def test_another_place_is_taken_where_there_is_no_room(places: dict[Path, int]) -> None:
    usual, memory, study = places
    assert ray_home.find_parent(study) == usual
    places[usual] = 3 * 2**20
    assert ray_home.find_parent(study) == memory
    with ray_home.private_folder(study) as folder:
        assert folder.parent == memory
        with ray_home.environment(folder):
            assert os.environ["TMPDIR"] == str(folder), "for Ray's processes"
    places[memory] = 0
    assert ray_home.find_parent(study) == study, "which is made later"
    with pytest.raises(InputError) as refused:
        ray_home.find_parent()
    assert str(refused.value) == (
        f"there is no place for Ray's files: {usual} has 3.0 MiB free, 64 MiB are needed, "
        f"{memory} has 0.0 MiB free, 64 MiB are needed; TMPDIR names another"
    )


def test_a_place_must_be_short_and_one_that_can_be_written(
    places: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, memory, _study = places
    monkeypatch.setattr(ray_home, "LONGEST_TEMPORARY", len(str(usual)))
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != usual)
    with pytest.raises(InputError, match=r"usual cannot be written, .*memory has more than the \d+ characters"):
        ray_home.find_parent(memory)
    monkeypatch.setattr(os, "access", lambda folder, mode: True)
    monkeypatch.setattr(ray_home, "free_files", lambda folder: 7)
    with pytest.raises(InputError, match="usual has room for 7 more files"):
        ray_home.find_parent()


WITH_RAY = """
import json, os, stat, subprocess, sys
from pathlib import Path
import psutil, ray
from tunelab.tuning import ray_home
from tunelab.tuning.slots import Slots

CLIENT = "import ray, sys; ray.init(address=sys.argv[1]); print('reached')"
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # of a cluster that is none of ours
told = {}
with ray_home.private_folder() as folder:
    settings = ray_home.environment(folder), ray_home.quiet(folder / "log")
    with settings[0], settings[1], ray_home.started(Slots(1, 1, 0.0, "cpu"), folder):
        address = ray.get_runtime_context().gcs_address
        wrong = folder / "wrong"
        wrong.write_text("0" * 64)
        for name, token in (("ours", os.environ["RAY_AUTH_TOKEN_PATH"]), ("another", str(wrong))):
            # Without the last one Ray would take 127.0.0.1 for another address of this machine, where nothing listens.
            env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
            env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            asked = [sys.executable, "-c", CLIENT, address]
            try:
                done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=300)
                told[name] = "reached" in done.stdout
            except subprocess.TimeoutExpired:
                told[name] = False
        told["address"] = address
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        told["modes"] = [stat.S_IMODE(path.stat().st_mode) for path in (folder, token)]
        told["dashboard"] = ray._private.worker._global_node.webui_url
        told["programs"] = sorted(ray._private.worker._global_node.all_processes)
        lines = [" ".join(one.cmdline()[:2]) for one in psutil.Process().children(recursive=True)]
        told["workers"] = [line for line in lines if "default_worker.py" in line or "ray::IDLE" in line]
Path(sys.argv[1]).write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_nobody_else_reaches_a_ray_that_was_started(tmp_path: Path) -> None:
    """Neither without its token nor through its folder; no cluster that is named is joined, no dashboard listens."""
    (tmp_path / "started.py").write_text(WITH_RAY)
    told = tmp_path / "told.json"
    done = subprocess.run(
        [sys.executable, str(tmp_path / "started.py"), str(told)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(told.read_text())
    assert found["ours"], "with its token it is reached"
    assert not found["another"]
    assert not found["address"].endswith(":1")
    assert found["modes"] == [0o700, 0o600]
    assert not found["dashboard"]
    assert found["programs"] == ["gcs_server", "raylet"], "none that only a dashboard needs"
    assert found["workers"] == [], "none that no trial is given"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_terminal_takes_any_name_whatever_letters_it_has(encoding: str) -> None:
    code = "from tunelab.tuning.ray_home import terminal; print('study caf\\u00e9 \\udce4 ends', file=terminal())"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"\\udce4 ends" in done.stderr
