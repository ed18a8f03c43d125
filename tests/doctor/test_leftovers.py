from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.doctor.leftovers import Seen, find_builds, find_folders, find_processes, find_studies, processes

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

INIT = Seen(1, 0, "systemd", "/sbin/init")
DRIVER = Seen(10, 5, "tunelab", "/usr/bin/python /usr/bin/tunelab search arch")
RAYLET = "/ray/raylet --temp_dir=/tmp/tunelab-abc/ray"


@pytest.mark.parametrize(
    ("seen", "dead"),
    [
        ([INIT], []),
        ([INIT, DRIVER, Seen(11, 10, "raylet", RAYLET), Seen(12, 11, "ray::IDLE", "ray::IDLE")], []),
        ([INIT, Seen(11, 1, "raylet", RAYLET), Seen(12, 11, "ray::IDLE", "ray::IDLE")], [11, 12]),
        ([INIT, Seen(11, 10, "gcs_server", "/ray/gcs_server --session-dir=/tmp/tunelab-abc/ray")], [11]),
        ([INIT, Seen(12, 1, "ray::IDLE", "ray::IDLE")], [12]),
        ([INIT, Seen(11, 1, "raylet", "/ray/raylet --temp_dir=/tmp/ray"), Seen(12, 11, "x", "ray::IDLE")], []),
        ([INIT, Seen(13, 1, "python", "python -m tunelab.training.probe")], [13]),
        ([INIT, DRIVER, Seen(13, 10, "python", "python -m tunelab.training.probe")], []),
        ([Seen(1, 0, "tunelab", "python tunelab search arch"), Seen(11, 1, "raylet", RAYLET)], []),
    ],
)
def test_processes_without_their_program(seen: list[Seen], dead: list[int]) -> None:
    (found,) = find_processes(seen)
    assert found.verdict == ("warning" if dead else "ok")
    assert found.mend == (f"kill -9 {' '.join(map(str, dead))}" if dead else "")


def test_the_processes_that_there_are() -> None:
    own = next(one for one in processes() if one.pid == os.getpid())
    assert own.parent == os.getppid()


def test_folders_of_killed_searches(tmp_path: Path) -> None:
    assert [one.verdict for one in find_folders(tmp_path, "tunelab-", "in-use")] == ["ok"]
    for name in ("tunelab-dead", "tunelab-alive", "other-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in-use").touch()
    (tmp_path / "tunelab-dead/log").write_bytes(bytes(3 * 2**20))
    with (tmp_path / "tunelab-alive/in-use").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (found,) = find_folders(tmp_path, "tunelab-", "in-use")
    assert found.verdict == "warning"
    assert found.measured == f"1 of killed searches in {tmp_path}, 3.0 MiB"
    assert f"rm -r {tmp_path / 'tunelab-dead'} " in found.mend
    assert (tmp_path / "tunelab-dead").exists(), "looking removes nothing"


def test_no_studies(tmp_path: Path) -> None:
    assert [one.verdict for one in find_studies(tmp_path / "missing", [])] == ["ok"]
    assert not (tmp_path / "missing").exists()


def hold(folder: Path, text: str) -> int:
    """Holds a study's lock, which says `text`."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(handle, text.encode())
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


@pytest.mark.parametrize(
    ("text", "seen", "said"),
    [
        (f"process 77 on {socket.gethostname()}", [Seen(77, 1, "tunelab", "tunelab search")], None),
        (f"process 77 on {socket.gethostname()}", [Seen(77, 1, "tunelab", "", "stopped")], "kill -CONT 77"),
        (f"process 77 on {socket.gethostname()}", [], "fuser -k"),
        ("process 77 on node7.cluster", [], "ssh node7.cluster kill 77"),
        ("", [], None),
    ],
)
def test_a_study_that_is_held(make_study: MakeStudy, text: str, seen: list[Seen], said: str | None) -> None:
    study = make_study()
    handle = hold(study.path, text)
    try:
        found = find_studies(study.path.parent, seen)
    finally:
        os.close(handle)
    assert [one.name for one in found] == (["lock"] if said else []) + ["running studies"]
    assert all(one.verdict == "warning" for one in found)
    if said:
        assert said in found[0].mend


def test_a_search_that_was_killed_can_be_resumed(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5] * 4), ("RUNNING", [0.5])])
    (found,) = find_studies(study.path.parent, [])
    assert (found.verdict, found.measured) == ("ok", f"study: `tunelab resume {study.path}` does it")


def test_a_search_that_has_ended_is_not_told(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5] * 4), ("STOPPED", [0.5])])
    assert [one.name for one in find_studies(study.path.parent, [])] == ["studies"]


def test_a_damaged_study_is_told(make_study: MakeStudy) -> None:
    study = make_study()
    (study.path / "study.json").write_text("{")
    (found,) = find_studies(study.path.parent, [])
    assert (found.name, found.verdict) == ("damaged studies", "warning")
    assert "study.json" in found.measured


def test_half_decoded_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / ".digits-0a1b-12345678").mkdir(parents=True)
    (data / ".mnist-0a1b-12345678").mkdir()
    (data / "digits-0a1b").mkdir()
    for name in ("digits", "mnist"):
        (data / f"{name}-0a1b.lock").touch()
    with (data / "mnist-0a1b.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (found,) = find_builds(tmp_path)
    assert found.verdict == "warning"
    assert found.mend == f"rm -r {data / '.digits-0a1b-12345678'}"
    assert find_builds(tmp_path / "missing") == []
