"""A training as it is judged: what there is to learn, what was seen, whether anything was learnt. Plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunelab.records import EpochMetrics
from tunelab.training.vital_signs import LayerStart, Signs

CHANCE = 2.33
"""Standard errors above the accuracy of guessing from which it is more than guessing: one-sided 1%, our choice."""
LEARNT = 0.02
"""The share of the labels' entropy that a loss is below it when something has been learnt; our choice."""
FEW_STEPS, MANY_STEPS = 32, 500
"""Steps before which it is no wonder that nothing is learnt: with other evidence, and without any. Our choice: of
random draws of `arch`, some with much augmentation and small rates still guess after 160 steps."""
MANY_IMAGES = 4000
"""So many images, again and again, `MANY_STEPS` have seen at least: batches of 1 to 4 learn later; our choice."""
WORSE = 2.0
"""A loss of so many times that of guessing is diverging; our choice."""
LOST = 10.0
"""A loss of so many times that of guessing says so whatever the number of steps; our choice."""
LONG_EPOCHS = 3
"""Epochs in a row of learning nothing that are many (`hopeless`); our choice."""


@dataclass(frozen=True)
class Task:
    """What there is to learn. `guess` is the accuracy of always naming the most frequent class, `entropy` (in nats) the
    loss of knowing how frequent each class is, as the training loss has it, with its smoothing; `val_guess` and
    `val_entropy` are those of the validation images, of which there are `val_images`. An epoch trains `images`, which
    have mean 0 and variance 1 if they are `normalised`.
    """

    classes: int
    images: int
    guess: float
    entropy: float
    val_images: int
    val_guess: float
    val_entropy: float
    epochs: int
    peak_lr: float
    normalised: bool = False

    @property
    def blind(self) -> float:
        """The loss of equal scores for all classes: where classes are not as frequent, a fresh network begins here."""
        return math.log(max(self.classes, 2))


@dataclass(frozen=True)
class Case:
    """All that is known of a training when it is judged.

    `layers`, `dropout` and `inputs` are as it began (no layers: it is not known), `signs` the steps that were looked
    at, `epochs` its metrics. `broke_off` says in which way it left the finite numbers, "" if it did not. `informative`
    says by how many standard errors a simple classifier of the pixels is better than guessing; asked for if needed.
    """

    task: Task
    layers: Sequence[LayerStart]
    dropout: dict[str, float]
    signs: Sequence[Signs]
    epochs: Sequence[EpochMetrics] = ()
    broke_off: str = ""
    informative: Callable[[], float] = field(default=lambda: math.inf)

    @property
    def epoch(self) -> int:
        """The epoch that is judged."""
        return len(self.epochs) + bool(self.broke_off)

    @property
    def steps(self) -> int:
        """The steps done, as far as was looked at."""
        return self.signs[-1].steps_done if self.signs else 0

    @property
    def long_enough(self) -> bool:
        """True after so many steps that something should have been learnt, whatever the network."""
        if not self.signs or self.steps < MANY_STEPS:
            return False
        return self.steps * self.task.images >= MANY_IMAGES * self.signs[-1].steps

    @property
    def lost(self) -> bool:
        """True if the losses of the last epoch are far beyond those of guessing, and more than half of it is wrong."""
        if not self.epochs:
            return False
        last, blind = self.epochs[-1], self.task.blind
        if 1 - last.score < 0.5 * (1 - self.task.guess):
            return False
        return last.train_loss > LOST * blind and (last.val_loss is None or last.val_loss > WORSE * blind)

    @property
    def rate_reached(self) -> bool:
        """True if the training has been at half of its peak rate or above: a warm-up may learn nothing."""
        rates = [signs.lr for signs in self.signs] + [epoch.lr for epoch in self.epochs]
        return max(rates, default=0.0) >= 0.5 * self.task.peak_lr

    def guesses(self, epoch: EpochMetrics) -> bool:
        """True if neither accuracy of an epoch is more than that of guessing (one-sided z-test of a proportion)."""
        task = self.task
        trained = above_chance(epoch.train_accuracy, task.guess, task.images)
        if epoch.val_accuracy is None:
            return trained < CHANCE
        return trained < CHANCE and above_chance(epoch.val_accuracy, task.val_guess, task.val_images) < CHANCE

    def stuck_at(self, epoch: EpochMetrics) -> bool:
        """True if an epoch guesses, and its losses too have learnt nothing."""
        task = self.task
        val_learnt = epoch.val_loss is not None and epoch.val_loss < (1 - LEARNT) * task.val_entropy
        return self.guesses(epoch) and epoch.train_loss >= (1 - LEARNT) * task.entropy and not val_learnt

    @property
    def stuck(self) -> bool:
        """True if nothing has been learnt, after enough steps that something should have been, or it broke off."""
        if self.broke_off:
            return True
        return self.steps >= FEW_STEPS and bool(self.epochs) and self.stuck_at(self.epochs[-1])

    @property
    def stuck_for(self) -> int:
        """How many epochs in a row up to the last one have learnt nothing."""
        count = 0
        for epoch in reversed(self.epochs):
            if not self.stuck_at(epoch):
                break
            count += 1
        return count


def above_chance(accuracy: float, guess: float, images: int) -> float:
    """By how many standard errors an accuracy on so many images is above that of guessing."""
    spread = math.sqrt(max(guess * (1 - guess), 1e-9) / max(images, 1))
    return (accuracy - guess) / spread


def hopeless(case: Case) -> str:
    """Why nothing can come of a training any more, "" while something may: that nothing was learnt is not enough.

    It left the finite numbers; no gradient reaches any layer but the last; its loss is far above that of guessing for
    three epochs and does not fall; or for a third of its length, three epochs and 500 steps, at more than half of its
    peak rate, it has learnt nothing at all. What is asked for is our choice: slow starters, many classes and warm-ups
    are to pass.
    """
    if case.broke_off:
        return case.broke_off
    count = case.stuck_for
    if not count or case.steps < FEW_STEPS:
        return ""
    layers = [layer for layer in case.signs[-1].layers if layer.gradient is not None]
    if len(layers) > 1 and sum(layer.gradient != 0 for layer in layers) <= 1:
        return "no gradient reaches any layer but the last"
    recent = [epoch.train_loss for epoch in case.epochs[-LONG_EPOCHS:]]
    if count >= LONG_EPOCHS and min(recent) > WORSE * case.task.blind and recent[-1] >= recent[0]:
        return f"the loss is far above that of guessing for {LONG_EPOCHS} epochs and does not fall"
    if count >= max(LONG_EPOCHS, case.task.epochs / 3) and case.long_enough and case.rate_reached:
        return f"nothing was learnt in {count} epochs"
    return ""
