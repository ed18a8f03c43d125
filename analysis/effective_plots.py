"""The norm of the weights and the effective learning rate over a training, and the saw-teeth of its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import NothingToDrawError
from tunelab.records import EpochMetrics, Trial
from tunelab.study import Study

from .canvas import SERIES, Rows, log_axis, new_figure, percents, sample, save, thin, whole_numbers
from .sawteeth import SHORTEST, describe_teeth
from .study_plots import BY_NORM

MOST_LINES = 90
"""So many trials are drawn at most (our choice), as in the plot of learning curves."""
MOST_NAMED = 16
"""Up to so many trials have a colour and a name of their own: the eight pairs with and without the division."""
MOST_POINTS = 400
"""Of a longer training so many epochs are drawn, half of them the highest and half the lowest of their neighbours."""
TEETH_FROM = 30
"""Shorter trainings are not searched for saw-teeth in a report (our choice)."""
_DEEPEST = 1e-3  # of a trial's highest rate: the last epochs of a cosine are not drawn below; our choice
_PANELS = 16
_COLUMNS = 4


def ending(trial: Trial) -> dict[str, Any]:
    """How the norm and the effective rate of a trial ended, and its saw-teeth.

    `weight_norm` and `effective_lr` are None where the record does not have them. The saw-teeth are those of the score,
    as `tunelab.analysis.sawteeth.describe_teeth` tells them.
    """
    last = trial.epochs[-1] if trial.epochs else None
    return {
        "weight_norm": None if last is None else last.weight_norm,
        "effective_lr": None if last is None else last.effective_lr,
        **describe_teeth([metrics.score for metrics in trial.epochs]),
    }


def name_of(config: Mapping[str, Any]) -> str:
    """Optimizer and schedule of a configuration (as JSON) in a few words: "sgd 0.9 constant / norm"."""
    train = config.get("train", {})
    schedule = train.get("schedule", {})
    momentum = train.get("momentum") if train.get("optimizer") in ("sgd", "rmsprop") else None
    words = [str(train.get("optimizer", "?")), f"{momentum:g}" if momentum else "", str(schedule.get("name", ""))]
    return " ".join(word for word in words if word) + (BY_NORM if schedule.get("by_norm") else "")


def effective(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per trial and epoch: rate, norm of the weights, effective rate. Of long trainings some epochs.

    Raises:
        NothingToDrawError: the record has no norms; those of older versions have none.
    """
    normed = [trial for trial in trials if any(metrics.effective_lr is not None for metrics in trial.epochs)]
    if not normed:
        raise NothingToDrawError("no trial has the norm of its weights in the record")
    rows: Rows = []
    for trial in sample(normed, MOST_LINES):
        known = [metrics for metrics in trial.epochs if metrics.effective_lr is not None]
        rows += [_row(trial, metrics) for metrics in thin(known, MOST_POINTS, lambda one: one.effective_lr or 0.0)]
    return rows


def _row(trial: Trial, metrics: EpochMetrics) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "recipe": name_of(trial.config),
        "epoch": metrics.epoch,
        "lr": metrics.lr,
        "weight_norm": metrics.weight_norm,
        "effective_lr": metrics.effective_lr,
    }


def draw_effective(rows: Rows, path: Path, title: str) -> None:
    """Draws norm and effective rate against the epoch; with few trials each has its name, with many none has."""
    by_trial: dict[int, Rows] = {}
    for row in rows:
        by_trial.setdefault(row["trial"], []).append(row)
    named = len(by_trial) <= MOST_NAMED
    figure, axes = new_figure(10, 9.0 if named else 7.5, 2)
    pairs = list(dict.fromkeys(_pair(mine[0]) for mine in by_trial.values()))
    for mine in sorted(by_trial.values(), key=lambda mine: (pairs.index(_pair(mine[0])), mine[0]["recipe"])):
        pair, divided = _pair(mine[0]), mine[0]["recipe"].endswith(BY_NORM)
        style: dict[str, Any] = {
            "color": SERIES[pairs.index(pair) % len(SERIES)],
            "linestyle": "--" if divided else "-",
            "linewidth": 1.2 if named else 0.7,
            "alpha": 0.9 if named else 0.5,
            "marker": "o" if len(mine) < 3 else None,
            "markersize": 4,
        }
        epochs = [row["epoch"] for row in mine]
        label = f"{mine[0]['trial']}: {mine[0]['recipe']}" if named else None
        axes[0].plot(epochs, [row["weight_norm"] for row in mine], label=label, **style)
        # A rate of 0 has no place on a logarithmic axis.
        axes[1].plot(epochs, [row["effective_lr"] or float("nan") for row in mine], **style)
    axes[0].set(xlabel="epoch", ylabel="norm of the weights")
    axes[1].set(xlabel="epoch", ylabel="effective rate, lr / norm²")
    for panel in axes:
        whole_numbers(panel.xaxis)
    log_axis(axes[0].yaxis)
    _scale_rates(axes[1], [[row["effective_lr"] for row in mine] for mine in by_trial.values()])
    if named:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path, title)


def _scale_rates(panel: Any, curves: Sequence[Sequence[float]]) -> None:
    """A logarithmic axis for the rates of several trials, where there are any above 0."""
    highest = [max(curve) for curve in curves if max(curve) > 0.0]
    if not highest:
        return
    lowest = min(rate for curve in curves for rate in curve if rate > 0.0)
    if lowest < _DEEPEST * min(highest):
        panel.set_ylim(bottom=_DEEPEST * min(highest))
    log_axis(panel.yaxis)


def _pair(row: Mapping[str, Any]) -> str:
    return str(row["recipe"]).removesuffix(BY_NORM)


def teeth(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per trial: how many saw-teeth its score has, their period and depth, the final norm and effective rate.

    Those with the most saw-teeth come first. `_epochs` and `_scores` are the curve of those that are drawn, thinned.

    Raises:
        NothingToDrawError: no trial is long enough.
    """
    long = [trial for trial in trials if len(trial.epochs) >= max(TEETH_FROM, SHORTEST)]
    if not long:
        raise NothingToDrawError(f"no trial has the {TEETH_FROM} epochs that saw-teeth are looked for in")
    rows: Rows = []
    for trial in long:
        found = ending(trial)
        rows.append(
            {
                "trial": trial.number,
                "recipe": name_of(trial.config),
                "epochs": len(trial.epochs),
                **{name: found[name] for name in ("saw_teeth", "period", "depth", "weight_norm", "effective_lr")},
                "score": trial.score,
                "_drops": found["drops"],
            }
        )
    rows.sort(key=lambda row: (-row["saw_teeth"], row["trial"]))
    numbers = {trial.number: trial for trial in long}
    for row in rows[:_PANELS]:
        shown = thin(numbers[row["trial"]].epochs, MOST_POINTS, lambda one: one.score)
        row |= {"_epochs": [one.epoch for one in shown], "_scores": [one.score for one in shown]}
    return rows


def draw_teeth(rows: Rows, path: Path, title: str) -> None:
    """Draws the score of the trials with the most saw-teeth against the epoch, each in its panel, its drops marked."""
    shown = rows[:_PANELS]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = new_figure(max(5.0, 2.9 * columns), 0.8 + 2.1 * lines, lines, columns)
    low, high = (pick(score for row in shown for score in row["_scores"]) for pick in (min, max))
    for panel, row in zip(axes, shown, strict=False):
        panel.plot(row["_epochs"], percents(row["_scores"]), color=SERIES[0], linewidth=0.8)
        for epoch in row["_drops"]:
            panel.axvline(epoch, color=SERIES[3], linewidth=0.8, linestyle=":")
        panel.set_title(f"{row['trial']}: {row['recipe']} ({row['saw_teeth']})", fontsize=8)
        panel.set_ylim(100 * low - 2, 100 * high + 2)
        panel.tick_params(labelsize=8)
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("validation accuracy (%)", fontsize=10)
    save(figure, path, title)


def say_effective(rows: Rows) -> str:
    """What the plot of norms and rates shows, in words."""
    last = {row["trial"]: row for row in rows}  # of each trial the row of its last epoch stays
    small, large = (pick(last.values(), key=lambda row: row["weight_norm"]) for pick in (min, max))
    slow, fast = (pick(last.values(), key=lambda row: row["effective_lr"]) for pick in (min, max))
    return (
        f"Norm of the weights and effective rate of {len(last)} trials; at the end the norm lies between "
        f"{small['weight_norm']:.3g} (trial {small['trial']}) and {large['weight_norm']:.3g} (trial {large['trial']}), "
        f"the effective rate between {slow['effective_lr']:.2g} (trial {slow['trial']}) and "
        f"{fast['effective_lr']:.2g} (trial {fast['trial']})."
    )


def say_teeth_of(rows: Rows) -> str:
    """What the plot of saw-teeth shows, in words."""
    having = [row for row in rows if row["saw_teeth"]]
    if not having:
        return f"No saw-teeth in the accuracy of {len(rows)} trials of {TEETH_FROM} epochs or more."
    most = having[0]
    period = f", one every {most['period']:g} epochs" if most["period"] is not None else ""
    return (
        f"{len(having)} of {len(rows)} trials have saw-teeth in their accuracy; trial {most['trial']} has the most: "
        f"{most['saw_teeth']}{period}."
    )
