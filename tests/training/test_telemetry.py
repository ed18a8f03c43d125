from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunelab.records import EpochMetrics
from tunelab.training.loop import Trainer
from tunelab.training.telemetry import EventWriter


def metrics(epoch: int, loss: float = 0.5, val: float | None = 0.25) -> EpochMetrics:
    return EpochMetrics(epoch, loss, 0.75, val, val, 0.125, 2.0, 1000.0, 300.0, 20.0, 0.5, 0.001)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_of_every_epoch_is_read_back(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1))
    writer.write(metrics(2, loss=0.25))
    writer.close()
    found = read(tmp_path)
    assert found["train_loss"] == [(1, 0.5), (2, 0.25)]
    assert set(found) == set(metrics(1).to_json()) - {"epoch"} | {"effective_lr"}


def test_nothing_is_said_of_validation_where_nothing_is_held_out(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1, val=None))
    writer.close()
    assert not {"val_loss", "val_accuracy"} & set(read(tmp_path))


def test_a_second_file_replaces_the_steps_it_starts_with(tmp_path):
    first = EventWriter(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write(metrics(epoch))
    first.close()
    for again in (0.375, 0.625):  # two restarts within a second
        second = EventWriter(tmp_path, 2)
        second.write(metrics(2, loss=again))
        second.write(metrics(3, loss=again))
        second.close()
    assert read(tmp_path)["train_loss"] == [(1, 0.5), (2, 0.625), (3, 0.625)]


def test_a_resumed_training_has_each_epoch_once(tmp_path, make_config):
    config = make_config(epochs=4)
    for epochs in (2, 1, 1):
        trainer = Trainer(config, folder=tmp_path, device="cpu")
        trainer.resume()
        for _ in range(epochs):
            trainer.run_epoch()
        trainer.close()
    steps = read(tmp_path / "events")["val_accuracy"]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert [round(value, 6) for _, value in steps] == [round(m.val_accuracy or 0.0, 6) for m in trainer.history]


def test_an_epoch_whose_events_were_lost_is_told_again(tmp_path, make_config):
    config = make_config(epochs=2)
    trainer = Trainer(config, folder=tmp_path, device="cpu", telemetry="off")
    trainer.run_epoch()
    trainer.close()
    trainer = Trainer(config, folder=tmp_path, device="cpu")
    assert trainer.resume()
    trainer.close()
    assert [step for step, _ in read(tmp_path / "events")["val_accuracy"]] == [1]


def test_off_writes_nothing_and_imports_nothing(tmp_path):
    program = f"""
import sys
from pathlib import Path
from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig
from tunelab.training.fitting import fit
arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))
config = TrialConfig(arch, TrainConfig(epochs=1), DataConfig(limit_train=100))
fit(config, folder=Path({str(tmp_path)!r}), device="cpu", threads=1, telemetry="off")
unwanted = {{"tensorboard", "ray", "optuna", "tensorflow"}} & set(sys.modules)
assert not unwanted, unwanted
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
