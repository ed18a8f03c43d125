from __future__ import annotations

from tunelab.records import EpochMetrics
from tunelab.training.cases import Task
from tunelab.training.fitness import fitting

TASK = Task(10, 1000, 0.1, 2.3, 500, 0.1, 2.3, 4, 0.1)


def curve(*epochs: tuple[float, float, float]) -> list[EpochMetrics]:
    """Of each epoch training accuracy, validation accuracy and validation loss."""
    return [
        EpochMetrics(n, 1.0, train, loss, val, 0.1, 1.0, 1.0, 1.0)
        for n, (train, val, loss) in enumerate(epochs, start=1)
    ]


def names(epochs: list[EpochMetrics]) -> list[str]:
    return [finding.name for finding in fitting(epochs, TASK)]


def test_over_fitting_lasts_and_is_beyond_chance() -> None:
    wide = [(0.9, 0.7, 1.0)] * 3
    assert names(curve(*wide)) == ["over-fitting"]
    assert names(curve(*wide[:2])) == [], "statistics of norms are late in the first epochs"
    assert names(curve((0.9, 0.88, 1.0), *wide[:2])) == []
    risen = [(0.9, 0.88, 0.5), (0.95, 0.87, 0.5), (0.97, 0.87, 0.6)]
    assert names(curve((0.93, 0.85, 0.4), *risen)) == [], "one epoch is within chance"
    assert names(curve((0.93, 0.8, 0.4), (0.95, 0.87, 0.5), (0.96, 0.87, 0.5), (0.97, 0.87, 0.6))) == ["over-fitting"]


def test_under_fitting_is_told_at_the_end() -> None:
    poor = [(0.5, 0.5, 1.5)] * 4
    assert names(curve(*poor)) == ["under-fitting"]
    assert names(curve(*poor[:3])) == []
    assert names(curve(*poor[:3], (0.9, 0.9, 0.4))) == []
    assert names(curve(*[(0.5, 0.9, 0.4)] * 4)) == [], "augmentation makes training harder than validation"


def test_without_validation_images_nothing_is_said() -> None:
    assert names([]) == []
    assert names([EpochMetrics(4, 1.0, 0.5, None, None, 0.1, 1.0, 1.0, 1.0)]) == []
