from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from tunelab.config import AugmentConfig, BlockSpec, ComputeConfig, StemSpec, TrainConfig, TrialConfig
from tunelab.data.batches import load_data
from tunelab.models import fused
from tunelab.records import EpochMetrics
from tunelab.training import compiling
from tunelab.training.checkpoint import LAST, load_model
from tunelab.training.compiling import judge, seconds_left, worth_trying
from tunelab.training.evaluate import evaluate
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.optim import build_optimizer
from tunelab.training.step import EAGER_STEPS, Steps

AUTO, OFF = ComputeConfig(compile="auto"), ComputeConfig()
CLEAR, NOT_CLEAR = ([2.0] * 7, [1.0] * 7), ([1.0] * 7, [1.01] * 7)
COMPILER = os.environ.get("CXX", "g++")


def measured(history: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    return [(m.epoch, m.train_loss, m.train_accuracy, m.val_loss, m.val_accuracy, m.lr) for m in history]


def run(config: TrialConfig, compute: ComputeConfig, folder: Path | None = None, epochs: int = 1000) -> Trainer:
    """A trainer after so many epochs more, or all that there are; it goes on from what is in `folder`."""
    trainer = Trainer(config, folder=folder, device="cpu", threads=1, telemetry="off", compute=compute)
    trainer.resume()
    for _ in range(min(epochs, config.train.epochs - len(trainer.history))):
        trainer.run_epoch()
    return trainer


@pytest.fixture
def config(make_config) -> TrialConfig:
    augment = AugmentConfig(crop=0.125, flip=True, mixup=0.4, mixup_until=0.5)
    return make_config(arch={"dropout": 0.3}, epochs=4, augment=augment, precision="float32", data={"limit_train": 300})


@pytest.fixture
def eager_to_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compiling is tried after the first epoch, however short the training is, with one step in a round."""
    for name in ("LEAST_STEPS", "LONG_EPOCH", "_ROUND_SECONDS"):
        monkeypatch.setattr(compiling, name, 0)
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 1e-9)
    monkeypatch.setattr(compiling, "_SHARE", math.inf)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[float]]]:
    """What was measured, in place of what is; steps are taken all the same. Only the last entry counts."""
    given = [CLEAR]
    race = compiling._race

    def raced(build):
        found = race(build)
        assert [len(times) for times in found] == [7, 7]
        return given[-1]

    monkeypatch.setattr(compiling, "_race", raced)
    return given


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Networks are traced, and their graphs counted, but no code is made of them.

    Our kernels are no part of what is compiled; here they are none of what is not, so that both give the same.
    """
    monkeypatch.setattr(fused, "_is_ours", lambda images: False)
    backend = CompileCounter()
    monkeypatch.setattr(compiling, "compiled_form", lambda model: torch.compile(model, dynamic=False, backend=backend))
    return backend


@pytest.mark.parametrize(
    ("epochs", "left"), [([], 0.0), ([59.0], 0.0), ([61.0], 610.0), ([59.0, 5.0, 6.0], 50.0), ([70.0, 80.0], 700.0)]
)
def test_the_first_epoch_says_nothing_unless_it_is_long(epochs: list[float], left: float) -> None:
    assert seconds_left(epochs, 10) == left


def test_the_less_is_left_and_the_deeper_a_network_is_the_less_it_is_worth_to_try() -> None:
    shallow = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    assert worth_trying(shallow, 600.0, 500)
    assert not worth_trying(shallow, 599.0, 500)
    assert not worth_trying(shallow, 6000.0, 499)
    deep = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(50)))
    assert not worth_trying(deep, 1999.0, 10_000)
    assert worth_trying(deep, 2001.0, 10_000)


@pytest.mark.parametrize(
    ("compiled", "times", "clear"),
    [
        ([1.0] * 7, 2.0, True),
        ([1.8] * 6 + [9.0], 2.0 / 1.8, True),
        ([1.8] * 5 + [9.0] * 2, 2.0 / 1.8, False),
        ([1.95] * 7, 2.0 / 1.95, False),
        ([4.0] * 7, 0.5, False),
    ],
)
def test_a_gain_must_be_worth_it_and_outside_of_the_noise(compiled: list[float], times: float, clear: bool) -> None:
    found = judge([2.0] * 7, compiled)
    assert found[0] == pytest.approx(times)
    assert found[1] is clear


def test_steps_of_one_form_are_timed_against_the_other(monkeypatch: pytest.MonkeyPatch, config, eager_to_try) -> None:
    """With a form that waits: it is the slower one, by a wide margin."""

    def slow(model: nn.Module):
        def forward(images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.3)
            scores: torch.Tensor = model(images)
            return scores

        return forward

    monkeypatch.setattr(compiling, "compiled_form", slow)
    (note,) = run(config, AUTO).notes
    assert note.startswith("not compiled: 0.")
    assert " x as fast; finding that out took " in note


@pytest.mark.parametrize("measurement", [CLEAR, NOT_CLEAR])
def test_trying_leaves_no_trace_in_what_is_trained(config, eager_to_try, rounds, counter, tmp_path, measurement):
    """The graphs run as they were traced, so that a compiled training measures the same to the last bit too."""
    rounds.append(measurement)
    plain = run(config, OFF, tmp_path / "plain")
    tried = run(config, AUTO, tmp_path / "tried")
    assert plain.notes == []
    assert len(tried.notes) == 1
    assert tried.notes[0].startswith("compiled: 2.00 x" if measurement is CLEAR else "not compiled: 0.99 x")
    assert (tried._steps._model is tried.model) is (measurement is NOT_CLEAR)
    assert measured(tried.history) == measured(plain.history)
    states = [torch.load(tmp_path / name / "checkpoint" / LAST)["model"] for name in ("plain", "tried")]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_was_compiled_for_a_copy_serves_the_network(config, eager_to_try, rounds, counter):
    run(config, AUTO)
    assert counter.frame_count == 1


def test_a_training_that_goes_on_decides_anew_and_measures_the_same(config, eager_to_try, rounds, counter, tmp_path):
    unbroken = run(config, OFF)
    first = run(config, AUTO, tmp_path, epochs=2)
    rounds.append(NOT_CLEAR)
    second = run(config, AUTO, tmp_path)
    assert [note.split(" x ")[0] for note in (*first.notes, *second.notes)] == ["compiled: 2.00", "not compiled: 0.99"]
    assert measured(second.history) == measured(unbroken.history)
    second.resume()
    assert second.finished


def test_nothing_is_tried_where_little_is_left(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_given: object) -> None:
        raise AssertionError("this must not be called")

    monkeypatch.setattr("tunelab.training.loop.try_out", never)
    assert run(config, AUTO).notes == [], "a training of seconds"
    for name in ("LEAST_STEPS", "LONG_EPOCH"):
        monkeypatch.setattr(compiling, name, 0)
    monkeypatch.setattr("tunelab.training.loop.seconds_left", lambda epochs, _to_come: 1e6 * len(epochs))
    assert run(config, OFF).notes == [], "not asked for"
    trainer = Trainer(config, device="cpu", threads=1, telemetry="off", compute=AUTO)
    trainer.run_epoch()
    trainer.run_epoch(stop_at=time.monotonic() + 500)
    assert trainer.notes == [], "to be broken off soon"
    with pytest.raises(AssertionError, match="must not be called"):
        trainer.run_epoch()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no Triton here\nand much more"), "not compiled: RuntimeError: no Triton here"),
        (NotImplementedError(), "not compiled: NotImplementedError: "),
        (MemoryError("x" * 1000), f"not compiled: MemoryError: {'x' * 187}"),
    ],
)
def test_what_cannot_be_compiled_is_trained_all_the_same(config, eager_to_try, monkeypatch, error, said):
    def refuse(images: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(compiling, "compiled_form", lambda model: refuse)
    tried = run(config, AUTO)
    assert tried.notes == [said]
    assert measured(tried.history) == measured(run(config, OFF).history)


def test_without_a_compiler_it_is_trained_all_the_same(config, eager_to_try):
    import torch._inductor.config as settings

    with settings.patch({"cpp.cxx": (None, "no-such-compiler")}):
        tried = run(config, AUTO)
    (note,) = tried.notes
    assert note.startswith("not compiled: InvalidCxxCompiler: ")
    assert "no-such-compiler" in note
    assert measured(tried.history) == measured(run(config, OFF).history)


def test_a_recorded_step_needs_no_other_code_than_those_before_it(counter):
    """On a GPU nothing can be compiled while a graph is recorded; here a recording that runs its work again."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer = build_optimizer(model, TrainConfig())
    device = torch.device("cpu")
    steps = Steps(
        compiling.compiled_form(model), optimizer, device=device, dtype=torch.bfloat16, recorder=lambda work: work
    )
    batch = compiling.Batch(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,)), None, 1.0)
    for _ in range(EAGER_STEPS + 2):
        steps.train(batch, 0.01)
    assert steps._recorded
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
def test_a_compiled_training_on_a_processor(make_config, eager_to_try, rounds, tmp_path):
    """With code made by the compiler: the same twice, as good as plain, and its checkpoints are those of any other."""

    def small(seed: int) -> TrialConfig:
        arch = {"stem": StemSpec(4), "branches": ((BlockSpec("basic", 8, 2, 1),),)}
        return make_config(arch, {"limit_train": None}, seed, epochs=3, lr=0.1, precision="float32")

    trained = [run(small(seed), AUTO, tmp_path / str(seed)) for seed in range(3)]
    assert [[note.split(";")[0] for note in one.notes] for one in trained] == [["compiled: 2.00 x as fast"]] * 3
    again = run(small(0), AUTO)
    assert measured(again.history) == measured(trained[0].history)

    plain = [fit(small(seed), device="cpu", threads=1, compute=OFF) for seed in range(3)]
    ends = torch.tensor([[history[-1].val_loss for history in plain], [one.history[-1].val_loss for one in trained]])
    assert (ends[0].mean() - ends[1].mean()).abs() < 2 * ends[0].std()

    info, _train, val = load_data(small(0).data, torch.device("cpu"))
    loaded = load_model(small(0), tmp_path / "0" / "checkpoint" / LAST, info)
    assert evaluate(loaded, val, info, device="cpu", precision="float32").loss == trained[0].history[-1].val_loss
    assert run(small(0), OFF, tmp_path / "0").finished


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_steps_are_recorded_on_a_gpu(make_config, eager_to_try, rounds):
    trainer = Trainer(make_config(epochs=3), device="cuda", telemetry="off", compute=AUTO)
    while not trainer.finished:
        trainer.run_epoch()
    assert [note.split(";")[0] for note in trainer.notes] == ["compiled: 2.00 x as fast"]
    assert trainer._steps._recorded
