"""Observers see a training and change nothing of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from tunelab.config import ComputeConfig
from tunelab.data.batches import Batch
from tunelab.errors import DivergedError
from tunelab.models.blocks import Layers
from tunelab.models.fused import reads_output
from tunelab.records import EpochMetrics
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.observe import LastStep, LayerNorms, Look, Scene, weight_norm

if TYPE_CHECKING:
    from pathlib import Path

    from tunelab.training.evaluate import Evaluation

OF_TIME = {"seconds", "images_per_second", "peak_memory_mib"}


class Recorder:
    """Wants every second step, hooks every layer, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.looks: list[Look] = []
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.seen = 0
        self.least = 0.0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self, scene: Scene) -> None:
        self.told.append(f"begin {len(scene.history)}")
        self.validated = len(scene.val.labels) if scene.val is not None else 0

    def wants(self, epoch: int, step: int, steps: int) -> bool:
        return step % 2 == 0

    def before(self, model: nn.Module, batch: Batch) -> None:
        @reads_output
        def see(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            self.seen += 1
            self.least = min(self.least, float(output.detach().min()))

        seen = (nn.Conv2d, nn.Linear, nn.ReLU, Layers)
        self._hooks = [module.register_forward_hook(see) for module in model.modules() if isinstance(module, seen)]

    def after(self, look: Look) -> None:
        for hook in self._hooks:
            hook.remove()
        self.told.append(f"look {look.epoch}.{look.step} of {look.steps}")
        self.looks.append(look)
        name = look.layers[0].name
        gradient = look.gradient(name)
        assert gradient is not None
        self.tensors.append((gradient.clone(), look.change(name).clone()))

    def epoch_ended(self, metrics: EpochMetrics, evaluation: Evaluation | None, model: nn.Module) -> None:
        self.told.append(f"end {metrics.epoch}")
        assert evaluation is not None
        assert evaluation.n == self.validated
        assert evaluation.accuracy == metrics.val_accuracy


def told(history: list[EpochMetrics]) -> list[dict[str, object]]:
    return [{name: value for name, value in m.to_json().items() if name not in OF_TIME} for m in history]


def watched(config, folder: Path | None = None, **options) -> tuple[list[EpochMetrics], Recorder]:
    recorder = Recorder()
    trainer = Trainer(config, folder=folder, device="cpu", threads=1, observers=[recorder], **options)
    trainer.resume()
    while not trainer.finished:
        trainer.run_epoch()
    history = list(trainer.history)
    trainer.close()
    return history, recorder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_is_the_same_with_and_without_observers(make_config, precision) -> None:
    config = make_config(precision=precision, arch={"dropout": 0.3})
    history, recorder = watched(config)
    assert told(history) == told(fit(config, device="cpu", threads=1))
    assert recorder.told == [
        "begin 0",
        "look 1.0 of 6", "look 1.2 of 6", "look 1.4 of 6", "end 1",
        "look 2.0 of 6", "look 2.2 of 6", "look 2.4 of 6", "end 2",
    ]  # fmt: skip
    assert recorder.seen > 6 * 10


def test_a_resumed_training_begins_for_its_observers_with_its_past(make_config, tmp_path) -> None:
    unbroken, _ = watched(make_config(epochs=3))
    fit(make_config(epochs=3), lambda metrics: metrics.epoch < 2, folder=tmp_path, device="cpu", threads=1)
    history, recorder = watched(make_config(epochs=3), tmp_path)
    assert told(history) == told(unbroken)
    assert [line for line in recorder.told if "look" not in line] == ["begin 0", "begin 2", "end 3"]


def test_norms_are_those_of_the_step(make_config) -> None:
    config = make_config(epochs=1, momentum=0.0, nesterov=False, weight_decay=0.0, precision="float32")
    _, recorder = watched(config)
    for look, (gradient, change) in zip(recorder.looks, recorder.tensors, strict=True):
        first = look.layers[0]
        assert first.gradient == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert first.update == pytest.approx(float(change.norm()), rel=1e-5)
        torch.testing.assert_close(change, -look.lr * gradient, rtol=1e-2, atol=1e-6)
        assert first.update == pytest.approx(look.lr * first.gradient, rel=1e-3)
        assert look.grad_norm == pytest.approx(math.sqrt(sum(layer.gradient**2 for layer in look.layers)))
        assert look.update_ratio == pytest.approx(look.lr * look.grad_norm / norm(look.layers), rel=1e-2)
        assert math.isfinite(look.loss)


def norm(layers: tuple[LayerNorms, ...]) -> float:
    return math.sqrt(sum(layer.weight**2 for layer in layers))


def test_the_record_holds_the_norms_of_an_epochs_end(make_config) -> None:
    trainer = Trainer(make_config(), device="cpu", threads=1)
    metrics = trainer.run_epoch()
    decayed = [weight for weight in trainer.model.parameters() if weight.ndim >= 2]
    assert metrics.weight_norm == pytest.approx(float(torch.cat([w.detach().flatten() for w in decayed]).norm()))
    assert metrics.grad_norm is not None
    assert metrics.grad_norm > 0
    assert metrics.update_ratio is not None
    assert 1e-6 < metrics.update_ratio < 1
    trainer.close()


def test_a_weight_that_gets_no_gradient_has_none(make_config) -> None:
    recorder = Recorder()
    trainer = Trainer(make_config(epochs=1), device="cpu", threads=1, observers=[recorder])
    trainer.model.classifier.bias.requires_grad_(False)
    trainer.run_epoch()
    by_name = {layer.name: layer for layer in recorder.looks[-1].layers}
    assert by_name["classifier.bias"].gradient is None
    assert by_name["classifier.bias"].update == 0.0
    assert by_name["classifier.weight"].gradient > 0
    trainer.close()


@pytest.mark.parametrize("when", ["after", "epoch_ended"])
def test_an_observer_can_end_a_training(make_config, when) -> None:
    class Judge(Recorder):
        pass

    def end(*_args: object) -> None:
        raise DivergedError("seen enough")

    setattr(Judge, when, end)
    trainer = Trainer(make_config(), device="cpu", threads=1, observers=[Judge()])
    with pytest.raises(DivergedError, match="seen enough"):
        trainer.run_epoch()
    assert trainer.history == []
    trainer.close()


def test_a_step_that_is_looked_at_runs_the_network_itself_and_not_a_compiled_form(make_config) -> None:
    recorder = Recorder()
    trainer = Trainer(
        make_config(epochs=1), device="cpu", threads=1, compute=ComputeConfig(compile="off"), observers=[recorder]
    )
    calls = []

    def compiled(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return trainer.model(images)

    trainer._steps.go_on_with(compiled)
    trainer.run_epoch()
    trainer.close()
    assert len(recorder.looks) == 3
    assert len(calls) == 6 - 3 - 1  # the last step is always looked at


def test_numbers_that_are_not_finite_are_none_in_the_record() -> None:
    look = Look(1, 0, 1, 0.1, 1.0, (LayerNorms("w", 1.0, math.inf, 0.0),), None, None, None, None)
    last = LastStep()
    last.after(look)
    assert last.grad_norm is None
    assert last.update_ratio == 0.0


def test_the_norm_of_weights_that_are_not_finite_is_refused() -> None:
    model = nn.Linear(2, 2)
    assert weight_norm(model) == pytest.approx(float(model.weight.detach().norm()))
    with torch.no_grad():
        model.bias[0] = math.nan
    with pytest.raises(ValueError, match="a weight is no longer finite"):
        weight_norm(model)
    with torch.no_grad():
        model.bias[0] = 3e30  # its square is no number of float32
    assert math.isfinite(weight_norm(model))


def test_complex_weights_have_a_norm() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with torch.no_grad():
        model.weight.fill_(3 + 4j)
    assert weight_norm(model) == pytest.approx(10.0)
