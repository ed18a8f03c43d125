from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from torch import nn

from tunelab.config import AugmentConfig, AveragingConfig, ComputeConfig, TrainConfig
from tunelab.data.batches import Batch
from tunelab.training.fitting import fit
from tunelab.training.health import Health
from tunelab.training.loop import Trainer
from tunelab.training.observe import Eye, Look
from tunelab.training.optim import OPTIMIZERS, build_optimizer
from tunelab.training.parts import in_parts, note_of, parts_of
from tunelab.training.step import Steps

CPU = torch.device("cpu")
LR = {"sgd": 0.05, "adam": 0.003, "adamw": 0.003, "rmsprop": 0.0003}
PLAIN = {"norm": "none"}


def batch_of(images: int, mixed: bool = False, seed: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randn(images, 1, 8, 8, generator=draw).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (images,), generator=draw)
    return Batch(pictures, labels, labels.roll(1) if mixed else None, 0.3 if mixed else 1.0)


def network(norm: type[nn.Module] = nn.Identity) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)]
    return nn.Sequential(*layers)


def steps_of(model: nn.Module, split: int, optimizer: str = "sgd", dtype: torch.dtype | None = None) -> Steps:
    made = build_optimizer(model, TrainConfig(optimizer=optimizer, lr=LR[optimizer]))
    return Steps(model, made, device=CPU, dtype=dtype, smoothing=0.1, split=split)


@pytest.mark.parametrize(
    ("images", "count", "sizes"),
    [(7, 3, [3, 2, 2]), (8, 4, [2, 2, 2, 2]), (8, 1, [8]), (5, 4, [3, 2]), (3, 4, [3]), (1, 2, [1])],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_parts_are_as_equal_as_can_be_and_make_up_the_batch(images, count, sizes, mixed):
    """And none is so small that a norm cannot take its variance, unless the batch is."""
    batch = batch_of(images, mixed)
    parts = parts_of(batch, count)
    assert [len(part.labels) for part in parts] == sizes
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert all(part.mix == batch.mix for part in parts)
    if mixed:
        assert torch.equal(torch.cat([part.mixed_labels for part in parts]), batch.mixed_labels)
    else:
        assert all(part.mixed_labels is None for part in parts)
    if images > 1:
        assert all(part.images.is_contiguous(memory_format=torch.channels_last) for part in parts)
    assert [len(part) for part in in_parts([batch.images], count)] == sizes


def test_what_is_said_of_it():
    assert note_of(network(), 1) == ""
    assert note_of(network(), 2) == "for want of memory every batch was computed in 2 parts"
    assert "its batch norms normalise by itself" in note_of(network(nn.BatchNorm2d), 3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("split", [2, 3, 5])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_in_parts_is_that_of_the_whole_batch(optimizer, split, mixed):
    found = []
    for count in (1, split):
        model = network()
        steps = steps_of(model, count, optimizer)
        losses = [steps.train(batch_of(16, mixed, seed), LR[optimizer]) for seed in range(4)]
        found.append((losses, steps.totals(), [weight.detach() for weight in model.parameters()]))
    (losses, totals, weights), (split_losses, split_totals, split_weights) = found
    assert split_losses == pytest.approx(losses, rel=1e-4)
    assert split_totals == pytest.approx(totals, rel=1e-4)
    for one, other in zip(weights, split_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_in_other_types_too(dtype):
    """With float16 the gradients are scaled, and with both rounded in each part."""
    found = []
    for count in (1, 3):
        model = network()
        steps = steps_of(model, count, dtype=dtype)
        for seed in range(4):
            steps.train(batch_of(16, seed=seed), 0.05)
        found.append((steps.totals(), steps.scaler_state(), [weight.detach() for weight in model.parameters()]))
    (totals, scale, weights), (split_totals, split_scale, split_weights) = found
    assert split_totals[0] == pytest.approx(totals[0], rel=0.02)
    assert split_scale == scale
    for one, other in zip(weights, split_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def most_kept(split: int) -> int:
    """The most bytes that were kept at once for a backward pass."""
    now = most = 0
    freed: list[int] = []

    class Kept:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values
            weakref.finalize(self, freed.append, values.nbytes)

    def keep(values: torch.Tensor) -> Kept:
        nonlocal now, most
        now += values.nbytes
        most = max(most, now - sum(freed))
        return Kept(values)

    steps = steps_of(network(nn.BatchNorm2d), split)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.values):
        steps.train(batch_of(64), 0.05)
    return most


def test_parts_take_less_memory():
    whole, fixed = most_kept(1), 20_000  # the weights, which are kept once in either
    assert (most_kept(4) - fixed) < 0.35 * (whole - fixed)


class Watching:
    def __init__(self) -> None:
        self.seen: list[tuple[int, Look]] = []

    def begin(self, scene): ...

    def wants(self, epoch, step, steps):
        return True

    def before(self, model, batch):
        self.images = len(batch.labels)

    def after(self, look):
        self.seen.append((self.images, look))

    def epoch_ended(self, metrics, evaluation, model): ...


def test_a_step_that_is_looked_at_has_the_numbers_of_the_whole_batch_and_one_part_of_its_images():
    looks = []
    for count in (1, 3):
        model, watching = network(), Watching()
        steps_of(model, count).train(batch_of(16), 0.05, Eye(model, [watching], 1, 0, 1, 0.05))
        looks += watching.seen
    (whole_images, whole), (part_images, part) = looks
    assert (whole_images, part_images) == (16, 5)
    assert len(part.batch.labels) == 5
    assert part.loss == pytest.approx(whole.loss, rel=1e-5)
    assert part.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert part.update_ratio == pytest.approx(whole.update_ratio, rel=1e-4)


def test_it_is_never_recorded_and_may_be_compiled():
    sizes: list[int] = []
    model = network()
    steps = Steps(
        model, build_optimizer(model, TrainConfig()), device=CPU, dtype=None, recorder=lambda work: work, split=3
    )

    def form(images):
        sizes.append(len(images))
        return model(images)

    steps.go_on_with(form)
    for seed in range(6):
        steps.train(batch_of(16, seed=seed), 0.05)
    assert sizes == [6, 5, 5] * 6
    assert not steps._recorded


def test_a_training_in_parts_measures_what_the_whole_one_does(make_config, tmp_path):
    augment = AugmentConfig(crop=0.125, mixup=0.4, mixup_until=0.5)
    config = make_config(epochs=3, arch=PLAIN, lr=0.01, augment=augment, label_smoothing=0.1)
    whole = fit(config, device="cpu", threads=1)
    trainer = Trainer(config, device="cpu", threads=1, split=3, folder=tmp_path)
    assert trainer.notes == ["for want of memory every batch was computed in 3 parts"]
    history = [trainer.run_epoch()]
    trainer.close()
    again = Trainer(config, device="cpu", threads=1, split=2, folder=tmp_path)  # as after a second retry
    assert again.resume()
    history += [again.run_epoch(), again.run_epoch()]
    again.close()
    for one, other in zip(whole, history, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-3)
        assert other.train_accuracy == pytest.approx(one.train_accuracy, abs=0.02)
        assert other.val_loss == pytest.approx(one.val_loss, rel=5e-3)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.05)


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_norm_takes_each_part_by_itself_and_learns_all_the_same(make_config, kind, precision):
    config = make_config(epochs=6, averaging=AveragingConfig(kind, 0.5, 0.9), precision=precision)
    trainer = Trainer(config, device="cpu", threads=1, split=4, telemetry="off")
    seen: list[int] = []
    norm = next(module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda own, given: seen.append(len(given[0])) if own.training else None)
    history = [trainer.run_epoch() for _ in range(6)]
    assert set(seen) == {16}
    assert history[-1].train_loss < history[0].train_loss
    assert sum("normalise by itself" in note for note in trainer.notes) == 1
    trainer.close()


def test_validation_takes_smaller_batches_and_finds_the_same(make_config):
    config = make_config(arch=PLAIN)
    sizes: dict[int, list[int]] = {1: [], 4: []}
    found = {}
    for split, seen in sizes.items():
        trainer = Trainer(config, device="cpu", threads=1, split=split)
        convolution = next(module for module in trainer.model.modules() if isinstance(module, nn.Conv2d))
        convolution.register_forward_pre_hook(lambda _module, given, seen=seen: seen.append(len(given[0])))
        found[split] = trainer._evaluate(trainer._val)
        trainer.close()
    assert max(sizes[4]) <= 250
    assert sum(sizes[4]) == sum(sizes[1]) == found[4].n
    assert found[4].loss == pytest.approx(found[1].loss, rel=1e-5)
    assert found[4].confusion == found[1].confusion


def test_few_images_of_a_batch_make_no_unit_dead(make_config):
    """Of 64 images a unit may be 0 for the four that are looked at."""
    health = Health(None)
    config = make_config(epochs=1)
    trainer = Trainer(config, device="cpu", threads=1, split=16, observers=(health,))
    trainer.run_epoch()
    assert all(layer.dead is None for signs in health._signs for layer in signs.layers)
    trainer.close()
    other = Health(None)
    whole = Trainer(config, device="cpu", threads=1, split=4, observers=(other,))
    whole.run_epoch()
    assert any(layer.dead is not None for signs in other._signs for layer in signs.layers)
    whole.close()


def test_nothing_is_compiled_in_parts(make_config, monkeypatch):
    monkeypatch.setattr("tunelab.training.loop.seconds_left", lambda *_: 1e9)
    monkeypatch.setattr("tunelab.training.loop.worth_trying", lambda *_: True)
    monkeypatch.setattr("tunelab.training.loop.try_out", lambda *_: pytest.fail("copies take memory too"))
    trainer = Trainer(make_config(), device="cpu", threads=1, split=2, compute=ComputeConfig("float32", compile="auto"))
    for _ in itertools.repeat(None, 2):
        trainer.run_epoch()
    trainer.close()
