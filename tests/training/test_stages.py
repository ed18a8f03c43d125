"""Recipes of several stages, against loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tunelab.config import ScheduleConfig, StageSpec, TrainConfig, TrialConfig, derive_seed
from tunelab.data.batches import TrainBatches, load_data
from tunelab.errors import InputError
from tunelab.models.network import build_network
from tunelab.training.checkpoint import load
from tunelab.training.fitting import fit
from tunelab.training.loop import Trainer
from tunelab.training.optim import OPTIMIZERS
from tunelab.training.schedules import lr_factor
from tunelab.training.stages import first_epoch, recipe_of, stage_of

LR = {"sgd": 0.02, "adam": 0.002, "adamw": 0.002, "rmsprop": 0.0002}
PLAIN: dict[str, Callable[[list[dict[str, object]], float], torch.optim.Optimizer]] = {
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.8, nesterov=True),
    "adam": lambda groups, lr: torch.optim.Adam(groups, lr),
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr),
    "rmsprop": lambda groups, lr: torch.optim.RMSprop(groups, lr, momentum=0.8),
}
"""Each optimizer as torch has it, one weight after the other: none of them fused."""


@pytest.mark.parametrize(
    ("begin", "epochs", "first"),
    [(0.5, 4, 3), (0.5, 5, 4), (0.55, 100, 56), (0.1, 30, 4), (0.2, 150, 31), (0.99, 30, 31), (0.01, 30, 2)],
)
def test_a_stage_begins_with_an_epoch(begin: float, epochs: int, first: int) -> None:
    assert first_epoch(begin, epochs) == first
    train = TrainConfig(epochs=epochs, stages=(StageSpec(begin, "adam", 0.001),))
    assert [stage_of(train, epoch) for epoch in (1, first - 1, first)] == [0, 0, 1]


def test_of_two_stages_that_begin_together_the_second_counts() -> None:
    train = TrainConfig(epochs=4, stages=(StageSpec(0.3, "adam", 0.001), StageSpec(0.4, "rmsprop", 0.002)))
    assert [stage_of(train, epoch) for epoch in range(1, 5)] == [0, 0, 2, 2]


def test_a_stage_takes_what_it_does_not_say_from_the_recipe() -> None:
    stages = StageSpec(0.5, "adam", 0.001), StageSpec(0.7, "sgd", 0.01, weight_decay=0.0, momentum=0.5)
    train = TrainConfig(optimizer="rmsprop", lr=0.1, weight_decay=0.01, momentum=0.8, stages=stages)
    told = [
        (one.optimizer, one.lr, one.weight_decay, one.momentum) for one in (recipe_of(train, at) for at in range(3))
    ]
    assert told == [("rmsprop", 0.1, 0.01, 0.8), ("adam", 0.001, 0.01, 0.8), ("sgd", 0.01, 0.0, 0.5)]


def test_a_drop_to_a_tenth_every_30_epochs_of_150() -> None:
    schedule = ScheduleConfig("step", period=0.2, factor=0.1)
    steps = 7
    for epoch in range(1, 151):
        first, last = (lr_factor(schedule, (epoch - 1 + (at + 0.5) / steps) / 150) for at in (0, steps - 1))
        assert first == last == pytest.approx(0.1 ** ((epoch - 1) // 30))


def test_an_unknown_optimizer_of_a_later_stage_is_refused_before_training(make_config) -> None:
    with pytest.raises(InputError, match="optimizer 'lion' is unknown; allowed are sgd, adam, adamw, rmsprop"):
        Trainer(make_config(stages=(StageSpec(0.5, "lion", 0.1),)), device="cpu")


def written_out(config: TrialConfig) -> nn.Module:
    """The same training as a loop of torch's own parts; it shares the batches and the network with tunelab."""
    train = config.train
    info, split, _ = load_data(config.data, torch.device("cpu"))
    torch.manual_seed(derive_seed(config.seed, "init"))
    model = build_network(config.arch, info.channels, len(info.classes), info.image_size)
    model = model.to(memory_format=torch.channels_last)
    batches = TrainBatches(
        split, info, train.augment, train.batch_size, derive_seed(config.seed, "batches"), train.epochs
    )
    (stage,) = train.stages
    parts = [(train.optimizer, train.lr, train.weight_decay), (stage.optimizer, stage.lr, stage.weight_decay)]
    for part, (name, lr, decay) in enumerate(parts):
        groups = [
            {"params": [one for one in model.parameters() if one.ndim >= 2], "weight_decay": decay},
            {"params": [one for one in model.parameters() if one.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = PLAIN[name](groups, lr)
        half = train.epochs // 2
        for epoch in range(1 + part * half, 1 + (part + 1) * half):
            for step, batch in enumerate(batches.epoch(epoch)):
                progress = (epoch - 1 + (step + 0.5) / batches.steps_per_epoch) / train.epochs
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.1 ** (progress > 0.5)
                loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model


@pytest.mark.parametrize("later", OPTIMIZERS)
@pytest.mark.parametrize("first", ["adam", "sgd"])
def test_a_change_of_the_optimizer_is_that_of_a_plain_loop(make_config, first: str, later: str) -> None:
    stage = StageSpec(0.5, later, LR[later], weight_decay=0.001)
    config = make_config(
        epochs=4,
        optimizer=first,
        lr=LR[first],
        momentum=0.8,
        weight_decay=0.01,
        precision="float32",
        schedule=ScheduleConfig("step", period=0.5, factor=0.1),
        stages=(stage,),
        data={"limit_train": 200},
    )
    trainer = Trainer(config, device="cpu", threads=1, telemetry="off")
    while not trainer.finished:
        trainer.run_epoch()
    assert type(trainer.optimizer) is type(PLAIN[later]([{"params": list(trainer.model.parameters())}], 0.1))
    expected = written_out(config)
    for one, other in zip(trainer.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)
    assert [m.lr for m in trainer.history] == pytest.approx([LR[first]] * 2 + [0.1 * LR[later]] * 2)


@pytest.mark.parametrize("later", OPTIMIZERS)
def test_a_training_goes_on_from_every_epoch_of_every_stage(make_config, tmp_path, later: str) -> None:
    stages = StageSpec(0.3, later, LR[later]), StageSpec(0.6, "sgd", 0.01)
    config = make_config(epochs=4, optimizer="adam", lr=0.002, stages=stages, data={"limit_train": 200})
    unbroken = [(m.train_loss, m.val_loss, m.lr) for m in fit(config, device="cpu", threads=1)]
    for epoch in range(1, 5):
        fit(config, lambda metrics: False, folder=tmp_path, device="cpu", threads=1, telemetry="off")
        history = load(tmp_path / "checkpoint" / "last.pt").history
        assert [(m.train_loss, m.val_loss, m.lr) for m in history] == unbroken[:epoch]
