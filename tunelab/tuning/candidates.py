"""Candidates of a search by a model, and the rows of numbers that the model knows configurations by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution

from tunelab.records import Trial
from tunelab.tuning.draws import Encoder, merge

Array = npt.NDArray[np.float64]
Configuration = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Parameters, and the size of the network."""

_SPAN = 1000.0  # the networks of a space differ so much in size, as a rule; our choice


@dataclass(frozen=True)
class Candidate:
    """A drawn configuration: whatever the space made of it, its parameters, their ranges and its size."""

    config: Any
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """Candidates, the ranges of their parameters, and the names of the sizes of their networks."""

    candidates: list[Candidate]
    ranges: dict[str, BaseDistribution]
    sizes: set[str]

    @classmethod
    def of(cls, candidates: list[Candidate]) -> Drawn:
        """With what these have."""
        sizes = {name for one in candidates for name, value in one.stats.items() if _is_size(value)}
        return cls(candidates, merge({}, (one.distributions for one in candidates)), sizes)


class CandidateRows:
    """Rows for one round of candidates: inactive parameters in the middle, sizes of networks as logarithms.

    A size is 1 more where it is `_SPAN` times as large, whatever the other networks are, so that rows of one round fit
    those of another one and of an earlier study.
    """

    def __init__(self, encoder: Encoder, drawn: Drawn, rows: Rows) -> None:
        self._encoder = encoder
        self._sizes = sorted(drawn.sizes)
        self.key = (encoder.distributions, self._sizes)  # rows of scales with equal keys can be compared
        self._rows = rows
        rows.begin(self.key)
        self.candidates = self.rows(drawn.candidates)

    def rows(self, configurations: Sequence[Trial | Candidate]) -> Array:
        """(n, columns)."""
        return self._rows.of([(one.params, one.stats) for one in configurations], self._encode)

    def _encode(self, params: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Any]]) -> Array:
        rows = self._encoder.rows(params)
        return np.hstack([np.where(np.isnan(rows), 0.5, rows), self._log_sizes(stats)])

    def _log_sizes(self, stats: Sequence[Mapping[str, Any]]) -> Array:
        return np.array(
            [
                [
                    math.log(max(float(one[name]), 1e-6), _SPAN) if _is_size(one.get(name)) else 0.0
                    for name in self._sizes
                ]
                for one in stats
            ]
        ).reshape(len(stats), len(self._sizes))


class Rows:
    """The rows of the last two rounds, so that a configuration is not encoded at every proposal."""

    def __init__(self) -> None:
        self._scale: Any = None
        self._last: dict[tuple[int, int], tuple[Configuration, Array]] = {}
        self._now: dict[tuple[int, int], tuple[Configuration, Array]] = {}

    def begin(self, scale: Any) -> None:
        """A new round; what is known is forgotten if rows are made differently now."""
        self._last = self._now if self._scale == scale else {}
        self._scale, self._now = scale, {}

    def of(
        self,
        configurations: Sequence[Configuration],
        encode: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Array],
    ) -> Array:
        """(n, columns); a configuration is known by which object it is, and kept so that no other takes its place."""
        keys = [(id(params), id(stats)) for params, stats in configurations]
        for key in keys:
            if key not in self._now and key in self._last:
                self._now[key] = self._last[key]
        new = {key: one for key, one in zip(keys, configurations, strict=True) if key not in self._now}
        if new or not keys:
            rows = encode([params for params, _ in new.values()], [stats for _, stats in new.values()])
            if not keys:
                return rows
            self._now.update({key: (one, row) for (key, one), row in zip(new.items(), rows, strict=True)})
        return np.stack([self._now[key][1] for key in keys])


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
