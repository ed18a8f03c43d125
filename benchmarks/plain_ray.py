"""Plain Ray Tune, beside a search: no searcher, no scheduler, no stopper; and what a driver holds in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tunelab.tuning import ray_home
from tunelab.tuning.slots import Slots


@contextlib.contextmanager
def running(slots: Slots, log: Path) -> Iterator[Path]:
    """A Ray as a search has it, whose words go to `log`; gives the folder of its files."""
    with (
        ray_home.private_folder() as place,
        ray_home.environment(place),
        ray_home.quiet(log),
        ray_home.started(slots, place),
    ):
        yield place


def fit(
    worker: type[Any], jobs: Sequence[Any], place: Path, *, cpus: float, concurrent: int, told: Callable[[Any], None]
) -> None:
    """Runs a trial of `worker` for each of `jobs`, in first-in-first-out order, on the Ray that runs.

    Args:
        worker: a class of Ray Tune; its config has its job.
        jobs: plain values.
        place: the folder for what Ray Tune writes.
        cpus: processors of a trial.
        concurrent: trials at once.
        told: is called with the job of each result.
    """
    from ray import tune

    class Timing(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            told(trial.config["job"])

    tune.Tuner(
        tune.with_resources(worker, {"cpu": cpus, "gpu": 0}),
        param_space={"job": tune.grid_search(list(jobs))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(place / "tune"),
            verbose=0,
            callbacks=[Timing()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()


def resident_bytes() -> int:
    """What this process holds in memory."""
    return int(psutil.Process().memory_info().rss)
