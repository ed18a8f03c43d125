"""Seconds per trial beyond training: a search of many trials that train next to nothing.

    python benchmarks/trial_overhead.py --trials 32 --repeat 3

A trial is a network of one block on 100 digits for one epoch. What is counted is the time from the first proposal to
the last end in the study's record, less the training itself, per trial:
(span * concurrent - seconds of all epochs) / trials. Starting Ray and the first import of torch in each worker lie
before the first result and are shown apart: "first result" is the time from the command to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import tunelab
from tunelab.journal import read_journal

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "a network of next to nothing"
VERSION = 1
BASELINES = ()


def draw(suggest):
    blocks = (BlockSpec("basic", 4, 2, convs=1),)
    arch = ArchSpec(StemSpec(4, 3, pool=True), (blocks,))
    return TrialConfig(arch, TrainConfig(batch_size=64, lr=suggest.suggest_float("lr", 1e-3, 1e-1, log=True)))
"""


def measure(folder: Path, trials: int) -> dict[str, float]:
    """Runs one search; seconds per trial beyond training, and from the call to the first result."""
    space = folder / "nothing.py"
    space.write_text(SPACE, encoding="utf-8")
    began = time.time()
    study = tunelab.search(
        str(space), trials=trials, epochs=1, limit_train=100, scheduler="none", study=folder / "study", progress=False
    )
    total = time.time() - began
    events = list(read_journal(study.path / "journal.jsonl"))
    results = [event["time"] for event in events if event["event"] == "result"]
    ends = [event["time"] for event in events if event["event"] == "ended"]
    concurrent = study.info["slots"]["concurrent"]
    # The first result of each worker carries its start; the span begins when all workers are at work.
    at_work = sorted(results)[concurrent - 1]
    counted = trials - concurrent
    training = sum(
        event["metrics"]["seconds"] for event in events if event["event"] == "result" and event["time"] > at_work
    )
    span = max(ends) - at_work
    return {
        "overhead_seconds": (span * concurrent - training) / counted,
        "per_trial_wall_seconds": span / counted,
        "first_result_seconds": min(results) - began,
        "total_seconds": total,
    }


def main() -> None:
    """Repeats the measurement and prints median and range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    runs = []
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), options.trials))
    print(f"{options.trials} trials of nothing, {options.repeat} runs, {os.cpu_count()} CPUs, {platform.machine()}")
    print(f"{'':26}{'median':>10}{'least':>10}{'most':>10}")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:26}{statistics.median(values):10.3f}{min(values):10.3f}{max(values):10.3f}")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
