"""A whole search with tunelab, beside the Ray Tune script that a user would write by hand for the same space.

    python benchmarks/search_throughput.py --data folder:PATH --trials 24 --epochs 9 --repeat 1 --json throughput.json

Both search the space `arch` on the same training and validation images of 32x32, on all processors, as commands of
their own: wall time from the start of the command to its end, trials per hour, the best validation accuracy that a
trial had, and when each side had reached the script's best. The script by hand (benchmarks/hand_written_search.py) is a
function trainable with a DataLoader, Ray's OptunaSearch and ASHAScheduler. tunelab's command has its own defaults,
but for its race, in which finalists are trained again: `--race 0`, because the script has none. Its early repeat of the
baseline is left out of its trials.
The contenders take turns; run it on a machine that does nothing else. Random images, where none are given, say
nothing of the accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training_networks import images_at_hand

from tunelab.journal import read_journal

SIDES = {"hand": "Ray Tune by hand", "tunelab": "tunelab search"}


def by_hand(images: Path, trials: int, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """One search with the script; its figures."""
    script = Path(__file__).with_name("hand_written_search.py")
    result = folder / "hand.json"
    began = time.perf_counter()
    words = [str(images), str(result), str(trials), str(epochs), str(seed)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"the script by hand failed: {done.stderr[-2000:]}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return figures(seconds, found["trials"], found["reports"])


def by_tunelab(images: Path, trials: int, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """One search with tunelab's command; its figures."""
    study = folder / "study"
    words = ["search", "arch", "--data", f"npz:{images}", "--trials", str(trials), "--epochs", str(epochs)]
    words += ["--seed", str(seed), "--race", "0", "--study", str(study)]
    began, clock = time.perf_counter(), time.time()
    code = "import sys; from tunelab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"tunelab failed: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (study / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    own = [row for row in rows if row["repeat_of"] is None and row["status"] in ("COMPLETED", "STOPPED", "DIVERGED")]
    counted = {row["number"] for row in own}
    results = [event for event in read_journal(study / "journal.jsonl") if event["event"] == "result"]
    reports = [(one["time"] - clock, one["metrics"]["val_accuracy"]) for one in results if one["trial"] in counted]
    return figures(seconds, len(own), reports)


def figures(seconds: float, trials: int, reports: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What is compared; of each epoch of those trials `reports` has the seconds since the start, and the accuracy."""
    return {
        "seconds": seconds,
        "trials": trials,
        "epochs": len(reports),
        "trials_per_hour": 3600 * trials / seconds,
        "accuracy": max((accuracy for _, accuracy in reports), default=0.0),
        "reports": [list(report) for report in reports],
    }


def reached(run: Mapping[str, Any], accuracy: float) -> float | None:
    """After how many seconds a search had a trial of that accuracy; None if it never had."""
    return min((seconds for seconds, score in run["reports"] if score >= accuracy), default=None)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of both sides, median and range, and the ratio of trials per hour by pairs."""
    lines = [f"{'':<20}{'seconds':>24}{'trials':>8}{'epochs':>8}{'trials per hour':>18}{'best accuracy':>28}"]
    for side, found in runs.items():
        seconds = [run["seconds"] for run in found]
        scores = [run["accuracy"] for run in found]
        names = [name for name in found[0] if name != "reports"]
        middle = {name: statistics.median(run[name] for run in found) for name in names}
        lines.append(
            f"{SIDES[side]:<20}"
            + f"{middle['seconds']:.0f} ({min(seconds):.0f} to {max(seconds):.0f})".rjust(24)
            + f"{middle['trials']:8.0f}{middle['epochs']:8.0f}{middle['trials_per_hour']:18.0f}"
            + f"{middle['accuracy']:.3f} ({min(scores):.3f} to {max(scores):.3f})".rjust(28)
        )
    pairs = zip(runs["tunelab"], runs["hand"], strict=True)
    ratios = [mine["trials_per_hour"] / theirs["trials_per_hour"] for mine, theirs in pairs]
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    lines.append(f"trials per hour, tunelab to the script by hand: {statistics.median(ratios):.2f}{spread}")
    for mine, theirs in zip(runs["tunelab"], runs["hand"], strict=True):
        best = theirs["accuracy"]
        times = [reached(run, best) for run in (mine, theirs)]
        said = ["never" if at is None else f"after {at:.0f} s" for at in times]
        lines.append(f"the script's best accuracy, {best:.3f}: tunelab {said[0]}, the script {said[1]}")
    return "\n".join(lines)


def main() -> None:
    """Lets both search in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder:PATH or npz:PATH; left out, random images")
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=1, help="searches of each, with other seeds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(options.repeat):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["TUNELAB_CACHE"] = str(folder / "cache")
            images_at_hand(folder, options.data, options.images, max(100, options.images // 2))
            for side, search in (("hand", by_hand), ("tunelab", by_tunelab)):
                runs[side].append(search(folder / "images.npz", options.trials, options.epochs, seed, folder))
                shown = {name: value for name, value in runs[side][-1].items() if name != "reports"}
                print(f"{SIDES[side]}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    print(f"{options.trials} trials of {options.epochs} epochs on {options.images} images, {options.repeat} of each")
    print(f"{os.cpu_count()} CPUs, {platform.machine()}")
    print(table(runs))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
