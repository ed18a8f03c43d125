"""What a trial takes of memory, from what was measured of others; plain arithmetic.

It is a base, whatever the network, and a part that grows with the outputs of its convolutions in a batch, which are
kept for the backward pass. The weights count too where there are many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunelab.tuning.speed import Load

CONTEXT_MIB = 500.0
"""What a process holds on a GPU beside tensors: context and kernels; our estimate."""
_BUILT_MIB = 40.0  # what libraries take when a network is first trained, whatever its size; measured
_WEIGHT_BYTES = 20  # weight, gradient, two moments of Adam, and the copy that a look at a step makes
_LEAST_WEIGHT_BYTES = 8  # weight and gradient: no training takes less
_SURE = 0.7  # of what is predicted: that much a trial takes if the prediction is far off; our choice


@dataclass(frozen=True)
class Footprint:
    """What trials take, in MiB: `base` each, and `each` for an output of a convolution (as `Load` counts them)."""

    base: float
    each: float

    def predict(self, load: Load, params: float, parts: int = 1) -> float:
        """What a trial takes whose network has `params` weights and whose batches are computed in `parts`."""
        return self.base + self._activations(load, parts) + params * _WEIGHT_BYTES / 2**20

    def at_least(self, load: Load, params: float, parts: int) -> float:
        """What a network takes in any case, beside its process."""
        return _SURE * self._activations(load, parts) + params * _LEAST_WEIGHT_BYTES / 2**20

    def _activations(self, load: Load, parts: int) -> float:
        return self.each * load.activations * max(1.0, load.batch_size / parts)


class Peaks:
    """What was measured of trials in processes of their own, on a device ("cpu" or "cuda")."""

    def __init__(self, device: str) -> None:
        self._extra = CONTEXT_MIB if device == "cuda" else 0.0
        self._base = 0.0
        self._largest = 0.0
        self._found: list[tuple[float, float]] = []

    def learn(self, load: Load, found: Sequence[Mapping[str, Any]]) -> None:
        """Takes in what processes measured that trained a network of this load, as `Measured` has it."""
        if not self._base:
            self._base = max(one["idle"] for one in found)
        peak = max(one["memory"] for one in found)
        self._largest = max(self._largest, peak)
        self._found.append((load.activations * load.batch_size, peak - self._base - _BUILT_MIB))

    def most(self, loads: Iterable[Load]) -> float:
        """What the largest of these needs, never less than what was measured."""
        largest = max(load.activations * load.batch_size for load in loads)
        return self._extra + max(self._largest, self._base + _BUILT_MIB + self._slope * largest)

    def footprint(self, beside: float) -> Footprint:
        """What trials take, `beside` MiB more each than what was measured."""
        return Footprint(self._base + _BUILT_MIB + self._extra + beside, self._slope)

    @property
    def _slope(self) -> float:
        size, extra = max(self._found)
        return max(0.0, extra) / size if size else 0.0  # fully connected networks have no convolutions
