"""How long `tunelab best` takes on a large study, and how much memory.

    python benchmarks/reading_speed.py --trials 10000 --epochs 9

A study is made up: configurations drawn anywhere in the space `arch`, each with the results of all its epochs, every
hundredth trained again with another seed, in a record as a search writes it. Each command then runs in a process of its
own, as a user would start it, and is timed from its start to its end; "processor" is the processor time of that, which
a busy machine changes less; the memory is its peak resident memory. The median and the range of the rounds are printed.
The targets for `best` are 2 seconds and 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import TrialConfig, arch_id, to_json
from tunelab.journal import encode
from tunelab.records import EpochMetrics
from tunelab.space import load_space
from tunelab.study import Study
from tunelab.tuning.draws import Draw

TARGET_SECONDS = 2.0
TARGET_MB = 500.0
REPEATED = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the study, measures, prints; the exit status is 1 if `best` misses a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", nargs="+", default=["best", "best --json"], help="what to run on the study")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder) / "study", given.trials, given.epochs)
        size = (study.path / "journal.jsonl").stat().st_size / 1e6
        print(f"{given.trials} trials of {given.epochs} epochs, a record of {size:.0f} MB; {given.rounds} rounds")
        figures = {words: [measure(words.split(), study.path) for _ in range(given.rounds)] for words in given.commands}
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    seconds, _, memory = (statistics.median(column) for column in zip(*figures[given.commands[0]], strict=True))
    return 0 if seconds <= TARGET_SECONDS and memory <= TARGET_MB else 1


def make_study(path: Path, trials: int, epochs: int) -> Study:
    """A study as a search leaves it, of made-up results."""
    info: dict[str, Any] = {
        "kind": "search",
        "space": {"name": "arch", "source": "arch", "version": 1},
        "options": {"trials": trials, "epochs": epochs, "device": "cpu", "sampler": "random"},
        "data": {
            "name": "made-up",
            "image_size": [32, 32],
            "channels": 3,
            "classes": [str(number) for number in range(10)],
            "counts": {"train": 10_000, "val": 2_000, "test": 2_000},
            "fingerprint": "0" * 16,
        },
        "hardware": {"processor": "made up", "cpus": 1, "gpus": []},
    }
    study = Study.create(path, info)
    with (path / "journal.jsonl").open("wb") as record:
        for event in events(trials, epochs):
            record.write(encode(event))
    return study


def events(trials: int, epochs: int) -> Iterator[dict[str, Any]]:
    """What a search of so many trials records, one trial after another."""
    generator = random.Random(0)
    space = load_space("arch")
    config, params = None, {}
    for number in range(trials):
        again = number % REPEATED == REPEATED - 1
        if config is None or not again:
            draw = Draw(generator)
            config, params = space.draw(draw), draw.params
        yield {
            "event": "proposed",
            "trial": number,
            "time": 1e9 + number,
            "arch_id": arch_id(config.arch),
            "params": params,
            "stats": {"params": 100_000, "mflops": 10.0, "activations": 10_000, "depth": 18, "convs": 20},
            "config": full_config(config, epochs, number),
            "origin": "sampler",
            "repeat_of": number - 1 if again else None,
        }
        final = 0.4 + 0.1 * generator.random()
        for epoch in range(1, epochs + 1):
            score = final * epoch / (epoch + 1) + generator.gauss(0, 0.01)
            metrics = EpochMetrics(epoch, 2.0 / epoch, score, 2.1 / epoch, score, 0.1 / epoch, 1.25, 812.5, 310.25)
            yield {"event": "result", "trial": number, "time": 1e9 + number, "metrics": metrics.to_json()}
        yield {"event": "ended", "trial": number, "time": 1e9 + number, "status": "COMPLETED", "reason": ""}


def full_config(config: TrialConfig, epochs: int, seed: int) -> dict[str, Any]:
    """A configuration as a search records it."""
    plain = to_json(config)
    plain["train"]["epochs"] = epochs
    plain["seed"] = seed
    return plain


def measure(words: Sequence[str], study: Path) -> tuple[float, float, float]:
    """Seconds from the start to the end of a command on a study, of processor time, and its peak memory in MB."""
    command = [sys.executable, "-m", "tunelab.cli", words[0], str(study), *words[1:]]
    begun = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - begun
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6


def table(figures: dict[str, list[tuple[float, float, float]]]) -> str:
    """Median and range of seconds, processor time and memory, a line for each command."""
    lines = [f"{'tunelab':14} {'seconds':>22} {'processor':>22} {'peak MB':>20}"]
    for words, runs in figures.items():
        cells = [
            f"{statistics.median(column):.{digits}f} ({min(column):.{digits}f} to {max(column):.{digits}f})"
            for digits, column in zip((2, 2, 0), zip(*runs, strict=True), strict=True)
        ]
        lines.append(f"{words:14} {cells[0]:>22} {cells[1]:>22} {cells[2]:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
