"""Says what is wrong with a network while it is trained, from a few of its steps: `Health`, an observer.

It looks at the steps 1, 2, 4, 16, 64 and so on of the first epoch and at the last step of every epoch, and judges at
the end of each epoch, or where the training breaks off. It changes no number of the training.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunelab.data.batches import Batch, Split
from tunelab.files import NO_ROOM, make_private, read_json
from tunelab.records import EpochMetrics, Finding
from tunelab.training.cases import Case, Task, hopeless
from tunelab.training.evaluate import Evaluation
from tunelab.training.label_signal import signal
from tunelab.training.observe import Look, Scene
from tunelab.training.verdicts import judge
from tunelab.training.vital_signs import (
    LEAST_IMAGES,
    LayerSigns,
    LayerStart,
    ScoreSigns,
    Sensors,
    Signs,
    begin_of,
    dropout_of,
    weights_of,
)

FILE = "health.json"
_SECONDS = 30.0  # after which the file is written again if it has nothing new but looks; our choice
_RECENT = 4  # epochs whose looks are kept, beside the first, the second, the fourth and so on; our choice


class Health:
    """Looks at a training and judges it: `findings`, in the order in which they were found.

    Each name is told once, and what causes the others once more when hope is given up.

    `hopeless` says why nothing can come of the training any more, "" while something may. What was found and seen is
    written to `health.json` in the trial's folder, at once where something is found, and taken up again from there.

    Args:
        folder: the trial's; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.findings: list[Finding] = []
        self.hopeless = ""
        self._file = None if folder is None else folder / FILE
        self._sensors: Sensors | None = None
        self._written = -math.inf

    def begin(self, scene: Scene) -> None:
        """A network without a past is looked at as it was drawn; of another, what was known before is read."""
        self._history = list(scene.history)
        self._task = task_of(scene)
        self._dropout = dropout_of(scene.model)
        self._least = min(LEAST_IMAGES, scene.config.train.batch_size, len(scene.train.labels))
        self._informative = functools.lru_cache(maxsize=1)(
            functools.partial(signal, scene.train, scene.val, len(scene.info.classes))
        )
        self.findings, self.hopeless = [], ""
        self._signs: list[Signs] = []
        self._layers: tuple[LayerStart, ...] = ()
        if not self._history:
            self._layers = begin_of(scene.model)
        elif self._file is not None:
            self._take_up(_read(self._file))
        alike = {layer.name for layer in self._layers if layer.alike}
        self._alike = {name: weight for name, weight in weights_of(scene.model).items() if name in alike}

    def wants(self, epoch: int, step: int, steps: int) -> bool:
        """True for the last step of an epoch, and in the first for the steps 1, 2, 4, 16, 64 and so on."""
        number = step + 1
        return number == steps or (epoch == 1 and number & step == 0 and (number == 2 or number.bit_length() % 2 == 1))

    def before(self, model: nn.Module, batch: Batch) -> None:
        """Puts hooks on the network."""
        enough = len(batch.labels) >= self._least  # else it is a small part of a batch
        self._sensors = Sensors(model, batch.images, with_inputs=not self._signs, with_dead=enough)

    def after(self, look: Look) -> None:
        """Takes them off and keeps what they saw."""
        assert self._sensors is not None
        self._signs.append(self._sensors.read(look, self._alike))
        self._sensors = None

    def epoch_ended(self, metrics: EpochMetrics, evaluation: Evaluation | None, model: nn.Module) -> None:
        """Judges the training so far.

        Raises:
            OSError: `health.json` could not be written.
        """
        self._history.append(metrics)
        self._conclude("")

    def broke_off(self, reason: str) -> None:
        """Judges a training that has left the finite numbers, `reason` says how.

        Raises:
            OSError: `health.json` could not be written.
        """
        if self._sensors is not None:
            self._sensors.off()
        self._conclude(reason)

    def _conclude(self, broke_off: str) -> None:
        case = Case(self._task, self._layers, self._dropout, self._signs, self._history, broke_off, self._informative)
        known = {finding.name for finding in self.findings}
        had_hope, self.hopeless = not self.hopeless, hopeless(case)
        found = judge(case)
        new = [finding for finding in found if finding.name not in known]
        if self.hopeless and had_hope:
            new = _marked(found, new)
        self.findings += new
        self._signs = _kept(self._signs)
        if self._file is not None and (new or had_hope == bool(self.hopeless) or self._is_time()):
            self._written = time.monotonic()
            _write(self._file, to_json(self.findings, self._layers, self._signs, self.hopeless))

    def _is_time(self) -> bool:
        """True after the first epoch, the second, the fourth and so on, after the last, and when some time is past."""
        epochs = len(self._history)
        regular = epochs & (epochs - 1) == 0 or epochs >= self._task.epochs
        return regular or time.monotonic() > self._written + _SECONDS

    def _take_up(self, content: Mapping[str, Any]) -> None:
        """Goes on from what a file tells of the epochs that there are."""
        epochs = len(self._history)
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of another version: the past is not known then
            layers, signs = from_json(content)
            findings = [Finding(**one) for one in content["findings"]]
            self._layers = layers
            self._signs = [one for one in signs if one.epoch <= epochs]
            self.findings = [one for one in findings if one.epoch <= epochs]


def _marked(found: Sequence[Finding], new: Sequence[Finding]) -> list[Finding]:
    """The new findings, and the first of all that are found, told as hopeless."""
    first = next((finding for finding in found if not finding.is_remark), None)
    if first is None:
        return list(new)
    return [replace(first, hopeless=True), *(finding for finding in new if finding is not first)]


def task_of(scene: Scene) -> Task:
    """What there is to learn from the images of a scene."""
    train, classes = scene.config.train, len(scene.info.classes)
    smoothing = train.label_smoothing
    guess, shares = _shares(scene.train, classes)
    val_guess, val_shares = _shares(scene.val, classes) if scene.val is not None else (guess, shares)
    images = len(scene.train.labels)
    size = min(train.batch_size, images)
    return Task(
        classes=classes,
        images=images // size * size,
        guess=guess,
        entropy=_entropy([(1 - smoothing) * share + smoothing / classes for share in shares]),
        val_images=0 if scene.val is None else len(scene.val.labels),
        val_guess=val_guess,
        val_entropy=_entropy(val_shares),
        epochs=train.epochs,
        peak_lr=max(train.lr, *(stage.lr for stage in train.stages)) if train.stages else train.lr,
        normalised=scene.config.data.normalise,
    )


def _shares(split: Split, classes: int) -> tuple[float, list[float]]:
    """The share of the most frequent class, and of each."""
    counts = torch.bincount(split.labels, minlength=classes)
    shares = (counts / max(1, len(split.labels))).tolist()
    return max(shares), shares


def _entropy(shares: Sequence[float]) -> float:
    """In nats."""
    return -sum(share * math.log(share) for share in shares if share > 0)


def _kept(signs: Sequence[Signs]) -> list[Signs]:
    """The looks of the first epoch, of the last few, and of the second, fourth, eighth and so on."""
    last = signs[-1].epoch if signs else 0
    return [one for one in signs if one.epoch & (one.epoch - 1) == 0 or one.epoch > last - _RECENT]


def to_json(
    findings: Sequence[Finding], layers: Sequence[LayerStart], signs: Sequence[Signs], why_hopeless: str
) -> dict[str, Any]:
    """What `health.json` holds; numbers that are not finite are null, and layers are named once for all looks."""
    return {
        "findings": [finding.to_json() for finding in findings],
        "hopeless": why_hopeless,
        "start": [{**asdict(layer), "gain": _plain(layer.gain)} for layer in layers],
        "layers": [layer.name for layer in signs[-1].layers] if signs else [],
        "looks": [_look_to_json(one) for one in signs],
    }


def from_json(content: Mapping[str, Any]) -> tuple[tuple[LayerStart, ...], list[Signs]]:
    """The layers at the start and the looks that `to_json` wrote; what was not finite is NaN.

    Raises:
        KeyError, TypeError, ValueError: another version wrote it.
    """
    names = content["layers"]
    signs = []
    for look in content["looks"]:
        columns = [look["layers"][name] for name in _COLUMNS]
        rows = zip(names, *columns, strict=True)
        layers = tuple(
            LayerSigns(name, _number(weight), gradient, _number(update), dead, saturated)
            for name, weight, gradient, update, dead, saturated in rows
        )
        scores = None if look["scores"] is None else ScoreSigns(**look["scores"])
        inputs = None if look["inputs"] is None else (_number(look["inputs"][0]), _number(look["inputs"][1]))
        place, rate, loss = (look["epoch"], look["step"], look["steps"]), _number(look["lr"]), _number(look["loss"])
        unmoved = tuple(look["alike"]), tuple(look.get("idle", ()))
        signs.append(Signs(*place, rate, loss, layers, scores, inputs, *unmoved))
    return tuple(LayerStart(**{**one, "gain": _number(one["gain"])}) for one in content["start"]), signs


_COLUMNS = ("weight", "gradient", "update", "dead", "saturated")


def _look_to_json(signs: Signs) -> dict[str, Any]:
    return {
        **{name: getattr(signs, name) for name in ("epoch", "step", "steps")},
        **{name: _plain(getattr(signs, name)) for name in ("lr", "loss")},
        "inputs": None if signs.inputs is None else [_plain(value) for value in signs.inputs],
        "scores": None
        if signs.scores is None
        else {name: _plain(value) if isinstance(value, float) else value for name, value in vars(signs.scores).items()},
        "alike": list(signs.alike),
        "idle": list(signs.idle),
        "layers": {name: [_plain(getattr(layer, name)) for layer in signs.layers] for name in _COLUMNS},
    }


def _plain(value: float | None) -> float | None:
    """A number with four digits; None where it is not finite."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _read(file: Path) -> dict[str, Any]:
    """The content of a file; nothing where it is not there or is damaged."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, but not forced to the disk: it can be done without, and is where there is no room."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        make_private(file.parent)
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        temporary.unlink(missing_ok=True)
