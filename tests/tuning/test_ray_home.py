"""What surrounds Ray; searches on real Ray are in test_search_on_ray.py."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

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
