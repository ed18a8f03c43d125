from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from tunelab.analysis.intervals import of_images, of_trainings


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_of_trainings_is_students(count: int) -> None:
    accuracies = list(np.random.default_rng(count).normal(0.6, 0.01, count))
    found = of_trainings(accuracies)
    low, high = scipy.stats.t.interval(0.95, count - 1, np.mean(accuracies), scipy.stats.sem(accuracies))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert (found["confidence"], found["method"]) == (0.95, f"Student's t over {count} seeds")


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (55, 100), (9000, 10_000)])
def test_the_interval_of_images_is_wilsons(correct: int, images: int) -> None:
    found = of_images(correct, images)
    expected = scipy.stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
    assert found["low"] == pytest.approx(expected.low, abs=1e-12)
    assert found["high"] == pytest.approx(expected.high, abs=1e-12)


def test_no_images_say_nothing() -> None:
    found = of_images(0, 0)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_no_accuracy_lies_outside_0_and_1() -> None:
    found = of_trainings([0.99, 0.8])
    assert found["high"] == 1.0
    assert of_trainings([0.01, 0.2])["low"] == 0.0


def test_the_interval_covers_the_mean_of_trainings_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = [of_trainings(list(draw.normal(0.5, 0.02, 3))) for _ in range(2000)]
    covered = np.mean([one["low"] <= 0.5 <= one["high"] for one in found])
    assert covered == pytest.approx(0.95, abs=0.015)
