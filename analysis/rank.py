"""The ranking as rows, how the rungs were passed, and a configuration in one line of words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tunelab.records import Trial
from tunelab.study import Study, count_statuses, rank


def ranking(trials: Sequence[Trial], top: int) -> list[dict[str, Any]]:
    """The `top` best trials of full length as rows: rank, number, score, size, time and what they are.

    `score` is the accuracy of the last epoch in [0, 1], `params` counts weights, `mflops` millions of multiply-adds per
    image, `seconds` is the trial's whole time.
    """
    rows = []
    for place, trial in enumerate(rank(trials)[:top], start=1):
        rows.append(
            {
                "rank": place,
                "trial": trial.number,
                "score": trial.score,
                "epochs": len(trial.epochs),
                "params": trial.stats.get("params"),
                "mflops": trial.stats.get("mflops"),
                "seconds": sum(metrics.seconds for metrics in trial.epochs),
                "arch_id": trial.arch_id,
                "what": describe_config(trial.config),
            }
        )
    return rows


def rung_table(trials: Sequence[Trial]) -> list[dict[str, int]]:
    """For each rung: its epoch, how many trials reached it, were kept and were stopped."""
    reached: dict[int, int] = {}
    stopped: dict[int, int] = {}
    for trial in trials:
        for decision in trial.decisions:
            epoch = int(decision["epoch"])
            reached[epoch] = reached.get(epoch, 0) + 1
            stopped[epoch] = stopped.get(epoch, 0) + bool(decision["stop"])
    return [
        {"epoch": epoch, "reached": reached[epoch], "kept": reached[epoch] - stopped[epoch], "stopped": stopped[epoch]}
        for epoch in sorted(reached)
    ]


def summary(study: Study, top: int) -> dict[str, Any]:
    """What `tunelab best` tells: the study, how its trials ended, the rungs and the ranking."""
    trials = study.list_trials()
    return {
        "study": str(study.path),
        "running": study.running,
        "trials": len(trials),
        "asked": int(study.info["options"]["trials"]),
        "statuses": {status.value: count for status, count in count_statuses(trials).items()},
        "rungs": rung_table(trials),
        "ranking": ranking(trials, top),
    }


def describe_config(config: Mapping[str, Any]) -> str:
    """A configuration (as JSON) in one line: stem, blocks, norm, and the recipe's main numbers.

    Blocks are written as kind and count, a halving as `/2`: "basic x2, /2, bottleneck, basic".
    """
    arch, train = config["arch"], config["train"]
    branches = " + ".join(_describe_branch(branch) for branch in arch["branches"])
    stem = f"{arch['stem']['kernel']}x{arch['stem']['kernel']}-{arch['stem']['width']}"
    pool = " pool" if arch["stem"]["pool"] else ""
    recipe = f"{train['optimizer']} lr {train['lr']:.2g}, {train['schedule']['name']}, batch {train['batch_size']}"
    return f"{stem}{pool} [{branches}] norm {arch['norm']}, {arch['activation']}; {recipe}"


def _describe_branch(blocks: Sequence[Mapping[str, Any]]) -> str:
    words = []
    for (kind, stride), group in itertools.groupby(blocks, key=lambda block: (block["kind"], block["stride"])):
        count = len(list(group))
        if stride == 2:
            words += ["/2 " + kind] * count
        else:
            words.append(kind if count == 1 else f"{kind} x{count}")
    return ", ".join(words)
