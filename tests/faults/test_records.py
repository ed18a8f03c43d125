"""A study whose record, whose derived files, whose clock or whose place is not what it was: it ends as if nothing was.

One search of one trial at a time is run unbroken. Copies of its folder are brought into a state that a fault would have
left, and go on: the record must come to be the same, event by event.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.cli import run
from tunelab.journal import read_journal

if TYPE_CHECKING:
    from tests.faults.conftest import Fault, MakeFault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRIALS, EPOCHS = 13, 3
KINDS = ("good", "idles", "good", "idles")
SEARCH = ("--sampler", "tpe", "--scheduler", "asha")
MEASURED = ("seconds", "images_per_second", "peak_memory_mib")
"""What two runs of one thing differ in."""


def plain(study: Path) -> list[dict[str, Any]]:
    """The record, without times and without what a trial that goes on notes of it."""
    events = []
    for event in read_journal(study / "journal.jsonl"):
        event.pop("time")
        event.pop("notes", None)
        if "metrics" in event:
            event["metrics"] = {name: value for name, value in event["metrics"].items() if name not in MEASURED}
        events.append(event)
    return events


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def unbroken(make_fault: MakeFault) -> Fault:
    """The search that nothing happens to."""
    made = make_fault()
    made.search(*SEARCH, trials=TRIALS, epochs=EPOCHS, concurrent=1, kinds=KINDS)
    made.end(0)
    assert {trial.status.value for trial in made.trials()} == {"COMPLETED", "STOPPED"}
    return made


class Copies:
    """Copies of a study in other places, as a crash while a trial ran would have left them.

    `trial` is that trial, which was trained in full and is recorded to have had one epoch.
    """

    def __init__(self, unbroken: Fault, make: MakeFault) -> None:
        self._unbroken, self._make = unbroken, make
        self.trial = next(one.number for one in unbroken.trials()[5:] if len(one.epochs) == EPOCHS)

    def __call__(self, *, torn: int = 0) -> Fault:
        """A copy whose next event has only its first `torn` bytes."""
        made = self._make()
        made.asked = self._unbroken.asked
        shutil.copytree(self._unbroken.study, made.study)
        shutil.copy(self._unbroken.log, made.log)
        file = made.study / "journal.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        events = self._unbroken.events()
        results = [at for at, one in enumerate(events) if (one["event"], one["trial"]) == ("result", self.trial)]
        end = results[0] + 1
        assert torn < len(lines[end])
        file.write_bytes(b"".join(lines[:end]) + lines[end][:torn])
        for folder in (made.study / "trials").iterdir():
            if int(folder.name) > self.trial:
                shutil.rmtree(folder)
        made.keep()
        return made


@pytest.fixture(scope="module")
def copies(unbroken: Fault, make_fault: MakeFault) -> Copies:
    return Copies(unbroken, make_fault)


def finish(copy: Fault, unbroken: Fault, retrained: int) -> None:
    """Waits for the end of the resumed copy, which must be as the unbroken study."""
    copy.end(0)
    assert plain(copy.study) == plain(unbroken.study)
    copy.check_books(retrained)
    storage = JournalStorage(JournalFileBackend(str(copy.study / "optuna.journal")))
    told = optuna.load_study(study_name="small", storage=storage).trials
    assert [one.user_attrs["tunelab_trial"] for one in told] == list(range(TRIALS)), "Optuna's was made anew"
    copy.check_nothing_is_left()


def after(unbroken: Fault, copy: Fault) -> int:
    """How many epochs the copy's record lacks, which were trained before the crash."""
    return unbroken.results() - copy.results()


def test_a_killed_search_goes_on_as_the_unbroken_one(unbroken: Fault, make_fault: MakeFault) -> None:
    """Rows 1, 26 and 27: proposals, scores and the rungs' decisions are the same, event by event."""
    made = make_fault()
    made.search(*SEARCH, trials=TRIALS, epochs=EPOCHS, concurrent=1, kinds=KINDS)
    made.wait_until(lambda: len(made.events("ended")) >= 4)
    made.kill()
    made.resume()
    made.wait_until(lambda: len(made.events("ended")) >= 11)
    made.kill()
    made.resume()
    finish(made, unbroken, 0)


def test_on_another_machine_after_a_power_cut(unbroken: Fault, copies: Copies) -> None:
    """Rows 1 and 2: torn record, no Optuna journal; a foreign process in the lock, a search's folder that is left."""
    copy, before = copies(torn=7), content(unbroken.study)
    (copy.study / "optuna.journal").unlink()
    (copy.study / "lock").write_text("process 1 on a machine that is gone")
    stale = copy.machine.temporary / "tunelab-stale"
    stale.mkdir()
    (stale / "in-use").touch()
    retrained = after(unbroken, copy)
    copy.resume()
    finish(copy, unbroken, retrained)
    assert content(unbroken.study) == before, "nothing is written where the study was before"


def test_checkpoints_that_are_cut_off(unbroken: Fault, copies: Copies) -> None:
    """Rows 2 and 19: the trial begins anew, and says so; Optuna's journal is damaged."""
    copy = copies()
    mirror = copy.study / "optuna.journal"
    whole = mirror.read_bytes()
    mirror.write_bytes(whole[: len(whole) // 2] + b"\x00garbage\n" + whole[len(whole) // 2 :])
    checkpoints = copy.study / "trials" / f"{copies.trial:04d}" / "checkpoint"
    for file in checkpoints.glob("*.pt"):
        file.write_bytes(file.read_bytes()[:500])
    (checkpoints / "last.pt.tmp").write_bytes(b"half of one")
    retrained = after(unbroken, copy)
    copy.resume()
    finish(copy, unbroken, retrained + EPOCHS)
    notes = copy.trials()[copies.trial].notes
    assert any("last.pt was passed over: " in note for note in notes), notes
    assert not (checkpoints / "last.pt.tmp").exists()


def test_a_checkpoint_with_a_changed_byte(unbroken: Fault, copies: Copies) -> None:
    """Rows 2 and 19: the trial goes on from the one before, and says so; Optuna's journal is older than the record."""
    copy = copies(torn=30)
    mirror = copy.study / "optuna.journal"
    lines = mirror.read_bytes().splitlines(keepends=True)
    mirror.write_bytes(b"".join(lines[: len(lines) // 4]))
    last = copy.study / "trials" / f"{copies.trial:04d}" / "checkpoint" / "last.pt"
    changed = bytearray(last.read_bytes())
    changed[len(changed) // 2] ^= 1
    last.write_bytes(changed)
    retrained = after(unbroken, copy)
    copy.resume()
    finish(copy, unbroken, retrained + EPOCHS)
    notes = copy.trials()[copies.trial].notes
    assert any("last.pt was passed over: " in note and "checksum" in note for note in notes), notes


def test_two_at_once_and_a_clock_that_jumps(unbroken: Fault, copies: Copies) -> None:
    """Rows 3 and 34: the second is refused with the process of the first, which days ahead and back do no harm.

    Optuna's journal is newer than the record.
    """
    copy = copies()
    copy.order({"do": "sleep", "seconds": 0.1}, {"do": "wait", "epoch": 2})
    retrained, held = after(unbroken, copy), len(copy.events())
    first = copy.resume("--deadline", "10m", **{"PROVOKED_CLOCK": str(5 * 86400)})
    copy.wait_until(lambda: copy.trained("wait"))
    second = copy.machine.start("resume", str(copy.study), **copy.environment())
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2
    assert (
        err == f"tunelab: the study {copy.study} is being written by process {first.pid} on {gethostname()}; "
        "stop that one first\n"
    )
    copy.order({"do": "sleep", "seconds": 0.1})
    finish(copy, unbroken, retrained)
    times = [event["time"] for event in copy.events()]
    jumps = [round((later - earlier) / 86400) for earlier, later in itertools.pairwise(times)]
    assert jumps[held - 1 :] == [5, *itertools.islice(itertools.cycle((-10, 10)), len(times) - held - 1)]
    assert len(times) > held + 2, "ahead and back"


@pytest.mark.parametrize("name", ["study.json", "optuna.journal", "trials.jsonl", "trials.csv", "lock", "ray.log"])
def test_files_that_are_cut_off(
    name: str, unbroken: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 2: what is derived is made anew or not needed; what the study is, is not guessed."""
    monkeypatch.setenv("TUNELAB_CACHE", str(unbroken.cache))
    study = tmp_path / "study"
    shutil.copytree(unbroken.study, study)
    whole, books = (study / name).read_bytes(), plain(study)
    for end in (0, 1, len(whole) // 2, len(whole) - 1):
        (study / name).write_bytes(whole[:end])
        status = run(["resume", str(study)])
        said = capfd.readouterr().err
        # Of study.json only the last newline can be missed.
        readable = name != "study.json" or end == len(whole) - 1
        assert status == (0 if readable else 2), (end, said)
        assert readable or said.startswith(f"tunelab: {study / 'study.json'} cannot be read: ")
        assert plain(study) == books
        (study / name).write_bytes(whole)


def test_a_record_that_is_damaged_in_the_middle_is_refused(
    unbroken: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 2: no crash leaves such a record, and what it held is not guessed; the line is named, nothing is changed."""
    monkeypatch.setenv("TUNELAB_CACHE", str(unbroken.cache))
    study = tmp_path / "study"
    shutil.copytree(unbroken.study, study)
    record = study / "journal.jsonl"
    whole = record.read_bytes()
    damaged = whole[:2000] + b"#" + whole[2001:]
    record.write_bytes(damaged)
    line = whole[:2000].count(b"\n") + 1
    assert run(["resume", str(study)]) == 2
    said = capfd.readouterr().err
    assert said == f"tunelab: {record}, line {line} is damaged; restore the file from a copy to go on\n"
    assert record.read_bytes() == damaged
