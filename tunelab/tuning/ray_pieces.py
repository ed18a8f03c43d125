"""What Ray Tune calls during a search: a searcher, a scheduler, a stopper and a callback that tell the engine.

Ray pickles them into files that nothing here ever reads back, and refuses a lock or an open file in them. They
therefore hold no state: each finds the running engine by a key.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from tunelab.records import EpochMetrics, Finding, Trial, TrialStatus
from tunelab.tuning.engine import Engine
from tunelab.tuning.losses import Loss, Witness, testimony, wants_fewer


@dataclass(frozen=True)
class _Bridge:
    engine: Engine
    folder_of: Callable[[int], Path]
    settings: Mapping[str, Any]
    witnesses: Sequence[Witness]
    asked: Callable[[], None] | None
    places: Callable[[], int] | None
    for_trial: Callable[[Trial], Mapping[str, Any]] | None

    def ask(self) -> None:
        """Ray's loop asks something."""
        if self.asked is not None:
            self.asked()

    def is_full(self) -> bool:
        """As many trials run as there are places for."""
        return self.places is not None and len(self.engine.running) >= self.places()


_BRIDGES: dict[str, _Bridge] = {}


@contextlib.contextmanager
def bridge(
    engine: Engine,
    folder_of: Callable[[int], Path],
    settings: Mapping[str, Any],
    witnesses: Sequence[Witness] = (),
    asked: Callable[[], None] | None = None,
    places: Callable[[], int] | None = None,
    for_trial: Callable[[Trial], Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """The key by which the pieces find `engine`.

    Args:
        engine: what decides.
        folder_of: from a trial's number to its folder.
        settings: what every worker is given beside its trial: `device`, `threads`, `compute`, `stop_at` and so on.
        witnesses: are asked why the process of a trial is gone, in order.
        asked: is called as often as Ray asks something: every 0.1 s while trials run, else every second.
        places: how many trials may run at once; None: Ray has a limit of its own.
        for_trial: what the worker of a trial is given besides.
    """
    key = uuid.uuid4().hex
    _BRIDGES[key] = _Bridge(engine, folder_of, settings, witnesses, asked, places, for_trial)
    try:
        yield key
    finally:
        del _BRIDGES[key]


def task_of(trial: Trial, folder: Path) -> dict[str, Any]:
    """What a worker is given of a trial whose folder is `folder`."""
    return {
        "number": trial.number,
        "trial_config": json.dumps(trial.config),  # as a text: Ray keeps several copies of every value in it
        "folder": str(folder.absolute()),
        "known_epochs": len(trial.epochs),
        "split": trial.split,
        "fewer": wants_fewer(trial),
    }


def pass_on(engine: Engine, number: int, content: Mapping[str, Any]) -> bool:
    """Tells the engine what a worker reported of a trial; True if the trial goes on."""
    findings = [Finding(**plain) for plain in content.get("findings", ())]
    if "metrics" in content:
        metrics = EpochMetrics(**content["metrics"])
        return engine.report(number, metrics, content.get("notes", ()), findings, content.get("hopeless", ""))
    if "lost" in content:
        engine.lose(number, Loss(**content["lost"]))
    elif "halt" in content:
        engine.halt(content["halt"])
    else:
        engine.end(number, TrialStatus(content["status"]), content["reason"], findings)
    return False


class EngineSearcher(Searcher):
    """Asks the engine for the next trial."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def suggest(self, trial_id: str) -> Any:
        """What the next trial's worker is given; None if there is no next trial yet, FINISHED if there is none."""
        here = _BRIDGES[self._key]
        here.ask()  # while nothing runs Ray asks for trials alone, and not whether to stop
        if here.is_full() and here.engine.waits:
            return None
        trial = here.engine.next_trial()
        if trial is None:
            return None if here.engine.waits else Searcher.FINISHED
        more = here.for_trial(trial) if here.for_trial is not None else {}
        return {**task_of(trial, here.folder_of(trial.number)), **here.settings, **more}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler tells the engine."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is tunelab's own."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the record is tunelab's own."""


class EngineScheduler(FIFOScheduler):
    """Passes results to the engine, and its decisions back."""

    def __init__(self, key: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
        self._key = key

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP, as the engine says."""
        goes_on = pass_on(_BRIDGES[self._key].engine, trial.config["number"], json.loads(result["report"]))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class EngineCallback(Callback):
    """Tells the engine of a trial whose process is gone."""

    def __init__(self, key: str) -> None:
        self._key = key

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """The trial's process died; whoever knows why is asked, and the engine decides what becomes of the trial."""
        here = _BRIDGES[self._key]
        number = trial.config["number"]
        here.engine.lose(number, testimony(here.witnesses, number))


class EngineStopper(Stopper):
    """Ends the run when the engine halts."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """False: a single trial is ended by the scheduler."""
        return False

    def stop_all(self) -> bool:
        """True when the engine halts."""
        here = _BRIDGES[self._key]
        here.ask()
        return here.engine.should_halt
