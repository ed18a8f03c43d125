from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from tunelab.errors import InputError
from tunelab.journal import Journal, read_journal
from tunelab.stores import lease as lease_module
from tunelab.stores import store as store_module
from tunelab.stores.lease import STALE, Holder
from tunelab.stores.record import pull_record
from tunelab.stores.store import Store, StoreError
from tunelab.stores.trials import TrialCopy
from tunelab.study import Study, load
from tunelab.tuning import mirror as mirror_module
from tunelab.tuning.mirror import StudyMirror, mirrored

if TYPE_CHECKING:
    from tests.conftest import Bucket, Line, MakeStudy

TRIALS = [("COMPLETED", (0.5, 0.6, 0.7, 0.8)), ("STOPPED", (0.4,)), ("RUNNING", (0.6, 0.7))]
EVENT = {"event": "ended", "trial": 2, "status": "STOPPED", "reason": "now"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "EVERY", 0.01)
    monkeypatch.setattr(mirror_module, "EVERY", 0.01)
    monkeypatch.setattr(mirror_module, "PATIENCE", 0.0)


@pytest.fixture
def store(bucket: Bucket) -> Store:
    return Store.open(f"{bucket.uri}/studies/night")


@pytest.fixture
def study(make_study: MakeStudy, store: Store, runs_dir: Path) -> Study:
    return make_study(TRIALS, path=runs_dir / "night", info={"storage": store.location})


@pytest.fixture
def journal(study: Study) -> Iterator[Journal]:
    opened = Journal.open(study.path)
    yield opened
    opened.close()


def record(store: Store, folder: Path) -> list[dict[str, Any]]:
    """What the store has of the record."""
    folder.mkdir(exist_ok=True)
    pull_record(store, folder / "journal.jsonl")
    return list(read_journal(folder / "journal.jsonl"))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_the_record_is_in_the_store_soon_and_all_else_at_the_end(
    study: Study, journal: Journal, store: Store, tmp_path: Path
) -> None:
    with mirrored(study, journal) as mirror:
        assert isinstance(mirror, StudyMirror)
        assert record(store, tmp_path / "copy") == list(read_journal(study.path / "journal.jsonl"))
        journal.append(EVENT)
        wait_for(lambda: record(store, tmp_path / "copy")[-1].get("reason") == "now")
        assert store.read("lease.json") is not None
        study.write_tables()
        journal.append({**EVENT, "trial": 1})
    assert record(store, tmp_path / "copy")[-1]["trial"] == 1
    assert store.read("trials.csv") == (study.path / "trials.csv").read_bytes()
    assert store.read("study.json") == (study.path / "study.json").read_bytes()
    assert store.read("lease.json") is None


def test_a_study_without_a_store_has_no_mirror(make_study: MakeStudy) -> None:
    study = make_study()
    journal = Journal.open(study.path)
    with mirrored(study, journal) as mirror:
        assert mirror is None
    journal.close()


def test_a_store_that_fails_is_told_once_and_caught_up_with(
    study: Study, journal: Journal, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        mirror.tell = told.append
        with monkeypatch.context() as patch:
            tried = Mock(side_effect=StoreError(f"{store.location}: it does not answer"))
            patch.setattr(Store, "write", tried)
            journal.append(EVENT)
            wait_for(lambda: tried.call_count > 3)
        wait_for(lambda: len(told) > 1)
        wait_for(lambda: record(store, tmp_path / "copy")[-1].get("reason") == "now")
    first, second = told
    assert first == f"the store {store.location}: it does not answer; the search goes on, and it is tried again"
    assert second == f"the store {store.location} takes what it is given again"


def test_a_store_that_is_gone_at_the_end_ends_nothing(
    study: Study, journal: Journal, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror_module, "EVERY", 60.0)
    with mirrored(study, journal):
        capfd.readouterr()
        journal.append(EVENT)
        monkeypatch.setattr(Store, "write", Mock(side_effect=StoreError(f"{store.location}: it does not answer")))
    err = capfd.readouterr().err
    assert f"`tunelab resume {study.path}` brings it there" in err
    assert len(err.splitlines()) == 2


def test_a_store_that_falls_silent_is_named_and_not_waited_for(
    study: Study,
    journal: Journal,
    line: Line,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told: list[str] = []
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        mirror.tell = told.append
        line.fall_silent()
        monkeypatch.setattr(store_module, "_WRITE", 0.5)
        journal.append(EVENT)
        wait_for(lambda: bool(told))
        capfd.readouterr()
    name = study.info["storage"]
    assert told == [f"the store {name}/journal: it does not answer; the search goes on, and it is tried again"]
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"note: the store {name} does not have all of it; the study here does")


def test_who_has_no_time_for_a_silent_store_says_what_it_lacks(
    study: Study, journal: Journal, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "EVERY", 60.0)
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        line.fall_silent()
        monkeypatch.setattr(store_module, "_WRITE", 0.5)
        journal.append(EVENT)
        said = mirror.close_within(0.1)
    assert said.startswith(f"the store {study.info['storage']} does not have all of it; the study here does")


def test_who_does_not_wait_for_the_end_is_told_what_the_store_lacks(
    study: Study, journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StudyMirror, "_finish", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), mirrored(study, journal):
        capfd.readouterr()
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"note: the store {study.info['storage']} does not have all of it; the study here does")


def test_a_store_that_does_not_work_is_refused_before_anything_begins(
    study: Study, journal: Journal, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "write", Mock(side_effect=StoreError(f"{store.location}: access is denied")))
    with pytest.raises(InputError, match="access is denied; nothing was begun"), mirrored(study, journal):
        pytest.fail("it began")


def test_a_study_that_another_machine_writes_is_refused(study: Study, journal: Journal, store: Store) -> None:
    holder = Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0)
    store.write("lease.json", json.dumps(vars(holder)).encode())
    with pytest.raises(InputError, match="is being written by process 4711 on elsewhere"), mirrored(study, journal):
        pytest.fail("it began")
    assert store.names().keys() == {"lease.json"}


def test_a_study_that_went_on_elsewhere_is_refused(study: Study, store: Store) -> None:
    file = study.path / "journal.jsonl"
    journal = Journal.open(study.path)
    with mirrored(study, journal):
        journal.append(EVENT)
    journal.close()
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    older = Journal.open(study.path)
    with pytest.raises(InputError, match="went on elsewhere and has more"), mirrored(study, older):
        pytest.fail("it began")
    older.close()
    assert store.read("lease.json") is None


def test_a_study_that_is_taken_over_pauses_here(study: Study, journal: Journal, store: Store, tmp_path: Path) -> None:
    engine = Mock()
    told: list[str] = []
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        mirror.look(engine, tmp_path)
        assert not engine.halt.called
        holder = Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0)
        wait_for(lambda: _overwritten(store, holder) and _halted(mirror, engine, tmp_path))
        mirror.tell = told.append
        journal.append(EVENT)
    assert engine.halt.call_args.args[0].startswith("the study goes on elsewhere, by process 4711 on elsewhere")
    assert record(store, tmp_path / "copy")[-1].get("reason") != "now"
    assert json.loads(store.read("lease.json") or b"")["process"] == 4711


def test_who_wakes_up_after_another_has_taken_the_study_over_writes_nothing_over(
    study: Study, journal: Journal, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The machine was asleep, and now it would bring all that it has into the store."""
    monkeypatch.setattr(mirror_module, "EVERY", 600.0)
    monkeypatch.setattr(lease_module, "EVERY", 600.0)
    with mirrored(study, journal):
        awake, clock = lease_module._clock(), lease_module._clock
        monkeypatch.setattr(lease_module, "_clock", lambda: clock() + STALE + 1)
        assert lease_module._clock() > awake + STALE
        store.write("lease.json", json.dumps(vars(Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0))).encode())
        store.write("study.json", b"theirs")
        store.write("trials.csv", b"theirs")
        before = store.names()
        journal.append(EVENT)
        study.write_tables()
        capfd.readouterr()
    assert store.names() == before
    assert store.read("study.json") == store.read("trials.csv") == b"theirs"
    err = capfd.readouterr().err
    assert err.startswith("note: the study was taken over by process 4711 on elsewhere")
    assert len(err.splitlines()) == 1


def _overwritten(store: Store, holder: Holder) -> bool:
    store.write("lease.json", json.dumps(vars(holder)).encode())
    return True


def _halted(mirror: StudyMirror, engine: Mock, folder: Path) -> bool:
    mirror.look(engine, folder)
    return bool(engine.halt.called)


def write_trial(study: Study, number: int) -> Path:
    folder = study.trial_folder(number)
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "last.pt").write_text(f"state of {number}")
    (folder / "health.json").write_text("{}")
    return folder


def test_the_checkpoints_in_the_store_are_those_that_are_kept(
    study: Study, journal: Journal, store: Store, tmp_path: Path
) -> None:
    trials = study.list_trials()
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        for number in (0, 1):
            TrialCopy(store.child("trials").child(f"{number:04d}"), write_trial(study, number)).push()
            mirror.started(trials[number])
        write_trial(study, 2)
        mirror.started(trials[2])
        mirror.cleared(0, True)
        mirror.cleared(1, False)
    found = {name.split("/")[1] for name in store.names() if "/checkpoint/" in name}
    assert found == {"0000", "0002"}
    assert any(name.startswith("trials/0001/health") for name in store.names())


def test_trials_of_other_machines_are_here_at_the_end(
    study: Study, journal: Journal, store: Store, tmp_path: Path
) -> None:
    trials = study.list_trials()
    with mirrored(study, journal) as mirror:
        assert mirror is not None
        for number in (0, 1):
            folder = write_trial(study, number)
            TrialCopy(store.child("trials").child(folder.name), folder).push()
            shutil.rmtree(folder)
            mirror.started(trials[number])
        mirror.cleared(1, False)
    assert (study.trial_folder(0) / "checkpoint" / "last.pt").read_text() == "state of 0"
    assert (study.trial_folder(1) / "health.json").exists()
    assert not (study.trial_folder(1) / "checkpoint").exists()
    assert load(study.path).info == study.info
