from __future__ import annotations

from typing import Any

import pytest
from tunelab.analysis.retrain_text import print_retrained, retrained_lines

INTERVAL = {"low": 0.47, "high": 0.53, "confidence": 0.95, "method": "Student's t over 3 seeds"}


def metrics(runs: int, **more: Any) -> dict[str, Any]:
    return {
        "test_accuracy": 0.5,
        "test_accuracy_std": 0.01 if runs > 1 else None,
        "test_images": 600,
        "trial": 3,
        "epochs": 12,
        "trained_on": "train+val",
        "search_val_accuracy": 0.55,
        "search_epochs": 6,
        "search_runs": runs,
        "test_reads_before": 0,
        "folder": "runs/x",
        "seeds": [{}] * runs,
        **more,
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_metrics_of_before_there_were_intervals_are_told(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_retrained(metrics(seeds))
    said = capsys.readouterr().out
    assert ("+- 1.0" in said) is (seeds > 1)
    assert ("the mean of 3 runs" in said) is (seeds > 1)
    assert "note" not in said
    print_retrained(metrics(seeds, test_reads_before=2))
    assert "note: 2 other trainings" in capsys.readouterr().out
    noted = [{"notes": ["compiled: 1.31 x as fast [1]"]} for _ in range(seeds)]
    print_retrained(metrics(seeds, seeds=noted))
    assert capsys.readouterr().out.count("note: compiled: 1.31 x as fast [1]") == 1


@pytest.mark.parametrize(
    ("low", "high", "where"), [(0.48, 0.56, "within"), (0.51, 0.56, "below"), (-0.1, 0.45, "above")]
)
def test_the_estimate_of_the_search_stands_beside_the_truth(low: float, high: float, where: str) -> None:
    lines = retrained_lines(metrics(3, search_expected=0.52, search_low=low, search_high=high, test_interval=INTERVAL))
    (line,) = [line for line in lines if line.startswith("the search")]
    assert (
        f"expected 52.0% on new data ({max(0.0, 100 * low):.1f} to {100 * high:.1f}): the test accuracy lies {where}"
        in line
    )
    assert "50.0% (95% interval 47.0 to 53.0, Student's t over 3 seeds) on 600 images never seen before" in lines[0]


def test_each_seed_the_ensemble_and_the_validation_have_a_line() -> None:
    interval = {**INTERVAL, "method": "Wilson, 600 images"}
    seeds = [{"test": {"accuracy": accuracy}} for accuracy in (0.49, 0.51)]
    lines = retrained_lines(
        metrics(
            2,
            seeds=seeds,
            ensemble={"models": 2, "accuracy": 0.54, "interval": interval},
            validation={"accuracy": 0.6, "interval": interval, "images": 90},
        )
    )
    assert "each seed: 49.0%, 51.0%" in lines
    together = "the mean of their probabilities: 54.0% (95% interval 47.0 to 53.0, Wilson, 600 images)"
    assert f"ensemble of the 2, {together}" in lines
    assert "validation accuracy 60.0% (95% interval 47.0 to 53.0) on 90 images that were not trained on" in lines


def test_earlier_readings_are_named() -> None:
    past = [{"time": "2027-01-02T03:04:05+00:00", "folder": "retrain-a", "trial": 7, "trainings": 3}]
    lines = retrained_lines(metrics(1, test_reads_before=3, test_readings_before=past))
    assert "that were read before" in lines[0]
    (note,) = [line for line in lines if line.startswith("note: ")]
    assert "had been read once before: 2027-01-02 03:04 (trial 7, 3 trainings); choosing" in note
