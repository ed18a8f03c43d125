"""How the machine is shared: trials at once, and what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_UNITS = 10_000  # to which Ray rounds a share of a GPU
_SLACK = 1e-6  # of what a division leaves


@dataclass(frozen=True)
class Slots:
    """How many trials run at once, and what each is given.

    `cpus` is the number of threads of a trial, `memory` the most bytes of images that it may hold (None: as many as
    there are); `precision`, `channels_last` and `compile` are those of `ComputeConfig`. With more than one of
    `processes` a trial is trained by so many together, and what it is given is given to each of them.
    """

    concurrent: int
    cpus: int
    gpus: float
    device: str
    memory: int | None = None
    precision: str = "auto"
    channels_last: bool = True
    compile: Literal["auto", "off"] = "off"
    processes: int = 1

    @property
    def compute(self) -> dict[str, Any]:
        """How a trial is computed, as the JSON of a ComputeConfig."""
        return {"precision": self.precision, "channels_last": self.channels_last, "compile": self.compile}


def shares(gpus: float, share: float) -> int:
    """How many trials with `share` GPUs each run at once on so many GPUs.

    Ray gives a trial a part of one GPU, never parts of several: with 0.4 there are two on each. It rounds a part to ten
    thousandths (Ray 2.60, `FixedPoint`), so that six parts of 1/6 are more than a GPU.
    """
    if share > 1:
        return int(gpus / share + _SLACK)
    return int(gpus + _SLACK) * (_UNITS // max(1, round(share * _UNITS)))
