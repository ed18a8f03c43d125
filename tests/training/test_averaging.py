"""Averages of weights, against averages written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from tunelab.config import AveragingConfig, ComputeConfig, TrainConfig
from tunelab.data.batches import load_data
from tunelab.training import checkpoint
from tunelab.training.averaging import Averager
from tunelab.training.checkpoint import CheckpointError, load, load_model
from tunelab.training.evaluate import evaluate
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer

CPU = torch.device("cpu")


def train(kind: str, epochs: int = 4, start: float = 0.5, decay: float = 0.6) -> TrainConfig:
    return TrainConfig(epochs=epochs, averaging=AveragingConfig(kind, start, decay))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def move(model: nn.Module, draw: torch.Generator) -> None:
    """As a step does: other weights, other statistics."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw)
        model[1].running_mean += 0.1
        model[1].running_var *= 1.05
        model[1].num_batches_tracked += 1


def test_an_exponential_average_is_the_formula() -> None:
    model, draw = network(), torch.Generator().manual_seed(1)
    averager = Averager(train("ema"))
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        move(model, draw)
        averager.after_step(model, epoch=3 + step // 6)
        now = {name: value.double() for name, value in model.state_dict().items()}
        share = max(0.4, 9 / (10 + step))
        expected = {name: expected[name] + share * (now[name] - expected[name]) for name in now} if step else now
        assert not averager.after_epoch(model, epoch=3)
    assert averager.network is not None
    found = averager.network.state_dict()
    assert int(found["1.num_batches_tracked"]) == 12
    for name in expected.keys() - {"1.num_batches_tracked"}:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)


def test_what_it_began_with_does_not_last() -> None:
    """With the decay alone the first weights would still count for 0.999 ** 200 = 82%."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1000.0)
    averager = Averager(train("ema", decay=0.999))
    averager.after_step(model, epoch=4)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(200):
        averager.after_step(model, epoch=4)
    assert averager.network is not None
    assert float(averager.network.weight.detach()) == pytest.approx(1.0, abs=1e-3)


def test_an_average_of_epochs_is_torchs() -> None:
    model, draw = network(), torch.Generator().manual_seed(1)
    averager, images = Averager(train("swa", epochs=8)), [torch.randn(6, 1, 4, 4, generator=draw) for _ in range(3)]
    theirs = AveragedModel(model)
    for epoch in range(1, 9):
        move(model, draw)
        averager.after_step(model, epoch)
        assert averager.after_epoch(model, epoch) is (epoch > 4)
        if epoch > 4:
            theirs.update_parameters(model)
            averager.renew_statistics(iter(images))
    update_bn(images, theirs)
    assert averager.network is not None
    for (name, own), other in zip(
        averager.network.state_dict().items(), theirs.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6, msg=name)
    assert averager.network[1].momentum == 0.1


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_first_epochs_are_no_part_of_it(kind: str) -> None:
    averager = Averager(train(kind, epochs=4, start=0.5))
    for epoch in (1, 2):
        averager.after_step(network(), epoch)
        averager.after_epoch(network(), epoch)
        assert averager.network is None
        assert averager.state() == {}


@pytest.mark.parametrize("start", [0.0, 0.75, 0.99])
def test_the_last_epoch_always_is(start: float) -> None:
    averager = Averager(train("swa", epochs=1, start=start))
    assert averager.after_epoch(network(), 1)


def test_without_one_nothing_is_averaged() -> None:
    averager = Averager(TrainConfig(epochs=2))
    averager.after_step(network(), 2)
    assert not averager.after_epoch(network(), 2)
    assert averager.network is None


def test_the_average_of_another_network_is_refused() -> None:
    averager = Averager(train("swa"))
    averager.after_epoch(network(), 4)
    with pytest.raises(CheckpointError, match="its average does not fit the network"):
        Averager(train("swa")).load(averager.state(), nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="its average does not fit"):
        Averager(train("swa")).load({"count": 2}, network())


def steps_by_hand(trainer: Trainer, kind: str, first: int) -> dict[str, torch.Tensor]:
    """Trains to the end; the average of the weights as they were after each step or epoch, by the formula."""
    seen: list[dict[str, torch.Tensor]] = []

    def look() -> None:
        if len(trainer.history) + 1 >= first:
            seen.append(copy.deepcopy(trainer.model.state_dict()))

    in_order = trainer._steps.train

    def taken(batch, lr, eye=None):
        loss = in_order(batch, lr, eye)
        look()
        return loss

    if kind == "ema":
        trainer._steps.train = taken
    check = trainer._weight_norm

    def ended(epoch, lr):
        check(epoch, lr)
        if kind == "swa":
            look()

    trainer._weight_norm = ended
    while not trainer.finished:
        trainer.run_epoch()
    average = seen[0]
    for count, state in enumerate(seen[1:], start=1):
        share = 1 / (count + 1) if kind == "swa" else max(0.1, 9 / (10 + count))
        for name, value in average.items():
            if value.is_floating_point():
                value += share * (state[name] - value)
    return average


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_what_is_evaluated_and_kept_is_the_average(make_config, tmp_path, kind: str) -> None:
    config = make_config(epochs=4, averaging=AveragingConfig(kind, 0.5, 0.9), precision="float32", seed=3)
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    expected = steps_by_hand(trainer, kind, first=3)
    trainer.close()
    info, _, val = load_data(config.data, CPU)
    model = load_model(config, tmp_path / "checkpoint" / "last.pt", info)
    weights = dict(model.named_parameters())
    for name, value in expected.items():
        if value.is_floating_point() and (kind == "ema" or name in weights):
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    found = evaluate(model, val, info, device="cpu", precision="float32")
    last = trainer.history[-1]
    assert (found.loss, found.accuracy) == (pytest.approx(last.val_loss), last.val_accuracy)
    kept = load(tmp_path / "checkpoint" / "last.pt")
    name = next(iter(weights))
    assert not torch.equal(kept.model[name], kept.averaged["network"][name]), "the checkpoint holds both"


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_weights_that_are_trained_are_not_touched(make_config, kind: str) -> None:
    config = make_config(arch={"dropout": 0.2}, epochs=3)
    plain = fit(config, device="cpu", threads=1)
    averaged = fit(
        make_config(arch={"dropout": 0.2}, epochs=3, averaging=AveragingConfig(kind, 0.0)), device="cpu", threads=1
    )
    assert [m.train_loss for m in averaged] == [m.train_loss for m in plain]
    assert [m.val_loss for m in averaged[1:]] != [m.val_loss for m in plain[1:]]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("compute", [ComputeConfig("bfloat16"), ComputeConfig("float32", channels_last=False)])
def test_every_norm_and_memory_order_is_averaged(make_config, norm: str, compute: ComputeConfig) -> None:
    config = make_config(arch={"norm": norm}, epochs=4, lr=0.02, averaging=AveragingConfig("swa", 0.5))
    history = fit(config, device="cpu", threads=1, compute=compute)
    assert history[-1].val_loss < history[0].val_loss


def test_statistics_are_renewed_on_all_images_in_a_mixed_order(make_config, tmp_path) -> None:
    """Batches of one class each, as files lie in folders, would have too small a variance."""
    config = make_config(epochs=1, averaging=AveragingConfig("swa"), precision="float32", data={"limit_train": None})
    trainer = Trainer(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    trainer.run_epoch()
    images = torch.cat(list(trainer._batches.as_they_are()))
    again = torch.cat(list(trainer._batches.as_they_are()))
    assert torch.equal(images, again)
    stem = next(layer for layer in trainer._averager.network.modules() if isinstance(layer, nn.Conv2d))
    norm = next(layer for layer in trainer._averager.network.modules() if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        outputs = stem(images)
    torch.testing.assert_close(norm.running_mean, outputs.mean((0, 2, 3)), rtol=0.01, atol=0.01)
    torch.testing.assert_close(norm.running_var, outputs.var((0, 2, 3)), rtol=0.1, atol=0.01)


def test_a_checkpoint_from_before_there_were_averages_is_read(make_config, tmp_path) -> None:
    config = make_config(epochs=2)
    fit(config, lambda metrics: False, folder=tmp_path, device="cpu", threads=1, telemetry="off")
    path = tmp_path / "checkpoint" / "last.pt"
    plain = torch.load(path, weights_only=True)
    del plain["averaged"]
    torch.save(plain, path)
    assert checkpoint.load(path).averaged == {}
    assert len(fit(config, folder=tmp_path, device="cpu", threads=1, telemetry="off")) == 2
