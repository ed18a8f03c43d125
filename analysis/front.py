"""The configurations that no other beats in accuracy and costs at once, where a study has several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunelab.noise import half_width, noise_at
from tunelab.records import Trial
from tunelab.standings import Place
from tunelab.study import Study
from tunelab.tuning.objectives import FIRST, costs_of, non_dominated

from .plots import draw_pareto, pareto


def objectives_of(study: Study) -> tuple[str, ...]:
    """The names of what a study makes good, the accuracy first."""
    return tuple(study.info["options"].get("objective", (FIRST,)))


def front(
    trials: Sequence[Trial], ranked: Sequence[Place], objectives: Sequence[str], val_images: int
) -> list[dict[str, Any]]:
    """One row per configuration of the longest full length that no other beats, the cheapest first.

    Accuracies are compared as the ranking expects them, `low` to `high` is their interval at 95%. `better` is True
    where the noise leaves no doubt that a configuration is more accurate than each cheaper one above it. Without costs
    among the objectives there are no rows.

    Args:
        trials: all trials of a study.
        ranked: its ranking.
        objectives: the accuracy, then names of costs.
        val_images: on how many images a score was measured.
    """
    longest = [place for place in ranked if place.epochs == ranked[0].epochs]
    if len(objectives) < 2 or not longest:
        return []
    costs = [[costs_of(place.trial).get(name, float("inf")) for name in objectives[1:]] for place in longest]
    kept = non_dominated([place.standing.expected for place in longest], costs)
    noise = noise_at(trials, ranked[0].epochs, val_images)
    rows: list[dict[str, Any]] = []
    for at in kept:
        mine = longest[at].standing
        better = all(
            mine.expected - row["expected"] > half_width(noise, 1 / mine.runs + 1 / row["runs"]) for row in rows
        )
        rows.append(
            {
                "trial": longest[at].trial.number,
                "expected": mine.expected,
                "low": mine.low,
                "high": mine.high,
                "runs": mine.runs,
                **dict(zip(objectives[1:], costs[at], strict=True)),
                "better": bool(rows) and better,
            }
        )
    return rows


def write_plot(study: Study) -> Path | None:
    """Draws `pareto.png` into the study; None if it has one objective alone, or nothing to draw.

    Raises:
        OSError: it cannot be written.
    """
    objectives = objectives_of(study)
    if len(objectives) < 2:
        return None
    trials = study.list_trials()
    ranked = study.places_of(trials)
    rows = front(trials, ranked, objectives, study.val_images)
    if not rows:
        return None
    file = study.path / "pareto.png"
    draw_pareto(pareto(ranked, rows, objectives), file, f"{study.name}: what accuracy costs")
    return file
