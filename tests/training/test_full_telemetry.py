"""Histograms, pictures and the graph of a trial, as TensorBoard reads them, and that the training does not change."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunelab.config import LeNetSpec
from tunelab.training import full_telemetry
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer

KEPT = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "weight_norm", "grad_norm", "update_ratio")


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "events"), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    events.Reload()
    return events


def sections(tags: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tag in tags:
        section, name = tag.split("/")
        found.setdefault(section, []).append(name)
    return found


def steps(events: EventAccumulator, kind: str, tag: str) -> list[int]:
    return [event.step for event in getattr(events, kind)(tag)]


@pytest.fixture
def trained(tmp_path, make_config) -> Path:
    """The folder of a trial of 6 epochs, paused in between."""
    config = make_config(epochs=6)
    for _ in range(2):
        trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="full")
        trainer.resume()
        for _ in range(3):
            trainer.run_epoch()
        trainer.close()
        assert trainer.notes == []
    return tmp_path


def test_each_layer_has_its_histograms_of_each_epoch_once(trained):
    events = read(trained)
    found = sections(events.Tags()["histograms"])
    assert {"stem.0", "branches.0.0.residual.0", "branches.0.1.residual.3", "classifier"} <= set(found["weights"])
    assert set(found["weights"]) == set(found["gradients"]) == set(found["updates"])
    assert {"stem.2", "branches.0.0.activation", "scores"} <= set(found["activations"])
    for name in found["weights"]:
        assert steps(events, "Histograms", f"weights/{name}") == [0, 1, 2, 3, 4, 5, 6]
        assert steps(events, "Histograms", f"gradients/{name}") == [1, 2, 3, 4, 5, 6]
        assert steps(events, "Histograms", f"updates/{name}") == [1, 2, 3, 4, 5, 6]
    for name in found["activations"]:
        assert steps(events, "Histograms", f"activations/{name}") == [1, 2, 3, 4, 5, 6]


def test_histograms_are_of_the_training_itself(trained, make_config):
    """The norm of the last step's gradients and the change of the weights, from the histograms' sums of squares."""
    events = read(trained)
    history = fit(make_config(epochs=6), folder=trained, device="cpu", threads=1, telemetry="off")
    for epoch, metrics in enumerate(history, start=1):
        squares = {
            section: sum(
                event.histogram_value.sum_squares
                for tag in events.Tags()["histograms"]
                if tag.startswith(f"{section}/")
                for event in events.Histograms(tag)
                if event.step == epoch
            )
            for section in ("weights", "gradients", "updates")
        }
        assert squares["weights"] ** 0.5 == pytest.approx(metrics.weight_norm, rel=1e-3)
        # Those of the record are of biases and norms too.
        assert 0.5 < squares["gradients"] ** 0.5 / metrics.grad_norm < 1.001
        assert 0.5 < (squares["updates"] / squares["weights"]) ** 0.5 / metrics.update_ratio < 2.0


def test_pictures_are_there_at_a_few_epochs(trained):
    events = read(trained)
    found = sections(events.Tags()["images"])
    assert set(found["predictions"]) == {"confusion_matrix", "examples"}
    assert found["filters"] == ["stem.0"]
    assert found["feature_maps"]
    for tag in events.Tags()["images"]:
        assert steps(events, "Images", tag) == [1, 2, 4, 6]
        pixels = np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)))
        assert pixels.ndim == 3
        assert pixels.std() > 0


def test_the_graph_has_the_layers(trained):
    names = {node.name for node in read(trained).Graph().node}
    assert {
        "input",
        "stem/0_Conv2d",
        "branches/0_Sequential/0_ResidualBlock/residual/add",
        "classifier",
        "output",
    } <= names


@pytest.mark.parametrize("averaging", [None, {"kind": "ema", "start": 0.5}])
def test_every_level_gives_the_same_numbers_to_the_last_bit_also_after_a_pause(tmp_path, make_config, averaging):
    config = make_config(epochs=4, averaging=averaging)
    found = {}
    for level in ("off", "scalars", "full"):
        trainer = Trainer(config, folder=tmp_path / level, device="cpu", threads=1, telemetry=level)
        for _ in range(2):
            trainer.run_epoch()
        trainer.close()
        history = fit(config, folder=tmp_path / level, device="cpu", threads=1, telemetry=level)
        found[level] = [[getattr(metrics, name) for name in KEPT] for metrics in history]
    assert len(found["off"]) == 4
    assert found["off"] == found["scalars"] == found["full"]


def test_a_training_on_all_images_and_another_family_of_networks_are_shown_too(tmp_path, make_config):
    config = make_config(epochs=1, data={"image_size": 28, "train_on": "train+val"})
    config = dataclasses.replace(config, arch=LeNetSpec())
    fit(config, folder=tmp_path, device="cpu", threads=1, telemetry="full")
    events = read(tmp_path)
    found = sections(events.Tags()["images"])
    assert found["predictions"] == ["examples"]
    assert found["filters"] == ["features.0"]
    assert {"features.1", "features.4"} == set(found["feature_maps"])


def test_what_cannot_be_shown_is_a_note_and_the_rest_is_there(tmp_path, make_config, monkeypatch):
    def broken(*_given: object) -> None:
        raise RuntimeError("no values\n  on the meta device")

    monkeypatch.setattr(full_telemetry, "graph_of", broken)
    monkeypatch.setattr(full_telemetry, "look_inside", broken)
    trainer = Trainer(make_config(epochs=2), folder=tmp_path, device="cpu", threads=1, telemetry="full")
    while not trainer.finished:
        trainer.run_epoch()
    trainer.close()
    assert trainer.notes == [
        "no graph for TensorBoard: no values on the meta device",
        "no activations for TensorBoard: no values on the meta device",
    ]
    found = read(tmp_path).Tags()
    assert set(sections(found["histograms"])) == {"weights", "gradients", "updates"}
    assert set(sections(found["images"])) == {"predictions", "filters"}


def test_a_trial_that_has_written_enough_gets_numbers_alone(tmp_path, make_config, monkeypatch):
    monkeypatch.setattr(full_telemetry, "MOST_BYTES", 1)
    trainer = Trainer(make_config(epochs=3), folder=tmp_path, device="cpu", threads=1, telemetry="full")
    while not trainer.finished:
        trainer.run_epoch()
    trainer.close()
    events = read(tmp_path)
    tag = events.Tags()["histograms"][0]
    assert max(steps(events, "Histograms", tag)) == 1
    assert steps(events, "Scalars", "loss/train_loss") == [1, 2, 3]
    assert [note for note in trainer.notes if note.startswith("no more histograms")]


def test_nothing_is_written_before_an_epoch_ends(tmp_path, make_config):
    Trainer(make_config(), folder=tmp_path, device="cpu", threads=1, telemetry="full").close()
    assert list(tmp_path.iterdir()) == []
