"""How the machine is shared: trials at once, and what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Slots:
    """How many trials run at once, and what each is given.

    `cpus` is the number of threads of a trial, `memory` the most bytes of images that it may hold (None: as many as
    there are); `precision`, `channels_last` and `compile` are those of `ComputeConfig`.
    """

    concurrent: int
    cpus: int
    gpus: float
    device: str
    memory: int | None = None
    precision: str = "auto"
    channels_last: bool = True
    compile: Literal["auto", "off"] = "off"

    @property
    def compute(self) -> dict[str, Any]:
        """How a trial is computed, as the JSON of a ComputeConfig."""
        return {"precision": self.precision, "channels_last": self.channels_last, "compile": self.compile}
