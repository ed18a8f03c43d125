"""What an ablation compares: one configuration, and the same with one component changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tunelab.config import TrialConfig

REMOVED: Final = "removed"
BACK: Final = "as in the baseline"

Changes: TypeAlias = dict[str, TrialConfig | str]
"""What becomes of a component, in words -> the configuration then, or the reason why there is none."""

Component: TypeAlias = Callable[[TrialConfig, TrialConfig], Changes]
"""(a configuration, the baseline) -> the changes; those that change nothing may be among them."""


@dataclass(frozen=True)
class Variant:
    """A configuration with one component changed.

    `component` is a key of the components in `tunelab.analysis.components`; `change` says what became of it, such as
    "removed"; `what` are the values before and after, such as "label_smoothing 0.1 -> 0".
    """

    component: str
    change: str
    what: str
    config: TrialConfig

    @property
    def name(self) -> str:
        """Component and change in words: "mixup, removed"."""
        return f"{self.component}, {self.change}"


@dataclass(frozen=True)
class Ablation:
    """The comparisons of one configuration, trial `trial` of a study, with its variants.

    `baseline` says where the values come from that components are put back to. `same` are the components that are the
    same there already or play no part; `left_out` are variants that are not trained, by name, each with the reason.
    Each configuration is trained with every seed of `seeds`, into `folder`.
    """

    trial: int
    winner: TrialConfig
    baseline: str
    variants: tuple[Variant, ...]
    same: tuple[str, ...]
    left_out: Mapping[str, str]
    seeds: tuple[int, ...]
    folder: Path

    @property
    def trainings(self) -> int:
        """How many trainings there are to be, those of the configuration itself included."""
        return (1 + len(self.variants)) * len(self.seeds)
