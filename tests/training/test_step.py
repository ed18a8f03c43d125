from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from tunelab.config import AveragingConfig, ComputeConfig, StageSpec, TrainConfig
from tunelab.data.batches import Batch
from tunelab.errors import InputError
from tunelab.records import EpochMetrics
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.optim import OPTIMIZERS, build_optimizer
from tunelab.training.step import EAGER_STEPS, Steps, graph_recorder

CPU = torch.device("cpu")
LR = {"sgd": 0.05, "adam": 0.003, "adamw": 0.003, "rmsprop": 0.0003}
STEPS = EAGER_STEPS + 4
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def batches(mixup: bool = False, device: torch.device = CPU) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(1)
    for number in range(STEPS):
        images = torch.randn(16, 1, 8, 8, generator=draw).to(device)
        labels = torch.randint(0, 3, (16,), generator=draw).to(device)
        if mixup and number % 2:  # so that both kinds of step are recorded
            yield Batch(images, labels, labels.roll(1), 0.1 * number)
        else:
            yield Batch(images, labels, None, 1.0)


def later(work: Callable[[], None]) -> Callable[[], None]:
    """A recorder for a processor: it runs nothing, and gives what does the same work each time."""
    return work


def trained(optimizer: str, recorder, mixup: bool = False, device: torch.device = CPU):
    """The weights, the sums and the steps after some batches, each at another rate."""
    model = network().to(device)
    train = TrainConfig(optimizer=optimizer, lr=LR[optimizer])
    steps = Steps(model, build_optimizer(model, train), device=device, dtype=None, smoothing=0.1, recorder=recorder)
    for number, batch in enumerate(batches(mixup, device)):
        steps.train(batch, LR[optimizer] * (1 + number) / STEPS)
    return [value.detach().cpu() for value in model.state_dict().values()], steps.totals(), steps


@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_does_what_one_that_is_run_does(optimizer, mixup):
    weights, sums, _ = trained(optimizer, None, mixup)
    recorded, recorded_sums, steps = trained(optimizer, later, mixup)
    assert len(steps._recorded) == (2 if mixup else 1)
    for one, other in zip(weights, recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert recorded_sums == pytest.approx(sums, rel=1e-5)


@needs_gpu
@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_graph_does_what_single_kernels_do(optimizer, mixup):
    device = torch.device("cuda")
    weights, sums, _ = trained(optimizer, None, mixup, device)
    recorded, recorded_sums, steps = trained(optimizer, graph_recorder(), mixup, device)
    assert steps.note == ""
    assert steps._recorded
    for one, other in zip(weights, recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert recorded_sums == pytest.approx(sums, rel=1e-3)


def test_what_cannot_be_recorded_is_run():
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    weights, sums, _ = trained("sgd", None)
    run, run_sums, steps = trained("sgd", refuse)
    assert steps.note == "steps are not recorded as a graph: operation not permitted when stream is capturing"
    for one, other in zip(weights, run, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert run_sums == pytest.approx(sums, rel=1e-5)


def test_a_replay_that_does_nothing_is_noticed():
    """As a graph that was recorded on another stream than its kernels ran on."""
    weights, sums, _ = trained("adam", None)
    run, run_sums, steps = trained("adam", lambda work: lambda: None)
    assert steps.note == "steps are not recorded as a graph: a replay does nothing"
    for one, other in zip(weights, run, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert run_sums == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("before", "after"), [(None, later), (later, None)])
def test_the_state_of_a_run_step_goes_on_in_a_recorded_one_and_back(optimizer, before, after):
    """As from a checkpoint of another kind of device."""
    found = []
    for first, second in ((before, after), (None, None)):
        _, _, steps = trained(optimizer, first)
        model = network()
        model.load_state_dict(steps._model.state_dict())
        going_on = build_optimizer(model, TrainConfig(optimizer=optimizer, lr=LR[optimizer]))
        anew = Steps(model, going_on, device=CPU, dtype=None, recorder=second)
        going_on.load_state_dict(steps._optimizer.state_dict())
        anew.adapt()
        for batch in batches():
            anew.train(batch, LR[optimizer])
        found.append([value.detach() for value in model.state_dict().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_another_form_of_the_network_is_recorded_anew():
    _, _, steps = trained("sgd", later)
    own = steps._model
    calls = []

    def form(images):
        calls.append(len(images))
        return own(images)

    steps.go_on_with(form)
    assert not steps._recorded
    for batch in batches():
        steps.train(batch, 0.01)
    assert calls == [16] * STEPS
    assert len(steps._recorded) == 1


@pytest.mark.parametrize("later_on", OPTIMIZERS)
@pytest.mark.parametrize("before", ["sgd", "adam"])
def test_another_optimizer_is_recorded_anew(before, later_on):
    found = []
    for recorder in (None, later):
        _, _, steps = trained(before, recorder)
        model = steps._model
        steps.change_optimizer(build_optimizer(model, TrainConfig(optimizer=later_on, lr=LR[later_on])))
        assert not steps._recorded
        for batch in batches():
            steps.train(batch, LR[later_on])
        assert len(steps._recorded) == (recorder is not None)
        found.append([value.detach() for value in model.state_dict().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_gpu_trains_stages_and_averages_as_a_processor_does(make_config, kind):
    stages = (StageSpec(0.4, "sgd", 0.02), StageSpec(0.7, "adamw", 0.001))
    recipe = {"optimizer": "adam", "lr": 0.002, "precision": "float32", "stages": stages}
    config = make_config(epochs=6, averaging=AveragingConfig(kind, 0.5, 0.9), **recipe)
    on_gpu, on_processor = fit(config, device="cuda"), fit(config, device="cpu", threads=1)
    assert on_gpu[-1].val_loss == pytest.approx(on_processor[-1].val_loss, rel=0.2)
    assert on_gpu[-1].lr == pytest.approx(on_processor[-1].lr)


def test_the_sums_begin_anew():
    _, sums, steps = trained("sgd", later)
    assert sums[0] > 0
    steps.begin()
    assert steps.totals() == (0.0, 0.0)


def test_a_closed_one_holds_nothing():
    _, _, steps = trained("sgd", later)
    steps.close()
    assert not steps._recorded


def spread(histories: list[list[EpochMetrics]]) -> tuple[float, float]:
    """The mean of the last validation losses and how far one lies from it."""
    last = torch.tensor([history[-1].val_loss for history in histories], dtype=torch.float64)
    return float(last.mean()), float(last.std())


@pytest.mark.parametrize(
    "compute",
    [ComputeConfig("bfloat16"), ComputeConfig("float32", channels_last=False), ComputeConfig("bfloat16", False)],
)
def test_how_it_is_computed_changes_less_than_the_seed(make_config, compute):
    """The same seeds with plain float32 in channels_last: differences of pairs against those between seeds."""
    configs = [make_config(seed=seed, epochs=3, data={"limit_train": None}) for seed in range(3)]
    plain = [fit(config, device="cpu", threads=1, compute=ComputeConfig("float32")) for config in configs]
    other = [fit(config, device="cpu", threads=1, compute=compute) for config in configs]
    mean, between_seeds = spread(plain)
    assert abs(spread(other)[0] - mean) < 2 * between_seeds


@needs_gpu
@pytest.mark.parametrize(
    "compute", [ComputeConfig("bfloat16"), ComputeConfig("float16"), ComputeConfig("float32", False)]
)
def test_how_a_gpu_computes_changes_less_than_the_seed(make_config, compute):
    configs = [make_config(seed=seed, epochs=3, data={"limit_train": None}) for seed in range(3)]
    plain = [fit(config, device="cuda", compute=ComputeConfig("float32")) for config in configs]
    mean, between_seeds = spread(plain)
    other = [fit(config, device="cuda", compute=compute) for config in configs]
    assert abs(spread(other)[0] - mean) < 2 * between_seeds


@needs_gpu
def test_device_memory_is_given_back(make_config):
    fit(make_config(), device="cuda")
    before = torch.cuda.memory_reserved()
    fit(make_config(arch={"dropout": 0.1}), device="cuda")
    assert torch.cuda.memory_reserved() <= before


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_and_images_lie_in_the_order_that_was_chosen(make_config, channels_last):
    trainer = Trainer(
        make_config(data={"image_size": 8}), device="cpu", compute=ComputeConfig("float32", channels_last)
    )
    order, other = torch.channels_last, torch.contiguous_format
    order, other = (order, other) if channels_last else (other, order)
    weight = max(trainer.model.parameters(), key=lambda one: one.ndim * one.numel())
    assert weight.is_contiguous(memory_format=order)
    assert not weight.is_contiguous(memory_format=other)
    seen: list[torch.Tensor] = []
    last = [module for module in trainer.model.modules() if isinstance(module, nn.Conv2d)][-1]
    last.register_forward_hook(lambda _module, _given, answer: seen.append(answer))
    next(trainer.practise())
    trainer.practise_validation(10)
    assert [answer.is_contiguous(memory_format=order) for answer in seen] == [True, True]
    assert not any(answer.is_contiguous(memory_format=other) for answer in seen)
    trainer.close()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_training_goes_on_in_another_memory_order(make_config, tmp_path, optimizer, first):
    """What an optimizer knows of each weight stays with it."""
    config = make_config(epochs=3, optimizer=optimizer, lr=LR[optimizer])
    orders = [ComputeConfig("float32", first), ComputeConfig("float32", not first)]
    unbroken = fit(config, device="cpu", threads=1, compute=orders[0])
    fit(config, lambda metrics: metrics.epoch < 2, folder=tmp_path, device="cpu", threads=1, compute=orders[0])
    resumed = fit(config, folder=tmp_path, device="cpu", threads=1, compute=orders[1])
    assert resumed[-1].train_loss == pytest.approx(unbroken[-1].train_loss, rel=2e-3)
    assert resumed[-1].val_loss == pytest.approx(unbroken[-1].val_loss, rel=5e-3)


def test_a_stated_precision_is_stronger_than_the_machines(make_config):
    config = make_config(precision="float32")
    alone = fit(config, device="cpu", threads=1)
    told = fit(config, device="cpu", threads=1, compute=ComputeConfig("bfloat16"))
    assert [m.train_loss for m in told] == [m.train_loss for m in alone]
    auto = fit(make_config(precision="auto"), device="cpu", threads=1, compute=ComputeConfig("bfloat16"))
    assert [m.train_loss for m in auto] != [m.train_loss for m in alone]


def test_float16_is_refused_on_a_processor(make_config):
    with pytest.raises(InputError, match="precision 'float16' is for GPUs"):
        Trainer(make_config(precision="auto"), device="cpu", compute=ComputeConfig("float16"))


@pytest.mark.parametrize("compute", [ComputeConfig("bfloat16"), ComputeConfig("float32", channels_last=False)])
def test_a_training_that_goes_on_measures_the_same_however_it_is_computed(make_config, tmp_path, compute):
    config = make_config(epochs=3)
    unbroken = fit(config, device="cpu", threads=1, compute=compute)
    fit(config, lambda metrics: metrics.epoch < 2, folder=tmp_path, device="cpu", threads=1, compute=compute)
    resumed = fit(config, folder=tmp_path, device="cpu", threads=1, compute=compute)
    assert [(m.train_loss, m.val_loss) for m in resumed] == [(m.train_loss, m.val_loss) for m in unbroken]
