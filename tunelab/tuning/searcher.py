"""Configurations from a space: its baseline and starters, then what a model, one of Optuna's samplers or luck proposes.

What Optuna is told is the truth: every intermediate score, PRUNED for a trial that was stopped, COMPLETE for one of
full length alone, FAIL for one that diverged or failed (the sampler itself sees a diverged one, and one that failed at
once, as pruned before its first score: TPE ignores FAIL). A proposal depends on the study's seed, the trial's number
and the trials told so far, and on nothing else, so that a resumed search proposes what the unbroken one would have.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FixedTrial, TrialState

from tunelab.config import TrialConfig, config_id, derive_seed
from tunelab.errors import ExhaustedError, InputError, RefusedError
from tunelab.records import BY_MODEL, Trial, TrialStatus
from tunelab.space import SearchSpace, draw_config
from tunelab.tuning.candidates import Candidate
from tunelab.tuning.draws import Draw, RangesError, merge
from tunelab.tuning.ledger import STATES, Ledger, journal_storage, open_mirror
from tunelab.tuning.model_sampler import Earlier, ModelSampler
from tunelab.tuning.objectives import FIRST, NO_COSTS, costs_of
from tunelab.tuning.sources import Check, Proposal

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 500
_REHEARSED = 50  # draws in which a name that changes its choices is found out before anything is made; our choice


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "gp": _gp}
"""Optuna's own samplers; `model` is tunelab's, see tunelab.tuning.model_sampler, and `random` draws anywhere."""


class OptunaSource:
    """Configurations drawn from a space by a sampler, after its baseline and its starters.

    Args:
        space: what is drawn from.
        seed: the study's.
        sampler: `model`, `random`, or a key of SAMPLERS.
        complete: puts the data, the length and the seed of trial `number` into a drawn configuration.
        check: refuses what cannot work.
        storage: where Optuna's own journal is kept for its dashboard; it is rebuilt if it does not fit the record.
        first: origin and parameters of what is proposed after the baseline and before the starters; what does not fit
            the check is left out.
        history: numbers of trials that are no part of the search any more: the sampler is not told of them.
        epochs: the full length of a trial.
        earlier: studies that `model` learns from.
        objectives: what is to be good: the accuracy, and names of tunelab.tuning.objectives.COSTS.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        sampler: str,
        complete: Callable[[TrialConfig, int], TrialConfig],
        check: Check,
        storage: Path | None = None,
        first: Sequence[tuple[str, Mapping[str, Any]]] = (),
        history: Collection[int] = (),
        *,
        epochs: int = 1,
        earlier: Sequence[Earlier] = (),
        objectives: Sequence[str] = (FIRST,),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._seed = seed
        self._sampler = sampler
        self._complete = complete
        self._check = check
        self._memory = Ledger(InMemoryStorage(), space.name, objectives)
        self._study = optuna.load_study(study_name=space.name, storage=self._memory.storage)
        self._file = storage
        self._mirror: Ledger | None = None
        self._model = (
            ModelSampler(seed, epochs, self._candidate, earlier, objectives[1:]) if sampler == BY_MODEL else None
        )
        self._seen: set[str] = set()
        self._known: dict[str, BaseDistribution] = {}
        self._scores: dict[int, dict[int, float]] = {}
        self.refused: dict[str, int] = {}
        self._given = first
        self._history = frozenset(history)
        self._first: dict[str, tuple[str, Mapping[str, Any]]] | None = None

    def restore(self, trials: Iterable[Trial]) -> None:
        """Tells Optuna of the trials of an earlier start, and opens or rebuilds its journal."""
        known = list(trials)
        for trial in known:
            if trial.repeat_of is not None or trial.number in self._history:
                continue
            config, distributions = self._redraw(trial.params)
            self._seen.add(config_id(self._complete(config, trial.number)))
            self._memory.start(trial.number, trial.params, distributions)
            merge(self._known, [distributions])
            self._scores[trial.number] = {metrics.epoch: metrics.score for metrics in trial.epochs}
            if trial.status.ended:
                self._learn(trial.number, trial.status, trial.score, costs_of(trial))
        try:
            self._open_mirror(known)
        except OSError as error:
            self._give_up_mirror(error)

    def _open_mirror(self, known: list[Trial]) -> None:
        """Opens Optuna's journal, or writes it anew."""
        if self._file is None:
            return
        self._mirror = open_mirror(self._file, self._space.name, known, self._memory.objectives)
        if self._mirror is None:
            self._file.unlink(missing_ok=True)
            self._mirror = Ledger(journal_storage(self._file), self._space.name, self._memory.objectives)
            for trial in known:
                if trial.number in self._history:  # what the space draws now may have other names and choices
                    self._mirror.put(dataclasses.replace(trial, params={}), {})
                else:
                    self._mirror.put(trial, self._redraw(trial.params)[1])

    def adopt(self, trial: Trial) -> None:
        """Puts a repeat into Optuna's journal; the sampler does not count it as a configuration."""
        distributions = self._redraw(trial.params)[1]
        self._tell_mirror(lambda mirror: mirror.start(trial.number, trial.params, distributions))

    def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
        """The space's baseline and starters first; then draws until a configuration passes the check and is new.

        Raises:
            InputError: none of 500 draws passed, or the space raised.
        """
        opening = self.opening()
        if not opening:
            return self._by_model(number, trials) or self._sample(number)
        origin, params = opening[0]
        config = self._complete(self._redraw(params)[0], number)
        return self._start(number, Proposal(config, dict(params), self._check(config), origin), None)

    def _by_model(self, number: int, trials: Mapping[int, Trial]) -> Proposal | None:
        """The most promising candidate that is new; None where the model has nothing to say."""
        if self._model is None:
            return None
        for found in self._model.candidates(number, trials, self._known) or ():  # which looks at what is new in them
            config = self._complete(found.config, number)
            if config_id(config) not in self._seen:
                self._memory.start(number, found.params, found.distributions)
                return self._start(number, Proposal(config, found.params, found.stats, BY_MODEL), found.distributions)
        return None

    def _candidate(self, draw: Draw) -> Candidate | None:
        """A configuration drawn for the model; None if it is refused."""
        config = self._draw(draw)
        try:
            return Candidate(config, draw.params, draw.distributions, self._check(config))
        except RefusedError:
            return None

    def _sample(self, number: int) -> Proposal:
        """A draw of Optuna's sampler, or one from anywhere, that passes the check and is new."""
        reason = "no draw"
        refused: list[optuna.Trial] = []  # to Optuna they run until a draw passes: TPE keeps away from running trials
        repeats = 0
        for attempt in range(_ATTEMPTS):
            seed = derive_seed(self._seed, "propose", number, attempt)
            asked: optuna.Trial | Draw = Draw(random.Random(seed))
            if self._sampler in SAMPLERS and attempt < _ATTEMPTS // 2:
                self._study.sampler = SAMPLERS[self._sampler](seed)
                asked = self._study.ask()
            config = self._complete(self._draw(asked), number)
            try:
                stats = self._check(config)
                if config_id(config) in self._seen:
                    repeats += 1
                    raise RefusedError("the same configuration has been proposed before")
            except RefusedError as error:
                reason = str(error)
                self.refused[reason] = self.refused.get(reason, 0) + 1
                if isinstance(asked, optuna.Trial):
                    refused.append(asked)
                continue
            for draw in refused:
                self._study.tell(draw, state=TrialState.FAIL)
                self._memory.forget(draw._trial_id)
            if isinstance(asked, optuna.Trial):
                self._memory.adopt(number, asked._trial_id)
            else:
                self._memory.start(number, asked.params, asked.distributions)
            origin = self._sampler if isinstance(asked, optuna.Trial) else "random"
            proposal = Proposal(config, dict(asked.params), stats, origin)
            return self._start(number, proposal, asked.distributions)
        if repeats:
            raise ExhaustedError(
                f"the space {self._space.name!r} has no configuration left: {repeats} of {_ATTEMPTS} draws were "
                "within the limits, and all of them were tried before"
            )
        raise self._never_fits(reason)

    def rehearse(self, draws: int) -> None:
        """Draws at random until `draws` configurations passed the check, 50 at least; nothing is kept of it.

        Raises:
            InputError: the space raised, gave a name other choices than before, made another configuration of the same
                parameters, or none of 500 draws passed.
        """
        self.opening()
        generator = random.Random(derive_seed(self._seed, "rehearse"))
        known: dict[str, BaseDistribution] = {}
        passed, reason = 0, ""
        for attempt in range(_ATTEMPTS):
            if passed >= draws and attempt >= _REHEARSED:
                return
            draw = Draw(generator)
            config = self._draw(draw)
            try:
                merge(known, [draw.distributions])
            except RangesError as error:
                raise RangesError(f"{error}{self._space.place}") from error
            if passed >= draws:
                continue
            self._require_same(config, draw)
            try:
                self._check(self._complete(config, 0))
                passed += 1
            except RefusedError as error:
                reason = str(error)
        if not passed:
            raise self._never_fits(reason)

    def _require_same(self, config: TrialConfig, draw: Draw) -> None:
        """Raises InputError if the space makes another configuration of the same parameters: none could be repeated."""
        again = self._redraw(draw.params)[0]
        parts = [name for name in ("arch", "train", "data") if getattr(again, name) != getattr(config, name)]
        if parts:
            raise InputError(
                f"the space {self._space.name!r} makes another configuration of the same parameters the second time "
                f"({' and '.join(parts)} differ); what it makes must depend on nothing but what `suggest` gives"
                f"{self._space.place}"
            )

    def _never_fits(self, reason: str) -> InputError:
        return InputError(
            f"none of {_ATTEMPTS} draws from the space {self._space.name!r} is within the limits (the last: {reason}); "
            f"widen --max-params or --max-mflops, or choose another --image-size{self._space.place}"
        )

    def ranges(self, params: Mapping[str, Any]) -> Mapping[str, BaseDistribution]:
        """The ranges of a configuration's parameters.

        Raises:
            InputError: the space cannot draw it.
        """
        return self._redraw(params)[1]

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Reports an intermediate score."""
        self._scores.setdefault(number, {})[epoch] = score
        self._tell_mirror(lambda mirror: mirror.observe(number, epoch, score))

    def end(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float] = NO_COSTS) -> None:
        """Tells how a trial ended."""
        self._learn(number, status, score, costs)
        self._tell_mirror(lambda mirror: mirror.end(number, STATES[status], score, costs))

    def _tell_mirror(self, tell: Callable[[Ledger], None]) -> None:
        """Writes to Optuna's journal; if that fails, as on a full disk, it is left alone until the next start.

        It is derived from the record, and is not worth a search.
        """
        if self._mirror is None:
            return
        try:
            tell(self._mirror)
        except OSError as error:
            self._give_up_mirror(error)

    def _give_up_mirror(self, error: OSError) -> None:
        _LOG.warning("%s cannot be written: %s", self._file, error)
        self._mirror = None

    def _learn(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float]) -> None:
        """Tells the sampler; a diverged trial, or one that failed before its first score, as one stopped before it.

        TPE ignores FAIL, and would propose their like again and again.
        """
        if number not in self._memory:
            return
        scores = self._scores.pop(number, {})
        if status is TrialStatus.DIVERGED or (status is TrialStatus.FAILED and not scores):
            self._memory.end(number, TrialState.PRUNED, None)
            return
        for epoch, value in scores.items() if len(self._memory.objectives) == 1 else ():  # TPE cannot use them then
            self._memory.observe(number, epoch, value)
        self._memory.end(number, STATES[status], score, costs)

    def _start(self, number: int, proposal: Proposal, distributions: Mapping[str, BaseDistribution] | None) -> Proposal:
        if distributions is None:
            distributions = self._redraw(proposal.params)[1]
            self._memory.start(number, proposal.params, distributions)
        told = distributions
        merge(self._known, [told])
        self._tell_mirror(lambda mirror: mirror.start(number, proposal.params, told))
        self._seen.add(config_id(proposal.config))
        return proposal

    def _draw(self, suggest: Any) -> TrialConfig:
        return draw_config(self._space, suggest)

    def _redraw(self, params: Mapping[str, Any]) -> tuple[TrialConfig, Mapping[str, BaseDistribution]]:
        fixed = FixedTrial(dict(params))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a value out of range, which is refused below
            config = self._draw(fixed)
        try:
            optuna.create_trial(state=TrialState.RUNNING, params=dict(params), distributions=fixed.distributions)
        except ValueError as error:
            raise InputError(f"the space {self._space.name!r} cannot draw {dict(params)}: {error}") from error
        return config, fixed.distributions

    @property
    def has_baseline(self) -> bool:
        """True if trial 0 is one of the space's baselines; False if none of them passes the check."""
        return self._fitting(self._space.baselines) is not None

    def is_baseline(self, params: Mapping[str, Any]) -> bool:
        """True if the space makes its baseline of these parameters."""
        baseline = self._fitting(self._space.baselines)
        return baseline is not None and self.identity(params) == self.identity(baseline)

    def opening(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Origin and parameters of what is proposed next, before anything is drawn.

        Of the baselines and of each family of starters it is the first to fit, and nothing that was proposed before.
        """
        if self._first is None:
            baseline = self._fitting(self._space.baselines)
            starters = [self._fitting(family) for family in self._space.starters]
            found = [("baseline", baseline), *self._given, *(("starter", params) for params in starters)]
            self._first = {}
            for origin, params in found:
                if params is not None and self._fits(params):
                    self._first.setdefault(self.identity(params), (origin, params))
        return [entry for known, entry in self._first.items() if known not in self._seen]

    def is_new(self, params: Mapping[str, Any]) -> bool:
        """True if this configuration has not been proposed yet."""
        return self.identity(params) not in self._seen

    def identity(self, params: Mapping[str, Any]) -> str:
        """The `config_id` of what the space makes of these parameters; InputError if it cannot."""
        return config_id(self._complete(self._redraw(params)[0], 0))

    def _fitting(self, family: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        return next(filter(self._fits, family), None)

    def _fits(self, params: Mapping[str, Any]) -> bool:
        try:
            self._check(self._complete(self._redraw(params)[0], 0))
        except RefusedError:
            return False
        return True
