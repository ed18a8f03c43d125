from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tunelab.records import EpochMetrics
from tunelab.training.cases import FEW_STEPS, LEARNT, LONG_EPOCHS, MANY_STEPS, WORSE, Case, Task, above_chance, hopeless
from tunelab.training.vital_signs import LayerSigns, Signs

TASK = Task(10, 1000, 0.1, math.log(10), 500, 0.1, math.log(10), 30, 0.1)
STEPS = 100


def layers(*gradients: float | None) -> tuple[LayerSigns, ...]:
    return tuple(LayerSigns(str(place), 1.0, gradient, 0.01) for place, gradient in enumerate(gradients))


def case(epochs: int, *, loss: float = 2.31, gradients: tuple[float | None, ...] = (0.1, 0.1), **changes: Any) -> Case:
    seen = [Signs(n, STEPS, STEPS, 0.1, 2.3, layers(*gradients)) for n in range(1, epochs + 1)]
    past = [EpochMetrics(n, loss, 0.1, 2.31, 0.1, 0.1, 1.0, 1.0, 1.0) for n in range(1, epochs + 1)]
    return dataclasses.replace(Case(TASK, (), {}, seen, past), **changes)


@pytest.mark.parametrize(
    ("accuracy", "images", "errors"), [(0.1, 1000, 0.0), (0.13, 1000, 3.16), (0.13, 100, 1.0), (0.05, 1000, -5.27)]
)
def test_the_distance_from_chance(accuracy: float, images: int, errors: float) -> None:
    assert above_chance(accuracy, 0.1, images) == pytest.approx(errors, abs=0.01)
    assert math.isfinite(above_chance(1.0, 1.0, 0)), "one class alone, or no images"


def test_nothing_is_learnt_only_if_neither_accuracy_nor_loss_says_so() -> None:
    given = case(1)
    assert given.stuck
    assert given.stuck_for == 1
    for change in (
        {"train_accuracy": 0.15},
        {"val_accuracy": 0.2},
        {"train_loss": (1 - LEARNT) * TASK.entropy - 0.01},
        {"val_loss": (1 - LEARNT) * TASK.entropy - 0.01},
    ):
        assert not dataclasses.replace(given, epochs=[dataclasses.replace(given.epochs[0], **change)]).stuck
    few = [dataclasses.replace(given.signs[0], step=FEW_STEPS - 1)]
    assert not dataclasses.replace(given, signs=few).stuck
    without_val = dataclasses.replace(given.epochs[0], val_loss=None, val_accuracy=None)
    assert dataclasses.replace(given, epochs=[without_val]).stuck


def test_what_is_hopeless() -> None:
    assert hopeless(case(1, broke_off="the loss became nan")) == "the loss became nan"
    assert hopeless(case(1, gradients=(0.0, 0.0, 0.1))) == "no gradient reaches any layer but the last"
    assert hopeless(case(1, gradients=(None, 0.0, 0.1))) == "no gradient reaches any layer but the last"
    assert "far above that of guessing" in hopeless(case(LONG_EPOCHS, loss=WORSE * TASK.entropy + 0.1))
    assert hopeless(case(10)) == "nothing was learnt in 10 epochs"


def test_what_is_not() -> None:
    assert hopeless(case(9)) == "", "less than a third of the training"
    assert hopeless(case(1, gradients=(0.0, 0.1, 0.1))) == ""
    assert hopeless(case(1, gradients=(0.1,))) == "", "a single layer"
    assert hopeless(case(LONG_EPOCHS - 1, loss=9.0)) == ""
    falling = case(LONG_EPOCHS, loss=9.0)
    last = dataclasses.replace(falling.epochs[-1], train_loss=8.0)
    assert hopeless(dataclasses.replace(falling, epochs=[*falling.epochs[:-1], last])) == ""
    assert hopeless(case(10, task=dataclasses.replace(TASK, peak_lr=0.3))) == "", "still warming up"
    slow = [dataclasses.replace(one, steps=10, step=10) for one in case(10).signs]
    assert slow[-1].steps_done < MANY_STEPS
    assert hopeless(case(10, signs=slow)) == "", "few steps"
    alone = dataclasses.replace(TASK, images=STEPS)
    assert case(10).long_enough
    assert hopeless(case(10, task=alone)) == "", "batches of one image"
    rare = dataclasses.replace(TASK, classes=2, entropy=0.2, val_entropy=0.2)
    assert hopeless(case(LONG_EPOCHS, loss=0.7, task=rare)) == "", "as a fresh network"
    learns = dataclasses.replace(case(1, gradients=(0.0, 0.1)).epochs[0], train_accuracy=0.2)
    assert hopeless(dataclasses.replace(case(1, gradients=(0.0, 0.1)), epochs=[learns])) == ""
    assert hopeless(case(0)) == ""
