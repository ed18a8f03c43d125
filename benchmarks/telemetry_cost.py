"""What telemetry costs: the same trainings with `--telemetry off`, `scalars` and `full`, in turns.

    python benchmarks/telemetry_cost.py --rounds 5

A small network and a median one of the space `arch` are trained in full, with checkpoints, on random images of 32x32,
with one thread. In each round every level trains once, in another order each time; the first training of a network,
which starts libraries, is not counted. "of off" is the ratio to the training without telemetry of the same round, in
the thread's own processor time, which a busy machine changes less than the time on the clock, which is beside it: the
median of the rounds and their range. "own" is the share of the processor time inside telemetry's own calls, measured
directly: it also tells what is less than the noise of the ratios. "norms" is the same of what every level measures for
the record: the norms of weights and gradients, of the last step of each epoch. The numbers of all epochs must be the
same at every level, to the last bit. An epoch of more images takes more training and no more telemetry.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training_networks import images_at_hand, lengthened, pick_networks

from tunelab.config import DataConfig, TrialConfig
from tunelab.training import observe
from tunelab.training.folder import TrialFolder
from tunelab.training.full_telemetry import FullTelemetry
from tunelab.training.loop import Trainer
from tunelab.training.telemetry import bytes_in

LEVELS = ("off", "scalars", "full")
TARGET = 0.01
NUMBERS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "weight_norm", "grad_norm", "update_ratio")
OWN = (
    *((TrialFolder, name) for name in ("record", "close_events")),
    *((FullTelemetry, name) for name in ("begin", "wants", "after", "epoch_ended")),
)
NORMS = ((observe.Eye, "before_update"), (observe.LastStep, "after"))


@contextmanager
def timed(parts: tuple[tuple[type, str], ...], spent: list[float]) -> Iterator[None]:
    """Adds the processor time inside these methods to `spent`."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*given)
            finally:
                spent.append(time.thread_time() - began)

        return run

    with ExitStack() as stack:
        for owner, name in parts:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield


def train(config: TrialConfig, level: str) -> dict[str, Any]:
    """One training: processor time and clock, shares of telemetry and norms, bytes, and the numbers of all epochs."""
    own: list[float] = []
    norms: list[float] = []
    with tempfile.TemporaryDirectory() as name, timed(OWN, own), timed(NORMS, norms):
        began, clock = time.thread_time(), time.perf_counter()
        trainer = Trainer(config, folder=Path(name), device="cpu", threads=1, telemetry=level)  # type: ignore[arg-type]
        while not trainer.finished:
            trainer.run_epoch()
        trainer.close()
        seconds, clock = time.thread_time() - began, time.perf_counter() - clock
        written = bytes_in(Path(name) / "events")
        if any("TensorBoard" in note for note in trainer.notes):
            raise SystemExit(f"telemetry failed: {trainer.notes}")
    return {
        "seconds": seconds,
        "clock": clock,
        "own": sum(own) / seconds,
        "own_seconds": sum(own),
        "norms": sum(norms) / seconds,
        "bytes": written,
        "numbers": [[getattr(metrics, name) for name in NUMBERS] for metrics in trainer.history],
    }


def measure(config: TrialConfig, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The trainings of each level, round by round."""
    train(config, "full")
    found: dict[str, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    for number in range(rounds):
        for place in range(len(LEVELS)):
            level = LEVELS[(number + place) % len(LEVELS)]
            found[level].append(train(config, level))
    numbers = [run.pop("numbers") for runs in found.values() for run in runs]
    if any(one != numbers[0] for one in numbers):
        raise SystemExit("the levels do not give the same numbers")
    return found


def describe(found: dict[str, list[dict[str, Any]]], epochs: int) -> dict[str, dict[str, Any]]:
    """The row of each level."""
    rows = {}
    for level, runs in found.items():
        pairs = list(zip(runs, found["off"], strict=True))
        ratios = {kind: [run[kind] / off[kind] for run, off in pairs] for kind in ("seconds", "clock")}
        rows[level] = {
            "seconds_per_epoch": statistics.median(run["seconds"] for run in runs) / epochs,
            **{f"{kind}_ratio": statistics.median(values) for kind, values in ratios.items()},
            **{f"{kind}_range": [min(values), max(values)] for kind, values in ratios.items()},
            **{name: statistics.median(run[name] for run in runs) for name in ("own", "own_seconds", "norms", "bytes")},
        }
    return rows


def show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Prints the rows of a network."""
    for level, row in rows.items():
        ratio, clock = (
            f"{row[f'{kind}_ratio']:.3f} ({row[f'{kind}_range'][0]:.3f} to {row[f'{kind}_range'][1]:.3f})"
            for kind in ("seconds", "clock")
        )
        print(
            f"{name:8} {level:8} {row['seconds_per_epoch']:8.3f} s {ratio:>24} {clock:>24} {100 * row['own']:7.2f}% "
            f"{100 * row['norms']:6.2f}% {row['bytes'] / 2**10:7.0f} KiB"
        )


def main() -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=1024, help="training images; as many are validated on, up to 512")
    parser.add_argument("--networks", default="small,median", help="of small, median, large and resnet18")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, one thread, torch {torch.__version__}, {options.images} images, "
        f"{options.epochs} epochs, {options.rounds} rounds; load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'network':8} {'level':8} {'per epoch':>10} {'of off, processor':>24} {'of off, clock':>24} {'own':>8} "
        f"{'norms':>7} {'events':>11}"
    )
    content = {}
    with tempfile.TemporaryDirectory() as folder:
        data: DataConfig = images_at_hand(Path(folder), None, options.images, min(512, options.images))
        for name in options.networks.split(","):
            config = lengthened(pick_networks()[name], data, options.epochs)
            rows = describe(measure(config, options.rounds), options.epochs)
            show(name, rows)
            content[name] = rows
            verdict = "under" if rows["scalars"]["own"] < TARGET else "NOT under"
            print(f"{name:8} scalars take {100 * rows['scalars']['own']:.2f}% of the training: {verdict} 1%")
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
