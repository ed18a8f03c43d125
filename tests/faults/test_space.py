"""Disks that are full, read-only or gone while a search runs or before it does; on real, small file systems."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tunelab.cli import run
from tunelab.journal import RESERVE
from tunelab.records import TrialStatus

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = "from tunelab.tuning import low_space; low_space.EVERY = 0.2\n"
IMPATIENT = QUICK + "low_space.PATIENCE = 3.0\n"
WAITS = "no trial is begun until there is room"
GOES_ON = "there is room again; it goes on"


class Mount(Protocol):
    """What the fixture `mount` gives: mounts a file system in memory of so many MiB on a folder that it makes."""

    def __call__(self, folder: Path, mib: int) -> Path: ...


@pytest.fixture
def mount() -> Iterator[Mount]:
    """File systems that are unmounted afterwards."""
    with contextlib.ExitStack() as stack:

        def make(folder: Path, mib: int) -> Path:
            folder.mkdir(exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "none", str(folder)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                pytest.skip("file systems cannot be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield make


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**20))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return path


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True, capture_output=True)


def pass_by(fault: Fault, seconds: float) -> None:
    """Lets the search run on."""
    ends = time.monotonic() + seconds
    fault.wait_until(lambda: time.monotonic() > ends)


def test_a_full_disk_is_waited_for(fault: Fault, mount: Mount) -> None:
    """Row 16: full while two trials run, and free again: nothing is lost, and none is trained twice."""
    disk = mount(fault.folder / "disk", 140)
    fault.study = disk / "study"
    fault.order({"do": "wait", "epoch": 2})
    fault.search(trials=6, epochs=4, before=QUICK)
    fault.wait_until(lambda: len(fault.trained("wait")) == fault.results() == 2)
    assert (fault.study / RESERVE).exists()
    filler = fill(disk)
    begun = len(fault.events("proposed"))
    pass_by(fault, 2)
    fault.order({"do": "sleep", "seconds": 0.3})
    pass_by(fault, 3)
    assert fault.results() >= 2, "what was trained is recorded"
    assert len(fault.events("proposed")) == begun
    filler.unlink()
    _, err = fault.end(0)
    assert [line for line in err.splitlines() if WAITS in line or GOES_ON in line].__len__() == 2, err
    assert {trial.status for trial in fault.check_books()} == {TrialStatus.COMPLETED}
    assert not (fault.study / RESERVE).exists()
    fault.check_nothing_is_left()


def test_a_disk_that_stays_full_pauses_the_search(fault: Fault, mount: Mount) -> None:
    """Row 16: status 3 and one line; what was there is whole, and `resume` goes on when there is room."""
    disk = mount(fault.folder / "disk", 140)
    fault.study = disk / "study"
    fault.order({"do": "sleep", "seconds": 0.2})
    fault.search(trials=3, epochs=6, concurrent=1, before=IMPATIENT)
    fault.wait_until(lambda: fault.results() >= 3)
    filler = fill(disk)
    _, err = fault.end(3)
    assert WAITS in err
    last = err.splitlines()[-1]
    assert "stopped before the end (low space: the study" in last
    assert f"`tunelab resume {fault.study}` goes on" in last
    fault.keep()
    fault.resume(before=IMPATIENT)
    fault.end(3)
    filler.unlink()
    fault.resume()
    fault.end(0)
    assert {trial.status for trial in fault.check_books(retrained=6)} == {TrialStatus.COMPLETED}
    fault.check_nothing_is_left()


def test_a_read_only_study_can_be_looked_at(
    fault: Fault, mount: Mount, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 17: what derives something says where it cannot be written; who wants to write is refused in one line."""
    disk = mount(fault.folder / "disk", 140)
    fault.study = disk / "study"
    fault.order({"do": "sleep", "seconds": 0.2})
    monkeypatch.setenv("TUNELAB_CACHE", str(fault.cache))
    fault.search(trials=2, epochs=3, concurrent=1)
    fault.wait_until(lambda: fault.events("ended"))
    fault.kill()
    remount(disk, "ro")
    for command in ("show", "best", "list", "diagnose", "importance"):
        words = [command, "--runs-dir", str(disk)] if command == "list" else [command, str(fault.study)]
        found = run(words)
        out, err = capfd.readouterr()
        assert "Traceback" not in err + out
        assert found == 0, (command, err)
        assert out
    for command, status in (("report", 2), ("resume", 2), ("extend", 2)):
        more = ["--trials", "9"] if command == "extend" else []
        assert run([command, str(fault.study), *more]) == status, command
        err = capfd.readouterr().err
        (line,) = [one for one in err.splitlines() if one.startswith("tunelab:")]
        assert "Read-only file system" in line
    elsewhere = fault.folder / "page"
    assert run(["report", str(fault.study), "--out", str(elsewhere)]) == 0, capfd.readouterr().err
    assert (elsewhere / "index.html").exists()
    remount(disk, "rw")
    fault.resume()
    fault.end(0)
    fault.check_books()


def test_a_full_temporary_folder_at_the_start_is_no_obstacle(fault: Fault, mount: Mount) -> None:
    """Row 18: another place is taken."""
    fault.search(trials=1, epochs=1, concurrent=1, TMPDIR=str(fill(mount(fault.machine.temporary / "t", 3)).parent))
    fault.end(0)
    fault.check_books()


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_temporary_folder_that_becomes_full(fault: Fault, mount: Mount, for_ever: bool) -> None:
    """Row 18: nothing new is begun until there is room; the study is whole either way."""
    place = mount(fault.machine.temporary / "t", 100)
    fault.order({"do": "sleep", "seconds": 0.3})
    before = IMPATIENT if for_ever else QUICK
    fault.search(trials=3, epochs=5, concurrent=1, before=before, TMPDIR=str(place))
    fault.wait_until(lambda: fault.results() >= 2)
    filler = fill(place)
    if not for_ever:
        pass_by(fault, 2)
        filler.unlink()
        _, err = fault.end(0)
        assert GOES_ON in err
        fault.check_books()
        return
    _, err = fault.end(3)
    assert "Ray's temporary folder" in err.splitlines()[-1]
    fault.resume()  # in another place
    fault.end(0)
    fault.check_books(retrained=4)


READ_ONLY = """
import ctypes, subprocess
assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS: mounts of this process and its children alone
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
for place in {places!r}:
    subprocess.run(["mount", "--bind", place, place], check=True)
subprocess.run(["mount", "--rbind", "/tmp", "/tmp"], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", "/tmp"], check=True)
"""


def test_a_read_only_home_and_temporary_folder_are_no_obstacle(fault: Fault, mount: Mount) -> None:
    """Row 18: Ray's files go to the memory's file system."""
    mount(fault.folder / "disk", 140)
    if not str(fault.folder).startswith("/tmp/"):
        pytest.skip("the folders of tests are elsewhere than in /tmp")
    before = READ_ONLY.format(places=[str(fault.folder), str(fault.cache)])
    more = {"HOME": "/tmp", "TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp/cache"}
    fault.search(trials=1, epochs=1, concurrent=1, before=before, **more)
    fault.end(0)
    fault.check_books()
    assert not list(Path("/dev/shm").glob("tunelab-*"))


def test_no_place_for_rays_files_is_one_line(fault: Fault, mount: Mount) -> None:
    """Row 18: nothing has been made then."""
    mount(fault.folder / "disk", 140)
    before = "from tunelab.tuning import ray_home; ray_home.ROOM_BYTES = 2**60\n"
    fault.search(trials=1, epochs=1, concurrent=1, before=before)
    assert fault.command is not None
    _, err = fault.command.communicate(timeout=300)
    assert fault.command.returncode == 2, err
    assert err.splitlines()[-1].startswith("tunelab: there is no place for Ray's files: ")
    assert not fault.study.exists()


def test_weights_are_kept_of_the_best_alone(fault: Fault) -> None:
    """After kills too; the next start clears up."""
    fault.order({"do": "sleep", "seconds": 0.1})
    fault.search("--keep-weights", "1", trials=4, epochs=3, concurrent=1)
    fault.wait_until(lambda: fault.events("ended"))
    fault.kill()
    fault.resume()
    fault.end(0)
    trials = fault.check_books()
    best = max(trials, key=lambda trial: (trial.score or 0.0, -trial.number))
    kept = sorted(path.relative_to(fault.study / "trials") for path in (fault.study / "trials").glob("*/checkpoint/*"))
    assert [str(path) for path in kept] == [f"{best.number:04d}/checkpoint/{name}.pt" for name in ("best", "last")]
