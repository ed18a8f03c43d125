from __future__ import annotations

import json
import random

import pytest
from tunelab.analysis.sawteeth import describe_teeth, find_teeth, say_teeth


def saw(epochs: int, period: int, depth: float, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Accuracies that rise by `depth` for `period` epochs and then fall back in one."""
    draw = random.Random(seed)
    return [0.5 + depth * (epoch % period) / (period - 1) + draw.gauss(0, noise) for epoch in range(epochs)]


def where(epochs: int, period: int) -> list[int]:
    """The first epoch of each tooth but the one that the training begins with, counted from 1."""
    return list(range(period + 1, epochs + 1, period))


@pytest.mark.parametrize("period", [10, 37, 100, 450])
@pytest.mark.parametrize("noise", [0.0, 0.005, 0.01])
def test_known_teeth_are_found_exactly(period: int, noise: float) -> None:
    # The last one needs half of its rise: 950 epochs end in the middle of one, or later.
    found = describe_teeth(saw(950 - 950 % period + period * 9 // 10, period, 0.3, noise))
    expected = where(950 - 950 % period + period * 9 // 10, period)
    assert found["drops"] == expected
    assert found["saw_teeth"] == len(expected)
    assert found["period"] == (period if len(expected) > 1 else None)
    assert found["depth"] == pytest.approx(0.3, abs=0.1)


def test_a_fall_over_several_epochs_is_one_tooth() -> None:
    one = [0.8] * 20 + [0.6, 0.4, 0.2] + [0.2 + 0.02 * epoch for epoch in range(30)]
    (tooth,) = find_teeth(one)
    assert 21 <= tooth["epoch"] <= 23
    assert tooth["high"] == pytest.approx(0.8)
    assert tooth["low"] == pytest.approx(0.22, abs=0.03)
    assert tooth["depth"] == pytest.approx(tooth["high"] - tooth["low"])


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.1])
def test_noise_alone_has_no_teeth(noise: float) -> None:
    for seed in range(5):
        draw = random.Random(seed)
        assert find_teeth([0.5 + draw.gauss(0, noise) for _ in range(2000)]) == []


@pytest.mark.parametrize(
    "accuracies",
    [
        [epoch / 500 for epoch in range(500)],
        [1 - 1 / (1 + epoch) for epoch in range(500)],
        [1 - epoch / 500 for epoch in range(500)],
        [0.5] * 500,
        [0.1] * 100 + [0.9] * 400,
    ],
)
def test_monotone_curves_have_no_teeth(accuracies: list[float]) -> None:
    assert find_teeth(accuracies) == []


def test_a_noisy_rise_has_no_teeth() -> None:
    draw = random.Random(0)
    assert find_teeth([0.9 - 0.8 / (1 + epoch / 50) + draw.gauss(0, 0.01) for epoch in range(2000)]) == []


def test_a_collapse_is_no_tooth() -> None:
    assert find_teeth([0.8] * 50 + [0.1] * 50) == []
    assert len(find_teeth([0.8] * 50 + [0.1] * 50 + [0.8] * 50)) == 1


def test_a_single_bad_epoch_is_no_tooth() -> None:
    assert find_teeth([0.8] * 30 + [0.1] + [0.8] * 30) == []


def test_what_is_lost_in_the_noise_is_no_tooth() -> None:
    """The same teeth are found without noise, and not where the noise is a fifth of their depth."""
    assert len(find_teeth(saw(500, 25, 0.1))) == 19
    assert find_teeth(saw(500, 25, 0.1, noise=0.02)) == []


def test_noise_is_local() -> None:
    """A noisy beginning does not hide the teeth of a quiet end."""
    draw = random.Random(0)
    noisy = [0.4 + draw.gauss(0, 0.1) for _ in range(300)]
    quiet = saw(300, 50, 0.1, noise=0.002)
    assert describe_teeth(noisy + quiet)["drops"][-4:] == [401, 451, 501, 551]


@pytest.mark.parametrize("epochs", range(7))
def test_few_epochs_say_nothing(epochs: int) -> None:
    assert describe_teeth([0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9][:epochs])["saw_teeth"] == 0


def test_it_is_plain_json_and_said_in_words() -> None:
    found = describe_teeth(saw(200, 40, 0.4))
    assert json.loads(json.dumps(found)) == found
    assert say_teeth(found) == f"4 saw-teeth, one every 40 epochs, {100 * found['depth']:.1f} points deep"
    assert say_teeth(describe_teeth(saw(75, 40, 0.4))).startswith("1 saw-tooth, 3")
    assert say_teeth(describe_teeth([0.5] * 100)) == "no saw-teeth"
