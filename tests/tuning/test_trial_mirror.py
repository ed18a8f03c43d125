from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ray.tune.trainable import trainable

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.stores import lease as lease_module
from tunelab.stores.lease import Holder, Lease
from tunelab.stores.store import Store, StoreError
from tunelab.stores.trials import TrialCopy
from tunelab.tuning import outpost as outpost_module
from tunelab.tuning import trial_mirror
from tunelab.tuning import worker as worker_module
from tunelab.tuning.memory_guard import Word
from tunelab.tuning.outpost import Outpost, node_folder
from tunelab.tuning.trial_mirror import TrialMirror, home_of, is_passing
from tunelab.tuning.worker import TrialWorker

if TYPE_CHECKING:
    from tests.conftest import Bucket, Line

MakeWorker = Callable[..., TrialWorker]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def storage(bucket: Bucket) -> str:
    return f"{bucket.uri}/night"


@pytest.fixture
def lease(storage: str) -> Iterator[str]:
    """The nonce of the driver's."""
    taken = Lease(Store.open(storage))
    taken.take(lambda what: None)
    yield taken.nonce
    taken.drop()


def checkpoints(storage: str) -> list[str]:
    return sorted(name for name in Store.open(storage).names() if "/checkpoint/" in name)


def test_a_trial_lies_in_the_study_where_that_can_be_seen(tmp_path: Path, storage: str, cache_dir: Path) -> None:
    folder = tmp_path / "study" / "trials" / "0007"
    away = home_of(folder, storage)
    assert away.name == "0007"
    assert away.is_relative_to(cache_dir)
    assert is_passing(away)
    assert home_of(folder, f"{storage}-2") != away
    here = away.parent.name.split("-")[1]
    left, elsewhere = [away.parent.with_name(f"0123456789abcdef-{one}-{2**22 + 1}") for one in (here, "0" * 12)]
    (elsewhere / "0003").mkdir(parents=True)
    (left / "0003").mkdir(parents=True)
    home_of(folder, storage)
    assert not left.exists(), "its process is gone"
    assert elsewhere.exists(), "another machine, with the same cache folder"
    folder.parent.mkdir(parents=True)
    (folder.parent.parent / "study.json").write_text("{}")
    assert home_of(folder, storage) == folder
    assert not is_passing(folder)


def test_each_state_of_a_folder_is_copied_in_the_end(tmp_path: Path, storage: str, lease: str) -> None:
    folder, told = home_of(tmp_path / "nowhere" / "trials" / "0007", storage), []
    mirror = TrialMirror(storage, folder, told.append, lease)
    mirror.fetch()
    (folder / "checkpoint").mkdir(parents=True)
    for epoch in range(20):
        (folder / "checkpoint" / "last.pt").write_text(f"after {epoch}")
        mirror.sync()
    mirror.finish()
    assert mirror.wait(60)
    assert not folder.exists(), "it was there for the time of the training"
    assert TrialCopy(Store.open(storage).child("trials").child("0007"), folder).fetch() == []
    assert (folder / "checkpoint" / "last.pt").read_text() == "after 19"
    assert len(checkpoints(storage)) == 1
    assert told == []


def test_a_store_that_fails_is_told_and_the_folder_stays(
    tmp_path: Path, storage: str, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: object) -> None:
        raise StoreError(f"{storage}: it does not answer")

    monkeypatch.setattr(trial_mirror, "_PAUSE", 0.0)
    monkeypatch.setattr(Store, "write", fail)
    monkeypatch.setattr(Store, "read", fail)
    folder, told = home_of(tmp_path / "nowhere" / "trials" / "0007", storage), []
    folder.mkdir(parents=True)
    (folder / "health.json").write_text("{}")
    mirror = TrialMirror(storage, folder, told.append, lease)
    mirror.fetch()
    mirror.finish()
    assert mirror.wait(60)
    assert folder.exists()
    assert told == [
        f"what the store has of this trial could not be fetched: {storage}: it does not answer",
        f"the store did not take this trial's files: {storage}: it does not answer",
    ]


def test_what_nobody_foresaw_is_told_and_the_next_state_is_copied(
    tmp_path: Path, storage: str, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "study" / "trials" / "0007", []
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "last.pt").write_text("state")
    mirror = TrialMirror(storage, folder, told.append, lease)
    with monkeypatch.context() as patch:
        patch.setattr(TrialCopy, "push", lambda *given, **more: 1 // 0)
        mirror.sync()
        wait_for(lambda: bool(told))
    mirror.finish()
    assert mirror.wait(60)
    assert len(checkpoints(storage)) == 1
    assert told == [
        "this trial's files could not be copied to the store: ZeroDivisionError: integer division or modulo by zero"
    ]


def test_a_trial_whose_study_was_taken_over_leaves_the_copy_to_the_other(
    tmp_path: Path, storage: str, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "EVERY", -1.0)  # it is looked at each time
    folder, told = tmp_path / "study" / "trials" / "0007", []
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "last.pt").write_text("ours")
    mirror = TrialMirror(storage, folder, told.append, lease)
    store = Store.open(storage)
    for content in (json.dumps(vars(Holder("abc", 4711, 1.0, "elsewhere", "boot", 0.0))).encode(), None):
        store.remove("lease.json") if content is None else store.write("lease.json", content)
        mirror.sync()
        wait_for(lambda: bool(told))
        assert told.pop().startswith(f"the store did not take this trial's files: {storage}: the study was taken over")
        assert checkpoints(storage) == []
    mirror.finish()
    assert mirror.wait(60)


def test_a_store_that_falls_silent_costs_a_trial_its_attempts_alone(
    tmp_path: Path, storage: str, lease: str, silent: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_mirror, "_PAUSE", 0.0)
    folder, told = home_of(tmp_path / "nowhere" / "trials" / "0007", storage), []
    folder.mkdir(parents=True)
    (folder / "health.json").write_text("{}")
    mirror = TrialMirror(storage, folder, told.append, lease)
    mirror.fetch()
    assert silent.requests == 2 * trial_mirror._ATTEMPTS
    mirror.finish()
    assert mirror.wait(60)
    assert [one.rpartition(": ")[2] for one in told] == ["it does not answer"] * 2
    assert folder.exists()


@pytest.fixture
def make_worker(tmp_path: Path, storage: str, lease: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Workers on nodes that cannot see the study, given so many epochs that the record has."""
    monkeypatch.setattr(trainable, "DEFAULT_STORAGE_PATH", str(tmp_path / "ray"))
    threads = torch.get_num_threads()
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),), activation="leaky_relu", norm="none")
    config = TrialConfig(arch, TrainConfig(epochs=4, batch_size=16, lr=0.05), DataConfig(limit_train=100), 1)
    made: list[TrialWorker] = []

    def make(known_epochs: int, **more: Any) -> TrialWorker:
        content: dict[str, Any] = {
            "number": 7,
            "trial_config": json.dumps(to_json(config)),
            "folder": str(tmp_path / "nowhere" / "trials" / "0007"),
            "known_epochs": known_epochs,
            "device": "cpu",
            "threads": 1,
            "telemetry": "scalars",
            "compute": {},
            "stop_at": math.inf,
            "memory": None,
            "split": 1,
            "fewer": False,
            "limits": None,
            "storage": storage,
            "lease": lease,
            **more,
        }
        made.append(TrialWorker(content))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()
    torch.set_num_threads(threads)


def epoch(worker: TrialWorker) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(worker.step()["report"])
    assert "notes" not in content
    metrics: dict[str, Any] = content["metrics"]
    return {name: metrics[name] for name in ("epoch", "train_loss", "val_loss")}


def test_a_trial_goes_on_on_another_node(make_worker: MakeWorker, tmp_path: Path, storage: str) -> None:
    first = make_worker(0)
    told = [epoch(first) for _ in range(3)]
    first.stop()
    assert not (tmp_path / "nowhere").exists()
    assert not home_of(tmp_path / "nowhere" / "trials" / "0007", storage).exists()
    assert any("events" in name for name in Store.open(storage).names())
    second = make_worker(2)
    assert epoch(second) == told[2], "the record lacked it, its checkpoint has it"
    assert epoch(second)["epoch"] == 4
    second.stop()
    assert len(checkpoints(storage)) in (1, 2), "last and best; a trial that has ended has no previous one"


class _EndedError(BaseException):
    """The process would be gone."""


def test_the_outpost_has_the_last_word_of_a_process_whose_folder_the_driver_cannot_see(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outpost_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(worker_module, "beats_folder", lambda search: node_folder(search, "node"))
    monkeypatch.setattr(worker_module, "has_room", lambda: False)

    def end(folder: Path, word: Word) -> None:
        word.write(folder)
        raise _EndedError

    monkeypatch.setattr(worker_module, "end_process", end)
    outpost = Outpost("search", "node")
    try:
        worker = make_worker(0, beats="search", least=60.0, pause=60.0)
        monkeypatch.setattr(worker, "_next_report", lambda: bytearray(2**62))
        with pytest.raises(_EndedError):
            worker.step()
        word = outpost.take_word(7)
        assert word is not None
        assert (word.number, word.ended) == (7, True)
    finally:
        outpost.close()
