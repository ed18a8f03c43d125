"""What mattered in a search: the importance of each parameter, and answers in the words of a configuration.

Trials are compared after equal epochs: by default the most that at least half of the configurations have been trained
for. The answers are means of groups of trials. A sampler chose the trials, so that groups differ in more than the value
that they are named for: what is found here is worth a test (`tunelab search --grid`), not a proof.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunelab.errors import InputError
from tunelab.noise import CONFIDENCE, DIVERGED, Noise, configuration_of, counted_epochs, noise_at, student_t
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, current, proposed
from tunelab.tuning.importances import FEWEST, SHUFFLES, importances, recorded_ranges

LEAST = 3
"""A group of fewer trials has no interval and is not judged (our choice)."""
WHOLE, BROKEN = 8, 3
"""Whole numbers with more distinct values, and others with more, are answered by ranges of about equally many trials
(our choice): each size of a batch has an answer of its own, each rate has none."""
RANGES = 4
PER_RANGE = 5
"""At most so many ranges, of so many trials each at least where there are enough for two (our choice)."""
NUMBERED = 4
"""Of parameters whose names differ by their digits alone, such as the kinds of blocks 1 to 12, more than so many are
left to the importance (our choice): the words about the whole network answer in their place."""


def importance(study: Study, epochs: int | None = None) -> dict[str, Any]:
    """What `tunelab importance` tells; all of it after `epochs` epochs.

    `importance` has a row for each parameter: its trials, its share of all importance, by how many standard deviations
    it is above chance, and whether that is beyond chance; see `tunelab.tuning.importances`. `answers` are of
    the configurations' own words, `parameters` of the values that the space suggested, where they divide the trials in
    another way. Each answer has a row for each value: trials, mean score with the interval at 95%, and how many of them
    ran their full length.

    Raises:
        InputError: no trial has been trained for so many epochs.
    """
    trials = current(study.info, study.list_trials())
    full = int(study.info["options"]["epochs"])
    after = common_epochs(trials) if epochs is None else epochs
    rows = compared(trials, after)
    if epochs is not None and not any(len(trial.epochs) >= epochs for trial in trials):
        longest = max((len(trial.epochs) for trial in trials), default=0)
        raise InputError(f"--epochs {epochs}: the longest trial of {study.place} has been trained for {longest}")
    noise = noise_at(trials, max(after, 1), study.val_images)
    answers = answer([(words(row["trial"]), row["score"], row["full"]) for row in rows], noise)
    suggested = [(row["trial"].params, row["score"], row["full"]) for row in rows]
    shares = importances(
        [row["trial"].params for row in rows],
        [row["score"] for row in rows],
        recorded_ranges(study.path / "optuna.journal"),
    )
    own = proposed(trials)
    return {
        "study": study.place,
        "running": study.running,
        "epochs": after,
        "full_length": full,
        "compared": len(rows),
        "trials": len(own),
        "diverged": sum(row["diverged"] for row in rows),
        "sampler": study.info["options"].get("sampler"),
        "own_space": study.info.get("space", {}).get("source") != study.info.get("space", {}).get("name"),
        "fewest": FEWEST,
        "importance": [
            {
                "parameter": one.name,
                "trials": one.trials,
                "share": one.share,
                "above_chance": one.above,
                "beyond_chance": one.clear,
            }
            for one in shares
        ],
        "beyond_chance": _more_than_chance([one.clear for one in shares if one.share is not None]),
        "answers": answers,
        "parameters": answer(suggested, noise, but=answers),
        "confidence": CONFIDENCE,
    }


def _more_than_chance(clear: Sequence[bool]) -> dict[str, Any]:
    """How many parameters exceed all shuffles, how many would by chance, and whether that is clearly more.

    Clearly more: by over two standard deviations of a count of rare events (our choice).
    """
    usual = len(clear) / (SHUFFLES + 1)
    return {"found": sum(clear), "by_chance": usual, "tells": sum(clear) > usual + 2 * math.sqrt(usual)}


def common_epochs(trials: Sequence[Trial]) -> int:
    """The most epochs that at least half of the configurations with any epoch have been trained for; 0 without any."""
    lengths: dict[int, int] = {}
    for trial in trials:
        if trial.epochs and trial.status is not TrialStatus.FAILED:
            number = configuration_of(trial)
            lengths[number] = max(lengths.get(number, 0), counted_epochs(trial))
    return sorted(lengths.values(), reverse=True)[(len(lengths) - 1) // 2] if lengths else 0


def compared(trials: Sequence[Trial], epochs: int) -> list[dict[str, Any]]:
    """The configurations that can be compared after so many epochs: trial, score, whether it diverged or ran in full.

    The score is the mean of a configuration's runs after `epochs` epochs; a run that diverged counts as 0, as in the
    ranking. Runs that failed or have not come so far count for nothing.
    """
    runs: dict[int, list[Trial]] = {}
    for trial in trials:
        diverged = trial.status is TrialStatus.DIVERGED
        if diverged or (0 < epochs <= counted_epochs(trial) and trial.status is not TrialStatus.FAILED):
            runs.setdefault(configuration_of(trial), []).append(trial)
    return [
        {
            "trial": own[0],
            "score": statistics.fmean(_score(run, epochs) for run in own),
            "diverged": any(run.status is TrialStatus.DIVERGED for run in own),
            "full": any(run.status is TrialStatus.COMPLETED for run in own),
        }
        for own in runs.values()
    ]


def _score(run: Trial, epochs: int) -> float:
    return DIVERGED if run.status is TrialStatus.DIVERGED else run.epochs[: max(epochs, 1)][-1].score


def words(trial: Trial) -> dict[str, Any]:
    """A configuration in the words that questions are asked in, with its answer to each.

    A word that says nothing of a configuration is missing. Rates and decays have a word for each optimizer, since their
    useful ranges differ.
    """
    arch, train = trial.config.get("arch", {}), trial.config.get("train", {})
    found: dict[str, Any] = _words_of_blocks(arch) if "branches" in arch else {}
    if "hidden" in arch:
        found |= {"hidden layers": len(arch["hidden"]), "widest layer": max(arch["hidden"])}
    for name in ("norm", "activation", "pooling", "init", "bias", "dropout"):
        if name in arch:
            found[name] = arch[name]
    for name, word in (("params", "weights"), ("mflops", "Mflops")):
        if name in trial.stats:
            found[word] = trial.stats[name]
    return {**found, **_words_of_recipe(train)}


def _words_of_blocks(arch: Mapping[str, Any]) -> dict[str, Any]:
    branches = arch["branches"]
    kinds = Counter(block["kind"] for branch in branches for block in branch)
    kind, most = kinds.most_common(1)[0]
    return {
        "most blocks": kind if 2 * most > kinds.total() else "no one kind",
        "halvings": max(sum(block["stride"] == 2 for block in branch) for branch in branches),
        "depth": max(len(branch) for branch in branches),
        "branches": len(branches),
        "stem width": arch["stem"]["width"],
        "stem kernel": arch["stem"]["kernel"],
        "stem pool": arch["stem"]["pool"],
    }


def _words_of_recipe(train: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = train.get("optimizer")
    found: dict[str, Any] = {} if optimizer is None else {"optimizer": optimizer}
    if "schedule" in train:
        found |= {"schedule": train["schedule"]["name"], "warm-up": train["schedule"]["warmup"]}
        found["rate by norm"] = train["schedule"].get("by_norm", False)
    if "batch_size" in train:
        found["batch size"] = train["batch_size"]
    for name, word in (("lr", "learning rate"), ("weight_decay", "weight decay")):
        if name in train:
            found[f"{word} of {optimizer}"] = train[name]
    if "label_smoothing" in train:
        found["label smoothing"] = train["label_smoothing"]
    augment = train.get("augment", {})
    found |= {name: augment[name] for name in ("crop", "flip") if name in augment}
    found |= {name: augment[name] > 0 for name in ("cutout", "mixup") if name in augment}
    return found


def answer(
    rows: Sequence[tuple[Mapping[str, Any], float, bool]], noise: Noise, but: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The answers to every question that divides the trials, in the order in which the questions are met.

    Args:
        rows: per configuration, its answers, its score, and whether it ran its full length.
        noise: between runs; no group is taken to spread less.
        but: answers that were given already; a question that divides the trials as one of them is not asked again.
    """
    names = dict.fromkeys(name for values, _, _ in rows for name in values)
    families = Counter(re.sub(r"\d+", "#", name) for name in names)
    had = {_division(one["values"]) for one in but}
    found = []
    for name in names:
        there = [(values[name], score, full) for values, score, full in rows if name in values]
        groups = _grouped([value for value, _, _ in there])
        if len(set(groups)) < 2 or families[re.sub(r"\d+", "#", name)] > NUMBERED:
            continue
        scores: dict[str, list[float]] = {}
        finished: Counter[str] = Counter()
        for group, (_, score, full) in zip(groups, there, strict=True):
            scores.setdefault(group, []).append(score)
            finished[group] += full
        order = list(dict.fromkeys(_in_order(groups, [value for value, _, _ in there])))
        values = [_value_row(group, scores[group], finished[group], noise) for group in order]
        if _division(values) not in had:
            found.append({"question": name, "values": values, **_judge(order, scores, noise)})
    return found


def _division(values: Iterable[Mapping[str, Any]]) -> frozenset[tuple[int, float]]:
    """How a question divides the trials, as far as numbers and means of the groups tell."""
    return frozenset((row["trials"], row["mean"]) for row in values)


def _grouped(values: Sequence[Any]) -> list[str]:
    """For each value the group that it belongs to: itself, or a range of numbers where there are many."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not numbers or len(set(values)) <= (WHOLE if all(isinstance(value, int) for value in values) else BROKEN):
        return [_label(value) for value in values]
    ordered = sorted(values)
    parts = min(max(len(ordered) // PER_RANGE, 2), RANGES)
    above = next(value for value in ordered if value > ordered[0])  # what many trials have, such as 0, is a range
    starts = sorted({max(ordered[round(part * len(ordered) / parts)], above) for part in range(1, parts)})
    labels = {}
    for low, group in itertools.groupby(ordered, key=lambda value: sum(value >= start for start in starts)):
        held = list(group)
        labels[low] = _label(held[0]) if held[0] == held[-1] else f"{_label(held[0])} to {_label(held[-1])}"
    return [labels[sum(value >= start for start in starts)] for value in values]


def _in_order(groups: Sequence[str], values: Sequence[Any]) -> Iterator[str]:
    """The groups by the size of their values where they are numbers, else by their names."""
    pairs = sorted(zip(values, groups, strict=True), key=lambda pair: _sort_key(pair[0]))
    yield from (group for _, group in pairs)


def _sort_key(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return not number, float(value) if number else 0.0, "" if number else str(value)


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)) or (isinstance(value, int) and abs(value) < 10_000):
        return str(value)
    if abs(value) < 10_000:
        return f"{value:.3g}"
    return f"{value / 1e3:.3g}k" if abs(value) < 1e6 else f"{value / 1e6:.3g}M"


def _value_row(value: str, scores: Sequence[float], finished: int, noise: Noise) -> dict[str, Any]:
    """One value: its trials, their mean score with the interval at 95% (None of too few), those of full length."""
    mean = statistics.fmean(scores)
    margin = None
    if len(scores) >= LEAST:
        margin = student_t(CONFIDENCE, len(scores) - 1) * math.sqrt(_variance(scores, noise) / len(scores))
    return {
        "value": value,
        "trials": len(scores),
        "mean": mean,
        "low": None if margin is None else mean - margin,
        "high": None if margin is None else mean + margin,
        "full_length": finished,
    }


def _variance(scores: Sequence[float], noise: Noise) -> float:
    """The variance between trials of one value, that between runs at least."""
    return max(statistics.variance(scores), noise.sd**2)


def _judge(order: Sequence[str], scores: Mapping[str, Sequence[float]], noise: Noise) -> dict[str, Any]:
    """Whether the data tell which value is better, and in words.

    The value with the best mean is compared with each other one by Welch's test; since any could have come out best,
    the 5% of error are shared among all pairs (Bonferroni).
    """
    judged = [value for value in order if len(scores[value]) >= LEAST]
    if len(judged) < 2:
        return _no_answer(f"too few trials: {LEAST} of two values each are needed")
    best = max(judged, key=lambda value: statistics.fmean(scores[value]))
    confidence = 1 - (1 - CONFIDENCE) / math.comb(len(judged), 2)
    worse = [value for value in judged if value != best and _differ(scores[best], scores[value], noise, confidence)]
    if not worse:
        return _no_answer("cannot tell: the spread explains the differences")
    than = " and ".join([", ".join(worse[:-1]), worse[-1]] if len(worse) > 1 else worse)
    return {"tells": True, "best": best, "worse": worse, "verdict": f"{best} is better than {than}"}


def _no_answer(verdict: str) -> dict[str, Any]:
    return {"tells": False, "best": None, "worse": [], "verdict": verdict}


def _differ(one: Sequence[float], other: Sequence[float], noise: Noise, confidence: float) -> bool:
    """True if the means differ by more than chance allows: Welch's test, at this confidence."""
    parts = [_variance(scores, noise) / len(scores) for scores in (one, other)]
    error = sum(parts)
    degrees = error**2 / sum(part**2 / (len(scores) - 1) for part, scores in zip(parts, (one, other), strict=True))
    return statistics.fmean(one) - statistics.fmean(other) > student_t(confidence, degrees) * math.sqrt(error)
