"""What the driver of a long search costs: a simulated fleet of 64 slots that replays learning curves, 5,000 trials.

    python benchmarks/fleet.py --json fleet.json

Nothing is trained and Ray is not there: all else of a search is. The space `arch`, the sampler, the check of the
networks, the engine with its rungs, its noise and its race, the record on the disk (with all its fsyncs), Optuna's
journal, the listeners (forecast, progress, room, memory, checkpoints, watchdog, TensorBoard's table) and what Ray Tune
would call (`tunelab.tuning.ray_pieces`), with the texts that workers send. The fleet hands a trial to each free slot,
and plays epochs in the order in which they would end.

The curves are made up by a seeded generator: what a configuration comes to depends on its rate, its size and luck, so
that a sampler has something to learn. With `--curves NAME.npz`, as `search_quality.py` takes them, recorded ones are
replayed: a trial has the curve of the row whose place among the rows is that of the trial among made-up ones.

Every `--every` trials that have ended a line is printed: processor and wall time per trial, resident memory, size of
the record. The race at the end, in which the best are trained again, is a line of its own. Targets: the
last line's processor time within 20% of the first one's, memory that grows by less than 100 KB per trial from the first
line to the last, 20 trials ended per second. Processor time is compared because a busy machine changes it less; what
the disk takes for its fsyncs is in the wall time alone, and a column of its own.

    python benchmarks/fleet.py --ray 300

measures another thing: what Ray Tune itself adds, 300 trials that do nothing and report once, on 8 slots of a quarter
of a processor, in first-in-first-out order, without anything of tunelab.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import itertools
import json
import math
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_ray

import tunelab
from tunelab.config import ComputeConfig, DataConfig, derive_seed
from tunelab.data.cache import DataInfo, prepare
from tunelab.records import EpochMetrics, Trial
from tunelab.study import Study
from tunelab.tuning import calibrate, compute, prospect, ray_tune
from tunelab.tuning.engine import Engine
from tunelab.tuning.footprint import Footprint
from tunelab.tuning.slots import Slots

WITHIN = 1.2
TARGET_KB = 100.0
TARGET_PER_SECOND = 20.0
_PEAK_MIB = 10.0  # of every made-up trial: a fleet has its own memory, not this machine's
_HOPELESS = 0.02  # so many trials diverge in their second epoch
_TAKES = 0.01  # seconds of an epoch for a million multiply-adds


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Recorded curves (rows, epochs), those that end best last, and the seconds of their epochs."""

    scores: np.ndarray
    seconds: np.ndarray

    @classmethod
    def read(cls, file: Path, epochs: int) -> Recorded:
        """Of the runs with that many epochs; `SystemExit` if there are none."""
        with np.load(file) as arrays:
            long = arrays["ok"].astype(bool) & (arrays["len"] >= epochs)
            scores, seconds = arrays["val"][long, :epochs], arrays["sec"][long, :epochs]
        whole = np.isfinite(scores).all(axis=1)
        if not whole.any():
            raise SystemExit(f"{file} has no curve of {epochs} epochs; give fewer --epochs")
        scores, seconds = scores[whole], seconds[whole]
        order = np.argsort(scores[:, -1], kind="stable")
        return cls(scores[order], seconds[order])

    def row(self, goodness: float) -> int:
        """The row at that place, from 0, the worst, to 1."""
        return min(len(self.scores) - 1, int(goodness * len(self.scores)))


class Curves:
    """What each trial reports.

    Args:
        seed: of all luck.
        epochs: the full length.
        recorded: curves to replay; None: they are made up.
    """

    def __init__(self, seed: int, epochs: int, recorded: Recorded | None) -> None:
        self._seed, self._epochs, self._recorded = seed, epochs, recorded

    def report(self, trial: Trial, epoch: int) -> dict[str, Any]:
        """What a worker tells after an epoch."""
        luck = random.Random(derive_seed(self._seed, "hopeless", trial.number))
        if epoch == 2 and luck.random() < _HOPELESS:
            return {"status": "DIVERGED", "reason": "epoch 2: the loss is not finite", "findings": []}
        return {"metrics": self._metrics(trial, epoch).to_json()}

    def seconds(self, trial: Trial, epoch: int) -> float:
        """How long an epoch takes."""
        if self._recorded is not None:
            return float(self._recorded.seconds[self._recorded.row(self._goodness(trial)), epoch - 1])
        return _TAKES * float(trial.stats["mflops"]) + 0.05

    def _goodness(self, trial: Trial) -> float:
        """In (0, 1): a rate of 0.03 is best, and networks of 10 million multiply-adds.

        Beside these, configurations differ by what no sampler can know, and runs of one by chance.
        """
        train, stats = trial.config["train"], trial.stats
        hidden = random.Random(derive_seed(self._seed, "hidden", json.dumps(trial.params, sort_keys=True)))
        luck = random.Random(derive_seed(self._seed, "run", trial.config["seed"]))
        off = 0.8 * (math.log10(train["lr"]) + 1.5) ** 2 + 0.4 * (math.log10(float(stats["mflops"])) - 1) ** 2
        return 1 / (1 + math.exp(off - 1.0 + hidden.gauss(0.0, 0.5) + luck.gauss(0.0, 0.02)))

    def _metrics(self, trial: Trial, epoch: int) -> EpochMetrics:
        goodness = self._goodness(trial)
        if self._recorded is not None:
            score = float(self._recorded.scores[self._recorded.row(goodness), epoch - 1])
        else:
            luck = random.Random(derive_seed(self._seed, "epoch", trial.config["seed"], epoch))
            score = 0.1 + 0.85 * goodness * (1 - 0.7 * epoch**-0.7) + luck.gauss(0.0, 0.003)
        score = min(1.0, max(0.0, score))
        return EpochMetrics(
            epoch=epoch,
            train_loss=1.2 - score,
            train_accuracy=score,
            val_loss=1.3 - score,
            val_accuracy=score,
            lr=float(trial.config["train"]["lr"]),
            seconds=self.seconds(trial, epoch),
            images_per_second=1000.0,
            peak_memory_mib=_PEAK_MIB,
            weight_norm=20.0 + epoch,
            grad_norm=1.0 / epoch,
            update_ratio=0.01 / epoch,
        )


class Meter:
    """Notes what the driver has taken whenever so many more trials have ended.

    Args:
        total: of how many configurations; what ends after them is the race.
        every: how many trials are a line.
    """

    def __init__(self, total: int, every: int) -> None:
        self.rows: list[dict[str, float]] = []
        self._total, self._every = total, every
        self._ended = 0
        self._records: tuple[Path, Path] | None = None
        self._last = (0.0, 0.0)
        self._synced: list[float] = []

    def synced(self, seconds: float) -> None:
        """The driver has waited for the disk so long."""
        self._synced.append(seconds)

    def begin(self, study: Path) -> None:
        """The search starts now."""
        self._synced.clear()
        self._records = (study / "journal.jsonl", study / "optuna.journal")
        self._last = (time.process_time(), time.monotonic())

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        self._ended += trial.repeat_of is None
        if trial.repeat_of is None and self._ended % self._every == 0:
            self._note("search", self._ended, self._every)

    def race(self, repeats: int) -> None:
        """All has ended, with so many trainings of the best after the last configuration."""
        if repeats:
            self._note("race", self._ended, repeats)

    def _note(self, part: str, ended: int, count: int) -> None:
        assert self._records is not None
        now = (time.process_time(), time.monotonic())
        record, optuna = (file.stat().st_size for file in self._records)
        row = {
            "part": part,
            "ended": ended,
            "trials": count,
            "processor_ms_per_trial": 1000 * (now[0] - self._last[0]) / count,
            "wall_ms_per_trial": 1000 * (now[1] - self._last[1]) / count,
            "fsyncs_per_trial": len(self._synced) / count,
            "fsync_ms_per_trial": 1000 * sum(self._synced) / count,
            "resident_mb": plain_ray.resident_bytes() / 1e6,
            "record_bytes": record,
            "optuna_bytes": optuna,
        }
        self.rows.append(row)
        print(line_of(row), flush=True)
        self._last = now
        self._synced.clear()


class Fleet:
    """In place of `ray_tune.run`: slots that play trials, in the order in which their epochs would end."""

    def __init__(self, curves: Curves, meter: Meter, concurrent: int) -> None:
        self._curves, self._meter, self._concurrent = curves, meter, concurrent

    def run(
        self,
        engine: Engine,
        slots: Slots,
        *,
        folder_of: Callable[[int], Path],
        telemetry: str,
        log: Path,
        stop_at: float = math.inf,
        witnesses: Sequence[Any] = (),
        guard: Any = None,
        looks: Sequence[Callable[[Path], None]] = (),
        **_more: Any,
    ) -> None:
        """Runs `engine` until every trial has ended."""
        from tunelab.tuning.ray_pieces import EngineScheduler, EngineSearcher, bridge

        assert slots.concurrent == self._concurrent
        log.touch()
        folder = log.parent

        def asked() -> None:
            guard.ask()
            for look in looks:
                look(folder)

        settings = {"device": slots.device, "threads": slots.cpus, "telemetry": telemetry, "stop_at": stop_at}
        with bridge(engine, folder_of, settings, witnesses, asked) as key:
            self._meter.begin(folder)
            self._play(engine, EngineSearcher(key), EngineScheduler(key))

    def _play(self, engine: Engine, searcher: Any, scheduler: Any) -> None:
        order = itertools.count()
        events: list[tuple[float, int, int, int]] = []  # when, in which order, the trial, the epoch that ends then
        now, repeats = 0.0, 0

        def begin(number: int, epoch: int) -> None:
            at = now + self._curves.seconds(engine.trials[number], epoch)
            heapq.heappush(events, (at, next(order), number, epoch))

        while True:
            while len(events) < self._concurrent and isinstance(given := searcher.suggest(""), Mapping):
                begin(given["number"], given["known_epochs"] + 1)
            if not events:
                break
            now, _, number, epoch = heapq.heappop(events)
            trial = engine.trials[number]
            played = SimpleNamespace(config={"number": number})
            report = {"report": json.dumps(self._curves.report(trial, epoch))}
            if scheduler.on_trial_result(None, played, report) == "CONTINUE":
                begin(number, epoch + 1)
            elif trial.status.ended:
                self._meter.ended(trial)
                repeats += trial.repeat_of is not None and not engine.trials_left
        self._meter.race(repeats)


@contextlib.contextmanager
def timed_fsyncs(meter: Meter) -> Iterator[None]:
    """Tells the meter how long each fsync of this process takes."""
    real = os.fsync

    def timed(file: int) -> None:
        began = time.monotonic()
        real(file)
        meter.synced(time.monotonic() - began)

    os.fsync = timed  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = real


def search(folder: Path, options: argparse.Namespace) -> tuple[Study, Meter]:
    """A whole search on the simulated fleet."""
    recorded = None if options.curves is None else Recorded.read(options.curves, options.epochs)
    meter = Meter(options.trials, options.every)
    fleet = Fleet(Curves(options.seed, options.epochs, recorded), meter, options.concurrent)

    def pretend(_samples: Any, candidates: Sequence[Slots], *_more: Any) -> calibrate.Calibration:
        slots = dataclasses.replace(candidates[0], concurrent=options.concurrent, cpus=1)
        layouts = (calibrate.Layout(slots, 1000.0, _PEAK_MIB),)
        footprint = Footprint(_PEAK_MIB, 0.0)
        return calibrate.Calibration(slots, layouts, (), 2.0, 0.1, 1e6, "a fleet that is not there", footprint)

    def with_images(config: DataConfig, show_progress: bool) -> DataInfo:
        return dataclasses.replace(prepare(config), counts={"train": 40_000, "val": 6_000, "test": 0})

    prospect.open_data = with_images
    ray_tune.run = fleet.run  # type: ignore[assignment]
    calibrate.calibrate = pretend  # type: ignore[assignment]
    calibrate.startable = lambda candidates, *_more: list(candidates)  # type: ignore[assignment]
    compute.recall = lambda _key: compute.Choice(ComputeConfig(), {})  # type: ignore[assignment]
    prospect.Probes = lambda _count: contextlib.nullcontext()  # type: ignore[assignment, misc]
    shown = (folder / "progress.txt").open("w", encoding="utf-8")
    with shown, contextlib.redirect_stderr(shown), timed_fsyncs(meter):
        study = tunelab.search(
            "arch",
            trials=options.trials,
            epochs=options.epochs,
            concurrent=options.concurrent,
            sampler=options.sampler,
            scheduler=options.scheduler,
            race=options.race,
            telemetry=options.telemetry,
            seed=options.seed,
            study=folder / "study",
            device="cpu",
        )
    return study, meter


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How the last line of the search stands to the first, and what all of it took."""
    mine = [row for row in rows if row["part"] == "search"]
    first, last = mine[0], mine[-1]
    seconds = sum(row["wall_ms_per_trial"] * row["trials"] for row in mine) / 1000
    trials = last["ended"] - first["ended"]
    return {
        "last_to_first": last["processor_ms_per_trial"] / first["processor_ms_per_trial"],
        "last_to_first_wall": last["wall_ms_per_trial"] / first["wall_ms_per_trial"],
        "memory_kb_per_trial": 1000 * (last["resident_mb"] - first["resident_mb"]) / trials if trials else math.nan,
        "ended_per_second": last["ended"] / seconds,
    }


def line_of(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{row['part']:8}{row['ended']:8.0f}{row['processor_ms_per_trial']:14.1f}{row['wall_ms_per_trial']:12.1f}"
        f"{row['fsync_ms_per_trial']:12.1f}"
        f"{row['resident_mb']:12.0f}{row['record_bytes'] / 1e6:12.1f}{row['optuna_bytes'] / 1e6:12.1f}"
    )


def ray_alone(trials: int, concurrent: int, cpus: float) -> dict[str, float]:
    """What Ray Tune takes for trials that do nothing, per trial, from the first result to the last."""
    from ray import tune

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            pass

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"report": "{}", "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    times: list[tuple[float, float]] = []

    def told(_job: int) -> None:
        times.append((time.process_time(), time.monotonic()))

    slots = Slots(math.ceil(concurrent * cpus), 1, 0.0, "cpu")
    with tempfile.TemporaryDirectory() as logs, plain_ray.running(slots, Path(logs) / "ray.log") as place:
        plain_ray.fit(Nothing, range(trials), place, cpus=cpus, concurrent=concurrent, told=told)
    counted = times[concurrent:]  # processes start before that
    return {
        "trials": len(times),
        "concurrent": concurrent,
        "processor_ms_per_trial": 1000 * (counted[-1][0] - counted[0][0]) / (len(counted) - 1),
        "wall_ms_per_trial": 1000 * (counted[-1][1] - counted[0][1]) / (len(counted) - 1),
    }


def main() -> None:
    """Runs the fleet, or Ray alone, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=27, help="the full length of a trial")
    parser.add_argument("--every", type=int, default=500, help="trials of a line")
    parser.add_argument("--sampler", default="model", help="as of `tunelab search`")
    parser.add_argument("--scheduler", default="asha", help="as of `tunelab search`")
    parser.add_argument("--race", type=float, default=0.2, help="as of `tunelab search`")
    parser.add_argument("--telemetry", default="scalars", help="as of `tunelab search`")
    parser.add_argument("--curves", type=Path, help="a file of recorded curves, NAME.npz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", type=int, metavar="TRIALS", help="measures Ray Tune alone, with so many trials")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, Any]
    if options.ray is not None:
        found = {"ray": ray_alone(options.ray, 8, 0.25)}
        alone = found["ray"]
        print(f"Ray Tune alone, {alone['trials']} trials that do nothing, 8 at once on a quarter of a processor each:")
        print(f"{alone['processor_ms_per_trial']:.1f} ms of the driver's processor and", end=" ")
        print(f"{alone['wall_ms_per_trial']:.1f} ms of wall time per trial")
    else:
        print(f"{options.trials} trials on {options.concurrent} simulated slots, sampler {options.sampler},", end=" ")
        print(f"{os.cpu_count()} CPUs, {platform.machine()}")
        heads = ("ended", "processor ms", "wall ms", "fsync ms", "resident MB", "record MB", "Optuna MB")
        print(
            f"{'':8}{heads[0]:>8}"
            + "".join(f"{head:>{width}}" for head, width in zip(heads[1:], (14, 12, 12, 12, 12, 12), strict=True))
        )
        with tempfile.TemporaryDirectory() as folder:
            study, meter = search(Path(folder), options)
            trials = study.list_trials()
        found = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "rows": meter.rows,
            "reports_per_trial": statistics.fmean(len(trial.epochs) for trial in trials if trial.repeat_of is None),
            "fsyncs_per_trial": statistics.fmean(
                row["fsyncs_per_trial"] for row in meter.rows if row["part"] == "search"
            ),
            "most_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            **verdict(meter.rows),
        }
        print(f"{found['reports_per_trial']:.1f} epochs and {found['fsyncs_per_trial']:.1f} fsyncs per trial, ", end="")
        print(f"{found['ended_per_second']:.1f} trials ended a second (target: at least {TARGET_PER_SECOND:.0f})")
        print(f"last to first: {found['last_to_first']:.2f} (target: at most {WITHIN}); ", end="")
        print(f"memory per trial: {found['memory_kb_per_trial']:.0f} KB (target: at most {TARGET_KB:.0f})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
