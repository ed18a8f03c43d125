"""Searches with --storage, from the command line and Python to their end; their trials are played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tunelab
from tunelab.cli import run
from tunelab.errors import InputError
from tunelab.stores.copies import fetch_to_read
from tunelab.stores.store import Store
from tunelab.study import load
from tunelab.tuning import ray_tune
from tunelab.tuning.execute import PausedError
from tunelab.tuning.extend import extend
from tunelab.tuning.runner import resume

if TYPE_CHECKING:
    from tests.conftest import Bucket, Line
    from tests.tuning.conftest import Played
    from tunelab.tuning.engine import Engine
    from tunelab.tuning.guard import Guard
    from tunelab.tuning.slots import Slots

SECRET = "hunter2hunter2"
BAD = (f"s3://KEY:{SECRET}@bucket/x", f"s3://bucket/x?password={SECRET}", f"s3://KEY:{SECRET}")


def told(folder: Path) -> list[str]:
    return [json.dumps(trial.to_json()) for trial in load(folder).list_trials()]


def test_a_search_goes_on_on_another_machine(
    played: Played, space: Path, bucket: Bucket, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"trials": 6, "epochs": 4, "limit_train": 100, "race": 0.0, "progress": False}
    whole = tunelab.search(str(space), study=tmp_path / "whole", **asked)  # type: ignore[arg-type]
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 3 else ""
    with pytest.raises(PausedError):
        tunelab.search(str(space), study=runs_dir / "night", storage=f"{bucket.uri}/a", **asked)  # type: ignore[arg-type]
    location = f"{bucket.uri}/a/night"
    begun = load(runs_dir / "night")
    assert begun.info["storage"] == location
    assert told(fetch_to_read(location).path) == told(begun.path)

    shutil.rmtree(runs_dir)
    played.halt = lambda trial, epoch: ""
    done = resume(location, progress=False)
    assert done.path == runs_dir / "night"
    assert [trial.params for trial in done.list_trials()] == [trial.params for trial in whole.list_trials()]
    assert told(fetch_to_read(location).path) == told(done.path)
    monkeypatch.setenv("TUNELAB_RUNS", str(tmp_path / "third"))
    longer = extend(resume(location, progress=False), trials=8, progress=False)
    assert len(fetch_to_read(location).list_trials()) == len(longer.list_trials()) == 8
    with pytest.raises(InputError, match="went on elsewhere and has more"):
        extend(done, trials=7, progress=False)


def test_where_ray_is_gone_the_store_has_all_of_it_before_the_process_ends_itself(
    played: Played, space: Path, bucket: Bucket, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"{bucket.uri}/a/night"
    said: list[str] = []

    def run(engine: Engine, slots: Slots, *, guard: Guard, **more: Any) -> None:
        played.halt = lambda trial, epoch: "Ray is gone" if trial.number == 1 else ""
        played.run(engine, slots, **more)
        assert Store.open(location).read("lease.json") is not None
        folder = load(runs_dir / "night").trial_folder(0)
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint" / "last.pt").write_text("state")
        said.append(guard.farewell("Ray is gone"))
        store = Store.open(location)
        assert store.read("lease.json") is None
        records = [path / "journal.jsonl" for path in (fetch_to_read(location).path, runs_dir / "night")]
        assert records[0].read_bytes() == records[1].read_bytes()
        assert any(name.startswith("trials/0000/checkpoint/last") for name in store.names())

    monkeypatch.setattr(ray_tune, "run", run)
    asked = {"trials": 3, "epochs": 2, "limit_train": 100, "race": 0.0, "progress": False}
    with pytest.raises(PausedError) as raised:
        tunelab.search(str(space), study=runs_dir / "night", storage=f"{bucket.uri}/a", **asked)  # type: ignore[arg-type]
    assert said == [str(raised.value)]


def test_a_search_that_has_ended_needs_no_store(
    played: Played, space: Path, bucket: Bucket, line: Line, runs_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {"trials": 2, "epochs": 2, "limit_train": 100, "race": 0.0, "progress": False}
    folder = runs_dir / "night"
    tunelab.search(str(space), study=folder, storage=bucket.uri, **asked)  # type: ignore[arg-type]
    before = told(folder)
    line.close()
    capfd.readouterr()
    assert told(resume(folder, progress=False).path) == before
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("note: the search has ended, and the store was not looked after: ")
    with pytest.raises(InputError, match="nothing was begun"):
        extend(load(folder), trials=3, progress=False)


def test_a_name_that_the_store_has_is_refused_before_a_folder_is_made(
    played: Played, space: Path, bucket: Bucket, runs_dir: Path
) -> None:
    Store.open(f"{bucket.uri}/night").write("study.json", b"{}")
    with pytest.raises(InputError, match="exists already; `tunelab resume"):
        tunelab.search(str(space), trials=2, study=runs_dir / "night", storage=bucket.uri, progress=False)
    assert not runs_dir.exists()
    assert played.order == []


def test_a_storage_that_is_a_path_is_the_folder_of_studies(played: Played, space: Path, tmp_path: Path) -> None:
    asked = {"trials": 2, "epochs": 2, "limit_train": 100, "race": 0.0, "progress": False}
    place = tmp_path / "shared"
    for given, name in ((str(place), "one"), (f"file://{place}", "two"), (str(place), str(place / "three"))):
        study = tunelab.search(str(space), storage=given, study=name, **asked)  # type: ignore[arg-type]
        assert study.path == place / Path(name).name
        assert "storage" not in study.info
    assert tunelab.search(str(space), storage=str(place), **asked).path.parent == place  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name two places"):
        tunelab.search(str(space), storage=str(place), study=tmp_path / "x" / "four", progress=False)
    assert run(["list", "--storage", str(place)]) == 0


def test_a_store_that_cannot_be_used_is_one_line_before_anything_is_made(
    played: Played, space: Path, bucket: Bucket, runs_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(space), "--trials", "2", "--limit-train", "100"]
    for place, why in (
        ("s3://no-such-bucket/x", "there is no such bucket"),
        ("nothing://x/y", "is of no known kind"),
        ("memory://x", "it is gone when the process ends"),
    ):
        for more in ([], ["--dry-run"]):
            assert run([*words, "--storage", place, *more]) == 2
            (line,) = capfd.readouterr().err.splitlines()
            assert line.startswith("tunelab: ")
            assert why in line
    assert not runs_dir.exists()
    assert played.order == []


@pytest.mark.parametrize(
    "words", ["search arch --storage", "resume", "show", "best", "list --storage", "report", "extend"]
)
@pytest.mark.parametrize("place", BAD)
def test_credentials_on_a_command_line_are_refused_and_not_told(
    words: str, place: str, capfd: pytest.CaptureFixture[str], runs_dir: Path
) -> None:
    for more in ([], ["--debug"]):
        assert run([*words.split(), place, *more]) == 2
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        assert "credentials" in err
        assert more or len(err.splitlines()) == 1
    assert not runs_dir.exists()


def test_credentials_in_a_file_of_options_are_refused_and_not_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"storage: {BAD[0]}\n")
    assert run(["search", "arch", "--config", str(file)]) == 2
    out, err = capfd.readouterr()
    assert "credentials" in err
    assert SECRET not in out + err


def test_errors_that_nobody_foresaw_tell_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], bucket: Bucket
) -> None:
    def fail(*_given: object) -> None:
        raise RuntimeError(f"https://KEY:{SECRET}@host refused {bucket.environment['AWS_SECRET_ACCESS_KEY']}")

    monkeypatch.setattr(Store, "open", fail)
    assert run(["show", "s3://bucket/x", "--debug"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert "unexpected RuntimeError: https://***@host refused ***" in err
    assert SECRET not in err
    assert bucket.environment["AWS_SECRET_ACCESS_KEY"] not in err
