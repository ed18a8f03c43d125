from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tunelab.config import AugmentConfig, AveragingConfig, ScheduleConfig, StageSpec, TrialConfig, to_json
from tunelab.records import EpochMetrics
from tunelab.training.checkpoint import load, to_bytes
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer

EPOCHS = 5
AUGMENT = AugmentConfig(crop=0.125, flip=True, cutout=0.25, mixup=0.4, mixup_until=0.7)
RECIPES = {
    "plateau": {"schedule": ScheduleConfig("plateau", period=0.2, factor=0.5), "augment": AUGMENT},
    "one_cycle": {"schedule": ScheduleConfig("one_cycle", warmup=0.1), "optimizer": "adamw", "lr": 0.003},
    "restarts": {"schedule": ScheduleConfig("warm_restarts"), "optimizer": "rmsprop", "lr": 0.0003},
    "float32": {"precision": "float32", "augment": AUGMENT, "label_smoothing": 0.1},
    "stages, ema": {
        "optimizer": "adam",
        "lr": 0.003,
        "stages": (StageSpec(0.4, "sgd", 0.05), StageSpec(0.6, "rmsprop", 0.0003)),
        "averaging": AveragingConfig("ema", 0.2, 0.9),
    },
    "by norm": {"schedule": ScheduleConfig("constant", by_norm=True), "optimizer": "adam", "lr": 0.03},
    "by norm, plateau": {"schedule": ScheduleConfig("plateau", 0.1, 0.2, 0.5, by_norm=True), "lr": 1.0},
    "swa": {"schedule": ScheduleConfig("constant"), "averaging": AveragingConfig("swa", 0.2)},
}


def measured(history: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    return [(m.epoch, m.train_loss, m.train_accuracy, m.val_loss, m.val_accuracy, m.lr) for m in history]


def start(config: TrialConfig, folder: Path, epochs: int) -> Trainer:
    trainer = Trainer(config, folder=folder, device="cpu", threads=1, telemetry="off")
    trainer.resume()
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer


def train(config: TrialConfig, folder: Path, epochs: int) -> list[EpochMetrics]:
    """As `start`, with its checkpoints on the disk."""
    trainer = start(config, folder, epochs)
    trainer.close()
    return trainer.history


@pytest.fixture
def config(make_config) -> TrialConfig:
    return make_config(arch={"dropout": 0.3}, epochs=EPOCHS, data={"limit_train": 300}, **RECIPES["plateau"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_training_measures_the_same(make_config, tmp_path, recipe):
    config = make_config(arch={"dropout": 0.3}, epochs=EPOCHS, data={"limit_train": 300}, **RECIPES[recipe])
    unbroken = fit(config, device="cpu", threads=1)
    start(config, tmp_path, 2)
    start(config, tmp_path, 1)
    assert measured(fit(config, folder=tmp_path, device="cpu", threads=1)) == measured(unbroken)
    assert len(unbroken) == EPOCHS


PROGRAM = """
import json, sys
from pathlib import Path
from tunelab.config import TrialConfig, from_json
from tunelab.training.fitting import fit
config = from_json(TrialConfig, json.loads(sys.argv[1]))
history = fit(config, folder=Path(sys.argv[2]), device="cpu", threads=1, telemetry="off")
print(json.dumps([metrics.to_json() for metrics in history]))
"""


def test_it_measures_the_same_in_another_process(config, tmp_path):
    unbroken = fit(config, device="cpu", threads=1)
    start(config, tmp_path, 3)
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(to_json(config)), str(tmp_path)]
    answer = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert measured([EpochMetrics(**plain) for plain in json.loads(answer)]) == measured(unbroken)


def test_an_epoch_broken_off_in_the_middle_is_repeated(config, tmp_path, monkeypatch):
    unbroken = fit(config, device="cpu", threads=1)
    trainer = start(config, tmp_path, 2)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_validate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_epoch()
    assert trainer.resume()
    while not trainer.finished:
        trainer.run_epoch()
    assert measured(trainer.history) == measured(unbroken)


def test_without_a_checkpoint_it_starts_from_the_start(config, tmp_path):
    trainer = start(config, tmp_path, 0)
    assert trainer.history == []
    assert not trainer.resume()
    assert trainer.notes == []
    assert not Trainer(config, device="cpu").resume()


def damage(path: Path) -> None:
    """Flip a bit in the middle of the largest tensor, in a file of its own: last and best may be one file."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2 + 128] ^= 1  # its heading is shorter than 128 bytes
    path.unlink()
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leave half of a file, in a file of its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def exchange(path: Path) -> None:
    """Put the checkpoint of another trial in place of this one."""
    content = load(path)
    path.unlink()
    path.write_bytes(to_bytes(dataclasses.replace(content, config_id="0" * 16)).getvalue())


SPOILT = {"flipped": damage, "cut": cut, "empty": empty, "deleted": Path.unlink, "of another trial": exchange}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_last_checkpoint_costs_one_epoch(config, tmp_path, how):
    unbroken = measured(train(config, tmp_path, 4))
    SPOILT[how](tmp_path / "checkpoint" / "last.pt")
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    assert trainer.resume()
    assert len(trainer.history) == 3
    (note,) = trainer.notes
    assert "last.pt was passed over" in note
    trainer.run_epoch()
    trainer._kept.wait()
    assert measured(trainer.history) == unbroken
    kept = [len(load(tmp_path / "checkpoint" / name).history) for name in ("last.pt", "previous.pt")]
    assert kept == [4, 3], "what was passed over is not what it falls back to the next time"


def test_two_damaged_checkpoints_give_way_to_the_best(config, tmp_path):
    unbroken = measured(train(config, tmp_path, 4))
    best = max(range(4), key=lambda index: unbroken[index][4] or 0.0)
    assert best < 2, "else it is a name of one of the two"
    damage(tmp_path / "checkpoint" / "last.pt")
    cut(tmp_path / "checkpoint" / "previous.pt")
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    assert trainer.resume()
    assert len(trainer.history) == best + 1
    assert [note.partition(" was passed over")[0].rpartition("/")[2] for note in trainer.notes] == [
        "last.pt",
        "previous.pt",
    ]
    assert "checksum" in trainer.notes[0]
    while len(trainer.history) < 4:
        trainer.run_epoch()
    assert measured(trainer.history) == unbroken


def test_damaged_checkpoints_alone_mean_a_new_start(config, tmp_path):
    first = measured(train(config, tmp_path, 2))
    for name in ("last.pt", "previous.pt"):
        damage(tmp_path / "checkpoint" / name)
    (tmp_path / "checkpoint" / "best.pt").unlink()
    (tmp_path / "checkpoint" / "best.pt").write_bytes(b"PK\x03\x04 and then nothing")
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    assert not trainer.resume()
    assert len(trainer.notes) == 3
    assert trainer.history == []
    trainer.run_epoch()
    trainer.run_epoch()
    assert measured(trainer.history) == first


def test_a_training_that_is_through_keeps_no_previous_checkpoint(config, tmp_path):
    trainer = start(config, tmp_path, EPOCHS - 1)
    trainer.close()
    assert (tmp_path / "checkpoint" / "previous.pt").exists()
    start(config, tmp_path, 1).close()
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["best.pt", "last.pt"]


def test_the_checkpoint_of_another_configuration_is_not_gone_on_from(config, make_config, tmp_path):
    start(config, tmp_path, 1)
    trainer = Trainer(make_config(), folder=tmp_path, device="cpu", threads=1, telemetry="off")
    assert not trainer.resume()
    assert "of another configuration" in trainer.notes[0]


def test_best_is_the_epoch_with_the_best_score(config, tmp_path):
    history = start(config, tmp_path, EPOCHS).history
    best = load(tmp_path / "checkpoint" / "best.pt").history
    assert best[-1].score == max(metrics.score for metrics in history)
    assert all(metrics.score < best[-1].score for metrics in best[:-1])


def test_what_a_killed_process_left_is_removed(config, tmp_path):
    train(config, tmp_path, 1)
    (tmp_path / "checkpoint" / "last.pt.tmp").write_bytes(b"half")
    start(config, tmp_path, 0)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["best.pt", "last.pt"]
