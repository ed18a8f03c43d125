from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from tunelab.analysis.canvas import is_wide, log_axis, new_figure, sample, short_number, thin

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeSearch


def test_which_values_want_a_logarithmic_axis() -> None:
    assert is_wide([0.001, 0.003, 0.01, 0.03, 0.1])
    assert not is_wide([0.01, 0.1, 0.2, 0.3, 0.4])  # spread evenly
    assert not is_wide([1, 2, 3])
    assert not is_wide([0, 1, 1000])
    assert not is_wide([])


def test_numbers_on_axes_are_short() -> None:
    assert [short_number(value) for value in (0.0005, 0.1, 20, 9999, 10_000, 500_000, 1_500_000)] == [
        "0.0005", "0.1", "20", "9999", "10k", "500k", "1.5M",
    ]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), [((1, 20), {"1", "2", "5", "10", "20"}), ((0.001, 90), {"0.01", "1"})])
def test_a_logarithmic_axis_has_plain_numbers(values: tuple[float, float], said: set[str]) -> None:
    figure, (panel,) = new_figure(5, 3)
    panel.scatter(values, values)
    log_axis(panel.xaxis)
    figure.canvas.draw()
    assert said <= {label.get_text() for label in panel.get_xticklabels()}
    assert panel.get_xscale() == "log"
    assert panel.get_yscale() == "linear"


def test_a_thinned_line_keeps_its_ends_and_peaks() -> None:
    heights = [0.0] * 5000
    heights[1234], heights[4321] = 1.0, -1.0
    kept = thin(range(5000), 100, lambda place: heights[place])
    assert len(kept) <= 100
    assert kept == sorted(set(kept))
    assert {0, 1234, 4321, 4999} <= set(kept)
    assert max(after - before for before, after in itertools.pairwise(kept)) < 150
    assert thin([3, 1, 2], 3, float) == [3, 1, 2]
    assert thin([], 3, float) == []


def test_a_sample_has_the_best_and_some_of_all_others(make_search: MakeSearch) -> None:
    trials = make_search(100).list_trials()
    some = sample(trials, 30)
    assert len(some) == 30
    assert [one.number for one in some] == sorted(one.number for one in some)
    whole = sorted((one for one in trials if one.status.value == "COMPLETED"), key=lambda one: -(one.score or 0))
    assert {one.number for one in whole[:10]} <= {one.number for one in some}
    assert {one.status for one in some} >= {one.status for one in trials if one.status.value != "FAILED"}
    assert sample(trials, 100) == trials
