from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tunelab.config import AveragingConfig, StageSpec, to_json
from tunelab.errors import DivergedError
from tunelab.records import EpochMetrics
from tunelab.training import checkpoint, saver
from tunelab.training.checkpoint import load
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.saver import Room, Saver


def measured(history: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    return [(m.epoch, m.train_loss, m.train_accuracy, m.val_loss, m.val_accuracy, m.lr) for m in history]


class Disk:
    """A disk that answers when it is `free`, and the names of the threads that asked it."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.threads: list[str] = []

    def fsync(self, descriptor: int) -> None:
        self.threads.append(threading.current_thread().name)
        assert self.free.wait(60), "nobody freed the disk"
        FSYNC(descriptor)


FSYNC = os.fsync


@pytest.fixture
def disk(monkeypatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(os, "fsync", made.fsync)
    yield made
    made.free.set()


def make(config, folder: Path) -> Trainer:
    return Trainer(config, folder=folder, device="cpu", threads=1, telemetry="off")


def writing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def last(folder: Path) -> int:
    """How many epochs are in the last checkpoint."""
    try:
        return len(load(folder / "checkpoint" / "last.pt").history)
    except FileNotFoundError:
        return 0


def test_an_epoch_is_returned_while_its_checkpoint_is_written(make_config, tmp_path, disk):
    trainer = make(make_config(epochs=3), tmp_path)
    disk.threads.clear()
    disk.free.clear()
    trainer.run_epoch()
    assert last(tmp_path) == 0
    assert len(writing()) == 1
    freeing = threading.Timer(0.2, disk.free.set)
    freeing.start()
    trainer.run_epoch()
    freeing.join()
    assert last(tmp_path) >= 1, "the first is on the disk before the second is returned"
    trainer.run_epoch()
    assert last(tmp_path) == 3, "the last one is on the disk when it is returned"
    assert not writing()
    assert disk.threads[:4] == ["checkpoint"] * 4
    assert disk.threads[4:] == ["MainThread"] * 2, "the last one is written where it is waited for: file and folder"


def test_what_is_written_is_the_state_as_it_was(make_config, tmp_path, disk):
    """The tensors go on while the disk is waited for."""
    trainer = make(make_config(epochs=3), tmp_path)
    disk.free.clear()
    trainer.run_epoch()
    expected = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with torch.no_grad():
        for tensor in trainer.model.state_dict().values():
            tensor.zero_()
    disk.free.set()
    trainer.close()
    found = load(tmp_path / "checkpoint" / "last.pt").model
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_at_most_one_state_is_held(make_config, tmp_path, disk, monkeypatch):
    held: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0
    real = checkpoint.to_bytes

    def to_bytes(state):
        nonlocal most
        content = real(state)
        held.add(content)
        most = max(most, len(held))
        return content

    monkeypatch.setattr(checkpoint, "to_bytes", to_bytes)
    trainer = make(make_config(epochs=4), tmp_path)
    while not trainer.finished:
        trainer.run_epoch()
    gc.collect()
    assert (most, len(held)) == (1, 0)


@pytest.mark.parametrize("ended", ["resume", "close"])
def test_resume_and_close_wait_for_what_is_being_written(make_config, tmp_path, disk, ended):
    trainer = make(make_config(epochs=3), tmp_path)
    disk.free.clear()
    first = trainer.run_epoch()
    freeing = threading.Timer(0.2, disk.free.set)
    freeing.start()
    getattr(trainer, ended)()
    freeing.join()
    assert not writing()
    assert last(tmp_path) == 1
    assert trainer.history == [first]


def test_another_trainer_waits_for_what_is_being_written(make_config, tmp_path, disk):
    before = make(make_config(epochs=3), tmp_path)
    disk.free.clear()
    before.run_epoch()
    freeing = threading.Timer(0.2, disk.free.set)
    freeing.start()
    trainer = make(make_config(epochs=3), tmp_path)
    assert trainer.resume()
    freeing.join()
    assert trainer.history == before.history


def test_an_exception_in_training_leaves_the_checkpoint_before_it(make_config, tmp_path, disk):
    trainer = make(make_config(epochs=3), tmp_path)
    disk.free.clear()
    trainer.run_epoch()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError):
        trainer.run_epoch()
    disk.free.set()
    trainer.close()
    assert last(tmp_path) == 1
    assert not writing()


def test_ctrl_c_in_training_leaves_the_checkpoint_before_it(make_config, tmp_path, monkeypatch):
    config = make_config(epochs=3)
    heard: list[EpochMetrics] = []

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    def report(metrics):
        heard.append(metrics)
        if metrics.epoch == 2:
            monkeypatch.setattr(Trainer, "_validate", interrupt)

    with pytest.raises(KeyboardInterrupt):
        fit(config, report, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    monkeypatch.undo()
    assert not writing()
    assert load(tmp_path / "checkpoint" / "last.pt").history == heard
    unbroken = fit(config, device="cpu", threads=1)
    assert measured(fit(config, folder=tmp_path, device="cpu", threads=1)) == measured(unbroken)


def test_a_training_that_is_stopped_leaves_nothing_unwritten(make_config, tmp_path, disk):
    disk.free.clear()
    freeing = threading.Timer(0.5, disk.free.set)
    freeing.start()
    fit(make_config(epochs=3), lambda metrics: False, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    freeing.join()
    assert last(tmp_path) == 1
    assert not writing()


def test_a_trainer_that_is_forgotten_leaves_no_thread(make_config, tmp_path):
    trainer = make(make_config(epochs=3), tmp_path)
    trainer.run_epoch()
    del trainer
    gc.collect()
    for thread in writing():
        thread.join()
    assert last(tmp_path) == 1


def fill(folder: Path) -> None:
    """Makes the disk full for the next checkpoint."""
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint" / "last.pt.tmp").symlink_to("/dev/full")


@pytest.mark.parametrize("told_by", ["run_epoch", "resume", "close"])
def test_a_full_disk_is_told_once_by_the_next_call(make_config, tmp_path, told_by):
    config = make_config(epochs=4)
    trainer = make(config, tmp_path)
    trainer.run_epoch()
    trainer._kept.wait()
    fill(tmp_path)
    trainer.run_epoch()
    with pytest.raises(OSError, match="No space left on device") as raised:
        getattr(trainer, told_by)()
    assert raised.value.errno == errno.ENOSPC
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["best.pt", "last.pt"]
    assert last(tmp_path) == 1
    if told_by == "close":
        trainer.close()
        trainer = make(config, tmp_path)
    assert trainer.resume()
    while not trainer.finished:
        trainer.run_epoch()
    assert measured(trainer.history) == measured(fit(config, device="cpu", threads=1))


def test_a_full_disk_is_known_before_the_next_epoch_is_trained(make_config, tmp_path, monkeypatch):
    trainer = make(make_config(epochs=3), tmp_path)
    fill(tmp_path)
    trainer.run_epoch()
    while writing():
        threading.Event().wait(0.01)
    monkeypatch.setattr(trainer, "_train", lambda *_arguments: pytest.fail("it was trained in vain"))
    with pytest.raises(OSError, match="No space left"):
        trainer.run_epoch()


def test_a_full_disk_at_the_last_epoch_is_told_at_once(make_config, tmp_path):
    trainer = make(make_config(epochs=1), tmp_path)
    fill(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        trainer.run_epoch()
    trainer.close()
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_close_lets_go_of_the_network_whatever_the_disk_says(make_config, tmp_path):
    trainer = make(make_config(epochs=3), tmp_path)
    fill(tmp_path)
    trainer.run_epoch()
    model = weakref.ref(trainer.model)
    with pytest.raises(OSError, match="No space left"):
        trainer.close()
    gc.collect()
    assert model() is None


class FullDisk:
    """Has no room for checkpoints until `free` is set; counts the attempts."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        self.free = threading.Event()
        self.attempts = 0
        self._error, self._write = error, checkpoint.write

    def write(self, folder, file, content, **names) -> None:
        self.attempts += 1
        if self.free.is_set():
            self._write(folder, file, content, **names)
            return
        with file:
            file.write(b"half")
        raise OSError(self._error, os.strerror(self._error))


@pytest.fixture
def full_disk(monkeypatch) -> FullDisk:
    made = FullDisk()
    monkeypatch.setattr(checkpoint, "write", made.write)
    monkeypatch.setattr(saver, "_FIRST_PAUSE", 0.02)
    return made


def test_a_checkpoint_waits_for_room_and_says_so(make_config, tmp_path, full_disk):
    told: list[str] = []

    def hear(why: str) -> None:
        told.append(why)
        full_disk.free.set()

    config = make_config(epochs=3)
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off", room=Room(60, hear))
    while not trainer.finished:
        trainer.run_epoch()
    trainer.close()
    why = f"no room for a checkpoint in {tmp_path / 'checkpoint'}: No space left on device"
    assert list(dict.fromkeys(told)) == [why, ""]
    assert told.index("") == len(told) - 1
    assert full_disk.attempts > 3
    assert last(tmp_path) == 3
    assert measured(trainer.history) == measured(fit(config, device="cpu", threads=1))


def test_who_closes_waits_no_longer(make_config, tmp_path, full_disk):
    trainer = Trainer(make_config(epochs=3), folder=tmp_path, device="cpu", threads=1, telemetry="off", room=Room(3600))
    trainer.run_epoch()
    while not full_disk.attempts:
        threading.Event().wait(0.01)
    with pytest.raises(OSError, match="No space left"):
        trainer.close()
    assert full_disk.attempts > 1, "a last one was made"
    assert not writing()


@pytest.mark.parametrize(("error", "patience", "attempts"), [(errno.EIO, 60.0, 1), (errno.EDQUOT, 0.1, 3)])
def test_what_does_not_pass_or_lasts_too_long_is_told(tmp_path, full_disk, error, patience, attempts):
    full_disk._error = error
    one = Saver(Room(patience))
    state = checkpoint.Checkpoint("abc", "def", 7, "data", [], {}, {})
    with pytest.raises(OSError, match=os.strerror(error)):
        one.save(tmp_path, state, best=True, wait=True, previous=True)
    assert full_disk.attempts >= attempts
    full_disk.free.set()
    one.save(tmp_path, state, best=True, wait=True, previous=True)
    assert load(tmp_path / "last.pt").history == []


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from tunelab.config import TrialConfig, from_json
from tunelab.training import checkpoint, saver
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.saver import Room, Saver

config = from_json(TrialConfig, json.loads(sys.argv[1]))
folder = Path(sys.argv[2])
reported = os.open(folder / "reported", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
fsync, random = os.fsync, random.Random(int(sys.argv[3]))
Trainer(config, device="cpu", threads=1).close()  # the children find the data read


def slow(descriptor):
    time.sleep(0.02)
    fsync(descriptor)


def report(metrics):
    os.write(reported, json.dumps(metrics.to_json()).encode() + b"\\n")


def wait_for_a_report():
    size, ends = os.fstat(reported).st_size, time.monotonic() + 60
    while os.fstat(reported).st_size == size and time.monotonic() < ends:
        time.sleep(0.001)


def train():
    os.fsync = slow
    fit(config, report, folder=folder, device="cpu", threads=1, telemetry="off")
    os._exit(0)


def in_checkpoint():
    try:
        return len(checkpoint.load(folder / "checkpoint" / "last.pt").history)
    except FileNotFoundError:
        return 0


counts = []
while True:
    child = os.fork()
    if child == 0:
        train()
    if len(counts) < 16:
        wait_for_a_report() if len(counts) % 2 else time.sleep(random.uniform(0.03, 0.35))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    counts.append((len((folder / "reported").read_bytes().splitlines()), in_checkpoint()))
    if not os.WIFSIGNALED(status):
        break
print(json.dumps([os.waitstatus_to_exitcode(status), counts]))
"""


RECIPES = {
    "plain": {},
    "stages, ema": {
        "optimizer": "adam",
        "lr": 0.003,
        "stages": (StageSpec(0.2, "sgd", 0.02), StageSpec(0.5, "adamw", 0.001)),
        "averaging": AveragingConfig("ema", 0.1, 0.9),
    },
    "swa": {"averaging": AveragingConfig("swa", 0.1)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_kill_9_at_any_moment_of_a_training_costs_at_most_an_epoch_that_was_reported(make_config, tmp_path, recipe):
    config = make_config(arch={"dropout": 0.3}, epochs=40, data={"limit_train": 200}, **RECIPES[recipe])
    program = [sys.executable, "-c", KILLED, json.dumps(to_json(config)), str(tmp_path), "1"]
    answer = subprocess.run(program, check=True, capture_output=True, text=True)
    status, counts = json.loads(answer.stdout)
    assert status == 0, answer.stderr
    unbroken = measured(fit(config, device="cpu", threads=1))
    lines = (tmp_path / "reported").read_text().splitlines()
    reports = measured([EpochMetrics(**json.loads(line)) for line in lines])
    assert all(report == unbroken[report[0] - 1] for report in reports), "the same again, to the last bit"
    assert measured(load(tmp_path / "checkpoint" / "last.pt").history) == unbroken
    assert {report[0] for report in reports} >= {40}
    lost = []
    for before, saved in counts:
        known = max((report[0] for report in reports[:before]), default=0)
        assert saved >= known - 1, "at most the last epoch that was reported is not in the checkpoint"
        lost.append(known - saved)
    assert len(counts) == 17, "it was killed again and again"
    assert 1 in lost, "and at least once before a checkpoint of a reported epoch was on the disk"
