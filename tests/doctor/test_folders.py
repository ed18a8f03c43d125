from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunelab.doctor import folders
from tunelab.doctor.folders import Mount, Place, find_home, find_place, find_temporary, mount_of, read_mounts

MIB = 2**20


def place(folder: Path, **changes: Any) -> Place:
    return Place(**{"name": "runs folder", "folder": folder, "least": 100 * MIB, "wanted": 1000 * MIB,
                    "option": "--runs-dir", **changes})  # fmt: skip


def disk(free: int, total: int = 10_000 * MIB, files: int = 10**6, flag: int = 0) -> Callable[[Path], Any]:
    """A file system with so many bytes and files free."""
    size = SimpleNamespace(
        f_bavail=free // 4096, f_frsize=4096, f_blocks=total // 4096, f_files=10**7, f_favail=files, f_flag=flag
    )
    return lambda _folder: size


@pytest.mark.parametrize(
    ("free", "verdict", "said"),
    [(50, "error", "needs 100 MiB at least"), (500, "warning", "may need 1000 MiB"), (5000, "ok", "4.9 GiB free")],
)
def test_room(tmp_path: Path, free: int, verdict: str, said: str) -> None:
    (found,) = find_place(place(tmp_path / "not/yet"), [], disk(free * MIB))
    assert found.verdict == verdict
    assert said in found.measured
    assert ("--runs-dir" in found.mend) == (verdict != "ok")
    assert list(tmp_path.iterdir()) == [], "nothing is made"


@pytest.mark.parametrize(("files", "verdict"), [(50, "error"), (5000, "warning")])
def test_files_that_run_out(tmp_path: Path, files: int, verdict: str) -> None:
    (found,) = find_place(place(tmp_path), [], disk(5000 * MIB, files=files))
    assert (found.name, found.verdict) == ("files in the runs folder", verdict)
    assert f"{files:,} more files" in found.measured


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    (found,) = find_place(place(tmp_path / "runs/here"), [])
    assert (found.verdict, found.measured) == ("error", f"{tmp_path / 'runs'} is a file")


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="/proc is the folder that nobody can write to")
def test_a_folder_that_cannot_be_written() -> None:
    (found,) = find_place(place(Path("/proc/runs")), [], disk(5000 * MIB))
    assert found.verdict == "error"
    assert "/proc cannot be written" in found.measured
    assert "--runs-dir" in found.mend


def test_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    def fail(_folder: Path) -> os.statvfs_result:
        raise OSError(116, "Stale file handle")

    (found,) = find_place(place(tmp_path), [], fail)
    assert (found.verdict, "Stale file handle" in found.measured) == ("error", True)


def test_locks_that_hold_nobody_off_and_locks_that_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_asked: None)
    (found,) = find_place(place(tmp_path), [], disk(5000 * MIB))
    assert (found.verdict, "hold nobody off" in found.measured) == ("warning", True)

    def fail(*_asked: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    (found,) = find_place(place(tmp_path), [], disk(5000 * MIB))
    assert (found.verdict, "Operation not supported" in found.measured) == ("error", True)
    assert list(tmp_path.iterdir()) == []


def test_a_sync_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.5])
    monkeypatch.setattr(folders, "time", SimpleNamespace(monotonic=lambda: next(times)))
    (found,) = find_place(place(tmp_path), [], disk(5000 * MIB))
    assert (found.verdict, "took 2.5 s" in found.measured) == ("warning", True)


@pytest.mark.parametrize(
    ("kind", "options", "kept", "said"),
    [
        ("nfs4", {"rw", "hard"}, True, "as good as its server"),
        ("nfs", {"rw", "soft"}, True, "mounted soft"),
        ("nfs", {"rw", "nolock"}, True, "on this machine only"),
        ("fuse.s3fs", set(), False, "is on fuse.s3fs"),
        ("tmpfs", set(), True, "gone after a restart"),
        ("tmpfs", set(), False, ""),
        ("ext4", {"rw"}, True, ""),
    ],
)
def test_file_systems(tmp_path: Path, kind: str, options: set[str], kept: bool, said: str) -> None:
    mounts = [Mount("/", "ext4", frozenset()), Mount(str(tmp_path), kind, frozenset(options))]
    (found,) = find_place(place(tmp_path / "a", kept=kept), mounts, disk(5000 * MIB))
    assert found.verdict == ("warning" if said else "ok")
    assert said in found.measured


def test_what_is_mounted_is_read(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "30 22 0:40 / /data/my\\040runs rw,noexec - nfs4 host:/x rw,soft\n"
        "broken\n"
    )
    mounts = read_mounts(tmp_path)
    assert mounts[1] == Mount("/data/my runs", "nfs4", frozenset({"rw", "noexec", "soft"}))
    assert len(mounts) == 2
    assert mount_of(Path("/data/my runs/x"), mounts) == mounts[1]
    assert mount_of(Path("/data/other"), mounts) == mounts[0]
    assert mount_of(Path("/"), []) is None
    assert read_mounts(tmp_path / "nothing") == []


def test_the_last_of_two_mounts_on_one_folder_counts() -> None:
    mounts = [Mount("/", "ext4", frozenset()), Mount("/", "overlay", frozenset())]
    found = mount_of(Path("/usr"), mounts)
    assert found is not None
    assert found.kind == "overlay"


def test_a_temporary_folder_that_is_fine(tmp_path: Path) -> None:
    assert [one.verdict for one in find_temporary(500, lambda: tmp_path, [], {}, disk(5000 * MIB))] == ["ok"]


def test_no_temporary_folder_at_all() -> None:
    def fail() -> Path:
        raise FileNotFoundError

    (found,) = find_temporary(20, fail, [], {})
    assert (found.verdict, "TMPDIR" in found.mend) == ("error", True)


def test_a_temporary_folder_that_is_not_the_one_that_was_named(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path / "missing")}
    found = find_temporary(500, lambda: tmp_path, [], environ, disk(5000 * MIB))
    assert [one.verdict for one in found] == ["ok", "warning"]
    assert found[1].measured == f"TMPDIR={tmp_path / 'missing'} cannot be written: {tmp_path} is used"


def test_a_path_that_is_too_long_for_sockets(tmp_path: Path) -> None:
    found = {one.verdict: one for one in find_temporary(20, lambda: tmp_path, [], {}, disk(5000 * MIB))}
    assert f"{len(str(tmp_path))} characters" in found["error"].measured
    assert "TMPDIR" in found["error"].mend


def test_a_temporary_folder_that_is_nearly_full(tmp_path: Path) -> None:
    found = find_temporary(500, lambda: tmp_path, [], {}, disk(2000 * MIB, total=100_000 * MIB))
    assert [one.verdict for one in found] == ["ok", "warning"]
    assert "98.0% full" in found[1].measured


def test_a_temporary_folder_from_which_nothing_runs(tmp_path: Path) -> None:
    mounts = [Mount("/", "ext4", frozenset({"rw", "noexec"}))]
    for found in (
        find_temporary(500, lambda: tmp_path, mounts, {}, disk(5000 * MIB)),
        find_temporary(500, lambda: tmp_path, [], {}, disk(5000 * MIB, flag=getattr(os, "ST_NOEXEC", 8))),
    ):
        assert "(noexec)" in found[1].measured
        assert "TORCHINDUCTOR_CACHE_DIR" in found[1].mend


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    assert find_home({"HOME": str(tmp_path)}) == []
    for home in (str(tmp_path / "missing"), "/proc", ""):
        assert [one.verdict for one in find_home({"HOME": home})] == ["warning"]
    assert find_home({"HOME": "/proc", "TUNELAB_CACHE": str(tmp_path)}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_real_disk_that_is_full(small_disk: Path) -> None:
    found = find_place(place(small_disk), read_mounts())
    assert {one.name: one.verdict for one in found if one.verdict == "error"} == {
        "runs folder": "error",
        "files in the runs folder": "error",
    }
    assert any("in memory (tmpfs)" in one.measured for one in found)
    (small_disk / "all").write_bytes(bytes(2 * MIB - 4096 * 2))
    assert any(one.verdict == "error" for one in find_place(place(small_disk), read_mounts()))
    assert [path.name for path in small_disk.iterdir()] == ["all"]
