"""What stands on a node, without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tunelab.training.pulse import Pulse, beat_path
from tunelab.tuning import machine
from tunelab.tuning import outpost as module
from tunelab.tuning.memory_guard import Word
from tunelab.tuning.outpost import Outpost, beats_folder, family, node_folder, word_folder
from tunelab.tuning.ray_home import IN_USE, remove_abandoned


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def outpost(temporary: Path) -> Iterator[Outpost]:
    made = Outpost("search", "node")
    yield made
    made.close()


def test_workers_find_its_folder_by_themselves(outpost: Outpost, temporary: Path) -> None:
    folder = node_folder("search", "node")
    assert folder == temporary / "tunelab-search-node"
    assert folder.stat().st_mode & 0o777 == 0o700
    pulse = Pulse(beat_path(folder, 3), 3)
    pulse.enter("training")
    seen = outpost.look([3, 4])
    assert list(seen.beats) == [3]
    assert (seen.beats[3].pid, seen.beats[3].phase) == (os.getpid(), "training")
    pulse.close()
    assert outpost.has_room()
    outpost.close()
    assert not folder.exists()
    assert not outpost.has_room()


def test_it_tells_once_what_a_process_there_wrote_of_its_memory(outpost: Outpost) -> None:
    word = Word(3, 99, 500.0, 400.0, True, "its process held 500 MiB")
    word.write(word_folder(node_folder("search", "node"), 3))
    assert outpost.take_word(4) is None
    assert outpost.take_word(3) == word
    assert outpost.take_word(3) is None
    word.write(word_folder(node_folder("search", "node"), 3))
    outpost.close()
    assert not node_folder("search", "node").joinpath("0003").exists(), "it goes with the folder"


def test_a_path_is_a_folder_of_beats_as_it_is(tmp_path: Path) -> None:
    assert beats_folder(str(tmp_path / "beats")) == tmp_path / "beats"


def test_nobody_elses_folder_is_used(temporary: Path) -> None:
    (temporary / "tunelab-open-node").mkdir()
    (temporary / "tunelab-open-node").chmod(0o755)
    (temporary / "tunelab-link-node").symlink_to(temporary)
    for search in ("open", "link"):
        with pytest.raises(PermissionError, match="is not this user's alone"):
            node_folder(search, "node")


def test_what_a_killed_one_left_is_removed_by_the_next(outpost: Outpost, temporary: Path) -> None:
    folder = node_folder("search", "node")
    remove_abandoned(temporary)
    assert (folder / IN_USE).exists(), "it is in use"
    os.close(outpost._lock)  # as when its process ends
    other = Outpost("other", "node")
    assert not folder.exists()
    other.close()


def test_it_ends_processes_of_its_own_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster has other people's trials too."""
    monkeypatch.setattr(module.os, "getppid", os.getpid)
    monkeypatch.setenv("RAY_JOB_ID", "01")
    sleeps = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
    ours, others = (
        subprocess.Popen(sleeps, env={**os.environ, "RAY_JOB_ID": job}, stdout=subprocess.PIPE) for job in ("01", "02")
    )
    try:
        for process in (ours, others):
            assert process.stdout is not None
            process.stdout.readline()
        assert [process.pid for process in family("01")] == [ours.pid]
        outpost = Outpost("search", "node")
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["ray::IDLE"])
        assert outpost.unknown([]) == [], "it waits for work, whoever's"
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["ray::TrialWorker.__init__"])
        assert outpost.unknown([]) == [], "it has just been started"
        monkeypatch.setattr(machine, "age", lambda _pid: 301.0)
        assert outpost.unknown([]) == [ours.pid]
        assert outpost.unknown([ours.pid]) == []
        outpost.end_unknown([])
        assert ours.wait(10) == -9
        assert others.poll() is None
        outpost.close()
    finally:
        for process in (ours, others):
            process.kill()
            process.communicate()
