from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import Summary

from tunelab.records import EpochMetrics
from tunelab.training.folder import TrialFolder
from tunelab.training.loop import Trainer
from tunelab.training.telemetry import (
    SCALAR_EPOCHS,
    SECTIONS,
    EventWriter,
    bytes_in,
    has_aside,
    is_shown,
    recorded_epochs,
    write_aside,
)


def metrics(epoch: int, loss: float = 0.5, val: float | None = 0.25) -> EpochMetrics:
    return EpochMetrics(epoch, loss, 0.75, val, val, 0.125, 2.0, 1000.0, 300.0, 20.0, 0.5, 0.001)


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_of_every_epoch_is_read_back(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1))
    writer.write(metrics(2, loss=0.25))
    writer.close()
    found = read(tmp_path)
    assert found["loss/train_loss"] == [(1, 0.5), (2, 0.25)]
    assert {tag.split("/")[1] for tag in found} == set(metrics(1).to_json()) - {"epoch"} | {"effective_lr"}


def test_every_field_has_its_section():
    fields = [field.name for field in dataclasses.fields(EpochMetrics) if field.name != "epoch"]
    assert sorted([*fields, "effective_lr"]) == sorted(field for section in SECTIONS.values() for field in section)


def test_nothing_is_said_of_validation_where_nothing_is_held_out(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1, val=None))
    writer.close()
    assert not {"loss/val_loss", "accuracy/val_accuracy"} & set(read(tmp_path))


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
    assert read(tmp_path)["loss/train_loss"] == [(1, 0.5), (2, 0.625), (3, 0.625)]


def test_the_epochs_in_a_folder_are_those_that_tensorboard_shows(tmp_path):
    assert recorded_epochs(tmp_path / "none") == set()
    first = EventWriter(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write(metrics(epoch))
    first.add(5, [Summary.Value(tag="other", simple_value=1.0)])
    first.close()
    second = EventWriter(tmp_path, 3)
    second.write(metrics(4))
    second.close()
    assert recorded_epochs(tmp_path) == {1, 2, 4} == {step for step, _ in read(tmp_path)["loss/train_loss"]}
    assert bytes_in(tmp_path) == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("cut", [3, 20, 100])
def test_of_a_file_that_was_being_written_the_whole_part_counts(tmp_path, cut):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1))
    writer.write(metrics(2))
    writer.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert recorded_epochs(tmp_path) == {1}


def test_a_file_aside_is_whole_and_voids_nothing(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.write(metrics(1))
    writer.close()
    assert not has_aside(tmp_path, "ended")
    write_aside(tmp_path, "ended", [Summary.Value(tag="more", simple_value=2.0)])
    assert has_aside(tmp_path, "ended")
    assert not has_aside(tmp_path, "started")
    found = read(tmp_path)
    assert found["more"] == [(0, 2.0)]
    assert found["loss/train_loss"] == [(1, 0.5)]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("epochs", "most"), [(1, 16), (30, 16), (30, 0), (999, 1000), (5000, 1000), (100_000, 16)])
def test_the_epochs_shown_are_few_and_have_the_first_and_the_last(epochs, most):
    shown = [epoch for epoch in range(1, epochs + 1) if is_shown(epoch, epochs, most)]
    assert shown[0] == 1
    assert shown[-1] == epochs
    assert len(shown) <= most + epochs.bit_length() + 2
    if most >= epochs:
        assert len(shown) == epochs


def test_of_thousands_of_epochs_some_are_written_and_the_last_before_the_end(tmp_path):
    folder = TrialFolder(tmp_path, "scalars", 5000, [])
    for epoch in range(1, 4322):
        folder.record(metrics(epoch))
    folder.close_events()
    steps = [step for step, _ in read(tmp_path / "events")["loss/train_loss"]]
    assert steps[-2:] == [4320, 4321]
    assert steps == sorted(set(steps))
    assert 800 < len(steps) < SCALAR_EPOCHS
    folder.go_on_after(metrics(4321))
    folder.record(metrics(4322))
    folder.close_events()
    again = [step for step, _ in read(tmp_path / "events")["loss/train_loss"]]
    assert again == [*steps, 4322]


def test_the_graph_is_read_back(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.add_graph(GraphDef(node=[NodeDef(name="input", op="Input")]))
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [node.name for node in events.Graph().node] == ["input"]


def test_a_resumed_training_has_each_epoch_once(tmp_path, make_config):
    config = make_config(epochs=4)
    for epochs in (2, 1, 1):
        trainer = Trainer(config, folder=tmp_path, device="cpu")
        trainer.resume()
        for _ in range(epochs):
            trainer.run_epoch()
        trainer.close()
    steps = read(tmp_path / "events")["accuracy/val_accuracy"]
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
    assert [step for step, _ in read(tmp_path / "events")["accuracy/val_accuracy"]] == [1]


def test_a_training_that_starts_anew_voids_what_was_told(tmp_path, make_config):
    config = make_config(epochs=2)
    trainer = Trainer(config, folder=tmp_path, device="cpu")
    trainer.run_epoch()
    trainer.run_epoch()
    trainer.close()
    for path in (tmp_path / "checkpoint").iterdir():
        path.unlink()
    trainer = Trainer(config, folder=tmp_path, device="cpu")
    assert not trainer.resume()
    trainer.run_epoch()
    trainer.close()
    assert [step for step, _ in read(tmp_path / "events")["accuracy/val_accuracy"]] == [1]


def test_a_training_goes_on_where_events_cannot_be_written(tmp_path, make_config, monkeypatch):
    whole, full = EventWriter.add, OSError(errno.ENOSPC, "No space left on device")

    def add(self: EventWriter, step: int, values: list[Summary.Value]) -> None:
        if step == 2:
            raise full
        whole(self, step, values)

    monkeypatch.setattr(EventWriter, "add", add)
    trainer = Trainer(make_config(epochs=3), folder=tmp_path, device="cpu")
    while not trainer.finished:
        trainer.run_epoch()
    trainer.close()
    assert trainer.notes == ["events for TensorBoard could not be written at epoch 2: No space left on device"]
    assert [step for step, _ in read(tmp_path / "events")["accuracy/val_accuracy"]] == [1, 3]


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
