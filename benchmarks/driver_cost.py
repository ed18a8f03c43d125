"""What the driver of a search costs: a search whose trials only report, beside plain Ray Tune with the same trials.

    python benchmarks/driver_cost.py --trials 1000

Both run on Ray with the same worker, which trains nothing and answers at once, so that the driver is what takes the
time. tunelab searches the space `arch` with everything that a search has: sampler, check of the networks, record on
the disk, Optuna's journal, early stopping, repeats, forecast and progress. Plain Ray Tune runs as many trials that
report as often, in first-in-first-out order.

Counted is the time from the first result to the last, per result, and the growth of the driver's resident memory from
a tenth of the trials to the last one, per trial; that of tunelab includes Ray's. "of the driver's processor" is
processor time, which a busy machine does not change much; "in the engine" is what tunelab's own engine takes of the
time, "in proposals" what of that new configurations take. The targets are 20 ms per report more than plain Ray Tune,
and 100 KB per trial.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_ray

import tunelab
from tunelab.records import EpochMetrics
from tunelab.study import load
from tunelab.tuning import worker
from tunelab.tuning.engine import Engine
from tunelab.tuning.slots import Slots

TARGET_MS = 20.0
TARGET_KB = 100.0


def made_up(number: int, epoch: int) -> EpochMetrics:
    """What trial `number` reports after `epoch` epochs, without training."""
    score = (number * 7919 % 997) / 997 * (1 - 1 / (epoch + 1))
    return EpochMetrics(epoch, 1.0, score, 1.0 - score / 2, score, 0.1, 0.5, 1000.0, 300.0)


def make_worker() -> type[worker.TrialWorker]:
    """A TrialWorker whose trainer trains nothing; made in a function, so that Ray sends it to the workers whole."""

    class Reporter:
        def __init__(self, number: int) -> None:
            self.number = number
            self.epoch = 0
            self.notes: list[str] = []

        def run_epoch(self, _stop_at: float) -> EpochMetrics:
            self.epoch += 1
            return made_up(self.number, self.epoch)

        def close(self) -> None:
            pass

    class ReportingWorker(worker.TrialWorker):
        def _begin(self) -> Any:
            return Reporter(self._config["number"])

    return ReportingWorker


class Watch:
    """Times reports, and notes the resident memory from a tenth of the trials on."""

    def __init__(self, trials: int) -> None:
        self.from_trial = trials // 10
        self.times: list[float] = []
        self.processor: list[float] = []
        self.memory = {"before": 0, "after": 0}

    def reported(self, number: int) -> None:
        """Trial `number` has reported."""
        self.times.append(time.monotonic())
        self.processor.append(time.process_time())
        self.memory["after"] = plain_ray.resident_bytes()
        if number == self.from_trial and not self.memory["before"]:
            self.memory["before"] = self.memory["after"]

    def figures(self, trials: int) -> dict[str, float]:
        """Milliseconds per report, and KB of memory per trial; `trials` ran."""
        reports = len(self.times)
        grown = (self.memory["after"] - self.memory["before"]) / (trials - self.from_trial)
        return {
            "trials": trials,
            "reports": reports,
            "ms_per_report": 1000 * (self.times[-1] - self.times[0]) / (reports - 1),
            "processor_ms_per_report": 1000 * (self.processor[-1] - self.processor[0]) / (reports - 1),
            "memory_kb_per_trial": grown / 1000,
        }


def run_tunelab(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """A search; the lengths of its trials are in its study afterwards."""
    watch = Watch(options.trials)
    spent = {"engine": 0.0, "proposals": 0.0}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            began = time.monotonic()
            try:
                return method(*given)
            finally:
                spent[name] += time.monotonic() - began

        return call

    report = timed("engine", Engine.report)

    def watched(engine: Engine, number: int, metrics: EpochMetrics, *more: Any) -> bool:
        goes_on = bool(report(engine, number, metrics, *more))
        watch.reported(number)
        return goes_on

    Engine.report = watched  # type: ignore[method-assign]
    Engine.next_trial = timed("proposals", Engine.next_trial)  # type: ignore[method-assign]
    worker.TrialWorker = make_worker()  # type: ignore[misc]
    with (folder / "progress.txt").open("w", encoding="utf-8") as shown, contextlib.redirect_stderr(shown):
        study = tunelab.search(
            "arch",
            trials=options.trials,
            epochs=options.epochs,
            concurrent=options.concurrent,
            sampler=options.sampler,
            study=folder / "study",
            telemetry="off",
            device="cpu",
        )
    figures = watch.figures(len(study.list_trials()))
    reports = figures["reports"]
    figures["engine_ms_per_report"] = 1000 * (spent["engine"] + spent["proposals"]) / reports
    figures["proposals_ms_per_report"] = 1000 * spent["proposals"] / reports
    return figures


def run_plain(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """As many trials that report as often, by plain Ray Tune."""
    lengths = [len(trial.epochs) for trial in load(folder / "study").list_trials()]
    slots = Slots(options.concurrent, 1, 0.0, "cpu")
    watch = Watch(len(lengths))
    base = make_worker()

    class EndingWorker(base):  # type: ignore[misc, valid-type]
        def setup(self, config: dict[str, Any]) -> None:
            number, self._length = config["job"]
            super().setup({**config, "number": number, "stop_at": math.inf})

        def step(self) -> dict[str, Any]:
            result = super().step()
            return {**result, "done": self._trainer.epoch >= self._length}

    with plain_ray.running(slots, folder / "plain.log") as place:
        plain_ray.fit(
            EndingWorker,
            list(enumerate(lengths)),
            place,
            cpus=slots.cpus,
            concurrent=slots.concurrent,
            told=lambda job: watch.reported(job[0]),
        )
    return watch.figures(len(lengths))


def in_a_process(part: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Runs a part of this file in a process of its own, so that neither finds the memory of the other."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), *arguments]
    subprocess.run(command, check=True)
    figures: dict[str, float] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    return figures


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Both runs beside each other, and the targets."""
    lines = [f"{'':28}{'tunelab':>12}{'plain Ray':>12}"]
    names = {
        "trials": "trials",
        "reports": "reports",
        "ms_per_report": "ms per report",
        "processor_ms_per_report": "  of the driver's processor",
        "engine_ms_per_report": "  in the engine",
        "proposals_ms_per_report": "  in proposals",
        "memory_kb_per_trial": "memory, KB per trial",
    }
    for key, said in names.items():
        values = [found[part].get(key) for part in ("tunelab", "plain")]
        written = ["" if value is None else f"{value:.{0 if value == int(value) else 2}f}" for value in values]
        lines.append(f"{said:28}{written[0]:>12}{written[1]:>12}")
    added = found["tunelab"]["ms_per_report"] - found["plain"]["ms_per_report"]
    lines.append(f"added per report: {added:.2f} ms (target: at most {TARGET_MS:.0f})")
    grown = found["tunelab"]["memory_kb_per_trial"]
    lines.append(f"memory per trial: {grown:.0f} KB (target: at most {TARGET_KB:.0f})")
    return lines


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=9, help="the full length of a trial")
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--sampler", default="model", help="as of `tunelab search`")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--part", choices=("tunelab", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run = run_tunelab if options.part == "tunelab" else run_plain
        figures = run(options.folder, options)
        (options.folder / f"{options.part}.json").write_text(json.dumps(figures), encoding="utf-8")
        return
    given = [f"--{name}={getattr(options, name)}" for name in ("trials", "epochs", "concurrent", "sampler")]
    with tempfile.TemporaryDirectory() as folder:
        found = {part: in_a_process(part, Path(folder), given) for part in ("tunelab", "plain")}
    print(f"trials that only report, sampler {options.sampler}, {os.cpu_count()} CPUs, {platform.machine()}")
    print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
