"""An Optuna study under tunelab's numbers: what samplers learn from, and the journal that Optuna's dashboard opens."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunelab.records import Trial, TrialStatus
from tunelab.tuning.objectives import FIRST, NO_COSTS, costs_of

_METRIC_NAMES = "study:metric_names"  # where Optuna keeps them
_LOG = logging.getLogger(__name__)

STATES: Mapping[TrialStatus, TrialState] = {
    TrialStatus.COMPLETED: TrialState.COMPLETE,
    TrialStatus.STOPPED: TrialState.PRUNED,
    TrialStatus.DIVERGED: TrialState.FAIL,
    TrialStatus.FAILED: TrialState.FAIL,
}


class Ledger:
    """An Optuna study whose trials are called by tunelab's numbers.

    Args:
        storage: where it is kept.
        name: of the study; it is made if there is none.
        objectives: the accuracy, then names of tunelab.tuning.objectives.COSTS.
    """

    def __init__(self, storage: BaseStorage, name: str, objectives: Sequence[str] = (FIRST,)) -> None:
        self.storage = storage
        self.objectives = tuple(objectives)
        self._directions = [StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * (len(self.objectives) - 1)
        try:
            self._study_id = storage.get_study_id_from_name(name)
        except KeyError:
            self._study_id = storage.create_new_study(self._directions, name)
            if len(self.objectives) > 1:
                storage.set_study_system_attr(self._study_id, _METRIC_NAMES, list(self.objectives))
        self._ids: dict[int, int] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._ids

    def adopt(self, number: int, trial_id: int) -> None:
        """Calls a trial that Optuna made by tunelab's number."""
        self._ids[number] = trial_id

    def forget(self, trial_id: int) -> None:
        """Empties a refused draw in memory; Optuna cannot remove a trial, and would keep all the values of each."""
        draw = self.storage.get_trial(trial_id)
        draw.params, draw.distributions = {}, {}

    def start(self, number: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        """Adds a trial that has begun."""
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
            values=self._values(state, trial.score, costs_of(trial)),
            params=dict(trial.params),
            distributions=dict(distributions),
            user_attrs={"tunelab_trial": trial.number},
            intermediate_values={metrics.epoch: metrics.score for metrics in trial.epochs},
        )
        self._ids[trial.number] = self.storage.create_new_trial(self._study_id, template_trial=template)

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Adds an intermediate score."""
        self.storage.set_trial_intermediate_value(self._ids[number], epoch, score)

    def end(self, number: int, state: TrialState, score: float | None, costs: Mapping[str, float] = NO_COSTS) -> None:
        """Ends a trial; the values of a complete one are its score and the costs among the objectives."""
        self.storage.set_trial_state_values(self._ids[number], state, self._values(state, score, costs))

    def _values(self, state: TrialState, score: float | None, costs: Mapping[str, float]) -> list[float] | None:
        if state is not TrialState.COMPLETE or score is None:
            return None
        return [score, *(costs[name] for name in self.objectives[1:])]

    def trials(self) -> list[FrozenTrial]:
        """All of them, as Optuna has them; not to be changed."""
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def fits(self, trials: Sequence[Trial]) -> bool:
        """True if this holds just these trials with these states and scores."""
        mine = self.trials()
        if self.storage.get_study_directions(self._study_id) != self._directions:
            return False
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


class _Derived(JournalFileBackend):
    """Does not wait for the disk, as Optuna's own does: what a power cut takes is made anew from the record.

    Nor does it read the file again after each line, as Optuna would: nobody else writes it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_OneWriter(str(path)))
        self._path = path
        self._read = 0
        self._own: list[str] = []  # lines that were written after those that were read

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
        self._own += lines

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        own, self._own = self._own, []
        rest = map(json.loads, own) if own and log_number_from == self._read else super().read_logs(log_number_from)
        self._read = -1  # unless all of it is taken
        count = log_number_from
        for log in rest:
            count += 1
            yield log
        self._read = count


def journal_storage(path: Path) -> JournalStorage:
    """Optuna's journal in a file, without a lock of Optuna's own."""
    return JournalStorage(_Derived(path))


def open_mirror(path: Path, name: str, trials: Sequence[Trial], objectives: Sequence[str] = (FIRST,)) -> Ledger | None:
    """Optuna's journal if it fits the record; None if it is missing, damaged, older or ahead."""
    if not path.exists() or not path.read_bytes().endswith(b"\n"):
        return None
    try:
        ledger = Ledger(journal_storage(path), name, objectives)
        fits = ledger.fits(trials)
    except Exception as error:  # whatever damage makes Optuna raise, the file is derived and is made anew
        _LOG.warning("%s cannot be read (%s) and is rebuilt from the record", path, error)
        return None
    return ledger if fits else None
