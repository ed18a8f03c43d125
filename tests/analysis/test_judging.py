"""Verdicts: with numbers worked out by hand, and on simulated noise whose truth is known."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from scipy import stats
from tunelab.analysis.judging import FAILED, HELPS, HURTS, UNDECIDED, judge, pooled

from tunelab.noise import DIVERGED, Noise

GUESS = Noise(0.01, 2.0, "a guess")
BARELY = Noise(0.01, 1e-9, "a guess that counts for nothing")


# By hand.


def test_one_comparison_is_the_paired_t_test() -> None:
    one, other = [0.80, 0.83, 0.81], [0.78, 0.80, 0.80]
    noise, (row,) = judge(one, [other], BARELY)
    expected = stats.ttest_rel(other, one)
    low, high = expected.confidence_interval(0.95)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["change"], row["low"], row["high"]) == pytest.approx((-0.02, low, high))
    assert noise.degrees == pytest.approx(2)
    assert row["verdict"] == UNDECIDED, "two hundredths, with 3 seeds and no other knowledge"


def test_several_comparisons_share_the_spread_that_seeds_do_not_explain() -> None:
    groups = [[0.80, 0.83, 0.81], [0.78, 0.80, 0.80], [0.70, 0.74, 0.72]]
    noise, rows = judge(groups[0], groups[1:], BARELY)
    means, centre = [statistics.fmean(group) for group in groups], statistics.fmean(map(statistics.fmean, groups))
    seeds = [statistics.fmean(block) for block in zip(*groups, strict=True)]
    squares = sum(
        (groups[i][j] - means[i] - seeds[j] + centre) ** 2 for i in range(3) for j in range(3)
    )  # of 9 values less 3 + 2 means
    assert (noise.sd, noise.degrees) == pytest.approx((math.sqrt(squares / 4), 4))
    assert noise.source == "measured on 3 configurations with 3 seeds each"
    margin = stats.t.ppf(0.975, 4) * math.sqrt(squares / 4) * math.sqrt(2 / 3)
    assert [row["high"] - row["change"] for row in rows] == pytest.approx([margin, margin])
    assert [row["verdict"] for row in rows] == [HELPS, HELPS]


def test_what_a_seed_does_to_all_is_taken_off() -> None:
    shift = [0.0, 0.1, -0.1]
    groups = [[base + one for one in shift] for base in (0.5, 0.52, 0.5)]
    assert [row["verdict"] for row in judge(groups[0], groups[1:], Noise(1e-4, 2.0, ""))[1]] == [HURTS, UNDECIDED]


def test_the_guess_counts_for_its_degrees() -> None:
    equal = [0.8, 0.8, 0.8]
    noise, (row,) = judge(equal, [[0.79, 0.79, 0.79]], GUESS)
    assert (noise.sd, noise.degrees) == pytest.approx((math.sqrt(2 * 0.01**2 / 4), 4))
    assert row["verdict"] == UNDECIDED, "runs that happen to agree prove nothing"


def test_one_seed_is_judged_by_the_guess_alone() -> None:
    noise, rows = judge([0.8], [[0.79], [0.5]], GUESS)
    assert noise == GUESS
    assert [row["verdict"] for row in rows] == [UNDECIDED, HELPS]
    assert rows[0]["high"] - rows[0]["change"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 * math.sqrt(2))


# Runs that came to nothing.


def test_a_configuration_that_always_diverges_needs_its_component() -> None:
    _, rows = judge([0.8, 0.81, 0.8], [[DIVERGED] * 3, [0.8, 0.8, 0.81]], GUESS)
    assert [row["verdict"] for row in rows] == [HELPS, UNDECIDED]
    assert rows[0]["change"] == pytest.approx(-0.8033, abs=1e-3)


def test_one_that_diverges_once_is_uncertain_and_widens_no_other() -> None:
    others = [[0.8, 0.8, 0.81], [0.7, 0.71, 0.7]]
    noise, rows = judge([0.8, 0.81, 0.8], [[0.8, DIVERGED, 0.8], *others], GUESS)
    alone, unbothered = judge([0.8, 0.81, 0.8], others, GUESS)
    assert rows[1:] == unbothered
    assert noise == alone
    assert rows[0]["verdict"] == UNDECIDED
    assert rows[0]["high"] - rows[0]["low"] > 0.5


def test_where_the_unchanged_one_diverges_all_are_uncertain() -> None:
    _, rows = judge([0.8, DIVERGED, 0.8], [[0.8, 0.8, 0.8], [0.7, 0.7, 0.7]], GUESS)
    assert [row["verdict"] for row in rows] == [UNDECIDED, UNDECIDED]
    assert rows[0]["change"] == pytest.approx(0.8 / 3)


def test_an_unstable_configuration_is_judged_by_its_own_spread() -> None:
    steady = [[0.80, 0.802, 0.801], [0.801, 0.80, 0.802], [0.802, 0.801, 0.80], [0.78, 0.781, 0.78]]
    wild = [0.4, 0.9, 0.7]
    small = Noise(0.001, 2.0, "")
    noise, rows = judge(steady[0], [*steady[1:], wild], small)
    assert pooled([*steady, wild], small)[1] == [True, True, True, True, False]
    assert noise.sd < 0.002
    assert [row["verdict"] for row in rows] == [UNDECIDED, UNDECIDED, HELPS, UNDECIDED]


def test_a_variance_outlies_by_cochrans_table() -> None:
    """At 5% and with 3 runs each, the largest of 10 variances is 0.4450 of their sum (Cochran's table)."""
    others = [[0.5, 0.51, 0.52]] * 9
    share = 0.4450 / (1 - 0.4450) * 9  # times the variance of each of the others, whose runs are 0.01 apart
    for factor, steady in ((0.97, True), (1.03, False)):
        apart = 0.01 * math.sqrt(share * factor)
        assert pooled([*others, [0.5, 0.5 + apart, 0.5 + 2 * apart]], BARELY)[1] == [True] * 9 + [steady]


def test_failed_runs_are_left_out() -> None:
    _, rows = judge([0.8, None, 0.8], [[0.7, 0.7, None], [None, 0.9, None], [None, None, None]], GUESS)
    assert rows[0]["change"] == pytest.approx(-0.1)
    assert [row["verdict"] for row in rows[1:]] == [FAILED, FAILED]
    assert (rows[1]["change"], rows[1]["p"], rows[1]["sure"]) == (None, None, False)


# All comparisons together.


def test_holm_is_applied_to_all_comparisons() -> None:
    unchanged = [0.8] * 3
    noise = Noise(0.01, 1e6, "known")
    error = 0.01 * math.sqrt(2 / 3)
    # With 3 comparisons p must be below 0.05 / 3, then 0.05 / 2, then 0.05: 2.39, 2.24, 1.96 standard errors.
    for sizes, sure in (((2.5, 2.3, 2.0), 3), ((2.5, 2.2, 2.2), 1), ((2.3, 2.3, 2.3), 0), ((9.0, 0.1, 2.3), 2)):
        changed = [[0.8 - size * error] * 3 for size in sizes]
        rows = judge(unchanged, changed, noise)[1]
        assert sum(row["sure"] for row in rows) == sure
        assert all(row["verdict"] == HELPS for row in rows if row["sure"])


def simulated(
    count: int, seeds: int, *, together: float, worse: Sequence[float] = (), times: int
) -> list[list[dict[str, object]]]:
    """Rows of `times` ablations of `count` variants with noise 0.01; `together` is the share that seeds explain."""
    rng = random.Random(f"{count} {seeds} {together}")
    found = []
    for _ in range(times):
        blocks = [rng.gauss(0, 0.01 * math.sqrt(together)) for _ in range(seeds)]
        groups = [
            [0.8 - loss + block + rng.gauss(0, 0.01 * math.sqrt(1 - together)) for block in blocks]
            for loss in (0.0, *worse, *[0.0] * (count - len(worse)))
        ]
        guess = Noise(0.01 * math.exp(rng.gauss(0, 0.3)), 2.0, "the truth, roughly")
        found.append(judge(groups[0], groups[1:], guess)[1])
    return found


@pytest.mark.parametrize(("count", "seeds", "together"), [(10, 3, 0.0), (6, 2, 0.0), (1, 5, 0.0), (10, 3, 0.5)])
def test_about_95_of_100_components_without_effect_are_no_evidence(count: int, seeds: int, together: float) -> None:
    found = simulated(count, seeds, together=together, times=2000 if count == 1 else 1000)
    undecided = statistics.fmean(row["verdict"] == UNDECIDED for rows in found for row in rows)
    wrong = statistics.fmean(any(row["sure"] for row in rows) for rows in found)
    assert 0.93 < undecided < (0.97 if together == 0.0 else 0.99)
    assert wrong < 0.06, "with all comparisons together one ablation in 20 may claim something wrong"


def test_a_noisy_configuration_does_not_hide_what_the_others_show() -> None:
    rng = random.Random(3)
    found = []
    for _ in range(600):
        spreads = [0.01] * 8 + [0.08]
        groups = [[0.8 + rng.gauss(0, spread) for _ in range(3)] for spread in spreads]
        found.append(judge(groups[0], groups[1:], GUESS)[1])
    usual = stats.t.ppf(0.975, 16) * 0.01 * math.sqrt(2 / 3)
    assert statistics.median(row["high"] - row["change"] for rows in found for row in rows[:-1]) < 1.15 * usual
    undecided = [statistics.fmean(rows[at]["verdict"] == UNDECIDED for rows in found) for at in range(8)]
    assert statistics.fmean(undecided[:-1]) == pytest.approx(0.95, abs=0.02)
    assert undecided[-1] > 0.87, "at times three runs of it agree by chance, and tell nothing of its noise"
    assert statistics.fmean(rows[-1]["own_spread"] for rows in found) > 0.7


def test_intervals_cover_the_truth_and_pairing_finds_more() -> None:
    worse = (0.02, 0.02, 0.02)
    apart = [rows[:3] for rows in simulated(8, 3, together=0.0, worse=worse, times=600)]
    paired = [rows[:3] for rows in simulated(8, 3, together=0.7, worse=worse, times=600)]
    covered = [row["low"] <= -0.02 <= row["high"] for rows in apart for row in rows]  # type: ignore[operator]
    assert statistics.fmean(covered) == pytest.approx(0.95, abs=0.02)
    power = [statistics.fmean(row["verdict"] == HELPS for rows in found for row in rows) for found in (apart, paired)]
    assert 0.4 < power[0] < power[1]
