"""Where configurations come from: a space sampled by Optuna, or a fixed list.

What Optuna is told is the truth: every intermediate score, PRUNED for a trial that was stopped, COMPLETE for one of
full length alone, FAIL for one that diverged or failed. A proposal depends on the study's seed, the trial's number and
the trials told so far, and on nothing else, so that a resumed search proposes what the unbroken one would have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
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
    """Configurations drawn from a space by an Optuna sampler; trial 0 is the space's baseline.

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
        self.refused: dict[str, int] = {}

    def restore(self, trials: Iterable[Trial]) -> None:
        """Tells Optuna of the trials of an earlier start, and opens or rebuilds its journal."""
        known = list(trials)
        for trial in known:
            self._seen.add(config_id(self._complete(self._redraw(trial.params)[0], trial.number)))
            self._replay(self._memory, trial)
        if self._file is None:
            return
        self._mirror = _open_mirror(self._file, self._space.name, known)
        if self._mirror is None:
            self._file.unlink(missing_ok=True)
            self._mirror = _Ledger(_journal_storage(self._file), self._space.name)
            for trial in known:
                self._replay(self._mirror, trial)

    def propose(self, number: int) -> Proposal:
        """Draws until a configuration passes the check and is new.

        Raises:
            InputError: none of 500 draws passed, or the space raised.
        """
        if number == 0:
            baseline = self.baseline()
            if baseline is not None:
                return self._start(number, baseline, None)
        reason = "no draw"
        for attempt in range(_ATTEMPTS):
            self._study.sampler = SAMPLERS[self._sampler if attempt < _ATTEMPTS // 2 else "random"](
                derive_seed(self._seed, "propose", number, attempt)
            )
            asked = self._study.ask()
            config = self._complete(self._draw(asked), number)
            try:
                if config_id(config) in self._seen:
                    raise RefusedError("the same configuration has been proposed before")
                stats = self._check(config)
            except RefusedError as error:
                reason = str(error)
                self.refused[reason] = self.refused.get(reason, 0) + 1
                self._study.tell(asked, state=TrialState.FAIL)
                continue
            self._memory.adopt(number, asked._trial_id)
            return self._start(number, Proposal(config, dict(asked.params), stats), asked.distributions)
        raise InputError(
            f"none of {_ATTEMPTS} draws from the space {self._space.name!r} is within the limits (the last: {reason}); "
            "widen --max-params or --max-mflops, or choose another --image-size"
        )

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Reports an intermediate score."""
        for ledger in self._ledgers():
            ledger.observe(number, epoch, score)

    def end(self, number: int, status: TrialStatus, score: float | None) -> None:
        """Tells how a trial ended; to the sampler, a diverged trial is worse than any stopped one."""
        for ledger in self._ledgers():
            ledger.end(number, STATES[status], score)
        if status is TrialStatus.DIVERGED:
            self._memory.shun(number)

    def _ledgers(self) -> list[_Ledger]:
        return [self._memory] if self._mirror is None else [self._memory, self._mirror]

    def _start(self, number: int, proposal: Proposal, distributions: Mapping[str, BaseDistribution] | None) -> Proposal:
        if distributions is None:
            distributions = self._redraw(proposal.params)[1]
            self._memory.start(number, proposal.params, distributions)
        if self._mirror is not None:
            self._mirror.start(number, proposal.params, distributions)
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
        config = self._draw(fixed)
        return config, fixed.distributions

    def baseline(self) -> Proposal | None:
        """The first of the space's baselines that passes the check; None if none does."""
        for params in self._space.baselines:
            config = self._complete(self._redraw(params)[0], 0)
            try:
                return Proposal(config, dict(params), self._check(config))
            except RefusedError as error:
                _LOG.info("baseline refused: %s", error)
        return None

    def _replay(self, ledger: _Ledger, trial: Trial) -> None:
        ledger.start(trial.number, trial.params, self._redraw(trial.params)[1])
        for metrics in trial.epochs:
            ledger.observe(trial.number, metrics.epoch, metrics.score)
        if trial.status.ended:
            ledger.end(trial.number, STATES[trial.status], trial.score)
            if trial.status is TrialStatus.DIVERGED and ledger is self._memory:
                ledger.shun(trial.number)


class _Ledger:
    """An Optuna study whose trials are called by tunelab's numbers."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage = storage
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        self._study_id = storage.get_study_id_from_name(study.study_name)
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

    def observe(self, number: int, epoch: int, score: float) -> None:
        self.storage.set_trial_intermediate_value(self._ids[number], epoch, score)

    def end(self, number: int, state: TrialState, score: float | None) -> None:
        values = [score] if state is TrialState.COMPLETE and score is not None else None
        self.storage.set_trial_state_values(self._ids[number], state, values)

    def shun(self, number: int) -> None:
        """Adds a copy that was pruned before its first score: Optuna's TPE ignores FAIL, and ranks such a copy last."""
        trial = self.storage.get_trial(self._ids[number])
        self.storage.create_new_trial(
            self._study_id,
            template_trial=optuna.create_trial(
                state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions
            ),
        )

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
