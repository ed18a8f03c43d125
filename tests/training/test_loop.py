from __future__ import annotations

import dataclasses
import gc
import math
import threading
import weakref
from pathlib import Path

import psutil
import pytest
import torch

from tunelab.config import AugmentConfig, LeNetSpec, ScheduleConfig
from tunelab.data.batches import load_data
from tunelab.errors import DivergedError, InputError
from tunelab.records import EpochMetrics
from tunelab.training.checkpoint import BEST, load, load_model
from tunelab.training.evaluate import Evaluation, evaluate
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.optim import OPTIMIZERS
from tunelab.training.schedules import SCHEDULES, lr_factor

LR = {"sgd": 0.05, "adam": 0.003, "adamw": 0.003, "rmsprop": 0.0003}


def measured(history: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    """What must be equal in two runs: all but time and memory."""
    other = {"seconds", "images_per_second", "peak_memory_mib"}
    return [tuple(value for name, value in m.to_json().items() if name not in other) for m in history]


def run(config, **options) -> list[EpochMetrics]:
    return fit(config, device="cpu", threads=1, **options)


def test_digits_are_learnt(make_config):
    history = run(make_config(epochs=6, data={"limit_train": None}, schedule=ScheduleConfig("one_cycle")))
    assert [m.epoch for m in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].val_accuracy is not None
    assert history[-1].val_accuracy > 0.9
    assert all(m.images_per_second > 0 and m.seconds > 0 and m.peak_memory_mib > 100 for m in history)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_lenet_learns_goes_on_and_is_loaded(make_config, tmp_path, precision):
    recipe = make_config(epochs=4, lr=0.02, batch_size=16, precision=precision, data={"image_size": 28})
    config = dataclasses.replace(recipe, arch=LeNetSpec("relu", "max", "he"))
    unbroken = run(config)
    assert unbroken[-1].val_accuracy > 0.8
    run(config, report=lambda metrics: metrics.epoch < 2, folder=tmp_path)
    assert measured(run(config, folder=tmp_path)) == measured(unbroken)
    info, _train, val = load_data(config.data, torch.device("cpu"))
    model = load_model(config, tmp_path / "checkpoint" / BEST, info)
    again = evaluate(model, val, info, device="cpu", precision=precision)
    assert again.accuracy == max(metrics.val_accuracy for metrics in unbroken)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_optimizer_reduces_the_loss(make_config, optimizer, precision):
    config = make_config(epochs=6, optimizer=optimizer, lr=LR[optimizer], precision=precision)
    history = run(config)
    assert history[-1].train_loss < 0.9 * history[0].train_loss


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_trains_and_its_rate_is_reported(make_config, name):
    schedule = ScheduleConfig(name, warmup=0.2)
    history = run(make_config(epochs=4, schedule=schedule, data={"limit_train": 200}))
    steps = 4 * (200 // 64)
    assert history[-1].lr == pytest.approx(0.05 * lr_factor(schedule, (steps - 0.5) / steps))
    assert history[-1].train_loss < history[0].train_loss


def test_by_norm_divides_each_epoch_by_the_norm_of_the_weights_before_it(make_config):
    config = make_config(epochs=4, lr=2.0, schedule=ScheduleConfig("constant", by_norm=True))
    trainer = Trainer(config, device="cpu")
    weights = [weight.detach().flatten() for weight in trainer.model.parameters() if weight.ndim >= 2]
    fresh = float(torch.cat(weights).norm())
    history = [trainer.run_epoch() for _ in range(4)]
    norms = [fresh, *(metrics.weight_norm for metrics in history)]
    assert [metrics.lr for metrics in history] == pytest.approx([2.0 / norm for norm in norms[:-1]])
    assert len({metrics.lr for metrics in history}) == 4
    assert history[-1].effective_lr == history[-1].lr / history[-1].weight_norm ** 2
    trainer.close()


def test_plateau_follows_the_validation_loss(make_config, monkeypatch):
    schedule = ScheduleConfig("plateau", period=0.2, factor=0.5)
    same = Evaluation(1.0, 0.5, 1, 2, ((1, 0), (1, 0)))
    monkeypatch.setattr("tunelab.training.loop.Trainer._validate", lambda self, epoch, lr: same)
    history = run(make_config(epochs=5, schedule=schedule, data={"limit_train": 100}))
    assert [m.lr for m in history] == pytest.approx([0.05, 0.05, 0.025, 0.0125, 0.00625])


def test_nothing_is_validated_where_all_is_trained_on(make_config):
    history = run(make_config(data={"train_on": "train+val"}, schedule=ScheduleConfig("plateau")))
    assert [m.val_loss for m in history] == [None, None]
    assert history[-1].score == history[-1].train_accuracy


def test_mixup_and_the_other_augmentations_train(make_config):
    augment = AugmentConfig(crop=0.125, flip=True, cutout=0.25, mixup=0.4, mixup_until=0.5)
    history = run(make_config(epochs=4, augment=augment, label_smoothing=0.1))
    assert history[-1].train_loss < history[0].train_loss


def test_a_trial_is_the_same_alone_and_after_others(make_config):
    config = make_config(arch={"dropout": 0.2}, seed=5)
    alone = run(config)
    for seed in (1, 2):
        run(make_config(seed=seed, optimizer="adam", lr=0.003, data={"limit_train": 300}))
    assert measured(run(config)) == measured(alone)
    assert measured(run(make_config(arch={"dropout": 0.2}, seed=6))) != measured(alone)


def test_the_data_is_opened_once_for_many_trials(make_config):
    load_data.cache_clear()
    for seed in range(3):
        run(make_config(epochs=1, seed=seed, data={"limit_train": 100}))
    assert load_data.cache_info().misses == 1


def test_a_training_on_streamed_images_is_the_same(make_config, tmp_path):
    config = make_config(augment=AugmentConfig(crop=0.125, flip=True, cutout=0.25, mixup=0.4))
    streamed = Trainer(config, device="cpu", threads=1, memory=0, telemetry="off")
    assert streamed.notes == ["the 0.0 MiB of training images are streamed from the cache"]
    history = [streamed.run_epoch(), streamed.run_epoch()]
    assert streamed.practise_validation(10) == 10
    plain = Trainer(config, device="cpu", threads=1, telemetry="off")
    assert plain.notes == []
    assert measured([plain.run_epoch(), plain.run_epoch()]) == measured(history)
    both = make_config(data={"train_on": "train+val"})
    assert measured(run(both, memory=0)) == measured(run(both))


def test_the_end_of_an_epoch_by_an_error_leaves_no_thread(make_config):
    before = threading.active_count()
    trainer = Trainer(make_config(batch_size=16), device="cpu", threads=1, memory=0, telemetry="off")
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match="at step 1 of 25"):
        trainer.run_epoch()
    gc.collect()
    assert threading.active_count() == before


def test_many_trials_in_one_process_do_not_leak(make_config):
    process = psutil.Process()
    sizes = []
    for seed in range(25):
        run(make_config(epochs=1, seed=seed, data={"limit_train": 100}))
        sizes.append(process.memory_info().rss / 2**20)
    assert sizes[-1] - sizes[4] < 15  # MiB; one network with its gradients and batches takes 1 MiB


def test_close_lets_go_of_the_network(make_config):
    trainer = Trainer(make_config(epochs=1), device="cpu", threads=1)
    trainer.run_epoch()
    model = weakref.ref(trainer.model)
    trainer.close()
    trainer.close()
    gc.collect()
    assert model() is None
    assert len(trainer.history) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_divergence_is_said_in_one_sentence_and_writes_no_checkpoint(make_config, tmp_path, precision):
    config = make_config(arch={"norm": "none"}, epochs=5, lr=1000.0, precision=precision)
    with pytest.raises(DivergedError, match=r"epoch \d: .* \(lr .*, peak 1000, optimizer sgd\)"):
        run(config, folder=tmp_path)
    for path in tmp_path.glob("checkpoint/*"):
        assert all(math.isfinite(m.train_loss) for m in load(path).history)
        assert all(tensor.isfinite().all() for tensor in load(path).model.values())


def test_a_weight_that_is_not_finite_is_divergence(make_config):
    trainer = Trainer(make_config(), device="cpu", threads=1)
    next(iter(trainer.model.buffers())).fill_(math.inf)
    with pytest.raises(DivergedError, match=r"epoch 1: (a weight is no longer finite|the training loss)"):
        trainer.run_epoch()


def test_a_loss_that_is_not_finite_ends_the_epoch_at_once(make_config):
    trainer = Trainer(make_config(data={"limit_train": None}), device="cpu", threads=1)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match=r"epoch 1: the training loss became nan at step 1 of \d\d"):
        trainer.run_epoch()


def test_a_validation_loss_that_is_not_finite_is_divergence(make_config, monkeypatch):
    from tunelab.training import loop
    from tunelab.training.evaluate import Evaluation

    monkeypatch.setattr(loop, "evaluate", lambda *args, **options: Evaluation(math.inf, 0.1, 1, 10, ()))
    with pytest.raises(DivergedError, match="epoch 1: the validation loss became inf"):
        run(make_config())


def test_report_hears_of_every_epoch_and_stops_by_false(make_config):
    heard: list[EpochMetrics] = []
    assert run(make_config(epochs=3), report=heard.append) == heard
    assert len(heard) == 3
    assert len(run(make_config(epochs=3), report=lambda metrics: metrics.epoch < 2)) == 2


def test_a_finished_training_is_not_trained_further(make_config):
    trainer = Trainer(make_config(epochs=1), device="cpu", threads=1)
    trainer.run_epoch()
    assert trainer.finished
    with pytest.raises(InputError, match="all 1 epochs are done"):
        trainer.run_epoch()


def test_threads_are_honoured_at_every_epoch(make_config):
    trainer = Trainer(make_config(), device="cpu", threads=2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    trainer.run_epoch()
    assert torch.get_num_threads() == 2


def test_without_a_folder_nothing_is_written(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(make_config(epochs=1))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"optimizer": "lion"}, {}, "optimizer 'lion' is unknown"),
        ({"schedule": ScheduleConfig("linear")}, {}, "schedule 'linear' is unknown"),
        ({}, {"device": "tpu"}, "device 'tpu' is unknown"),
        ({}, {"telemetry": "everything"}, "telemetry 'everything' is unknown; allowed are off, scalars and full"),
        ({}, {"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_training(make_config, changes, options, message):
    with pytest.raises(InputError, match=message):
        Trainer(make_config(**changes), **{"device": "cpu", **options})


def test_a_training_without_progress_ends_and_is_not_gone_on_with(make_config, tmp_path):
    """At a rate that changes nothing; also after a restart, and from a checkpoint in between."""
    config = make_config(epochs=8, lr=1e-9, patience=0.25)
    history = run(config, folder=tmp_path)
    assert [metrics.epoch for metrics in history] == [1, 2, 3]
    again = Trainer(config, folder=tmp_path, device="cpu", telemetry="off")
    assert again.resume()
    assert again.finished
    with pytest.raises(InputError, match="all 3 epochs are done"):
        again.run_epoch()
    assert measured(run(config, report=lambda metrics: metrics.epoch < 2, folder=tmp_path / "b")) == measured(
        history[:2]
    )
    assert measured(run(config, folder=tmp_path / "b")) == measured(history)
    assert len(run(make_config(epochs=4, lr=1e-9))) == 4
