from __future__ import annotations

import errno
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from ray.tune.trainable import trainable

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.records import EpochMetrics, Finding
from tunelab.training import checkpoint
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.pulse import beat_path, read_beat
from tunelab.tuning import worker as worker_module
from tunelab.tuning.memory_guard import EXIT_STATUS, read_word
from tunelab.tuning.worker import TrialWorker

MakeWorker = Callable[..., TrialWorker]


def trial_config(seed: int = 1, **train: Any) -> TrialConfig:
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),), activation="leaky_relu", norm="none")
    recipe = {"epochs": 3, "batch_size": 16, "lr": 0.05, **train}
    return TrialConfig(arch, TrainConfig(**recipe), DataConfig(limit_train=100), seed)


DIVERGES = {"lr": 100.0, "precision": "float32"}


def given(
    folder: Path, config: TrialConfig | dict[str, Any], known_epochs: int = 0, stop_at: float = math.inf
) -> dict[str, Any]:
    """What Ray hands to a worker."""
    return {
        "number": 7,
        "trial_config": json.dumps(config if isinstance(config, dict) else to_json(config)),
        "folder": str(folder),
        "known_epochs": known_epochs,
        "device": "cpu",
        "threads": 1,
        "telemetry": "off",
        "compute": {},
        "stop_at": stop_at,
        "memory": None,
        "split": 1,
        "fewer": False,
        "limits": None,
    }


@pytest.fixture
def make_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Workers as Ray makes them; what Ray itself writes for each goes to a folder of this test."""
    monkeypatch.setattr(trainable, "DEFAULT_STORAGE_PATH", str(tmp_path / "ray"))
    threads = torch.get_num_threads()
    made: list[TrialWorker] = []

    def make(
        config: TrialConfig | dict[str, Any] | None = None,
        known_epochs: int = 0,
        folder: Path | None = None,
        stop_at: float = math.inf,
    ) -> TrialWorker:
        content = given(folder or tmp_path / "trial", config or trial_config(), known_epochs, stop_at)
        made.append(TrialWorker(content))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()
    torch.set_num_threads(threads)


def told(worker: TrialWorker) -> dict[str, Any]:
    """The content of the next report; Ray sees one text and no number of it."""
    result = worker.step()
    assert list(result) == ["report"]
    assert isinstance(result["report"], str)
    content: dict[str, Any] = json.loads(result["report"], parse_constant=lambda name: pytest.fail(name))
    return content


def metrics(worker: TrialWorker) -> EpochMetrics:
    return EpochMetrics(**told(worker)["metrics"])


def measured(history: list[EpochMetrics]) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    return [(one.epoch, one.train_loss, one.train_accuracy, one.val_loss, one.val_accuracy, one.lr) for one in history]


def test_a_step_is_an_epoch(make_worker: MakeWorker) -> None:
    worker = make_worker()
    history = [metrics(worker) for _ in range(3)]
    assert measured(history) == measured(fit(trial_config(), device="cpu", threads=1))


def test_nothing_is_trained_before_the_first_step(make_worker: MakeWorker, tmp_path: Path) -> None:
    make_worker()
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize(
    ("trained", "known"),
    [*((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)), *((2, 1), (2, 2), (2, 3), (3, 0), (3, 2), (3, 3))],
)
def test_a_restart_tells_again_and_trains_nothing_twice(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: int, known: int
) -> None:
    """`trained` epochs are in the checkpoint, `known` in the record: what it lacks is told first, at least the last.

    The record is an epoch ahead where the process was killed before it had written its checkpoint.
    """
    before = make_worker()
    expected = [metrics(before) for _ in range(trained)]
    before.stop()
    epochs: list[int] = []
    real = Trainer.run_epoch

    def run_epoch(trainer: Trainer, stop_at: float = math.inf) -> EpochMetrics:
        epochs.append(len(trainer.history) + 1)
        return real(trainer, stop_at)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    worker = make_worker(known_epochs=known)
    first = min(known + 1, trained) if trained else 1
    history = [metrics(worker) for _ in range(first, 4)]
    assert [one.epoch for one in history] == list(range(first, 4))
    assert epochs == list(range(trained + 1, 4))
    assert history[: trained - first + 1] == expected[first - 1 :], "told as it was, the time it took included"
    assert measured(history) == measured(fit(trial_config(), device="cpu", threads=1))[first - 1 :]


def test_an_epoch_without_time_is_broken_off_and_the_search_halts(make_worker: MakeWorker, tmp_path: Path) -> None:
    before = make_worker()
    expected = [metrics(before), metrics(before)]
    before.stop()
    late = make_worker(known_epochs=2, stop_at=time.monotonic())
    assert EpochMetrics(**told(late)["metrics"]) == expected[-1], "what was trained before is told all the same"
    assert told(late) == {"halt": "deadline"}
    late.stop()
    again = make_worker(known_epochs=2)
    history = [metrics(again), metrics(again)]
    assert measured(history) == measured(fit(trial_config(), device="cpu", threads=1))[1:]


def test_a_lost_checkpoint_means_a_new_beginning(make_worker: MakeWorker) -> None:
    """The engine knows the epochs that come again."""
    worker = make_worker(known_epochs=2)
    assert [metrics(worker).epoch for _ in range(3)] == [1, 2, 3]


def test_a_trial_tells_its_notes_with_every_epoch(make_worker: MakeWorker, tmp_path: Path) -> None:
    assert "notes" not in told(make_worker())
    worker = make_worker(folder=tmp_path / "other")
    assert worker.reset_config({**given(tmp_path / "streamed", trial_config()), "memory": 0}) is True
    assert [told(worker)["notes"] for _ in range(2)] == [
        ["the 0.0 MiB of training images are streamed from the cache"]
    ] * 2


def test_a_diverged_trial_says_so(make_worker: MakeWorker) -> None:
    content = told(make_worker(trial_config(**DIVERGES)))
    assert content["status"] == "DIVERGED"
    assert content["reason"].startswith("epoch 1: the training loss became nan")


def test_a_diverged_trial_says_what_led_to_it(make_worker: MakeWorker, tmp_path: Path) -> None:
    content = told(make_worker(trial_config(**DIVERGES)))
    findings = [Finding(**plain) for plain in content["findings"]]
    assert [findings[0].name, findings[-1].name] == ["learning rate too high", "not finite"]
    assert content["reason"].endswith(f"; {findings[0].what}")
    assert json.loads((tmp_path / "trial" / "health.json").read_text())["findings"] == content["findings"]


def test_a_trial_tells_its_findings_of_the_epochs_so_far(make_worker: MakeWorker) -> None:
    high = {**to_json(trial_config()), "arch": {**to_json(trial_config())["arch"], "dropout": 0.9}}
    assert "findings" not in told(make_worker(folder=Path(make_worker()._config["folder"]).with_name("well")))
    worker = make_worker(high)
    content = told(worker)
    assert [plain["name"] for plain in content["findings"]] == ["dropout too high"]
    assert "hopeless" not in content
    told(worker)
    worker.stop()
    again = make_worker(high, known_epochs=2)
    assert told(again)["findings"] == content["findings"], "told again after a restart"


def test_a_trial_says_that_it_is_hopeless_with_its_last_epoch_alone(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunelab.training.health.hopeless", lambda case: "nothing can come of it")
    worker = make_worker()
    assert told(worker)["hopeless"] == "nothing can come of it"
    told(worker)
    worker.stop()
    again = make_worker(known_epochs=1)
    assert "hopeless" not in told(again), "it is judged when an epoch ends"
    assert told(again)["hopeless"] == "nothing can come of it"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"optimizer": "nothing"}}, "InputError: optimizer 'nothing' is unknown"),
        ({"data": {"name": "nothing"}}, "InputError: there is no data set 'nothing'"),
        ({"train": {"lr": -1}}, "InputError: TrialConfig: train.lr"),
        ({"arch": {"stem": {}, "branches": [[{"kind": "x", "width": 4}]]}}, "'x'"),
        ({"data": {"name": "folder:/nowhere/" + os.fsdecode(b"\xe4")}}, "/nowhere/"),
    ],
)
def test_a_trial_that_raises_says_why(
    make_worker: MakeWorker, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    content = told(make_worker({**to_json(trial_config()), **change}))
    assert content["status"] == "FAILED"
    assert said in content["reason"]
    assert "\n" not in content["reason"]
    assert "Traceback (most recent call last)" in (tmp_path / "trial" / "error.txt").read_text()


def test_a_long_message_is_cut(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_trainer: Trainer, _stop_at: float) -> EpochMetrics:
        raise RuntimeError("x\n" * 5000)

    monkeypatch.setattr(Trainer, "run_epoch", fail)
    content = told(make_worker())
    assert content["reason"].startswith("RuntimeError: x x")
    assert len(content["reason"]) < 400


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "7.45 GiB more could not be had; the process held "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "2.00 GiB more could not be had"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory; the process held "),
    ],
)
def test_want_of_memory_is_a_loss_and_the_process_goes_on_with_what_it_gave_back(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, said: str
) -> None:
    """As much as before is trained after it, in parts, from the checkpoint."""
    real = Trainer.run_epoch
    networks: list[weakref.ref[torch.nn.Module]] = []

    def run_epoch(trainer: Trainer, stop_at: float = math.inf) -> EpochMetrics:
        if len(trainer.history) == 1 and trainer._split == 1:
            networks.append(weakref.ref(trainer.model))
            raise error
        return real(trainer, stop_at)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    worker = make_worker()
    first = metrics(worker)
    lost = told(worker)["lost"]
    assert lost["cause"] == "memory"
    assert lost["why"].startswith(said)
    assert [network() for network in networks] == [None]
    assert not (tmp_path / "trial" / "error.txt").exists(), "no error of the trial's own"
    assert worker.reset({**given(tmp_path / "trial", trial_config(), 1), "split": 4}, None)
    content = told(worker)
    assert EpochMetrics(**content["metrics"]) == first, "told again"
    assert any("computed in 4 parts" in note for note in content["notes"])
    assert [metrics(worker).epoch, metrics(worker).epoch] == [2, 3]


def test_what_is_not_finite_is_no_want_of_memory(make_worker: MakeWorker) -> None:
    content = told(make_worker(trial_config(**DIVERGES)))
    assert content["status"] == "DIVERGED"
    assert "lost" not in content


LACKING = """
import sys, torch
from pathlib import Path
from tunelab.tuning import worker

def build(*given, **more):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

worker.Trainer = build
if sys.argv[3] == "cpu":
    worker.has_room = lambda: False
made = worker.TrialWorker.__new__(worker.TrialWorker)
made.setup({"number": 7, "folder": sys.argv[1], "trial_config": sys.argv[2], "device": sys.argv[3], "threads": 1,
            "telemetry": "off", "compute": {}, "memory": None, "split": 1, "limits": None, "fewer": False})
made.step()
print("goes on")
"""


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_process_that_cannot_give_memory_back_ends_and_says_so(device: str, tmp_path: Path) -> None:
    """Nothing else gives all of a GPU's memory back, nor what a heap full of holes keeps."""
    command = [sys.executable, "-c", LACKING, str(tmp_path), json.dumps(to_json(trial_config())), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (EXIT_STATUS, ""), done.stderr
    word = read_word(tmp_path)
    assert word is not None
    assert (word.number, word.ended) == (7, True)
    assert word.why.startswith("2.00 GiB more could not be had; the process held ")


def test_a_folder_that_cannot_be_written_is_a_failure_and_no_more(make_worker: MakeWorker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    content = told(make_worker(folder=tmp_path / "file" / "trial"))
    assert content["status"] == "FAILED"
    assert "Not a directory" in content["reason"]


def full(folder: Path) -> None:
    """Makes the disk full for the next checkpoint in a trial's folder."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "last.pt.tmp").symlink_to("/dev/full")


HALT = {"halt": "the trials' storage: No space left on device"}


def test_a_disk_that_stays_full_halts_the_search_at_the_next_epoch(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "remove_leftovers", lambda folder: full(folder.parent))
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.0)
    worker = make_worker()
    assert metrics(worker).epoch == 1, "the write has only begun"
    assert told(worker) == HALT, "no epoch is told whose predecessor is not on the disk"
    monkeypatch.undo()
    worker.stop()
    again = make_worker(known_epochs=1)
    assert measured([metrics(again) for _ in range(3)]) == measured(fit(trial_config(), device="cpu", threads=1))


def test_a_full_disk_is_waited_for(make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for it is gone with the first attempt."""
    monkeypatch.setattr(checkpoint, "remove_leftovers", lambda folder: full(folder.parent))
    worker = make_worker()
    history = [metrics(worker) for _ in range(3)]
    assert measured(history) == measured(fit(trial_config(), device="cpu", threads=1))
    assert len(checkpoint.load(tmp_path / "trial" / "checkpoint" / "last.pt").history) == 3


def test_a_disk_that_is_gone_halts_the_search_at_the_next_trial(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_folder: Path, file: BinaryIO, _content: io.BytesIO, **_more: Any) -> None:
        file.close()
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoint, "write", gone)
    worker = make_worker()
    metrics(worker)
    monkeypatch.undo()
    assert worker.reset_config(given(tmp_path / "other", trial_config(seed=2))) is True
    assert told(worker) == {"halt": "the trials' storage: Read-only file system"}
    assert not (tmp_path / "other").exists()
    assert "Read-only file system" in (tmp_path / "trial" / "error.txt").read_text()


def test_the_next_trial_waits_for_room_itself(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_folder: Path, file: BinaryIO, _content: io.BytesIO, **_more: Any) -> None:
        file.close()
        raise OSError(errno.ENOSPC, "No space left on device")

    worker = make_worker()
    metrics(worker)
    monkeypatch.setattr(checkpoint, "write", no_room)
    metrics(worker)
    assert worker.reset_config(given(tmp_path / "other", trial_config(seed=2))) is True
    assert "No space left" in (tmp_path / "trial" / "error.txt").read_text()
    monkeypatch.undo()
    assert metrics(worker).epoch == 1


def test_what_only_one_trial_cannot_write_does_not_concern_the_next(make_worker: MakeWorker, tmp_path: Path) -> None:
    (tmp_path / "trial" / "checkpoint" / "best.pt" / "in the way").mkdir(parents=True)
    worker = make_worker()
    metrics(worker)
    assert worker.reset_config(given(tmp_path / "other", trial_config(seed=2))) is True
    assert metrics(worker).epoch == 1
    assert "best.pt" in (tmp_path / "trial" / "error.txt").read_text()


def test_one_process_takes_one_trial_after_another(make_worker: MakeWorker, tmp_path: Path) -> None:
    worker = make_worker()
    metrics(worker)
    for config in (trial_config(**DIVERGES), trial_config(optimizer="nothing")):
        assert worker.reset_config(given(tmp_path / f"{config.train.optimizer}{config.train.lr}", config)) is True
        assert "status" in told(worker)
    assert worker.reset_config(given(tmp_path / "last", trial_config(seed=5))) is True
    history = [metrics(worker) for _ in range(3)]
    assert measured(history) == measured(fit(trial_config(seed=5), device="cpu", threads=1))


def test_checkpoints_are_not_rays(make_worker: MakeWorker, tmp_path: Path) -> None:
    worker = make_worker()
    metrics(worker)
    (tmp_path / "for-ray").mkdir()
    worker.save_checkpoint(str(tmp_path / "for-ray"))
    worker.load_checkpoint(str(tmp_path / "for-ray"))
    worker.cleanup()
    assert list((tmp_path / "for-ray").iterdir()) == []
    assert (tmp_path / "trial" / "checkpoint" / "last.pt").exists()


def test_no_process_is_left(make_worker: MakeWorker) -> None:
    metrics(make_worker())
    assert multiprocessing.active_children() == []


def test_a_worker_beats_and_rests_between_epochs(make_worker: MakeWorker, tmp_path: Path) -> None:
    (tmp_path / "beats").mkdir()
    worker = make_worker()
    worker._config |= {"beats": str(tmp_path / "beats"), "least": 60.0, "pause": 600.0}
    seen = []
    try:
        for _ in range(2):
            metrics(worker)
            beat = read_beat(beat_path(tmp_path / "beats", 7))
            assert beat is not None
            assert (beat.number, beat.pid, beat.phase, beat.limit) == (7, os.getpid(), "idle", 0.0)
            seen.append(beat.count)
    finally:
        worker.stop()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert seen[1] - seen[0] > 6, "one for each step at least"


def test_a_worker_without_room_for_beats_trains_all_the_same(make_worker: MakeWorker, tmp_path: Path) -> None:
    worker = make_worker()
    worker._config |= {"beats": str(tmp_path / "none"), "least": 60.0, "pause": 600.0}
    assert metrics(worker).epoch == 1


def test_a_deadline_of_another_machine_is_one_of_the_wall_clock(make_worker: MakeWorker) -> None:
    """Monotonic clocks of two machines have nothing in common."""
    worker = make_worker(stop_at=0.0)
    worker._config["stop_time"] = time.time() + 1000.0
    assert told(worker)["metrics"]["epoch"] == 1
    worker._config["stop_time"] = time.time() - 1.0
    assert told(worker) == {"halt": "deadline"}
