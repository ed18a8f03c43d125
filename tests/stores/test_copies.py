from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.cli import run
from tunelab.errors import InputError
from tunelab.journal import Journal
from tunelab.stores import copies
from tunelab.stores.copies import fetch_to_go_on, fetch_to_read, push_all, push_rest, require_new, studies_in
from tunelab.stores.lease import Holder, Lease
from tunelab.stores.store import MOST_JSON, Store, StoreError
from tunelab.study import Study, load

if TYPE_CHECKING:
    from tests.conftest import Bucket, MakeStudy

TRIALS = [("COMPLETED", (0.5, 0.6, 0.7, 0.8)), ("STOPPED", (0.4,)), ("RUNNING", (0.6, 0.7))]


@pytest.fixture
def location(bucket: Bucket) -> str:
    return f"{bucket.uri}/studies/night"


@pytest.fixture
def study(make_study: MakeStudy, location: str, runs_dir: Path) -> Study:
    """A study whose store has all of it."""
    made = make_study(TRIALS, path=runs_dir / "night", info={"storage": location})
    made.write_tables()
    (made.path / "report").mkdir()
    (made.path / "report" / "index.html").write_text("report")
    push_all(made, Store.open(location))
    return made


def objects(location: str) -> dict[str, int]:
    return Store.open(location).names()


def told(study: Study) -> list[str]:
    return [json.dumps(trial.to_json()) for trial in study.list_trials()]


def test_a_study_is_read_from_its_store_and_nothing_is_written_there(study: Study, location: str) -> None:
    before = objects(location)
    found = fetch_to_read(location)
    assert objects(location) == before
    assert found.name == "night"
    assert told(found) == told(study)
    assert found.best().number == 0
    assert not found.running
    assert found.sign_of_life() is None
    assert (found.path / "report" / "index.html").read_text() == "report"
    assert found.path != study.path
    assert [path.stat().st_mode & 0o077 for path in (found.path, found.path.parent)] == [0, 0]


@pytest.mark.parametrize("words", ["show", "show --json", "best", "best --json", "diagnose", "report --out page"])
def test_a_study_in_a_store_is_called_by_its_uri(
    study: Study,
    location: str,
    words: str,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No command finds it by its name, and nobody is to write into its copy."""
    monkeypatch.chdir(tmp_path)
    command, *options = words.split()
    assert run([command, location, *options]) == 0
    said = capfd.readouterr().out + "".join(file.read_text() for file in tmp_path.glob("page/*.html"))
    assert location in said
    assert str(cache_dir) not in said
    assert "tunelab resume night" not in said


def test_what_is_read_again_is_as_it_is_by_now(study: Study, location: str) -> None:
    fetch_to_read(location)
    journal = Journal.open(study.path)
    journal.append({"event": "ended", "trial": 2, "status": "STOPPED", "reason": "now"})
    journal.close()
    push_all(study, Store.open(location))
    assert told(fetch_to_read(location)) == told(study)
    (fetch_to_read(location).path / "journal.jsonl").write_bytes(b"something else\n")
    assert told(fetch_to_read(location)) == told(study)


def test_a_study_that_is_searched_elsewhere_runs(study: Study, location: str) -> None:
    lease = Lease(Store.open(location))
    lease.take(lambda what: None)
    found = fetch_to_read(location)
    lease.release()
    assert found.running
    sign = found.sign_of_life()
    assert sign is not None
    assert sign.host == socket.gethostname()
    assert sign.age < 60
    assert [trial.status.value for trial in found.list_trials()][2] == "RUNNING"


def test_a_study_goes_on_from_its_store(study: Study, location: str, tmp_path: Path) -> None:
    folder = fetch_to_go_on(location, tmp_path / "elsewhere", lambda what: None)
    assert folder == tmp_path / "elsewhere" / "night"
    assert told(load(folder)) == told(study)
    assert load(folder).info == study.info
    assert (folder / "report" / "index.html").read_text() == "report"
    assert [path.name for path in folder.parent.iterdir()] == ["night"]
    assert folder.stat().st_mode & 0o077 == 0


def test_files_that_are_not_as_the_manifest_says_are_named(
    study: Study, location: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("report/index.html", "trials.csv")
    for name in names:
        Store.open(location).write(name, b"half")
    said: list[str] = []
    folder = fetch_to_go_on(location, tmp_path / "elsewhere", said.append)
    assert said == [f"{location} does not have {', '.join(names)} as its manifest says; left out"]
    assert told(load(folder)) == told(study)
    assert not (folder / "trials.csv").exists()
    fetch_to_read(location)
    assert capfd.readouterr().err == f"note: {said[0]}\n"


def test_a_store_brings_no_file_that_says_that_a_process_works_here(
    study: Study, location: str, tmp_path: Path
) -> None:
    store = Store.open(location)
    manifest = json.loads(store.read("manifest.json") or b"")
    for name in ("lock", "alive", "report/ray.log", "Alive", "x.tmp", "Journal.jsonl", "ok"):
        manifest["files"][name] = manifest["files"]["trials.csv"]
    store.write("manifest.json", json.dumps(manifest).encode())
    for folder in (fetch_to_go_on(location, tmp_path / "elsewhere", lambda what: None), fetch_to_read(location).path):
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert found == {"study.json", "journal.jsonl", "trials.jsonl", "trials.csv", "report/index.html", "ok"}


def test_a_folder_of_this_machine_is_brought_up_to_date(study: Study, location: str, tmp_path: Path) -> None:
    elsewhere = fetch_to_go_on(location, tmp_path / "elsewhere", lambda what: None)
    journal = Journal.open(elsewhere)
    journal.append({"event": "ended", "trial": 2, "status": "STOPPED", "reason": "there"})
    journal.close()
    load(elsewhere).update(lambda info: {"seed": 5})
    push_rest(load(elsewhere))
    with (study.path / "journal.jsonl").open("ab") as file:
        file.write(b'{"crc":"cut of')
    assert fetch_to_go_on(location, study.path.parent, lambda what: None) == study.path
    assert told(load(study.path)) == told(load(elsewhere))
    assert load(study.path).info["seed"] == 5


def test_a_folder_that_has_more_stays_as_it_is(study: Study, location: str) -> None:
    journal = Journal.open(study.path)
    journal.append({"event": "ended", "trial": 2, "status": "STOPPED", "reason": "here"})
    journal.close()
    before = told(study)
    assert fetch_to_go_on(location, study.path.parent, lambda what: None) == study.path
    assert told(load(study.path)) == before


def test_records_that_went_different_ways_are_told(study: Study, location: str, tmp_path: Path) -> None:
    elsewhere = fetch_to_go_on(location, tmp_path / "elsewhere", lambda what: None)
    for folder, reason in ((elsewhere, "there"), (study.path, "here")):
        journal = Journal.open(folder)
        journal.append({"event": "ended", "trial": 2, "status": "STOPPED", "reason": reason})
        journal.close()
    push_rest(load(elsewhere))
    with pytest.raises(InputError, match="have gone different ways; move the folder away"):
        fetch_to_go_on(location, study.path.parent, lambda what: None)
    with pytest.raises(InputError, match="have gone different ways"):
        push_all(study, Store.open(location))


def test_a_study_that_went_on_elsewhere_is_not_written_over(study: Study, location: str, tmp_path: Path) -> None:
    elsewhere = fetch_to_go_on(location, tmp_path / "elsewhere", lambda what: None)
    journal = Journal.open(elsewhere)
    journal.append({"event": "ended", "trial": 2, "status": "STOPPED", "reason": "there"})
    journal.close()
    push_rest(load(elsewhere))
    with pytest.raises(InputError, match=f"went on elsewhere and has more.*`tunelab resume {location}` fetches it"):
        push_all(study, Store.open(location))


def test_something_else_in_the_folder_is_left_alone(
    study: Study, location: str, tmp_path: Path, make_study: MakeStudy
) -> None:
    make_study(path=tmp_path / "other" / "night")
    with pytest.raises(InputError, match="is another study of this name; --runs-dir names another folder"):
        fetch_to_go_on(location, tmp_path / "other", lambda what: None)
    (tmp_path / "third" / "night").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already and is no study"):
        fetch_to_go_on(location, tmp_path / "third", lambda what: None)


def test_a_study_that_another_machine_writes_is_not_gone_on_with(study: Study, location: str, tmp_path: Path) -> None:
    content = {**vars(Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0))}
    Store.open(location).write("lease.json", json.dumps(content).encode())
    with pytest.raises(InputError, match="is being written by process 4711 on elsewhere"):
        fetch_to_go_on(location, tmp_path / "new", lambda what: None)
    assert not (tmp_path / "new").exists()


def test_where_there_is_no_study_that_is_told(location: str, tmp_path: Path) -> None:
    for fetch in (fetch_to_read, lambda place: fetch_to_go_on(place, tmp_path, lambda what: None)):
        with pytest.raises(InputError, match=f"there is no study in {location}"):
            fetch(location)
    Store.open(location).write("study.json", b"[]")
    with pytest.raises(InputError, match=r"study\.json is no study's"):
        fetch_to_read(location)


def test_studies_of_a_store_are_listed(study: Study, location: str) -> None:
    place = location.rpartition("/")[0]
    Store.open(f"{place}/broken").write("study.json", b"{}")
    Store.open(f"{place}/other").write("x", b"no study")
    left_out: list[str] = []
    assert [one.name for one in studies_in(place, left_out)] == ["night"]
    assert len(left_out) == 1
    assert "broken" in left_out[0]
    assert list(studies_in(f"{place}/nothing", left_out)) == []


def test_a_name_in_a_store_leads_nowhere_else(
    study: Study, location: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes into the store gives it; the copies of other studies lie beside that one's."""
    place = location.rpartition("/")[0]
    read = Store.read

    def named(self: Store, name: str, most: int = MOST_JSON) -> bytes | None:
        return read(Store.open(location) if name == "study.json" else self, name, most)

    monkeypatch.setattr(Store, "folders", lambda self: ["..", "a#b", "night"])
    monkeypatch.setattr(Store, "read", named)
    left_out: list[str] = []
    assert [one.place for one in studies_in(place, left_out)] == [location]
    assert [reason.partition(" must ")[0] for reason in left_out] == [
        f"a study called {place}/..",
        f"a study called {place}/a...",
    ]
    assert not list(cache_dir.glob("stores/*.json*"))


@pytest.mark.parametrize("name", ["a#b", "a?b", "a::b"])
def test_a_name_that_no_uri_can_have_is_refused(bucket: Bucket, name: str) -> None:
    with pytest.raises(InputError, match=f"a study called {bucket.uri}/a"):
        require_new(bucket.uri, name)
    assert objects(bucket.uri) == {}


def test_a_new_study_needs_a_name_that_is_free(study: Study, location: str) -> None:
    place = location.rpartition("/")[0]
    require_new(place, "other")
    with pytest.raises(InputError, match=f"the study {location} exists already; `tunelab resume {location}` goes on"):
        require_new(place, "night")


def test_what_a_command_leaves_goes_into_the_store(
    study: Study, location: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (study.path / "retrain-x" / "trials").mkdir(parents=True)
    (study.path / "retrain-x" / "model.safetensors").write_text("weights")
    push_rest(study)
    assert "retrain-x/model.safetensors" in objects(location)
    monkeypatch.setattr(copies, "push_all", lambda *given: (_ for _ in ()).throw(StoreError(f"{location}: gone")))
    push_rest(study)
    assert capfd.readouterr().err == f"note: the store does not have what was written now: {location}: gone\n"
    for place in ("file:///somewhere", "/somewhere", "s3://KEY:hunter2hunter2@bucket"):
        push_rest(Study(study.path, {**study.info, "storage": place}))
        assert "study.json names" in (err := capfd.readouterr().err)
        assert "hunter2" not in err
    shutil.rmtree(study.path)
    kept = ("kind", "space", "options", "data", "hardware")
    without = Study.create(study.path, {name: study.info[name] for name in kept})
    push_rest(without)
    assert capfd.readouterr().err == ""
