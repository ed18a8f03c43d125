"""Where configurations come from: a space sampled by Optuna, or a fixed list.

What Optuna is told is the truth: every intermediate score, PRUNED for a trial that was stopped, COMPLETE for one of
full length alone, FAIL for one that diverged or failed (the sampler itself sees a diverged one as pruned before its
first score: TPE ignores FAIL). A proposal depends on the study's seed, the trial's number and the trials told so far,
and on nothing else, so that a resumed search proposes what the unbroken one would have.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from tunelab.config import TrialConfig, config_id, derive_seed
from tunelab.errors import InputError, RefusedError
from tunelab.records import Trial, TrialStatus
from tunelab.space import SearchSpace

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 500

STATES: Mapping[TrialStatus, TrialState] = {
    TrialStatus.COMPLETED: TrialState.COMPLETE,
    TrialStatus.STOPPED: TrialState.PRUNED,
    TrialStatus.DIVERGED: TrialState.FAIL,
    TrialStatus.FAILED: TrialState.FAIL,
}


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": _random}


@dataclass(frozen=True)
class Proposal:
    """A configuration to train, the suggested values it was made of, and the size of its network."""

    config: TrialConfig
    params: Mapping[str, Any]
    stats: Mapping[str, Any]


class Source(Protocol):
    """Where the engine gets configurations from, and whom it tells how they fared."""

    def propose(self, number: int) -> Proposal:
        """The configuration of trial `number`."""

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Trial `number` has this score after `epoch` epochs."""

    def end(self, number: int, status: TrialStatus, score: float | None) -> None:
        """Trial `number` will not go on."""

    def restore(self, trials: Iterable[Trial]) -> None:
        """Takes back the trials of an earlier start."""


Check = Callable[[TrialConfig], Mapping[str, Any]]
"""From a configuration to the size of its network; raises RefusedError if it cannot work or is beyond the limits."""


class FixedSource:
    """Configurations from a list: trial n is entry n."""

    def __init__(self, configs: Sequence[TrialConfig], check: Check) -> None:
        self._configs = configs
        self._check = check

    def propose(self, number: int) -> Proposal:
        """Entry `number`."""
        return Proposal(self._configs[number], {}, self._check(self._configs[number]))

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Nothing is learnt."""

    def end(self, number: int, status: TrialStatus, score: float | None) -> None:
        """Nothing is learnt."""

    def restore(self, trials: Iterable[Trial]) -> None:
        """Nothing is kept."""


class OptunaSource:
    """Configurations drawn from a space by an Optuna sampler, after its baseline and its starters.

    Args:
        space: what is drawn from.
        seed: the study's.
        sampler: a key of SAMPLERS.
        complete: puts the data, the length and the seed of trial `number` into a drawn configuration.
        check: refuses what cannot work.
        storage: where Optuna's own journal is kept for its dashboard; it is rebuilt if it does not fit the record.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        sampler: str,
        complete: Callable[[TrialConfig, int], TrialConfig],
        check: Check,
        storage: Path | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._seed = seed
        self._sampler = sampler
        self._complete = complete
        self._check = check
        self._memory = _Ledger(InMemoryStorage(), space.name)
        self._study = optuna.load_study(study_name=space.name, storage=self._memory.storage)
        self._file = storage
        self._mirror: _Ledger | None = None
        self._seen: set[str] = set()
        self._scores: dict[int, dict[int, float]] = {}
        self.refused: dict[str, int] = {}
        self._first: list[Mapping[str, Any]] | None = None

    def restore(self, trials: Iterable[Trial]) -> None:
        """Tells Optuna of the trials of an earlier start, and opens or rebuilds its journal."""
        known = list(trials)
        for trial in known:
            config, distributions = self._redraw(trial.params)
            self._seen.add(config_id(self._complete(config, trial.number)))
            self._memory.start(trial.number, trial.params, distributions)
            self._scores[trial.number] = {metrics.epoch: metrics.score for metrics in trial.epochs}
            if trial.status.ended:
                self._learn(trial.number, trial.status, trial.score)
        if self._file is None:
            return
        self._mirror = _open_mirror(self._file, self._space.name, known)
        if self._mirror is None:
            self._file.unlink(missing_ok=True)
            self._mirror = _Ledger(_journal_storage(self._file), self._space.name)
            for trial in known:
                self._mirror.put(trial, self._redraw(trial.params)[1])

    def propose(self, number: int) -> Proposal:
        """The space's baseline and starters first; then draws until a configuration passes the check and is new.

        Raises:
            InputError: none of 500 draws passed, or the space raised.
        """
        opening = self._opening()
        if number < len(opening):
            config = self._complete(self._redraw(opening[number])[0], number)
            return self._start(number, Proposal(config, dict(opening[number]), self._check(config)), None)
        reason = "no draw"
        refused: list[optuna.Trial] = []  # to Optuna they run until a draw passes: TPE keeps away from running trials
        repeats = 0
        for attempt in range(_ATTEMPTS):
            self._study.sampler = SAMPLERS[self._sampler if attempt < _ATTEMPTS // 2 else "random"](
                derive_seed(self._seed, "propose", number, attempt)
            )
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
                refused.append(asked)
                continue
            for draw in refused:
                self._study.tell(draw, state=TrialState.FAIL)
            self._memory.adopt(number, asked._trial_id)
            return self._start(number, Proposal(config, dict(asked.params), stats), asked.distributions)
        if repeats:
            raise InputError(
                f"the space {self._space.name!r} has no configuration left: {repeats} of {_ATTEMPTS} draws were "
                f"within the limits, and all of them are among the {number} that were tried; ask for {number} --trials"
            )
        raise self._never_fits(reason)

    def rehearse(self, draws: int) -> None:
        """Draws at random until `draws` configurations passed the check; nothing is kept of it.

        Raises:
            InputError: the space raised, or none of 500 draws passed.
        """
        self._opening()
        sampler = optuna.samplers.RandomSampler(seed=derive_seed(self._seed, "rehearse"))
        study = optuna.create_study(sampler=sampler)
        passed, reason = 0, ""
        for _ in range(_ATTEMPTS):
            config = self._complete(self._draw(study.ask()), 0)
            try:
                self._check(config)
                passed += 1
            except RefusedError as error:
                reason = str(error)
            if passed >= draws:
                return
        if not passed:
            raise self._never_fits(reason)

    def _never_fits(self, reason: str) -> InputError:
        return InputError(
            f"none of {_ATTEMPTS} draws from the space {self._space.name!r} is within the limits (the last: {reason}); "
            "widen --max-params or --max-mflops, or choose another --image-size"
        )

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Reports an intermediate score."""
        self._scores.setdefault(number, {})[epoch] = score
        self._tell_mirror(lambda mirror: mirror.observe(number, epoch, score))

    def end(self, number: int, status: TrialStatus, score: float | None) -> None:
        """Tells how a trial ended."""
        self._learn(number, status, score)
        self._tell_mirror(lambda mirror: mirror.end(number, STATES[status], score))

    def _tell_mirror(self, tell: Callable[[_Ledger], None]) -> None:
        """Writes to Optuna's journal; if that fails, as on a full disk, it is left alone until the next start.

        It is derived from the record, and is not worth a search.
        """
        if self._mirror is None:
            return
        try:
            tell(self._mirror)
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", self._file, error)
            self._mirror = None

    def _learn(self, number: int, status: TrialStatus, score: float | None) -> None:
        """Tells the sampler; a diverged trial as one stopped before its first score: TPE ignores FAIL."""
        scores = self._scores.pop(number, {})
        if status is TrialStatus.DIVERGED:
            self._memory.end(number, TrialState.PRUNED, None)
            return
        for epoch, value in scores.items():
            self._memory.observe(number, epoch, value)
        self._memory.end(number, STATES[status], score)

    def _start(self, number: int, proposal: Proposal, distributions: Mapping[str, BaseDistribution] | None) -> Proposal:
        if distributions is None:
            distributions = self._redraw(proposal.params)[1]
            self._memory.start(number, proposal.params, distributions)
        told = distributions
        self._tell_mirror(lambda mirror: mirror.start(number, proposal.params, told))
        self._seen.add(config_id(proposal.config))
        return proposal

    def _draw(self, suggest: Any) -> TrialConfig:
        try:
            config = self._space.draw(suggest)
        except Exception as error:
            raise InputError(f"the space {self._space.name!r} raised {type(error).__name__}: {error}") from error
        if not isinstance(config, TrialConfig):
            raise InputError(f"the space {self._space.name!r} returned {type(config).__name__}, not a TrialConfig")
        return config

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

    def _opening(self) -> list[Mapping[str, Any]]:
        """The parameters of the first trials: of the baselines, and of each family of starters, the first that fits."""
        if self._first is None:
            families = (self._space.baselines, *self._space.starters)
            found = [params for params in map(self._fitting, families) if params is not None]
            self._first = [params for place, params in enumerate(found) if params not in found[:place]]
        return self._first

    def _fitting(self, family: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        return next(filter(self._fits, family), None)

    def _fits(self, params: Mapping[str, Any]) -> bool:
        try:
            self._check(self._complete(self._redraw(params)[0], 0))
        except RefusedError:
            return False
        return True


class _Ledger:
    """An Optuna study whose trials are called by tunelab's numbers."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage = storage
        try:
            self._study_id = storage.get_study_id_from_name(name)
        except KeyError:
            self._study_id = storage.create_new_study([StudyDirection.MAXIMIZE], name)
        self._ids: dict[int, int] = {}

    def adopt(self, number: int, trial_id: int) -> None:
        self._ids[number] = trial_id

    def start(self, number: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        template = optuna.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"tunelab_trial": number},
        )
        self._ids[number] = self.storage.create_new_trial(self._study_id, template_trial=template)

    def put(self, trial: Trial, distributions: Mapping[str, BaseDistribution]) -> None:
        """Adds a trial as it stands, in one write (each is put on the disk)."""
        state = STATES.get(trial.status, TrialState.RUNNING)
        template = optuna.create_trial(
            state=state,
            value=trial.score if state is TrialState.COMPLETE else None,
            params=dict(trial.params),
            distributions=dict(distributions),
            user_attrs={"tunelab_trial": trial.number},
            intermediate_values={metrics.epoch: metrics.score for metrics in trial.epochs},
        )
        self._ids[trial.number] = self.storage.create_new_trial(self._study_id, template_trial=template)

    def observe(self, number: int, epoch: int, score: float) -> None:
        self.storage.set_trial_intermediate_value(self._ids[number], epoch, score)

    def end(self, number: int, state: TrialState, score: float | None) -> None:
        values = [score] if state is TrialState.COMPLETE and score is not None else None
        self.storage.set_trial_state_values(self._ids[number], state, values)

    def trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def fits(self, trials: Sequence[Trial]) -> bool:
        """True if this holds just these trials with these states and scores."""
        mine = self.trials()
        if [trial.user_attrs.get("tunelab_trial") for trial in mine] != [trial.number for trial in trials]:
            return False
        self._ids = {trial.number: own._trial_id for trial, own in zip(trials, mine, strict=True)}
        return all(
            own.state is STATES.get(trial.status, TrialState.RUNNING)
            and own.intermediate_values == {metrics.epoch: metrics.score for metrics in trial.epochs}
            for trial, own in zip(trials, mine, strict=True)
        )


class _OneWriter(JournalFileOpenLock):
    """No lock: the study's own lock lets one process write, and Optuna's would outlive a killed one."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _journal_storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_OneWriter(str(path))))


def _open_mirror(path: Path, name: str, trials: Sequence[Trial]) -> _Ledger | None:
    """Optuna's journal if it fits the record; None if it is missing, damaged, older or ahead."""
    if not path.exists() or not path.read_bytes().endswith(b"\n"):
        return None
    try:
        ledger = _Ledger(_journal_storage(path), name)
        fits = ledger.fits(trials)
    except Exception as error:  # whatever damage makes Optuna raise, the file is derived and is made anew
        _LOG.warning("%s cannot be read (%s) and is rebuilt from the record", path, error)
        return None
    return ledger if fits else None
