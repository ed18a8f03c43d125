"""All plots of a report: for each a data function, a drawing function, a title, what it says in words, how to read it.

A data function takes a study and its trials and gives rows of plain data, or raises NothingToDrawError with the reason
why there is nothing to draw. Columns whose names begin with `_` are for the drawing alone, and go into no table. A
drawing function takes rows, the PNG file to write and a heading. What a plot says in words is made from its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tunelab.errors import NothingToDrawError
from tunelab.records import Trial
from tunelab.study import Study

from . import effective_plots, network_plots, retrain_plots, space_plots, study_plots
from .canvas import STYLE, Rows
from .fonts import cover, plain, strings

Data: TypeAlias = Callable[[Study, Sequence[Trial]], Rows]
Draw: TypeAlias = Callable[[Rows, Path, str], None]
Words: TypeAlias = Callable[[Rows], str]


def _history(rows: Rows) -> str:
    full = [row for row in rows if row["status"] == "completed"]
    best = max(full or rows, key=lambda row: row["score"])
    reached = f"the best of full length is {_percent(best['score'])}, trial {best['trial']}"
    if not full:
        reached = f"none has run its full length; the highest so far is {_percent(best['score'])}"
    return f"Scores of {len(rows)} configurations in the order they were tried; {reached}."


def _curves(rows: Rows) -> str:
    stopped = sum(row["rung"] == "stopped" for row in rows)
    trials = len({row["trial"] for row in rows})
    rungs = sorted({row["epoch"] for row in rows if row["rung"]})
    told = f"rungs after {', '.join(map(str, rungs))} epochs" if rungs else "no rungs"
    return f"Learning curves of {trials} trials; {told}; {stopped} of them were stopped at a rung."


def _survival(rows: Rows) -> str:
    told = "; ".join(f"{row['kept']} of {row['reached']} at epoch {row['epoch']}" for row in rows)
    return f"How many trials went on at each rung: {told}."


def _parallel(rows: Rows) -> str:
    best = max(rows, key=lambda row: row["score"])
    mine = [row for row in rows if row["trial"] == best["trial"] and row["value"] is not None]
    values = ", ".join(f"{row['parameter']} {_value(row['value'])}" for row in mine)
    trials = len({row["trial"] for row in rows})
    return f"{trials} configurations; the best, trial {best['trial']} with {_percent(best['score'])}, has {values}."


def _slices(rows: Rows) -> str:
    names = list(dict.fromkeys(row["parameter"] for row in rows))
    return f"The score against each of {len(names)} parameters; {names[0]} tells most of it at first sight."


def _sizes(rows: Rows) -> str:
    front = [row for row in rows if row["front"] and row["cost"] == rows[0]["cost"]]
    cheap, best = (pick(front, key=lambda row: row["value"]) for pick in (min, max))
    unit = "million multiply-adds" if rows[0]["cost"] == "mflops" else rows[0]["cost"]
    return (
        f"Accuracy against cost: {len(front)} configurations are beaten by none, from {_percent(cheap['accuracy'])} at "
        f"{_value(cheap['value'])} {unit} to {_percent(best['accuracy'])} at {_value(best['value'])}."
    )


def _schedules(rows: Rows) -> str:
    last = {row["schedule"]: row for row in rows}  # of each schedule the row of its last epoch stays
    best = max(last.values(), key=lambda row: row["median_score"])
    return (
        f"{len(last)} learning-rate schedules; the best median at the last epoch, {_percent(best['median_score'])} of "
        f"{best['trials']} trials, is that of {best['schedule']}."
    )


def _networks(rows: Rows) -> str:
    first = [row for row in rows if row["rank"] == 1]
    blocks = sum(row["branch"] > 0 for row in first)
    branches = max(row["branch"] for row in first)
    built = (
        f"{blocks} blocks in {branches} {'branch' if branches == 1 else 'branches'}"
        if blocks
        else f"{len(first)} layers"
    )
    return f"Block diagrams of the {len({row['rank'] for row in rows})} best networks; the first has {built}."


def _hours(rows: Rows) -> str:
    whole = sum(row["hours"] for row in rows)
    told = ", ".join(f"{row['trials_that']} {study_plots.duration(row['hours'])}" for row in rows)
    return f"{study_plots.duration(whole)} of training in all: {told}."


def _effort(rows: Rows) -> str:
    slowest = max(rows, key=lambda row: row["seconds_per_epoch"])
    memory = max(row["peak_memory_mib"] for row in rows)
    return (
        f"Time and memory of {len(rows)} trials against their multiply-adds; the slowest, trial {slowest['trial']}, "
        f"took {slowest['seconds_per_epoch']:.3g} seconds per epoch; the most memory was {memory:.0f} MiB."
    )


def _full_curve(rows: Rows) -> str:
    seeds = len({row["run"] for row in rows})
    times = "once" if seeds == 1 else f"{seeds} times"
    return (
        f"The winner trained {times} for {max(row['epoch'] for row in rows)} epochs; test accuracy "
        f"{_percent(rows[0]['test_accuracy'])}."
    )


def _confusion(rows: Rows) -> str:
    wrong = [row for row in rows if row["_true"] != row["_predicted"]]
    if not any(row["images"] for row in wrong):
        return "Confusion matrix of the test images: there is no mistake."
    worst = max(wrong, key=lambda row: row["images"])
    return (
        f"Confusion matrix of the test images; the commonest mistake is {worst['true']} taken for "
        f"{worst['predicted']}, {worst['images']} times ({_percent(worst['share'])} of that class)."
    )


def _classes(rows: Rows) -> str:
    return (
        f"Right answers for each of {len(rows)} classes, from {_percent(rows[0]['accuracy'])} ({rows[0]['class']}) to "
        f"{_percent(rows[-1]['accuracy'])} ({rows[-1]['class']})."
    )


def _mistakes(rows: Rows) -> str:
    first = rows[0]
    return (
        f"The {len(rows)} wrong answers that the network was surest of; the surest, {_percent(first['probability'])}, "
        f"took {first['true']} for {first['predicted']}."
    )


PLOTS: dict[str, tuple[Data, Draw, str, Words, str]] = {
    "history": (
        study_plots.history, study_plots.draw_history, "How the search went", _history,
        "Each point is a configuration, at the score of its last epoch; the line is the best of full length so far. "
        "That best is lucky too: the ranking corrects for it. Pauses of the search are left out of the time.",
    ),
    "curves": (
        study_plots.curves, study_plots.draw_curves, "Learning curves and rungs", _curves,
        f"At most {study_plots.MOST_CURVES} trials are drawn: the best third of them, and evenly many of the others.",
    ),
    "survival": (
        study_plots.survival, study_plots.draw_survival, "Who went on at the rungs", _survival,
        "At a rung a trial goes on if it is among the best third, or behind them by less than the noise.",
    ),
    "sizes": (
        space_plots.sizes, space_plots.draw_sizes, "What accuracy costs", _sizes,
        "Configurations of full length by their expected accuracy. No other beats the joined ones in accuracy and this "
        "cost at once (the Pareto front); their bars are 95% intervals.",
    ),
    "networks": (
        network_plots.networks, network_plots.draw_networks, "The best networks", _networks,
        "From left to right, parallel branches above each other. Each box: kind, channels, pixels of its output; a box "
        "with a thick left edge halves the resolution. \"basic x3\" is a residual block of three 3x3 convolutions.",
    ),
    "parallel": (
        space_plots.parallel, space_plots.draw_parallel, "Configurations and their scores", _parallel,
        "A line is a configuration; the lighter, the better. The parameters that most trials have and that tell most "
        "of the score at first sight; scores of trials that were stopped are those of their last epoch.",
    ),
    "slices": (
        space_plots.slices, space_plots.draw_slices, "Each parameter against the score", _slices,
        "Blue ran in full, orange ended earlier, at the score of its last epoch; the line joins medians of those that "
        "ran in full. What is seen here may be due to another parameter that changed with it.",
    ),
    "schedules": (
        study_plots.schedules, study_plots.draw_schedules, "Learning-rate schedules", _schedules,
        "Trials of full length only, their number in brackets. Trials differ in more than their schedule.",
    ),
    "effective_lr": (
        effective_plots.effective, effective_plots.draw_effective, "Norm of the weights and effective rate",
        effective_plots.say_effective,
        "The Euclidean norm over all weights with two or more dimensions at the end of each epoch, and the rate of the "
        "epoch's last step divided by its square: how far a step of SGD turns weights before a norm layer. Dashed: the "
        "rate is divided by the norm. The last rates of a cosine lie below the axis.",
    ),
    "sawteeth": (
        effective_plots.teeth, effective_plots.draw_teeth, "Saw-teeth of the accuracy", effective_plots.say_teeth_of,
        "Sharp drops that are regained, far beyond the noise of neighbouring epochs; dotted lines mark them, and their "
        "number is in brackets. The period is the median distance between two, in epochs.",
    ),
    "hours": (
        study_plots.hours, study_plots.draw_hours, "Where the hours went", _hours,
        "Time of training and validation, added up over all trials, several of which may have run at once.",
    ),
    "effort": (
        study_plots.effort, study_plots.draw_effort, "Time and memory", _effort,
        "Measured while other trials ran beside them. Memory is the whole process on a CPU, what the trial allocated "
        "on a GPU.",
    ),
    "full_curve": (
        retrain_plots.full_curve, retrain_plots.draw_full_curve, "The winner's learning curve", _full_curve,
        "Without validation images (they were trained on too) there is no validation curve. Accuracies on training "
        "images are measured on changed (augmented) images and look worse than they are.",
    ),
    "confusion": (
        retrain_plots.confusion, retrain_plots.draw_confusion, "Which classes are taken for which", _confusion,
        "Test images of the newest retraining, all seeds together.",
    ),
    "classes": (
        retrain_plots.classes, retrain_plots.draw_classes, "How well each class is known", _classes,
        "Test images of the newest retraining, the mean over seeds; their number in brackets; bars are 95% intervals.",
    ),
    "mistakes": (
        retrain_plots.mistakes, retrain_plots.draw_mistakes, "The surest mistakes", _mistakes,
        "Test images of the newest retraining. Look for wrong labels here.",
    ),
}  # fmt: skip
"""The plots of a report in their order."""


def draw(name: str, rows: Rows, path: Path, title: str) -> dict[str, str]:
    """Draws a plot to a PNG file, every text in letters that can be read.

    Returns:
        What stands for a text that no installed font can draw: numbers in brackets by text.
    """
    import matplotlib

    texts = [*strings(rows), title]
    families, numbers = cover(texts)
    shown = {text: plain(numbers.get(text, text)) for text in texts}
    legible = [{key: shown[value] if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    with matplotlib.rc_context({**STYLE, "font.family": families}):
        PLOTS[name][1](legible, path, shown[title])
    return numbers


def collect(study: Study, trials: Sequence[Trial]) -> tuple[dict[str, Rows], dict[str, str]]:
    """The rows of every plot that can be drawn, and why the others cannot, both by name."""
    found: dict[str, Rows] = {}
    left_out: dict[str, str] = {}
    for name, (data, *_) in PLOTS.items():
        rows, reason = _rows_or_reason(data, study, trials)
        if rows is None:
            left_out[name] = reason
        else:
            found[name] = rows
    return found, left_out


def _rows_or_reason(data: Data, study: Study, trials: Sequence[Trial]) -> tuple[Rows | None, str]:
    try:
        return data(study, trials), ""
    except NothingToDrawError as error:
        return None, str(error)


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they go into a table: without what is for the drawing alone."""
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
