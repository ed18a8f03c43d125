"""What a search takes its configurations from; and the simplest such source, a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunelab.config import TrialConfig, arch_id, to_json
from tunelab.records import Trial, TrialStatus


@dataclass(frozen=True)
class Proposal:
    """A configuration to train, the suggested values it was made of, the size of its network, where it came from.

    Its batches are computed in `split` parts.
    """

    config: TrialConfig
    params: Mapping[str, Any]
    stats: Mapping[str, Any]
    origin: str
    split: int = 1

    def as_trial(self, number: int) -> Trial:
        """A trial of it that has not begun."""
        return Trial(
            number=number,
            config=to_json(self.config),
            params=dict(self.params),
            stats=dict(self.stats),
            arch_id=arch_id(self.config.arch),
            origin=self.origin,
            split=self.split,
        )


class Source(Protocol):
    """Where the engine gets configurations from, and whom it tells how they fared."""

    def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
        """The configuration of trial `number`, in view of all trials so far, but those that do not count any more.

        `trials` is always the same mapping, to which trials are added.
        """

    def adopt(self, trial: Trial) -> None:
        """Hears of a trial that it did not propose: a repeat."""

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Trial `number` has this score after `epoch` epochs."""

    def end(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float]) -> None:
        """Trial `number` will not go on; `costs` are what is known of those of tunelab.tuning.objectives."""

    def restore(self, trials: Iterable[Trial]) -> None:
        """Takes back the trials of an earlier start."""


Check = Callable[[TrialConfig], Mapping[str, Any]]
"""From a configuration to the size of its network; raises RefusedError if it cannot work or is beyond the limits."""


class FixedSource:
    """Configurations from a list: trial n is entry n. Their batches are computed in `split` parts."""

    def __init__(self, configs: Sequence[TrialConfig], check: Check, split: int = 1) -> None:
        self._configs = configs
        self._check = check
        self._split = split

    def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
        """Entry `number`."""
        return Proposal(self._configs[number], {}, self._check(self._configs[number]), "given", self._split)

    def adopt(self, trial: Trial) -> None:
        """Nothing is learnt."""

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Nothing is learnt."""

    def end(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float]) -> None:
        """Nothing is learnt."""

    def restore(self, trials: Iterable[Trial]) -> None:
        """Nothing is kept."""
