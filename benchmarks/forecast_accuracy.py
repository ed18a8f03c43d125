"""Is the forecast of a search true, and is a deadline kept? Real searches on digits, one after another.

    python benchmarks/forecast_accuracy.py                     ten searches of different size
    python benchmarks/forecast_accuracy.py --deadlines 10      the same search ten times, with a deadline of 3 minutes
    python benchmarks/forecast_accuracy.py --deadlines 1 --resume

The first table has the forecast that was made before the start, with its range, and how long the search then took,
from the forecast to the end of the command; it is close within 25%. The second has how long each command took from its
start, beside its deadline; it is kept within 10 seconds. With --resume the paused study is gone on with, to its end.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = (
    (8, 3, None),
    (8, 12, 600),
    (10, 6, None),
    (12, 9, 300),
    (16, 3, None),
    (16, 9, 600),
    (20, 6, None),
    (24, 9, 600),
    (30, 4, None),
    (30, 12, 300),
)
"""Trials, epochs, training images (None: all 1,258)."""
CLOSE = 0.25
KEPT = 10.0


def run(*words: str) -> tuple[int, float]:
    """Runs a command of tunelab; its exit status and how many seconds it took."""
    code = "import sys; from tunelab.cli import main; main()"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"tunelab {' '.join(words)} failed: {done.stderr}")
    return done.returncode, time.time() - began


def search(folder: Path, trials: int, epochs: int, images: int | None, seed: int, *more: str) -> tuple[int, float]:
    """A search in `folder`."""
    words = ["search", "arch", "--trials", str(trials), "--epochs", str(epochs), "--seed", str(seed)]
    words += [] if images is None else ["--limit-train", str(images)]
    return run(*words, "--study", str(folder), *more)


@contextlib.contextmanager
def new_study(keep: Path | None, name: str) -> Iterator[Path]:
    """Where a study can be made: in `keep`, else in a folder that is gone afterwards."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep / name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def measure(trials: int, epochs: int, images: int | None, seed: int, keep: Path | None) -> dict[str, Any]:
    """One search: its forecast and the truth."""
    with new_study(keep, f"digits-{trials}-{epochs}-{images or 'all'}-{seed}") as path:
        _, took = search(path, trials, epochs, images, seed)
        end = time.time()
        said = json.loads((path / "study.json").read_text())["forecast"]
    real = end - said["made"]
    row = {"trials": trials, "epochs": epochs, "images": images, "seed": seed, "command": took}
    return row | {name: said[name] for name in ("low", "expected", "high")} | {"real": real}


def accuracy(count: int, seed: int, keep: Path | None) -> list[dict[str, Any]]:
    """A table of searches."""
    print(f"{'trials':>6} {'epochs':>6} {'images':>6} {'forecast':>9} {'range':>13} {'real':>7} {'forecast/real':>14}")
    rows = []
    for index in range(count):
        row = measure(*SIZES[index % len(SIZES)], seed + index, keep)
        rows.append(row)
        ratio = row["expected"] / row["real"]
        span = f"{row['low']:.0f} to {row['high']:.0f}"
        inside = "" if row["low"] <= row["real"] <= row["high"] else "  outside the range"
        print(
            f"{row['trials']:6} {row['epochs']:6} {row['images'] or 'all':>6} {row['expected']:9.0f} {span:>13}"
            f" {row['real']:7.0f} {ratio:14.2f}{'' if abs(ratio - 1) <= CLOSE else '  far'}{inside}",
            flush=True,
        )
    close = sum(abs(row["expected"] / row["real"] - 1) <= CLOSE for row in rows)
    inside = sum(row["low"] <= row["real"] <= row["high"] for row in rows)
    print(f"within {CLOSE:.0%}: {close} of {count}; within its range: {inside} of {count}")
    return rows


def deadlines(count: int, seed: int, length: str, resume: bool, keep: Path | None) -> list[dict[str, Any]]:
    """A table of searches that are too long for their deadline."""
    seconds = float(length[:-1]) * {"s": 1, "m": 60, "h": 3600}[length[-1]]
    print(f"{'deadline':>8} {'command':>8} {'off':>6} {'trials ended':>13}")
    rows = []
    for index in range(count):
        with new_study(keep, f"digits-{length}-{seed + index}") as path:
            status, took = search(path, 1000, 30, None, seed + index, "--deadline", length)
            ended = (path / "trials.jsonl").read_text().count("\n")
            rows.append({"deadline": seconds, "command": took, "status": status, "ended": ended})
            kept = "" if abs(took - seconds) <= KEPT else "  not kept"
            print(f"{seconds:8.0f} {took:8.1f} {took - seconds:6.1f} {ended:13}{kept}", flush=True)
    if resume:
        rows.append(finish(seed, length, keep))
    print(
        f"kept within {KEPT:.0f} s: {sum(abs(row['command'] - row['deadline']) <= KEPT for row in rows)} of {len(rows)}"
    )
    return rows


def finish(seed: int, length: str, keep: Path | None) -> dict[str, Any]:
    """A search that a deadline pauses, gone on with to its end."""
    with new_study(keep, f"digits-{length}-{seed}-resumed") as path:
        status, took = search(path, 60, 12, None, seed, "--deadline", length)
        seconds = float(length[:-1]) * {"s": 1, "m": 60, "h": 3600}[length[-1]]
        again, _ = run("resume", str(path))
        lines = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
        ended = sum(line["repeat_of"] is None for line in lines)
        print(
            f"paused with status {status} after {took:.1f} s; resumed with status {again}: {ended} of 60 trials ended"
        )
        return {"deadline": seconds, "command": took, "status": status, "ended": ended}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=len(SIZES))
    parser.add_argument("--deadlines", type=int, default=0, help="so many searches with a deadline in place of those")
    parser.add_argument("--deadline", default="3m", help="its length, such as 3m")
    parser.add_argument("--resume", action="store_true", help="one more, which is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the studies in this folder")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, load {os.getloadavg()[0]:.1f}")
    if options.deadlines or options.resume:
        rows = deadlines(options.deadlines, options.seed, options.deadline, options.resume, options.keep)
    else:
        rows = accuracy(options.searches, options.seed, options.keep)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
