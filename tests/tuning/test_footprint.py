from __future__ import annotations

import pytest

from tunelab.tuning.footprint import CONTEXT_MIB, Footprint, Peaks
from tunelab.tuning.speed import Load

SMALL, LARGE = Load(1.0, 1000.0, 4.0, 100), Load(9.0, 9000.0, 4.0, 100)


def measured(memory: float, idle: float = 200.0) -> list[dict[str, float]]:
    return [{"memory": memory, "idle": idle}]


def test_what_was_measured_is_predicted_and_more_in_proportion() -> None:
    peaks = Peaks("cpu")
    peaks.learn(SMALL, measured(340.0))  # 100 beside what a process and its libraries take
    found = peaks.footprint(0.0)
    assert found.predict(SMALL, 0) == pytest.approx(340.0)
    assert found.predict(LARGE, 0) == pytest.approx(240.0 + 900.0)
    assert found.predict(LARGE, 0, parts=4) == pytest.approx(240.0 + 225.0)
    assert found.predict(LARGE, 0, parts=1000) == pytest.approx(240.0 + 9.0), "one image is the least"
    assert peaks.most([SMALL]) == 340.0
    assert peaks.most([SMALL, LARGE]) == pytest.approx(1140.0)


def test_the_largest_tells_what_an_activation_takes() -> None:
    peaks = Peaks("cpu")
    peaks.learn(LARGE, measured(690.0))
    peaks.learn(SMALL, measured(440.0))
    assert peaks.footprint(0.0).predict(LARGE, 0) == pytest.approx(690.0)
    assert peaks.most([SMALL]) == 690.0, "never less than what was measured"


def test_a_gpu_holds_a_context_for_each_process() -> None:
    peaks = Peaks("cuda")
    peaks.learn(SMALL, measured(340.0, idle=0.0))
    assert peaks.footprint(0.0).predict(SMALL, 0) == pytest.approx(CONTEXT_MIB + 340.0)
    assert peaks.footprint(170.0).base == pytest.approx(CONTEXT_MIB + 40.0 + 170.0)


def test_a_network_without_convolutions_takes_its_weights() -> None:
    peaks = Peaks("cpu")
    peaks.learn(Load(1.0, 0.0, 2.0, 100), measured(250.0))
    assert peaks.footprint(0.0).predict(Load(1.0, 0.0, 2.0, 100), 2**20) == pytest.approx(240.0 + 20.0)


def test_at_least_is_far_below_what_is_predicted() -> None:
    found = Footprint(200.0, 0.001)
    assert found.at_least(LARGE, 2**20, 1) < found.predict(LARGE, 2**20) - 200.0
    assert found.at_least(LARGE, 2**20, 16) == pytest.approx(0.7 * 900.0 / 16 + 8.0)
