"""What a study teaches for the next one: each a small function of recorded evidence, silent where there is none.

A function takes the study, its trials and what `tunelab best` tells (`rank.summary`), and gives findings: a sentence
with its numbers, and the numbers themselves. Scores are accuracies in [0, 1].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tunelab.errors import NothingToDrawError
from tunelab.noise import CONFIDENCE, LAST_EPOCHS, Noise, binomial_error, counted_epochs, full_length, half_width
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.standings import Standing, on_new_data
from tunelab.study import Study, proposed

from .canvas import is_wide
from .intervals import of_images
from .readings import count_trainings, earlier
from .retrain_plots import classes, confusion, retrainings
from .space_plots import is_number

Finding: TypeAlias = tuple[str, dict[str, Any]]
Adviser: TypeAlias = Callable[[Study, Sequence[Trial], Mapping[str, Any]], list[Finding]]

TOP_SHARE = 0.25
"""The share of the trials of full length that counts as the best, at least FEWEST of them (our choice)."""
FEWEST = 4
EDGE = 0.1
"""Within this share of a range from its end a value is at the edge (our choice)."""
CHANCE = 0.05
"""What is less likely than this by chance is no chance (our choice)."""
RISING = 0.001
"""Scores that rise by less than this per epoch are not worth a longer training (our choice)."""
GAP = 0.1
"""So far above validation accuracy training accuracy tells of over-fitting (our choice)."""
MANY = 0.1
"""A share of trials that failed or diverged which is worth a word (our choice)."""
ENOUGH = 16
"""Trials from which on a baseline that nothing beats says something (our choice)."""


def edge_of_range(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The best trials all lie at one end of what was tried of a number, which chance does not explain.

    Chance is the share of all trials that lie there, to the power of the best, times how many ends are looked at
    (Bonferroni's bound).
    """
    best, tried = _best(trials), proposed(trials)
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    found = []
    for name in names:
        mine = [trial.params[name] for trial in best if name in trial.params]
        values = [trial.params[name] for trial in tried if name in trial.params]
        if len(mine) < FEWEST or not is_number(values) or len(set(values)) <= 2:
            continue
        for end, share in _ends(mine, values):
            if share ** len(mine) * 2 * len(names) <= CHANCE:
                text = (
                    f"the {len(mine)} best trials with {name} all have it at the {end} end ({_span(mine)}) of what was "
                    f"tried ({_span(values)}), where {_percent(share)} of all trials are: widen its range there"
                )
                numbers = {"parameter": name, "end": end, "best": sorted(mine), "share": share}
                found.append((text, {**numbers, "low": min(values), "high": max(values)}))
    return found


def _ends(mine: Sequence[float], values: Sequence[float]) -> list[tuple[str, float]]:
    """The end of a range that holds all of `mine`, if one does, with the share of all `values` that it holds."""
    low, high, log = min(values), max(values), is_wide(values)
    places = [_place(value, low, high, log) for value in values]
    own = [_place(value, low, high, log) for value in mine]
    if max(own) <= EDGE:
        return [("lower", sum(place <= EDGE for place in places) / len(places))]
    if min(own) >= 1 - EDGE:
        return [("upper", sum(place >= 1 - EDGE for place in places) / len(places))]
    return []


def still_rising(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The scores of the best trials still rise in their last epochs, by more than their jitter.

    The very last epoch is left out: it is what they were chosen by, so that its luck would look like a rise.
    """
    slopes = [
        _slope([one.score for one in trial.epochs[-LAST_EPOCHS - 1 : -1]])
        for trial in _best(trials)
        if len(trial.epochs) > LAST_EPOCHS
    ]
    if len(slopes) < FEWEST:
        return []
    mean = statistics.fmean(slopes)
    error = statistics.stdev(slopes) / math.sqrt(len(slopes))
    if mean < RISING or mean < 2 * error:
        return []
    epochs = full_length(_best(trials)[0])
    told = (
        f"the scores of the {len(slopes)} best trials still rise by {100 * mean:.2f} percentage points per epoch in "
        f"the {LAST_EPOCHS} epochs before the last of {epochs}: train longer (`tunelab extend --epochs {3 * epochs}`)"
    )
    return [(told, {"per_epoch": mean, "standard_error": error, "trials": len(slopes), "epochs": epochs})]


def cannot_be_told_apart(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """Configurations tie with the best, by a noise that the number of validation images explains or not."""
    noise, ties = shown["noise"], shown["tied"]
    if noise is None or len(ties) < 2:
        return []
    apart = half_width(Noise(noise["sd"], noise["degrees"], noise["source"]), 2.0, noise["confidence"])
    images, score = study.val_images, shown["ranking"][0]["score"]
    numbers = {"noise": noise["sd"], "apart": apart, "tied": len(ties), "val_images": images}
    told = (
        f"{len(ties)} configurations tie for the first place: the noise between runs is {_percent(noise['sd'])}, so "
        f"two trained once each and closer than {_percent(apart)} cannot be told apart"
    )
    if images and binomial_error(score, images) > 0.5 * noise["sd"]:
        numbers["of_images"] = binomial_error(score, images)
        told += (
            f"; {images} validation images alone leave a standard error of {_percent(numbers['of_images'])}: take more "
            "of them (`--val-fraction`), or more repeats (`--race`)"
        )
    else:
        told += ": more repeats (`--race`) narrow that down"
    return [(told, numbers)]


def failures(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """Trials failed, by cause."""
    causes: dict[str, list[int]] = {}
    for trial in trials:
        if trial.status is TrialStatus.FAILED:
            causes.setdefault(trial.reason.partition(":")[0].strip() or "an unknown cause", []).append(trial.number)
    found = []
    for cause, numbers in causes.items():
        count = f"{len(numbers)} of {len(trials)} trials failed"
        if "memory" in cause.lower():
            told = f"{count}, out of memory: run fewer at once (`--concurrent`), or bound them (`--max-mflops`)"
        else:
            told = f"{count}: {cause} (`tunelab show {study.called} {numbers[0]}` says more)"
        found.append((told, {"cause": cause, "trials": numbers}))
    return found


def divergence(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """Many trials diverged; how their learning rates compare with those of the others, per optimizer."""
    lost = [trial for trial in trials if trial.status is TrialStatus.DIVERGED]
    if len(lost) < FEWEST or len(lost) < MANY * len(trials):
        return []
    kept = [trial for trial in trials if trial.status in (TrialStatus.COMPLETED, TrialStatus.STOPPED)]
    told = f"{len(lost)} of {len(trials)} trials diverged"
    numbers: dict[str, Any] = {"diverged": len(lost), "trials": len(trials)}
    ratios = []
    for optimizer in sorted({str(_recipe(trial, "optimizer")) for trial in lost}):
        theirs, ours = (
            [
                float(_recipe(one, "lr"))
                for one in group
                if str(_recipe(one, "optimizer")) == optimizer and _recipe(one, "lr")
            ]
            for group in (lost, kept)
        )
        if theirs and ours:
            ratios.append((optimizer, statistics.median(theirs) / statistics.median(ours)))
    high = [(name, ratio) for name, ratio in ratios if ratio >= 2]
    if high:
        numbers["lr_ratios"] = dict(high)
        said = ", ".join(f"{ratio:.1f} times with {name}" for name, ratio in high)
        told += f"; their median learning rate was {said} that of the others: lower the upper end of its range"
    return [(told, numbers)]


def over_fitting(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The best trials know their training images far better than the validation images."""
    pairs = [
        (last.train_accuracy, last.val_accuracy)
        for last in (trial.epochs[-1] for trial in _best(trials))
        if last.val_accuracy is not None
    ]
    if len(pairs) < FEWEST:
        return []
    train, val = (statistics.fmean(column) for column in zip(*pairs, strict=True))
    if train - val < GAP:
        return []
    told = (
        f"the {len(pairs)} best trials have {_percent(train)} on training images and {_percent(val)} on validation "
        "images: more images, augmentation or regularisation (weight decay, dropout) help more than larger networks"
    )
    return [(told, {"train": train, "val": val, "trials": len(pairs)})]


def close_at_the_rung(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The winner only just passed its first rung: others like it may have been stopped there."""
    winner = _winner(trials, shown)
    if winner is None or not winner.decisions or winner.origin == "baseline":
        return []
    epoch = int(winner.decisions[0]["epoch"])
    scores = [trial.epochs[epoch - 1].score for trial in proposed(trials) if len(trial.epochs) >= epoch]
    place = 1 + sum(score > winner.epochs[epoch - 1].score for score in scores)
    if len(scores) < 3 * FEWEST or place <= len(scores) / 4:
        return []
    stopped = sum(
        any(int(one["epoch"]) == epoch and one["stop"] for one in trial.decisions) for trial in proposed(trials)
    )
    told = (
        f"the winner was only in place {place} of {len(scores)} at the first rung (epoch {epoch}), where {stopped} "
        "were stopped: early scores say little here; `--scheduler promote` lets such trials come back, and more "
        "`--epochs` put the rungs later"
    )
    return [(told, {"place": place, "trials": len(scores), "epoch": epoch, "stopped": stopped})]


def no_better_than_the_baseline(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The plain network that every search begins with is the best, or cannot be told apart from it."""
    baselines = [trial.number for trial in trials if trial.origin == "baseline" and trial.repeat_of is None]
    first = shown["ranking"][0]["trial"] if shown["ranking"] else None
    if not baselines or len(proposed(trials)) < ENOUGH or baselines[0] not in (first, *shown["tied"]):
        return []
    how = "is the best" if baselines[0] == first else "cannot be told apart from the best"
    told = (
        f"after {len(proposed(trials))} configurations the baseline, trial {baselines[0]}, {how}: more trials, or a "
        "space that fits the data better, or images rather than networks, are what is missing"
    )
    return [(told, {"baseline": baselines[0], "configurations": len(proposed(trials))})]


def test_images_read(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The test images were read more than once, by retrainings that are gone too."""
    readings = earlier(study)
    if len(readings) < 2:
        return []
    runs = count_trainings(readings)
    told = (
        f"the test images were read {len(readings)} times, for {runs} trainings: whoever chooses the best of them gets "
        "a number that is too high; new images would be needed for an honest one"
    )
    return [(told, {"readings": len(readings), "trainings": runs})]


def less_on_test_images(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """The newest retraining came to less on test images than the search promised, by more than their chance."""
    found = retrainings(study)
    if not found:
        return []
    metrics = found[0][1]
    promised = next((row for row in shown["ranking"] if row["trial"] == metrics.get("trial")), None)
    if promised is None:
        return []
    low, high = promised["low"], promised["high"]
    if study.val_images:
        numbers = (promised[name] for name in ("trial", "score", "expected", "low", "high", "runs", "tied"))
        low, high = on_new_data(Standing(*numbers), study.val_images)
    chance = 2 * binomial_error(metrics["test_accuracy"], int(metrics.get("test_images") or 0))
    if metrics["test_accuracy"] + chance >= low:
        return []
    told = (
        f"in full the winner has {_percent(metrics['test_accuracy'])} on test images, less than the search expected "
        f"on new data ({_percent(low)} to {_percent(high)}): are test and validation images of one kind?"
    )
    return [(told, {"test": metrics["test_accuracy"], "low": low, "high": high})]


def weakest_class(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """A class is known far worse than the others, beyond the chance that the worst of as many has."""
    try:
        rows, pairs = classes(study, trials), confusion(study, trials)
    except NothingToDrawError:
        return []
    middle = statistics.median(row["accuracy"] for row in rows)
    worst = rows[0]
    confidence = 1 - (1 - CONFIDENCE) / len(rows)  # Bonferroni: it is the worst of so many
    high = of_images(worst["accuracy"] * worst["images"], worst["images"], confidence)["high"]
    if len(rows) < 3 or high >= middle or middle - worst["accuracy"] < GAP:
        return []
    wrong = [row for row in pairs if row["true"] == worst["class"] and row["predicted"] != worst["class"]]
    taken = max(wrong, key=lambda row: row["images"])
    told = (
        f"the class {worst['class']} is right in {_percent(worst['accuracy'])} of its {worst['images']} test images, "
        f"the median class in {_percent(middle)}; it is most often taken for {taken['predicted']} "
        f"({_percent(taken['share'])}): look at its labels, or get more images of it"
    )
    numbers = {
        "class": worst["class"],
        "accuracy": worst["accuracy"],
        "median": middle,
        "taken_for": taken["predicted"],
    }
    return [(told, numbers)]


def next_step(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[Finding]:
    """What is left to do: go on with paused trials, or train the winner in full."""
    paused = sum(trial.status is TrialStatus.PAUSED for trial in trials)
    if paused:
        told = f"{paused} trials are paused: `tunelab resume {study.called}` goes on with them"
        return [(told, {"paused": paused})]
    searched = study.info.get("kind") == "search"
    if searched and shown["ranking"] and not shown["running"] and not retrainings(study):
        told = (
            f"the winner was trained for {shown['ranking'][0]['epochs']} epochs only and never tested: "
            f"`tunelab best {study.called} --retrain --epochs 150 --seeds 3` does both"
        )
        return [(told, {"epochs": shown["ranking"][0]["epochs"]})]
    return []


ADVISERS: dict[str, Adviser] = {
    "edge_of_range": edge_of_range,
    "still_rising": still_rising,
    "cannot_be_told_apart": cannot_be_told_apart,
    "over_fitting": over_fitting,
    "close_at_the_rung": close_at_the_rung,
    "no_better_than_the_baseline": no_better_than_the_baseline,
    "failures": failures,
    "divergence": divergence,
    "less_on_test_images": less_on_test_images,
    "weakest_class": weakest_class,
    "test_images_read": test_images_read,
    "next_step": next_step,
}
"""What looks for something to recommend, in the order of the page."""


def recommend(study: Study, trials: Sequence[Trial], shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All findings as rows: name, what is recommended, and the numbers that it rests on."""
    return [
        {"name": name, "text": text[:1].upper() + text[1:] + ".", "numbers": numbers}
        for name, adviser in ADVISERS.items()
        for text, numbers in adviser(study, trials, shown)
    ]


def _best(trials: Sequence[Trial]) -> list[Trial]:
    """The best configurations of the longest full length, FEWEST at least; none if there are no more than FEWEST."""
    whole = [trial for trial in proposed(trials) if trial.status is TrialStatus.COMPLETED and trial.epochs]
    longest = max((counted_epochs(trial) for trial in whole), default=0)
    whole = [trial for trial in whole if counted_epochs(trial) == longest]
    if len(whole) <= FEWEST:
        return []
    order = sorted(whole, key=lambda trial: -_last(trial).score)
    return order[: max(FEWEST, round(TOP_SHARE * len(order)))]


def _last(trial: Trial) -> EpochMetrics:
    return trial.epochs[-1]


def _winner(trials: Sequence[Trial], shown: Mapping[str, Any]) -> Trial | None:
    number = shown["ranking"][0]["trial"] if shown["ranking"] else None
    return next((trial for trial in trials if trial.number == number), None)


def _recipe(trial: Trial, name: str) -> Any:
    """A value of the training recipe, None where the configuration has none."""
    return trial.config.get("train", {}).get(name)


def _place(value: float, low: float, high: float, log: bool) -> float:
    """Where a value lies in a range, in [0, 1]."""
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _slope(scores: Sequence[float]) -> float:
    """The rise per step of a straight line through scores, by least squares."""
    return statistics.linear_regression(range(len(scores)), scores).slope


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
