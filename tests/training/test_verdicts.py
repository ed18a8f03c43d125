"""Each rule at its borders, on made-up signs; real networks are in test_broken_networks.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Finding
from tunelab.training.cases import FEW_STEPS, MANY_STEPS, WORSE, Case, Task
from tunelab.training.verdicts import (
    BIG_STEP,
    DEAD,
    DROPOUT,
    EXPLODED,
    FAR_OFF,
    GAIN,
    NOT_FINITE,
    SATURATED,
    SMALL_MOVE,
    judge,
)
from tunelab.training.vital_signs import LayerSigns, LayerStart, ScoreSigns, Signs

TASK = Task(
    classes=10, images=1000, guess=0.1, entropy=math.log(10), val_images=500, val_guess=0.1, val_entropy=math.log(10),
    epochs=30, peak_lr=0.1,
)  # fmt: skip
LAYERS = tuple(LayerStart(name, 8, 1.4, False, False, True) for name in ("one", "two", "three"))
SCORES = ScoreSigns("", -3.0, 3.0, 0.0, False)
GUESSES = EpochMetrics(1, 2.31, 0.1, 2.31, 0.1, 0.1, 1.0, 1.0, 1.0)
LEARNS = EpochMetrics(1, 1.5, 0.5, 1.2, 0.6, 0.1, 1.0, 1.0, 1.0)


def layer(name: str, **changes: Any) -> LayerSigns:
    return dataclasses.replace(LayerSigns(name, 1.0, 0.1, 0.01, 0.1, None), **changes)


def signs(step: int, layers: Sequence[LayerSigns] | None = None, **changes: Any) -> Signs:
    plain = Signs(1, step, 100, 0.1, 2.3, tuple(layers or map(layer, ("one", "two", "three"))), SCORES, (0.0, 1.0))
    return dataclasses.replace(plain, **changes)


def case(*seen: Signs, epoch: EpochMetrics | None = GUESSES, **changes: Any) -> Case:
    plain = Case(TASK, LAYERS, {}, seen or (signs(1), signs(2), signs(100)), () if epoch is None else (epoch,))
    return dataclasses.replace(plain, **changes)


def names(given: Case) -> list[str]:
    return [finding.name for finding in judge(given)]


def found(given: Case, name: str) -> Finding:
    (one,) = [finding for finding in judge(given) if finding.name == name]
    return one


def test_a_network_that_has_not_learnt_yet_is_not_called_broken() -> None:
    assert names(case()) == []
    assert names(case(epoch=LEARNS)) == []
    assert judge(Case(TASK, LAYERS, {}, ())) == []


@pytest.mark.parametrize(
    ("inputs", "wrong"),
    [
        ((FAR_OFF[0], 1.0), False),
        ((FAR_OFF[0] + 0.1, 1.0), True),
        ((-FAR_OFF[0] - 0.1, 1.0), True),
        ((0.0, FAR_OFF[1] + 0.1), True),
        ((0.0, FAR_OFF[2] / 2), True),
        ((0.5, 0.3), False),  # pixels from 0 to 1
    ],
)
def test_inputs(inputs: tuple[float, float], wrong: bool) -> None:
    given = case(signs(1, inputs=inputs), signs(100), epoch=LEARNS)
    assert names(given) == (["inputs not normalised"] if wrong else [])


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        (ScoreSigns("softmax", 0.0, 1.0, 0.0, True), "softmax before the loss"),
        (ScoreSigns("", 0.0, 1.0, 0.0, True), "softmax before the loss"),  # written out by hand
        (ScoreSigns("relu", 0.0, 2.0, 0.4, False), "activation before the loss"),
        (ScoreSigns("tanh", -1.0, 1.0, 0.0, False), "activation before the loss"),
    ],
)
def test_what_comes_before_the_loss(scores: ScoreSigns, name: str) -> None:
    seen = [signs(step, scores=scores) for step in (1, 2, 4)]
    assert names(case(*seen, epoch=LEARNS)) == [name]
    assert found(case(*seen), name).step == 1


def test_scores_that_are_zero_at_first_are_those_of_a_good_initialisation() -> None:
    zero = ScoreSigns("", 0.0, 0.0, 1.0, False)
    assert names(case(signs(1, scores=zero), signs(2), signs(100))) == []


def test_units_that_stay_alike() -> None:
    alike = tuple(dataclasses.replace(one, alike=True, zero=True, gain=0.0) for one in LAYERS[:2]) + LAYERS[2:]
    given = case(signs(1, alike=("one", "two")), signs(100, alike=("two",)), layers=alike)
    assert names(given) == ["zero initialisation"]
    assert found(given, "zero initialisation").layer == "two"
    assert names(dataclasses.replace(given, signs=(signs(1, alike=("two",)), signs(3, alike=("two",))))) == []
    assert names(case(signs(1, alike=("one", "two")), signs(100), layers=alike)) == [], "they are not alike any more"
    constant = tuple(dataclasses.replace(one, zero=False, gain=1.0) for one in alike)
    assert names(case(signs(1), signs(100, alike=("one",)), layers=constant)) == ["symmetric initialisation"]


def test_weights_that_all_begin_at_zero_are_named_before_they_move() -> None:
    zero = tuple(dataclasses.replace(one, alike=True, zero=True, gain=0.0) for one in LAYERS)
    assert names(case(signs(1), layers=zero, epoch=None)) == ["zero initialisation"]


def test_saturation_at_the_start_and_later() -> None:
    full = [layer("one", saturated=SATURATED), layer("two"), layer("three")]
    assert names(case(signs(1, full), signs(100), epoch=LEARNS)) == ["saturated units"]
    some = [layer("one", saturated=SATURATED - 0.01), layer("two"), layer("three")]
    assert names(case(signs(1, some), signs(100, some))) == []
    assert names(case(signs(1), signs(100, full), epoch=LEARNS)) == [], "it learns"
    assert names(case(signs(1), signs(100, full))) == ["saturated units"]


def test_large_weights_are_told_once() -> None:
    large = (dataclasses.replace(LAYERS[0], gain=GAIN + 0.1), *LAYERS[1:])
    assert names(case(layers=large, epoch=LEARNS)) == ["weights too large"]
    assert names(case(layers=(dataclasses.replace(LAYERS[0], gain=GAIN), *LAYERS[1:]), epoch=LEARNS)) == []
    full = [layer("one", saturated=0.9), layer("two"), layer("three")]
    given = case(signs(1, full), signs(100), layers=large, epoch=LEARNS)
    assert names(given) == ["saturated units"]
    assert found(given, "saturated units").evidence["gain_of_the_weights"] == pytest.approx(20.1)


def test_dead_units_at_the_start_and_later() -> None:
    dead = [layer("one"), layer("two", dead=DEAD), layer("three")]
    given = case(signs(1, dead), signs(100), epoch=LEARNS)
    assert names(given) == ["dead units"]
    assert found(given, "dead units").layer == "two"
    assert found(given, "dead units").evidence == {"dead_share": DEAD, "units": 8}
    assert names(case(signs(1), signs(100, dead), epoch=LEARNS)) == [], "it learns"
    assert names(case(signs(1), signs(100, dead))) == ["dead units"]
    some = [layer("one"), layer("two", dead=DEAD - 0.01), layer("three")]
    assert names(case(signs(1, some), signs(100, some))) == []


def test_a_gradient_that_is_cut() -> None:
    cut = [layer("one", gradient=None, update=0.0), layer("two"), layer("three")]
    assert names(case(signs(1, cut), signs(100, cut), epoch=LEARNS)) == ["gradient cut"]
    assert names(case(signs(1, cut), signs(100), epoch=LEARNS)) == [], "a layer may be left out of a step"
    assert names(case(signs(1, cut), epoch=LEARNS)) == []


def test_a_frozen_layer() -> None:
    still = [layer("one", gradient=None, update=0.0), layer("two"), layer("three")]
    frozen = (dataclasses.replace(LAYERS[0], trained=False), *LAYERS[1:])
    assert names(case(signs(1, still), signs(100, still), layers=frozen, epoch=LEARNS)) == ["frozen layer"]
    forgotten = [layer("one", update=0.0), layer("two"), layer("three")]
    seen = [signs(step, forgotten) for step in (1, 2, 4, 100)]
    assert names(case(*seen, epoch=LEARNS)) == ["frozen layer"]
    assert names(case(*seen[:2], epoch=LEARNS)) == [], "a first rate may be too small to be seen"
    assert names(case(signs(1), *seen[1:], epoch=LEARNS)) == []
    none = [dataclasses.replace(one, trained=False) for one in LAYERS]
    assert names(case(layers=none, epoch=LEARNS)) == []


@pytest.mark.parametrize(("p", "wrong"), [(0.5, False), (DROPOUT, False), (DROPOUT + 0.01, True)])
def test_dropout(p: float, wrong: bool) -> None:
    assert names(case(dropout={"drop": p}, epoch=LEARNS)) == (["dropout too high"] if wrong else [])


def test_steps_that_replace_the_weights() -> None:
    def stepping(update: float) -> Signs:
        return signs(2, [layer("one", update=update), layer("two", update=update), layer("three", update=0.0)])

    assert names(case(signs(1), stepping(BIG_STEP), signs(100))) == ["learning rate too high"]
    assert names(case(signs(1), stepping(BIG_STEP - 0.01), signs(100))) == []
    assert names(case(signs(1), stepping(BIG_STEP), signs(100), epoch=LEARNS)) == [], "it learns all the same"
    assert names(case(signs(1), stepping(BIG_STEP), signs(FEW_STEPS - 1))) == [], "too early to tell"
    broken = case(stepping(30.0), epoch=None, broke_off="the loss became nan")
    assert names(broken) == ["learning rate too high", NOT_FINITE]
    assert "divide the learning rate by 1000" in found(broken, "learning rate too high").suggestion
    begun_at_zero = tuple(dataclasses.replace(one, alike=True, zero=True) for one in LAYERS[:2]) + LAYERS[2:]
    assert names(case(signs(1), stepping(BIG_STEP), signs(100), layers=begun_at_zero)) == [], "any step is large there"


def test_the_first_large_step_is_named_and_the_advice_is_bounded() -> None:
    small, huge = ([layer(name, update=size) for name in ("one", "two", "three")] for size in (0.6, 1e9))
    finding = found(case(signs(1, small), signs(2, huge), signs(100)), "learning rate too high")
    assert (finding.step, finding.evidence["change_of_the_weights"]) == (1, 0.6)
    assert "by 100:" in finding.suggestion
    assert "by 1000:" in found(case(signs(1, huge), signs(100)), "learning rate too high").suggestion


def test_steps_that_move_nothing() -> None:
    def stepping(update: float) -> Case:
        layers = [layer(name, update=update) for name in ("one", "two", "three")]
        return case(*(signs(step, layers) for step in (1, 2, 100)))

    assert names(stepping(0.9 * SMALL_MOVE / 100)) == ["learning rate too low"]
    assert names(stepping(1.1 * SMALL_MOVE / 100)) == []
    assert names(dataclasses.replace(stepping(1e-8), epochs=(LEARNS,))) == []
    assert names(dataclasses.replace(stepping(1e-8), task=dataclasses.replace(TASK, peak_lr=1.0))) == [], "warming up"
    lost = [layer("one", update=0.0), layer("two"), layer("three")]
    tiny = [signs(step, lost, lr=1e-7) for step in (1, 2, 4, 100)]
    assert names(case(*tiny, epoch=LEARNS)) == [], "a small step is lost in rounding: the layer is not frozen"


def test_what_is_not_finite_is_told_in_words() -> None:
    infinite = [layer(name, update=math.inf, gradient=math.nan) for name in ("one", "two", "three")]
    broken = case(signs(1, infinite), epoch=None, broke_off="the loss became nan")
    finding = found(broken, "learning rate too high")
    assert finding.evidence["change_of_the_weights"] == "inf"
    assert finding.epoch == 1


def test_labels_without_information_need_a_second_witness() -> None:
    asked: list[float] = []

    def judged(score: float) -> list[str]:
        return names(case(informative=lambda: asked.append(score) or score))

    assert judged(1.0) == ["labels without information"]
    assert judged(2.4) == []
    assert len(asked) == 2
    assert names(case(epoch=LEARNS, informative=lambda: asked.append(0.0) or 0.0)) == []
    assert len(asked) == 2, "a network that learns is witness enough"
    still = [layer(name, update=0.0) for name in ("one", "two", "three")]
    assert names(case(signs(1, still), signs(100, still), informative=lambda: 0.0)) == []


def test_labels_that_are_learnt_by_heart_have_no_information() -> None:
    by_heart = [dataclasses.replace(GUESSES, epoch=n, train_accuracy=0.1 * n, train_loss=2.4 - 0.1 * n) for n in (1, 5)]
    given = case(epochs=by_heart, informative=lambda: 0.0)
    assert names(given) == ["labels without information"]
    better = [*by_heart[:-1], dataclasses.replace(by_heart[-1], val_accuracy=0.3)]
    assert names(dataclasses.replace(given, epochs=better)) == []


def test_gradients_that_vanish_or_explode() -> None:
    def relative(*gradients: float) -> Signs:
        return signs(100, [layer(name, gradient=g) for name, g in zip(("one", "two", "three"), gradients, strict=True)])

    vanished = case(signs(1), relative(1e-8, 1e-4, 0.1))
    assert names(vanished) == ["vanishing gradients"]
    assert found(vanished, "vanishing gradients").layer == "one"
    assert names(case(signs(1), relative(1e-6, 1e-4, 0.1))) == []
    assert names(case(signs(1), relative(0.1, 0.0, 0.1))) == [], "a dead part beside others"
    assert names(case(signs(1), relative(1e-8, 1e-4, 0.1), epoch=LEARNS)) == []
    assert names(case(signs(1), relative(EXPLODED, 1.0, 1.0))) == ["exploding gradients"]
    assert names(case(signs(1), relative(EXPLODED * 0.9, 1.0, 1.0))) == []
    large, usual = relative(EXPLODED, 1.0, 1.0), relative(1.0, 1.0, 1.0)
    assert names(case(signs(1), large, usual)) == [], "in one step alone, as of deep networks with norms"
    given = case(signs(1), usual, large, relative(math.nan, 1.0, 1.0), broke_off="the loss became nan")
    assert "exploding gradients" in names(given)


def test_a_loss_far_above_that_of_guessing() -> None:
    high = dataclasses.replace(GUESSES, train_loss=WORSE * TASK.entropy + 0.1)
    assert names(case(epoch=high)) == ["loss diverging"]
    assert names(case(epoch=dataclasses.replace(high, train_loss=WORSE * TASK.entropy))) == []
    assert names(case(epoch=dataclasses.replace(high, train_accuracy=0.2))) == [], "overconfident, but it learns"


def test_the_accuracy_of_guessing_is_told_after_many_steps_at_a_rate() -> None:
    late = signs(MANY_STEPS % 100 or 100, epoch=MANY_STEPS // 100)
    epochs = [dataclasses.replace(GUESSES, epoch=n) for n in range(1, MANY_STEPS // 100 + 1)]
    given = case(signs(1), late, epochs=epochs)
    assert names(given) == ["accuracy of guessing"]
    assert names(dataclasses.replace(given, signs=(signs(1), dataclasses.replace(late, step=99)))) == []
    assert names(dataclasses.replace(given, task=dataclasses.replace(TASK, peak_lr=0.3))) == [], "still warming up"
    lucky = [*epochs[:-1], dataclasses.replace(epochs[-1], train_accuracy=0.13)]  # 3.2 standard errors
    assert names(dataclasses.replace(given, epochs=lucky)) == []


def test_causes_come_before_what_they_lead_to() -> None:
    frozen = (dataclasses.replace(LAYERS[0], trained=False), *LAYERS[1:])
    dead = [layer("one", dead=1.0), layer("two", update=3.0), layer("three", update=3.0, gradient=EXPLODED)]
    given = case(
        signs(1, inputs=(100.0, 70.0)), signs(2, dead), signs(100, dead), layers=frozen, dropout={"drop": 0.95},
        broke_off="the loss became nan", epochs=(),
    )  # fmt: skip
    assert names(given) == [
        "inputs not normalised", "learning rate too high", "frozen layer", "dropout too high", "dead units",
        "exploding gradients", NOT_FINITE,
    ]  # fmt: skip


def test_numbers_of_a_finding_are_plain() -> None:
    finding = found(case(dropout={"drop": 0.912345678}, epoch=LEARNS), "dropout too high")
    assert finding == Finding(**finding.to_json())
    assert finding.evidence["probability"] == 0.9123
    assert finding.what == "dropout too high in drop (probability 0.912, train accuracy 0.5, val accuracy 0.6)"


def test_a_loss_that_is_not_finite_before_the_first_update_is_not_of_the_rate() -> None:
    drawn = (LAYERS[0], dataclasses.replace(LAYERS[1], gain=math.nan), LAYERS[2])
    given = case(signs(1, loss=math.nan), epoch=None, layers=drawn, broke_off="the training loss became nan")
    one = found(given, NOT_FINITE)
    assert (one.layer, one.step) == ("two", 1)
    assert "rate" not in one.suggestion
    later = case(signs(1), signs(2, loss=math.nan), epoch=None, layers=drawn, broke_off="the training loss became nan")
    assert "rate" in found(later, NOT_FINITE).suggestion


def test_a_rare_class_is_no_loss_that_diverges() -> None:
    """A fresh network begins at log(2), which is more than twice the loss of naming the frequent class."""
    rare = dataclasses.replace(TASK, classes=2, guess=0.95, entropy=0.2, val_guess=0.95, val_entropy=0.2)
    first = dataclasses.replace(GUESSES, train_loss=0.5, train_accuracy=0.95, val_loss=0.21, val_accuracy=0.95)
    assert names(case(epoch=first, task=rare)) == []
    assert names(case(epoch=dataclasses.replace(first, train_loss=1.5), task=rare)) == ["loss diverging"]


def test_a_rate_that_throws_everything_away_is_named_after_few_steps() -> None:
    thrown = [layer(name, update=BIG_STEP) for name in ("one", "two", "three")]
    lost = dataclasses.replace(GUESSES, train_loss=1e6, val_loss=1e6)
    few = case(signs(1, thrown, steps=8), signs(8, steps=8), epoch=lost)
    assert names(few) == ["learning rate too high", "loss diverging"]
    better = dataclasses.replace(lost, train_accuracy=0.2)
    assert names(case(signs(1, thrown), signs(100), epoch=better)) == ["learning rate too high"]
    assert names(case(signs(1, thrown), signs(100), epoch=dataclasses.replace(better, val_loss=1.0))) == []
    assert names(case(signs(1, thrown), signs(100), epoch=dataclasses.replace(better, val_accuracy=0.6))) == []


def test_labels_are_judged_at_the_end_of_a_schedule_too() -> None:
    slow = [layer(name, update=1e-9) for name in ("one", "two", "three")]
    assert names(case(signs(1), signs(2), signs(100, slow), informative=lambda: 0.0)) == ["labels without information"]


def test_normalised_images_are_so_whatever_the_first_batch_says() -> None:
    task = dataclasses.replace(TASK, normalised=True)
    assert names(case(signs(1, inputs=(9.0, 0.0)), signs(100), task=task)) == [], "a batch of one white image"


def test_zeros_that_wait_for_dead_units_are_not_the_cause() -> None:
    zero = (LAYERS[0], dataclasses.replace(LAYERS[1], alike=True, zero=True, gain=0.0), LAYERS[2])
    dead = [layer("one", dead=1.0, gradient=0.0), layer("two", gradient=0.0, update=0.0), layer("three")]
    seen = [signs(step, dead, alike=("two",)) for step in (1, 100)]
    assert names(case(*seen, layers=zero))[0] == "dead units"
    alive = [layer(name) for name in ("one", "two", "three")]
    assert names(case(signs(1), signs(100, alive, alike=("two",)), layers=zero)) == ["zero initialisation"]


def test_a_network_of_which_no_layer_has_a_gradient_is_cut() -> None:
    cut = [layer(name, gradient=None, update=0.0) for name in ("one", "two", "three")]
    assert names(case(signs(1, cut), signs(100, cut))) == ["gradient cut"]


def test_a_training_that_was_not_looked_at_and_breaks_off_says_so() -> None:
    assert names(Case(TASK, (), {}, (), (LEARNS,), "the training loss became nan")) == [NOT_FINITE]


def test_a_layer_that_is_left_out_of_steps_at_random_is_not_cut_off() -> None:
    """As in stochastic depth: without a gradient where it did not run."""
    without = [layer("one", gradient=None, update=0.0), layer("two"), layer("three")]
    idle = [signs(step, without, idle=("one",)) for step in (1, 2, 4, 16, 64, 100)]
    assert names(case(*idle, epoch=LEARNS)) == []
    assert names(case(*idle, *idle, epoch=LEARNS)) == ["gradient cut"], "it is never used"
    assert names(case(signs(1, without), signs(2, without), *idle, epoch=LEARNS)) == ["gradient cut"]
