"""The ranking as rows, how the rungs were passed, and a configuration in one line of words."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.journal import uncollected
from tunelab.noise import CONFIDENCE, noise_at
from tunelab.records import Trial
from tunelab.standings import Place, on_new_data
from tunelab.study import Study, count_statuses, current, proposed

from .diagnose import divergence
from .front import front, objectives_of


def ranking(ranked: Sequence[Place], top: int) -> list[dict[str, Any]]:
    """The `top` best configurations as rows: rank, trial, score with interval, runs, size, time and what they are.

    `score` is the mean over all `runs` of full length, each by the accuracy of its last epoch in [0, 1]; `expected` is
    the same corrected for having been chosen, and `low` to `high` its interval at 95%. `tied` is True where it cannot
    be told apart from the first. `trials` are the runs' numbers, `lost` those that diverged or failed. `params` counts
    weights, `mflops` millions of multiply-adds per image, `seconds` is the whole time of the trial itself.
    """
    same = frozenset(tied(ranked))
    return [
        {
            "rank": rank,
            "trial": place.trial.number,
            "score": place.standing.mean,
            "expected": place.standing.expected,
            "low": place.standing.low,
            "high": place.standing.high,
            "runs": len(place.runs),
            "tied": place.trial.number in same,
            "trials": list(place.runs),
            "lost": list(place.lost),
            "epochs": place.epochs,
            "params": place.trial.stats.get("params"),
            "mflops": place.trial.stats.get("mflops"),
            "seconds": sum(metrics.seconds for metrics in place.trial.epochs),
            "arch_id": place.trial.arch_id,
            "what": describe_config(place.trial.config),
        }
        for rank, place in enumerate(ranked[:top], start=1)
    ]


def tied(ranked: Sequence[Place]) -> list[int]:
    """The trials that cannot be told apart from the first, itself included; none if nothing ties with it."""
    same = [one for one in ranked if one.epochs == ranked[0].epochs and one.standing.tied_with_best]
    return [one.trial.number for one in same] if len(same) > 1 else []


def noise_row(trials: Sequence[Trial], ranked: Sequence[Place], val_images: int) -> dict[str, Any] | None:
    """The noise that the first group of the ranking was judged with; None if nothing is ranked.

    `sd` is the standard deviation between runs of one configuration, `repeats` on how many repeats it was measured,
    `source` how, in words.
    """
    if not ranked:
        return None
    return {**dataclasses.asdict(noise_at(trials, ranked[0].epochs, val_images)), "confidence": CONFIDENCE}


def new_data_row(ranked: Sequence[Place], val_images: int) -> dict[str, Any] | None:
    """What the winner is expected to score on images that nobody has looked at; None if nothing was held out.

    `score` is what was measured on the validation images, `low` to `high` the interval at 95% that the accuracy on new
    data is expected in: without the luck of being the best of `configurations`, `optimism`, and with the chance in
    which `val_images` these are.
    """
    if not ranked or not val_images or ranked[0].trial.epochs[-1].val_accuracy is None:
        return None
    first = ranked[0].standing
    low, high = on_new_data(first, val_images)
    return {
        "trial": ranked[0].trial.number,
        "score": first.mean,
        "expected": first.expected,
        "low": low,
        "high": high,
        "optimism": first.mean - first.expected,
        "configurations": sum(place.epochs == ranked[0].epochs for place in ranked),
        "val_images": val_images,
        "confidence": CONFIDENCE,
    }


def asked(study: Study, repeats: int) -> int:
    """How many configurations were asked for: all trials of a list count, of a search the repeats come on top."""
    trials = int(study.info["options"]["trials"])
    return trials if study.info.get("kind") == "search" else trials - repeats


def rung_table(trials: Sequence[Trial]) -> list[dict[str, int]]:
    """For each rung: its epoch, how many trials reached it, were kept, were stopped, and wait there."""
    last: dict[int, dict[int, Mapping[str, Any]]] = {}
    for trial in trials:
        for decision in trial.decisions:
            last.setdefault(int(decision["epoch"]), {})[trial.number] = decision
    rows = []
    for epoch, decisions in sorted(last.items()):
        stopped = sum(bool(decision["stop"]) for decision in decisions.values())
        waiting = sum(bool(decision.get("pause")) for decision in decisions.values())
        kept = len(decisions) - stopped - waiting
        rows.append({"epoch": epoch, "reached": len(decisions), "kept": kept, "stopped": stopped, "paused": waiting})
    return rows


def summary(study: Study, top: int) -> dict[str, Any]:
    """What `tunelab best` tells: the study, how its trials ended, the rungs, the noise, the ranking, and its winner.

    `trials` and `statuses` count configurations; repeats of them are counted by `repeats`, and trials that are no part
    of the search any more by `history`. `compared` are as many as ran as long as the first. `front` has those that no
    other beats, if there are several `objectives`.
    """
    with uncollected():
        trials = study.runs_of(study.list_trials())
        counted = current(study.info, trials)
        own = proposed(counted)
        ranked = study.places_of(trials)
        return {
            "study": study.place,
            "kind": study.info.get("kind"),
            "running": study.running,
            "trials": len(own),
            "asked": asked(study, len(counted) - len(own)),
            "repeats": len(counted) - len(own),
            "history": len(trials) - len(counted),
            "statuses": {status.value: count for status, count in count_statuses(own).items()},
            "rungs": rung_table(counted),
            "diverged": divergence(counted),
            "noise": noise_row(trials, ranked, study.val_images),
            "new_data": new_data_row(ranked, study.val_images),
            "compared": sum(place.epochs == ranked[0].epochs for place in ranked),
            "tied": tied(ranked),
            "ranking": ranking(ranked, top),
            "objectives": list(objectives_of(study)),
            "front": front(trials, ranked, objectives_of(study), study.val_images),
        }


def describe_config(config: Mapping[str, Any]) -> str:
    """A configuration (as JSON) in one line: the network, and the recipe's main numbers.

    Of a network of blocks: stem, blocks, norm, activation. Blocks are written as kind and count, a halving as `/2`:
    "basic x2, /2, bottleneck, basic".
    """
    train = config["train"]
    by_norm = " / norm" if train["schedule"].get("by_norm") else ""
    schedule = f"lr {train['lr']:.2g}{by_norm}, {train['schedule']['name']}"
    recipe = f"{train['optimizer']} {schedule}, batch {train['batch_size']}"
    for stage in train.get("stages", ()):
        recipe += f", from {100 * stage['begin']:.0f}% {stage['optimizer']} lr {stage['lr']:.2g}"
    averaging = train.get("averaging")
    recipe += f", {averaging['kind']} from {100 * averaging['start']:.0f}%" if averaging else ""
    return f"{_describe_arch(config['arch'])}; {recipe}"


def _describe_arch(arch: Mapping[str, Any]) -> str:
    if "hidden" in arch:
        dropout = f", dropout {arch['dropout']:.2g}" if arch["dropout"] else ""
        return f"MLP {'-'.join(map(str, arch['hidden']))}, init {arch['init']}, {arch['activation']}{dropout}"
    if "factory" in arch:
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in arch["arguments"].items())
        return f"{Path(arch['factory']).name}({given})"
    if "branches" not in arch:
        return f"LeNet-5 {arch['pooling']} pool, init {arch['init']}, {arch['activation']}"
    branches = " + ".join(_describe_branch(branch) for branch in arch["branches"])
    stem = f"{arch['stem']['kernel']}x{arch['stem']['kernel']}-{arch['stem']['width']}"
    pool = " pool" if arch["stem"]["pool"] else ""
    return f"{stem}{pool} [{branches}] norm {arch['norm']}, {arch['activation']}"


def _describe_branch(blocks: Sequence[Mapping[str, Any]]) -> str:
    words = []
    for (kind, stride), group in itertools.groupby(blocks, key=lambda block: (block["kind"], block["stride"])):
        count = len(list(group))
        if stride == 2:
            words += ["/2 " + kind] * count
        else:
            words.append(kind if count == 1 else f"{kind} x{count}")
    return ", ".join(words)
