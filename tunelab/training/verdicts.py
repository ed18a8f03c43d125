"""What the vital signs of a training mean: rules from numbers to findings. Plain arithmetic.

A rule names something only on direct evidence of it, or, where the sign alone could be harmless, if besides nothing is
learnt (`Case.stuck`): a false alarm is as bad as a miss. Causes come before what they lead to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import median

from tunelab.records import Finding
from tunelab.training.cases import CHANCE, FEW_STEPS, LEARNT, WORSE, Case, above_chance
from tunelab.training.fitness import fitting
from tunelab.training.vital_signs import LayerSigns, Signs

NOT_FINITE = "not finite"
"""The name of what a training ends of at once; the cause, where one is found, is told besides."""
FAR_OFF = (5.0, 10.0, 0.02)
"""|mean| and standard deviation of inputs above which, and the deviation below which, they are not normalised; our
choice. Normalised ones have 0 and 1 (LeCun et al. 1998, "Efficient BackProp", section 4.3); crops, which are padded
with black, and cutout move that by less, and so do pixels from 0 to 1."""
GAIN = 20.0
"""The gain of weights from which they are too large; our choice: He's initialisation has 1.4 (arXiv 1502.01852), with
the fan of a layer's outputs in place of its inputs up to 6 in the networks of blocks."""
DEAD = 0.9
SATURATED = 0.5
"""Shares of dead units and of saturated values in a layer that are too many; our choice."""
DROPOUT = 0.8
"""A probability of dropout that is too high; our choice: 0.5 is usual (Srivastava et al. 2014, section A.4)."""
BIG_STEP = 0.5
"""The change of the median layer's weights in one step, as a share of them, that is too large; our choice: about 0.001
is usual, some 0.1 in the first steps of networks with norms."""
SMALL_MOVE = 1e-3
"""The change of the median layer's weights in all steps so far, as a share of them, that is too small; our choice."""
VANISHED = 1e-6
"""A layer's relative gradient as a share of the largest one, below which it has vanished; our choice."""
EXPLODED = 1000.0
"""The norm of all gradients together from which they explode, if it stays; our choice: 1 to 10 is usual at the start,
hundreds in deep networks with norms (Yang et al. 2019, 1902.08129)."""
_VANISHED_LAYERS = 0.25  # the share of layers, the first among them: a dead part beside others is something else
_SEEN_TO_MOVE = 1e-5  # of a weight: a smaller step is lost in the rounding of float32
_CUT_LOOKS = 2  # at a layer that ran without any gradient before it is called cut; our choice
_IDLE_LOOKS = 8  # at a layer that did not run: it may be left out of steps at random (Huang et al. 2016); our choice
_ALIKE_STEPS = 4  # after which units that began alike should differ: zeros in the right places differ after 3


def judge(case: Case) -> list[Finding]:
    """All findings on a training at the end of an epoch, or where it broke off; what causes others comes first."""
    if not case.signs:
        return list(_not_finite(case))
    found = [finding for rule in _RULES for finding in rule(case)]
    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.name, finding)
    return [*first.values(), *([] if case.broke_off else fitting(case.epochs, case.task))]


def _finding(
    case: Case, name: str, evidence: dict[str, float | str], suggestion: str, layer: str = "", at: Signs | None = None
) -> Finding:
    told = {key: value if isinstance(value, str) else _told(value) for key, value in evidence.items()}
    return Finding(name, layer, told, suggestion, case.epoch if at is None else at.epoch, at.step if at else None)


def _told(value: float) -> float | str:
    """A number of the record: with four digits, and as a word where it is not finite."""
    if isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def _scores(case: Case) -> Iterator[Finding]:
    """What comes before the loss; the loss itself takes the softmax."""
    seen = [(signs, signs.scores) for signs in case.signs if signs.scores is not None]
    later = [scores for signs, scores in seen if signs.steps_done > 1]
    stay_normed = len(later) > 1 and all(scores.normed for scores in later)
    for signs, scores in seen:
        evidence: dict[str, float | str] = {"lowest_score": scores.lowest, "highest_score": scores.highest}
        if scores.after == "softmax" or (scores.normed and stay_normed):
            advice = "leave the softmax out: the loss takes scores and has a softmax of its own"
            yield _finding(case, "softmax before the loss", evidence, advice, at=signs)
            return
        if scores.after:
            advice = f"leave {scores.after} out after the last layer: the loss takes scores of any sign and size"
            evidence = {"activation": scores.after, **evidence, "share_of_zeros": scores.zeros}
            yield _finding(case, "activation before the loss", evidence, advice, at=signs)
            return


def _inputs(case: Case) -> Iterator[Finding]:
    first = case.signs[0]
    if first.inputs is None or case.task.normalised:
        return
    mean, std = first.inputs
    if abs(mean) > FAR_OFF[0] or std > FAR_OFF[1] or std < FAR_OFF[2]:
        advice = "normalise the images: subtract their mean and divide by their standard deviation"
        yield _finding(case, "inputs not normalised", {"mean": mean, "standard_deviation": std}, advice, at=first)


def _alike(case: Case) -> Iterator[Finding]:
    """Units that have the same weights get the same gradient, so they stay the same."""
    last = case.signs[-1]
    all_zero = bool(case.layers) and all(layer.zero for layer in case.layers)
    still = [layer for layer in case.layers if layer.name in last.alike and layer.trained]
    dead = next(_dead_at_start(case), None)
    if dead is not None and not any(layer.alike for layer in case.layers if layer.name == dead.layer):
        moved = {layer.name for layer in last.layers if layer.gradient}  # the others may wait for what is dead
        still = [layer for layer in still if layer.name in moved]
    if not all_zero and (last.steps_done < _ALIKE_STEPS or not still):
        return
    told = still or list(case.layers)
    zero = all_zero or all(layer.zero for layer in told)
    evidence: dict[str, float | str] = {"layers": len(told), "units": told[0].units, "steps": last.steps_done}
    advice = "draw the weights at random, with a spread that suits the number of inputs (He or Xavier)"
    name = "zero initialisation" if zero else "symmetric initialisation"
    yield _finding(case, name, evidence, advice, told[0].name, last)


def _saturated_at_start(case: Case) -> Iterator[Finding]:
    first = case.signs[0]
    layer = _worst(first, "saturated")
    if first.steps_done == 1 and layer is not None and (layer.saturated or 0.0) >= SATURATED:
        gains = {start.name: start.gain for start in case.layers}
        evidence: dict[str, float | str] = {"saturated_share": layer.saturated or 0.0}
        if layer.name in gains:
            evidence["gain_of_the_weights"] = gains[layer.name]
        advice = "draw smaller weights (Xavier's initialisation), or use ReLU"
        yield _finding(case, "saturated units", evidence, advice, layer.name, first)


def _large_weights(case: Case) -> Iterator[Finding]:
    """Told of weights as they are drawn; a saturation that they lead to at once says the same."""
    large = [layer for layer in case.layers if layer.gain > GAIN]
    if large and not any(_saturated_at_start(case)):
        worst = max(large, key=lambda layer: layer.gain)
        evidence: dict[str, float | str] = {"gain": worst.gain, "layers": len(large)}
        advice = "draw smaller weights: a gain of 1 (Xavier) to 1.4 (He) keeps the size of what passes through"
        yield _finding(case, "weights too large", evidence, advice, worst.name, case.signs[0])


def _dead_at_start(case: Case) -> Iterator[Finding]:
    first = case.signs[0]
    layer = _worst(first, "dead")
    if first.steps_done == 1 and layer is not None and (layer.dead or 0.0) >= DEAD:
        advice = "start the biases at 0 and draw the weights with He's initialisation"
        yield _dead(case, layer, first, advice)


def _dead_later(case: Case) -> Iterator[Finding]:
    last = case.signs[-1]
    layer = _worst(last, "dead")
    if case.stuck and layer is not None and (layer.dead or 0.0) >= DEAD:
        yield _dead(case, layer, last, "lower the learning rate, or use leaky ReLU or a norm before the ReLU")


def _dead(case: Case, layer: LayerSigns, at: Signs, advice: str) -> Finding:
    units = next((start.units for start in case.layers if start.name == layer.name), 0)
    evidence: dict[str, float | str] = {"dead_share": layer.dead or 0.0}
    if units:
        evidence["units"] = units
    return _finding(case, "dead units", evidence, advice, layer.name, at)


def _cut(case: Case) -> Iterator[Finding]:
    """Weights that are to be trained and that the loss never depends on."""
    if len(case.signs) < _CUT_LOOKS:
        return
    to_train = {layer.name for layer in case.layers if layer.trained}
    without = [
        layer.name
        for place, layer in enumerate(case.signs[-1].layers)
        if layer.name in to_train
        and all(one.layers[place].gradient is None for one in case.signs)
        and (len(case.signs) >= _IDLE_LOOKS or sum(layer.name not in one.idle for one in case.signs) >= _CUT_LOOKS)
    ]
    if without:
        advice = (
            "look for detach(), no_grad() or .data between this layer and the loss, or for a layer that is not used"
        )
        evidence: dict[str, float | str] = {"layers": len(without), "looks": len(case.signs)}
        yield _finding(case, "gradient cut", evidence, advice, without[-1], case.signs[-1])


def _frozen(case: Case) -> Iterator[Finding]:
    """Weights that are not to be trained, or that have a gradient like others and are never moved."""
    frozen = [layer.name for layer in case.layers if not layer.trained]
    last = case.signs[-1]
    if frozen and len(frozen) < len(case.layers):
        evidence: dict[str, float | str] = {"layers": len(frozen), "of": len(case.layers)}
        advice = "set requires_grad to True, unless it is meant to stay as it is"
        yield _finding(case, "frozen layer", evidence, advice, frozen[0], case.signs[0])
        return
    usual = median([_relative(layer) for layer in last.layers] or [0.0])
    moved = any(layer.update > 1e-6 * layer.weight for layer in last.layers)
    still = [
        layer.name
        for place, layer in enumerate(last.layers)
        if _relative(layer) > max(0.01 * usual, _SEEN_TO_MOVE / last.lr)
        and all(one.layers[place].update == 0 for one in case.signs)
    ]
    if moved and still and len(case.signs) > _CUT_LOOKS:
        evidence = {"layers": len(still), "of": len(last.layers), "looks": len(case.signs)}
        advice = "give these weights to the optimizer: they have a gradient and do not move"
        yield _finding(case, "frozen layer", evidence, advice, still[0], last)


def _dropout(case: Case) -> Iterator[Finding]:
    high = {name: p for name, p in case.dropout.items() if p > DROPOUT}
    if high:
        name = max(high, key=lambda one: high[one])
        evidence: dict[str, float | str] = {"probability": high[name]}
        if case.epochs:
            evidence["train_accuracy"] = case.epochs[-1].train_accuracy
        if case.epochs and case.epochs[-1].val_accuracy is not None:
            evidence["val_accuracy"] = case.epochs[-1].val_accuracy
        advice = "lower the dropout to 0.5 or less"
        yield _finding(case, "dropout too high", evidence, advice, name, case.signs[0])


def _rate_too_high(case: Case) -> Iterator[Finding]:
    """Steps that replace the weights in place of adjusting them; the first of them, for it leads to the others."""
    zero = {layer.name for layer in case.layers if layer.alike}
    at = next((signs for signs in case.signs if _step_size(signs, zero) >= BIG_STEP), None)
    if not (case.stuck or case.lost) or at is None:
        return
    size = _step_size(at, zero)
    evidence: dict[str, float | str] = {"lr": at.lr, "change_of_the_weights": size}
    if case.epochs:
        evidence |= {"loss": case.epochs[-1].train_loss, "loss_of_guessing": case.task.entropy}
    factor = 10 ** min(3, max(1, round(math.log10(size / 0.01)))) if math.isfinite(size) else 1000
    advice = f"divide the learning rate by {factor}: a step should change weights by 1% at most"
    yield _finding(case, "learning rate too high", evidence, advice, at=at)


def _rate_too_low(case: Case) -> Iterator[Finding]:
    """Weights with a gradient that, at the speed of the fastest step that was seen, have hardly moved."""
    moved = max(_step_size(signs, set()) for signs in case.signs) * case.steps
    last = case.signs[-1]
    reached = sum(bool(layer.gradient) for layer in last.layers) > len(last.layers) / 2
    if case.stuck and not case.broke_off and case.rate_reached and reached and 0 < moved < SMALL_MOVE:
        rate = max(signs.lr for signs in case.signs)
        evidence: dict[str, float | str] = {"lr": rate, "change_of_the_weights_at_most": moved, "steps": case.steps}
        yield _finding(case, "learning rate too low", evidence, "multiply the learning rate by 100", at=last)


def _step_size(signs: Signs, left_out: set[str]) -> float:
    """The median change of a layer's weights as a share of them; one that is not a number counts as 0."""
    sizes = [layer.update / layer.weight for layer in signs.layers if layer.name not in left_out and layer.weight > 0]
    finite = [size for size in sizes if not math.isnan(size)]
    return median(finite) if finite else 0.0


def _labels(case: Case) -> Iterator[Finding]:
    """The network learns nothing though its weights move, and neither does a simple classifier of the pixels."""
    moves = any(  # at the end of a schedule steps are small
        _step_size(signs, set()) > 1e-6 and any(layer.gradient for layer in signs.layers) for signs in case.signs
    )
    if case.broke_off or case.steps < FEW_STEPS or not moves or not case.epochs:
        return
    epoch, task = case.epochs[-1], case.task
    guessed = case.guesses(epoch)
    if epoch.val_accuracy is not None and epoch.epoch > 1:  # what is seen again can be learnt by heart
        guessed = above_chance(epoch.val_accuracy, task.val_guess, task.val_images) < CHANCE
        guessed = guessed and (epoch.val_loss or 0.0) >= (1 - LEARNT) * task.val_entropy
    if not guessed or epoch.train_loss > WORSE * task.entropy or (epoch.epoch == 1 and not case.stuck):
        return
    score = case.informative()
    if score < CHANCE:
        evidence: dict[str, float | str] = {"loss": epoch.train_loss, "entropy_of_the_labels": task.entropy}
        evidence |= {"accuracy": epoch.score, "of_guessing": task.guess, "simple_classifier_above_chance": score}
        advice = "check that labels and images belong together: nothing in the pixels tells the classes apart"
        yield _finding(case, "labels without information", evidence, advice)


def _saturated_later(case: Case) -> Iterator[Finding]:
    last = case.signs[-1]
    layer = _worst(last, "saturated")
    if case.stuck and layer is not None and (layer.saturated or 0.0) >= SATURATED:
        evidence: dict[str, float | str] = {"saturated_share": layer.saturated or 0.0}
        yield _finding(case, "saturated units", evidence, "lower the learning rate, or use ReLU", layer.name, last)


def _exploding(case: Case) -> Iterator[Finding]:
    if not case.stuck:
        return
    norms = [(math.hypot(*(layer.gradient or 0.0 for layer in signs.layers)), signs) for signs in case.signs]
    numbers = [one for one in norms if not math.isnan(one[0])]
    norm, at = (numbers or norms)[-1]  # that of deep networks with norms is large in some step now and then
    if norm >= EXPLODED:
        layer = max(at.layers, key=lambda one: one.gradient or 0.0)
        evidence: dict[str, float | str] = {"gradient_norm": norm, "of_the_layer": layer.gradient or 0.0}
        advice = "lower the learning rate, draw smaller weights, or put norms between the layers"
        yield _finding(case, "exploding gradients", evidence, advice, layer.name, at)


def _vanishing(case: Case) -> Iterator[Finding]:
    last = case.signs[-1]
    to_train = [layer for layer in last.layers if layer.gradient is not None]
    largest = max((_relative(layer) for layer in to_train), default=0.0)
    gone = [layer for layer in to_train if _relative(layer) <= VANISHED * largest]
    first = bool(to_train) and to_train[0] in gone
    if case.stuck and not case.broke_off and first and len(gone) >= _VANISHED_LAYERS * len(to_train) and largest > 0:
        least = min(gone, key=_relative)
        evidence: dict[str, float | str] = {"gradient_norm": least.gradient or 0.0, "layers": len(gone)}
        evidence["share_of_the_largest"] = _relative(least) / largest
        advice = "use ReLU with He's initialisation, norms between the layers, or shortcuts around them"
        yield _finding(case, "vanishing gradients", evidence, advice, least.name, last)


def _relative(layer: LayerSigns) -> float:
    """The norm of a layer's gradient as a share of its weights'; 0 where there are no numbers."""
    share = (layer.gradient or 0.0) / layer.weight if layer.weight else layer.gradient or 0.0
    return share if math.isfinite(share) else 0.0


def _not_finite(case: Case) -> Iterator[Finding]:
    if not case.broke_off:
        return
    evidence: dict[str, float | str] = {"steps_seen": case.steps}
    first = case.signs[0] if case.signs else None
    if first is None or first.steps_done > 1 or math.isfinite(first.loss):
        yield _finding(case, NOT_FINITE, evidence, "lower the learning rate")
        return
    drawn = next((layer.name for layer in case.layers if not math.isfinite(layer.gain)), "")
    advice = "look at how the weights are drawn, and at what forward computes: the loss was so before the first update"
    yield _finding(case, NOT_FINITE, evidence, advice, drawn, first)


def _diverging(case: Case) -> Iterator[Finding]:
    """The network guesses, and the loss of what is trained on is far worse than that of guessing."""
    if case.broke_off or not case.epochs:
        return
    epoch = case.epochs[-1]
    lowest = min(one.train_loss for one in case.epochs)
    far = case.steps >= FEW_STEPS and epoch.train_loss > WORSE * case.task.blind
    if case.guesses(epoch) and (far or case.lost):
        evidence: dict[str, float | str] = {"loss": epoch.train_loss, "loss_of_guessing": case.task.entropy}
        yield _finding(case, "loss diverging", {**evidence, "lowest": lowest}, "lower the learning rate")


def _guessing(case: Case) -> Iterator[Finding]:
    if case.stuck and not case.broke_off and case.long_enough and case.rate_reached:
        epoch = case.epochs[-1]
        evidence: dict[str, float | str] = {"accuracy": epoch.score, "of_guessing": case.task.guess}
        evidence |= {"loss": epoch.train_loss, "entropy_of_the_labels": case.task.entropy, "steps": case.steps}
        advice = "try a higher and a lower learning rate, and see what else is found"
        yield _finding(case, "accuracy of guessing", evidence, advice)


def _worst(signs: Signs, sign: str) -> LayerSigns | None:
    """The layer with the largest share, the first of equals; None if none is known."""
    known = [layer for layer in signs.layers if getattr(layer, sign) is not None]
    return max(known, key=lambda layer: float(getattr(layer, sign))) if known else None


_RULES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _scores, _inputs, _alike, _saturated_at_start, _large_weights, _dead_at_start, _rate_too_high, _cut, _frozen,
    _dropout, _labels, _dead_later, _saturated_later, _exploding, _vanishing, _rate_too_low, _not_finite, _diverging,
    _guessing,
)  # fmt: skip
"""What causes others first."""
