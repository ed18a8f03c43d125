"""Configurations drawn without a sampler: anywhere in a space, or near one that is known; and as rows of numbers."""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tunelab.errors import InputError

Choice = TypeVar("Choice", bound="bool | int | float | str | None")
Array = npt.NDArray[np.float64]

_NEAR = 0.15
"""The standard deviation of a step from a known value, in units of its range (our choice)."""


class RangesError(InputError):
    """A space gives a name other choices, or another kind of range, than before."""


class Draw:
    """What a space asks for its values; it keeps them in `params`, and their ranges in `distributions`.

    Args:
        generator: what is random.
        near: a configuration to stay near; values that it lacks are drawn anywhere. None: all are.
        change: the probability that a value is not the one of `near`.
    """

    def __init__(self, generator: random.Random, near: Mapping[str, Any] | None = None, change: float = 0.0) -> None:
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self._generator = generator
        self._near = near or {}
        self._change = change

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """One of `choices`."""
        choices = tuple(choices)
        keeps = name in self._near and self._generator.random() >= self._change
        value: Any = self._near[name] if keeps and self._near[name] in choices else self._generator.choice(choices)
        chosen: Choice = self._take(name, _categorical(choices), value)
        return chosen

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer in [low, high]."""
        return int(self._number(name, _int_range(low, high, step, log)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""
        return float(self._number(name, _float_range(low, high, step, log)))

    def _number(self, name: str, scale: Scale) -> float:
        if name not in self._near:
            place = self._generator.random()
        else:
            place = scale.place_of(self._near[name])
            if self._generator.random() < self._change:
                place = reflect(place + self._generator.gauss(0.0, _NEAR))
        value = self._take(name, scale.distribution, scale.value_at(min(max(place, 0.0), 1.0)))
        return float(value)

    def _take(self, name: str, distribution: BaseDistribution, value: Any) -> Any:
        if name in self.params:  # asked for again: the same answer, as Optuna gives
            require_same_kind(name, self.distributions[name], distribution)
            known = self.params[name]
            outside = isinstance(distribution, (IntDistribution, FloatDistribution)) and not (
                distribution.low <= known <= distribution.high
            )
            if outside:
                raise RangesError(f"the space asks for {name!r} twice, and its value {known!r} is not in both ranges")
            return known
        self.params[name] = value
        self.distributions[name] = distribution
        return value


def reflect(place: float) -> float:
    """The place inside [0, 1] that a step beyond an end comes back to."""
    place = abs(place) % 2.0
    return 2.0 - place if place > 1.0 else place


class Scale:
    """Where a value lies in its range, as a number in [0, 1]; on a logarithmic scale where the range has one.

    Integers and steps have equal shares of [0, 1].
    """

    def __init__(self, distribution: IntDistribution | FloatDistribution) -> None:
        self.distribution = distribution
        half = (distribution.step or 0) / 2
        ends = distribution.low - half, distribution.high + half
        self._low, high = (math.log(ends[0]), math.log(ends[1])) if distribution.log else ends
        self._width = high - self._low

    def place_of(self, value: float) -> float:
        """The place of a value."""
        scaled = math.log(value) if self.distribution.log else value
        return (scaled - self._low) / self._width if self._width > 0 else 0.5

    def places_of(self, values: Array) -> Array:
        """The places of values (n,), NaN of NaN."""
        if self._width <= 0:
            return np.where(np.isnan(values), np.nan, 0.5)
        scaled = np.log(values) if self.distribution.log else values
        found: Array = (scaled - self._low) / self._width
        return found

    def value_at(self, place: float) -> float:
        """The value at a place."""
        one = self.distribution
        value = self._low + place * self._width
        value = math.exp(value) if one.log else value
        if one.step is not None:
            value = one.low + round((value - one.low) / one.step) * one.step
        value = min(max(value, one.low), one.high)
        return int(value) if isinstance(one, IntDistribution) else value


def _categorical(choices: tuple[Any, ...]) -> CategoricalDistribution:
    return _categorical_of(choices, tuple(type(choice) for choice in choices))


@functools.lru_cache(maxsize=10_000)
def _categorical_of(choices: tuple[Any, ...], _types: tuple[type, ...]) -> CategoricalDistribution:
    """One object for equal choices of the same types: (0, 1) and (False, True) are equal."""
    return CategoricalDistribution(choices)


@functools.lru_cache(maxsize=10_000)
def _int_range(low: int, high: int, step: int, log: bool) -> Scale:
    return Scale(IntDistribution(low, high, log=log, step=step))


@functools.lru_cache(maxsize=10_000)
def _float_range(low: float, high: float, step: float | None, log: bool) -> Scale:
    return Scale(FloatDistribution(low, high, log=log, step=step))


def merge(
    known: dict[str, BaseDistribution], found: Iterable[Mapping[str, BaseDistribution]]
) -> dict[str, BaseDistribution]:
    """Adds ranges of parameters to those that are known; the first range of a name stays.

    Raises:
        RangesError: as `require_same_kind`.
    """
    for distributions in found:
        for name, distribution in distributions.items():
            require_same_kind(name, known.setdefault(name, distribution), distribution)
    return known


def require_same_kind(name: str, known: BaseDistribution, found: BaseDistribution) -> None:
    """Passes if only the ends of a range differ.

    Raises:
        RangesError: a parameter comes with other choices than before, or a range of another kind.
    """
    if known is not found and _kind(known) != _kind(found):
        raise _other_kind(name, known, _described(found))


def _kind(distribution: BaseDistribution) -> tuple[Any, ...]:
    choices = getattr(distribution, "choices", None)
    types = None if choices is None else tuple(map(type, choices))
    return type(distribution), choices, types, getattr(distribution, "log", None)


def _other_kind(name: str, known: BaseDistribution, found: str) -> RangesError:
    return RangesError(
        f"the space gives {name!r} {_described(known)} in one configuration and {found} in another; a name must always "
        "come with the same choices or the same kind of range: give each a name of its own"
    )


def _described(distribution: BaseDistribution) -> str:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return f"the choices {tuple(choices)}"
    numbers = "integers" if isinstance(distribution, IntDistribution) else "numbers"
    return f"a {'logarithmic ' if getattr(distribution, 'log', False) else ''}range of {numbers}"


_ABSENT = object()  # in place of the value of a parameter that a configuration does not have


class Encoder:
    """Configurations as rows of numbers; columns are named in the order in which parameters are met.

    A number is its place in its range. A choice among numbers is its place among them in order, another choice has a
    column for each of its values. What is inactive is NaN. Parameters whose names differ by their digits alone, such as
    the kinds of blocks 1 to 12, also have columns in common: the mean of the numbers, the share of each choice.

    Args:
        distributions: of every parameter that is known so far.
        pooled: leaves the columns of such parameters out, and keeps what they have in common.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, pooled: bool) -> None:
        self.distributions = dict(distributions)
        groups: dict[str, list[str]] = {}
        for name in distributions:
            groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
        self._groups = {group: names for group, names in groups.items() if len(names) > 1}
        positional = {name for names in self._groups.values() for name in names} if pooled else set()
        self._single = [name for name in distributions if name not in positional]
        self._columns = {name: _Columns(name, distribution) for name, distribution in distributions.items()}

    def rows(self, params: Sequence[Mapping[str, Any]]) -> Array:
        """One row per configuration, (n, columns); what is inactive is NaN.

        Raises:
            InputError: a configuration has a value that is none of the choices of its parameter.
        """
        nowhere = np.full(len(params), np.nan)
        known = {
            name: columns.of([one.get(name, _ABSENT) for one in params], nowhere)
            for name, columns in self._columns.items()
        }
        columns = [column for name in self._single for column in known[name]]
        for names in self._groups.values():
            columns += [_mean_of_known(together) for together in zip(*(known[name] for name in names), strict=False)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(params), 0))


class _Columns:
    """The columns of one parameter."""

    def __init__(self, name: str, distribution: BaseDistribution) -> None:
        self._name = name
        self._distribution = distribution
        self._choices = getattr(distribution, "choices", None)
        self._scale: Scale | None = None
        self._rank: dict[float, float] = {}
        self._asked: tuple[Any, ...] = ()
        if self._choices is None:
            assert isinstance(distribution, (IntDistribution, FloatDistribution))
            self._scale = Scale(distribution)
        elif all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in self._choices):
            ordered = sorted(float(choice) for choice in self._choices)
            self._rank = {value: place / max(1, len(ordered) - 1) for place, value in enumerate(ordered)}
        else:
            self._asked = self._choices[1:] if len(self._choices) == 2 else self._choices

    def of(self, values: Sequence[Any], nowhere: Array) -> list[Array]:
        """A value for each configuration, `_ABSENT` where it has none; `nowhere` is a column of NaN."""
        there = {value for value in values if value is not _ABSENT}
        for value in there:
            if isinstance(value, (str, type(None))) if self._choices is None else value not in self._choices:
                raise _other_kind(self._name, self._distribution, f"the value {value!r}")
        if not there:
            return [nowhere] * (len(self._asked) or 1)
        if self._scale is not None:
            return [self._scale.places_of(np.array([np.nan if one is _ABSENT else one for one in values], dtype=float))]
        if self._rank:
            return [np.array([np.nan if one is _ABSENT else self._rank[float(one)] for one in values])]
        return [
            np.array([np.nan if one is _ABSENT else float(one == choice) for one in values]) for choice in self._asked
        ]


def _mean_of_known(columns: Sequence[Array]) -> Array:
    """The mean of columns (n,), without what is NaN; NaN where all are."""
    together = np.stack(columns)
    there = ~np.isnan(together)
    count = there.sum(axis=0)
    # Added in order, so that a row is the same whatever others are encoded with it: numpy's own order depends on that.
    total: Array = sum(np.where(there, together, 0.0), np.zeros(together.shape[1]))
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
