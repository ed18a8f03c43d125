"""A search that is mirrored to an object store: its machine is lost, and it goes on from the store on another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.cli import run
from tunelab.journal import read_journal
from tunelab.replay import replay
from tunelab.stores.record import pull_record
from tunelab.stores.store import Store
from tunelab.stores.trees import Tree
from tunelab.study import load

if TYPE_CHECKING:
    from tests.conftest import Bucket
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ended_in(store: Store, folder: Path) -> dict[int, str]:
    """The trials whose end the store has, with all that it has of them."""
    file = folder / "journal.jsonl"
    pull_record(store, file)
    return {trial.number: json.dumps(trial.to_json()) for trial in replay(read_journal(file)) if trial.status.ended}


def checkpoints_in(store: Store) -> set[str]:
    return {name.split("/")[1] for name in store.names() if "/checkpoint/last" in name}


def test_a_lost_machine_costs_only_what_was_not_mirrored(
    fault: Fault, bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = f"{bucket.uri}/night"
    store = Store.open(f"{place}/study")
    copy = tmp_path / "copy"
    copy.mkdir()
    fault.order(*({"do": "sleep", "seconds": 600, "trial": trial, "epoch": 3} for trial in (2, 3)))
    fault.search("--storage", place, trials=5, epochs=4)
    fault.wait_until(lambda: len(ended_in(store, copy)) == 2 and {"0002", "0003"} <= checkpoints_in(store))
    fault.kill()
    before = ended_in(store, copy)
    shutil.rmtree(fault.study)

    elsewhere = fault.folder / "elsewhere"
    fault.study = elsewhere / "study"
    fault.order()
    words = ["resume", f"{place}/study", "--runs-dir", str(elsewhere)]
    fault.command = fault.machine.start(*words, **fault.environment())
    _, err = fault.end(0)
    assert "the study is taken over from process" in err
    fault.check_books(retrained=4)
    trials = {trial.number: json.dumps(trial.to_json()) for trial in fault.trials()}
    assert {number: trials[number] for number in before} == before
    assert fault.trained("begin")[2, 1] == fault.trained("begin")[3, 1] == 1, "they went on from their checkpoints"
    fault.check_nothing_is_left()

    assert ended_in(store, copy) == trials, "at the end the store has all of it"
    assert store.read("lease.json") is None
    root = Tree(store, plain=True)
    assert root.read()
    assert {"trials.jsonl", "trials.csv"} <= root.files.keys()
    capfd.readouterr()
    assert run(["best", f"{place}/study", "--json"]) == 0
    assert run(["list", "--storage", place, "--json"]) == 0
    shown, listed = map(json.loads, capfd.readouterr().out.splitlines())
    assert shown["ranking"][0]["trial"] == load(fault.study).best().number
    assert [one["study"] for one in listed] == ["study"]
    everything = "".join(path.read_text(errors="replace") for path in fault.folder.rglob("*") if path.is_file())
    for secret in (bucket.environment["AWS_ACCESS_KEY_ID"], bucket.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in everything + err + "".join(capfd.readouterr())
