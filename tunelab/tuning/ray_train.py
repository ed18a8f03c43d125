"""Runs an engine's trials one after the other on Ray Train, each trained by several processes together.

Ray Train starts the processes, sees one of them die, and ends the others then; Ray Tune has no part in it. Its
TorchTrainer is not used: the store by which its processes find each other listens on all interfaces of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.records import Trial
from tunelab.tuning.engine import Engine
from tunelab.tuning.losses import Witness, testimony
from tunelab.tuning.slots import Slots

_LOOK = 0.2  # seconds between two looks at what the processes tell (our choice)
_GRACE = 5.0  # seconds that a pause waits for the epoch that is being trained: as Ray Tune's (our choice)
_END = 120.0  # seconds that the processes may take to end (our choice)


class Inbox:
    """An actor between the processes of a training and the driver, which answers each epoch; it has Ray Train run."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()

    async def run(self, config: dict[str, Any], slots: Slots, folder: Path, name: str) -> str:
        """Returns when the processes have ended, as `_fit` does, which waits in a thread."""
        return await asyncio.get_running_loop().run_in_executor(None, _fit, config, slots, folder, name)

    async def tell(self, content: dict[str, Any]) -> None:
        """Why a process cannot go on."""
        await self._told.put(content)

    async def ask(self, content: dict[str, Any]) -> bool:
        """An epoch; True if there is to be another."""
        await self._told.put(content)
        return await self._answers.get()

    async def take(self, seconds: float) -> dict[str, Any] | None:
        """What was told next, waited for so long; None if nothing was."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._told.get(), seconds)
        return None

    async def answer(self, goes_on: bool) -> None:
        """The answer to whoever asked."""
        await self._answers.put(goes_on)


def fit(
    engine: Engine,
    slots: Slots,
    folder: Path,
    folder_of: Callable[[int], Path],
    settings: Mapping[str, Any],
    witnesses: Sequence[Witness],
    asked: Callable[[], None],
) -> None:
    """Runs `engine` until every trial has ended or it halts. Ray is up; ending it ends what still runs.

    Args:
        engine: what decides.
        slots: `processes` and what each of them is given.
        folder: a private one for files of Ray and of the processes.
        folder_of: from a trial's number to its folder.
        settings: what every worker is given beside its trial.
        witnesses: are asked why a process is gone, in order.
        asked: is called several times a second.
    """
    from tunelab.tuning.ray_pieces import task_of

    for attempt in itertools.count():
        asked()
        trial = engine.next_trial()
        if trial is not None:
            task = {**task_of(trial, folder_of(trial.number)), **settings}
            _train(engine, trial, _Training(task, slots, folder, attempt), witnesses, asked)
        elif not engine.waits:
            return
        else:
            time.sleep(_LOOK)


class _Training:
    """One attempt to train a trial under Ray Train; `over` when its processes have ended, or the actor that knows.

    This process only asks. A thread of it that waits for Ray Train would end it when Ray ends, without a word.
    """

    def __init__(self, task: dict[str, Any], slots: Slots, folder: Path, attempt: int) -> None:
        import ray

        self._ray = ray
        actor: Any = ray.remote(num_cpus=0)(Inbox)
        self._inbox = actor.remote()
        name = f"trial-{task['number']:04d}-{attempt}"
        config = {**task, "inbox": self._inbox, "meeting": str(folder / f"{name}.meeting")}
        self._end: Any = self._inbox.run.remote(config, slots, folder / "train", name)

    @property
    def over(self) -> bool:
        return bool(self._ray.wait([self._end], timeout=0)[0])

    def take(self, seconds: float) -> dict[str, Any] | None:
        """What a process told, waited for so long; nothing if somebody has killed the actor: then it is over."""
        try:
            told: dict[str, Any] | None = self._ray.get(self._inbox.take.remote(seconds))
        except self._ray.exceptions.RayActorError:
            time.sleep(seconds)
            return None
        return told

    def answer(self, goes_on: bool) -> None:
        with contextlib.suppress(self._ray.exceptions.RayActorError):
            self._ray.get(self._inbox.answer.remote(goes_on))

    def close(self) -> None:
        """Ends the actor, when it is over; how it ended goes to standard error."""
        with contextlib.suppress(self._ray.exceptions.RayActorError):
            if said := self._ray.get(self._end):
                print(said, file=sys.stderr)
        self._ray.kill(self._inbox)


def _fit(config: dict[str, Any], slots: Slots, folder: Path, name: str) -> str:
    """Returns when the processes have ended, in whatever way: they have told why, or a witness knows.

    What Ray Train says of an end that is not in order is returned.
    """
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    each = {"CPU": float(slots.cpus), **({"GPU": slots.gpus} if slots.gpus else {})}
    once = FailureConfig(max_failures=0, controller_failure_limit=0)  # the engine says what is tried again
    run: Any = RunConfig(name=name, storage_path=str(folder), failure_config=once)
    trainer = DataParallelTrainer(
        _work,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=slots.processes, use_gpu=slots.gpus > 0, resources_per_worker=each),
        run_config=run,
    )
    try:
        trainer.fit()
    except Exception:
        return traceback.format_exc()
    return ""


def _work(config: dict[str, Any]) -> None:
    """What each process runs; only there torch is needed."""
    from tunelab.tuning.member import train

    train(config)


def _train(
    engine: Engine, trial: Trial, training: _Training, witnesses: Sequence[Witness], asked: Callable[[], None]
) -> None:
    """Passes on what is told of a trial until its processes have ended; after a halt they are left to Ray."""
    from tunelab.tuning.ray_pieces import pass_on

    decided, since = False, 0.0
    while True:
        over = training.over  # before the last look
        told = training.take(_LOOK)
        asked()
        if told is not None and "metrics" in told:
            goes_on = pass_on(engine, trial.number, told) and not engine.should_halt
            decided = decided or not goes_on
            training.answer(goes_on)
        elif told is not None and "parted" not in told and not decided:
            decided = True
            pass_on(engine, trial.number, told)
        elif told is None and over:
            break
        since = since + _LOOK if decided or engine.should_halt else 0.0
        if engine.should_halt and since > _GRACE:
            return
        if since > _END:
            engine.halt(f"the processes of trial {trial.number} have not ended for {_END:.0f} s")
    training.close()
    if not decided:
        engine.lose(trial.number, testimony(witnesses, trial.number))
