"""What a record must hold to be believed: each event is checked before anything is made of it.

A line that fits its checksum was written whole, but not always by tunelab: a record may be edited, of a later version,
or a stranger's. What is unknown is passed over, so that records of later versions are read; what is known has the type
and the range that it must have. Reading a large study is timed: each check costs far less than the line's own JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from tunelab.errors import InputError
from tunelab.records import EpochMetrics, Finding, TrialStatus

KINDS = "proposed", "result", "decision", "retried", "ended"
"""The events that trials are made of; a later version may know more."""
_LATEST = 1e11
_METRICS = frozenset(field.name for field in dataclasses.fields(EpochMetrics))
_FINDING = frozenset(field.name for field in dataclasses.fields(Finding))
_MOST = 10**9
"""No number of a trial or of an epoch is as large (our choice)."""
_MOST_DIGITS = 300
"""Numbers in configurations have fewer digits: Python itself refuses to write those of 4,301."""


class BadEventError(InputError):
    """An event lacks something, or has something that cannot be."""


def epoch_of(plain: Any) -> EpochMetrics:
    """The metrics of an epoch; names that this version does not know are passed over.

    Raises:
        BadEventError: a name is missing, or a value is no number of its range.
    """
    try:
        metrics = EpochMetrics(**plain)
    except TypeError:
        if not isinstance(plain, Mapping):
            raise BadEventError(f"metrics is {_short(plain)}; it must be names and numbers") from None
        metrics = _known_metrics(plain)
    try:
        # Adding up finds what is no number, and what is not finite, in one go.
        total = metrics.train_loss + metrics.lr + metrics.images_per_second + metrics.peak_memory_mib
        for more in (metrics.val_loss, metrics.weight_norm, metrics.grad_norm, metrics.update_ratio):
            if more is not None:
                total += more
        good = (
            math.isfinite(total)
            and type(metrics.epoch) is int
            and 1 <= metrics.epoch < _MOST
            and 0.0 <= metrics.train_accuracy <= 1.0
            and (metrics.val_accuracy is None or 0.0 <= metrics.val_accuracy <= 1.0)
            and 0.0 <= metrics.seconds < math.inf
        )
    except (TypeError, OverflowError):
        good = False
    if not good:
        raise BadEventError(f"metrics are {_short(plain)}; all must be finite numbers, accuracies from 0 to 1")
    return metrics


def _known_metrics(plain: Mapping[str, Any]) -> EpochMetrics:
    try:
        return EpochMetrics(**{name: value for name, value in plain.items() if name in _METRICS})
    except TypeError as error:
        raise BadEventError(f"metrics are incomplete ({str(error).partition(') ')[2]})") from None


def finding_of(plain: Any) -> Finding:
    """What was found wrong; names that this version does not know are passed over.

    Raises:
        BadEventError: a name is missing, or a value is of another type.
    """
    try:
        found: Any = Finding(**{name: value for name, value in plain.items() if name in _FINDING})
    except (TypeError, AttributeError):
        raise BadEventError(f"a finding is {_short(plain)}") from None
    texts = all(isinstance(text, str) for text in (found.name, found.layer, found.suggestion))
    steps = _is_count(found.epoch) and (found.step is None or _is_count(found.step))
    evidence = isinstance(found.evidence, Mapping) and all(map(_is_told, found.evidence.values()))
    if not texts or not steps or not evidence or not isinstance(found.hopeless, bool):
        raise BadEventError(f"a finding is {_short(plain)}")
    made: Finding = found
    return made


def require_proposal(event: Mapping[str, Any]) -> None:
    """Raises BadEventError if an event that proposes a trial lacks something, or it is of another type."""
    for name, kind in (("config", dict), ("params", dict), ("stats", dict), ("arch_id", str), ("origin", str)):
        if not isinstance(event.get(name, "" if name == "origin" else None), kind):
            raise BadEventError(f"{name} is {_short(event.get(name))}; it must be {_NAMES[kind]}")
    number, repeated = event["trial"], event.get("repeat_of")
    if repeated is not None and not (_is_count(repeated) and repeated < number):
        raise BadEventError(f"repeat_of is {_short(repeated)}; it must be the number of a trial before {number}")
    for name, value in event["stats"].items():
        if name in ("params", "mflops", "activations", "depth", "convs") and not _is_number(value):
            raise BadEventError(f"{name} of stats is {_short(value)}; it must be a number")
    if not _all_told(event["params"].values()):
        raise BadEventError(f"params are {_short(event['params'])}; all must be finite numbers, texts or null")
    _require_config(event["config"])


def _require_config(config: Mapping[str, Any]) -> None:
    """Refuses what everything that reads a study relies on; whole it is checked where it is trained again."""
    for section in ("arch", "train", "data"):
        if not isinstance(config.get(section, {}), dict):
            raise BadEventError(f"{section} of config is {_short(config[section])}; it must be names and values")
    train = config.get("train", {})
    for name, least in (("epochs", 1), ("batch_size", 1)):
        if name in train and not (_is_count(train[name]) and train[name] >= least):
            raise BadEventError(f"{name} of config is {_short(train[name])}; it must be a whole number from {least} on")
    for name in ("lr", "patience", "weight_decay", "momentum"):
        if train.get(name) is not None and not _is_number(train[name]):
            raise BadEventError(f"{name} of config is {_short(train[name])}; it must be a number")
    for name in ("schedule", "augment"):
        if not isinstance(train.get(name, {}), dict):
            raise BadEventError(f"{name} of config is {_short(train[name])}; it must be names and values")


def require_decision(plain: Any) -> dict[str, Any]:
    """A copy of a scheduler's decision.

    Raises:
        BadEventError: a number is missing, or is none.
    """
    if not isinstance(plain, dict) or not _is_count(plain.get("epoch")) or not isinstance(plain.get("why"), str):
        raise BadEventError(f"decision is {_short(plain)}; it must have an epoch and a reason")
    for name in ("score", "loss", "cutoff", "rank", "rivals", "places"):
        if not _is_number(plain.get(name)):
            raise BadEventError(f"{name} of a decision is {_short(plain.get(name))}; it must be a number")
    if not isinstance(plain.get("stop"), bool) or not _is_number(plain.get("noise", 0)):
        raise BadEventError(f"decision is {_short(plain)}; stop must be true or false, noise a number")
    return dict(plain)


def split_of(value: Any) -> int:
    """In how many parts batches are computed.

    Raises:
        BadEventError: it is no such number.
    """
    if not _is_count(value) or value < 1:
        raise BadEventError(f"split is {_short(value)}; it must be a number from 1 on")
    parts: int = value
    return parts


def retry_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was lost of and goes on from, as `Trial.retries` has it.

    Raises:
        BadEventError: something is missing, or of another type.
    """
    told = {name: value for name, value in event.items() if name not in ("event", "trial", "time", "crc")}
    split_of(told.get("split"))
    if (
        not isinstance(told.get("cause"), str)
        or not isinstance(told.get("why"), str)
        or not _is_count(told.get("epoch"))
    ):
        raise BadEventError(f"a retry is {_short(told)}; it must have a cause, a reason and an epoch")
    return told


def status_of(event: Mapping[str, Any]) -> TrialStatus:
    """How a trial ended.

    Raises:
        BadEventError: it is no status that this version knows, or the reason is no text.
    """
    if not isinstance(event.get("reason"), str):
        raise BadEventError(f"reason is {_short(event.get('reason'))}; it must be a text")
    try:
        return TrialStatus(event.get("status"))
    except ValueError:
        known = ", ".join(status.value for status in TrialStatus)
        raise BadEventError(f"status is {_short(event.get('status'))}; this version of tunelab knows {known}") from None


def kind_of(event: Any) -> str:
    """What an event tells of; "" if this version does not know it.

    Raises:
        BadEventError: it is no event.
    """
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise BadEventError(f"{_short(event)} is no event")
    kind: str = event["event"]
    return kind if kind in KINDS else ""


def number_of(event: Mapping[str, Any]) -> int:
    """The trial that an event is about.

    Raises:
        BadEventError: it names no trial, or its time is no number.
    """
    number, time = event.get("trial"), event.get("time", 0.0)
    if type(number) is not int or not 0 <= number < _MOST:
        raise BadEventError(f"trial is {_short(number)}; it must be a number from 0 on")
    if not _is_number(time) or time > _LATEST:
        raise BadEventError(f"time is {_short(time)}; it must be in seconds since 1970")
    return number


def texts_of(given: Any, what: str) -> list[str]:
    """A list of texts.

    Raises:
        BadEventError: it is none.
    """
    if not isinstance(given, (list, tuple)) or not all(isinstance(text, str) for text in given):
        raise BadEventError(f"{what} is {_short(given)}; it must be a list of texts")
    return list(given)


_NAMES: Mapping[type, str] = {dict: "names and values", str: "a text"}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 10**_MOST_DIGITS)


def _all_told(values: Collection[Any]) -> bool:
    """True if all are finite numbers, texts, lists or names: most are found to be so by adding them up."""
    with contextlib.suppress(TypeError, OverflowError):
        if math.isfinite(sum(value for value in values if type(value) is not str)):
            return True
    return all(_is_told(value) or isinstance(value, (list, dict)) for value in values)


def _is_told(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool)) or _is_number(value)


def _short(value: Any) -> str:
    """A value as it is told of: not too long, whatever it is."""
    said = _one(value)
    if isinstance(value, Mapping) and len(value) <= 20:
        said = "{" + ", ".join(f"{ascii(name)[:20]}: {_one(one)[:60]}" for name, one in value.items()) + "}"
    return said if len(said) <= 500 else f"{said[:500]} ..."


def _one(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
        return f"a number of more than {_MOST_DIGITS} digits"
    return ascii(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
