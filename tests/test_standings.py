from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.noise import Noise, measured
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.standings import FEWEST_TO_DRAW, estimates, luck_of_best, on_new_data, places, standings, true_share

NOISE = Noise(0.01, 10, "known")


def trial(
    number: int, scores: Sequence[float], repeat_of: int | None = None, status: str = "COMPLETED", loss: float = 1.0
) -> Trial:
    epochs = [EpochMetrics(n, 1.0, score, loss, score, 0.1, 1.0, 1.0, 1.0) for n, score in enumerate(scores, start=1)]
    config = {"train": {"epochs": len(scores)}}
    return Trial(number, config, status=TrialStatus(status), epochs=epochs, repeat_of=repeat_of)


# Scores.


def test_the_order_is_by_the_mean_of_all_runs() -> None:
    rows = standings({0: [0.9, 0.8], 1: [0.86, 0.86], 2: [0.87]}, NOISE)
    assert [row.number for row in rows] == [2, 1, 0]
    assert [row.mean for row in rows] == pytest.approx([0.87, 0.86, 0.85])
    assert [row.runs for row in rows] == [1, 2, 2]


def test_what_noise_explains_is_a_tie_with_the_first() -> None:
    rows = standings({0: [0.90], 1: [0.88], 2: [0.85]}, NOISE)
    assert [row.tied_with_best for row in rows] == [True, True, False]
    assert rows[0].low < rows[0].expected < rows[0].high
    rows = standings({0: [0.90] * 4, 1: [0.88] * 4}, NOISE)
    assert [row.tied_with_best for row in rows] == [True, False]
    assert standings({0: [0.90] * 4, 1: [0.88] * 4}, NOISE, confidence=0.999)[1].tied_with_best


def test_no_scores_have_no_standings() -> None:
    assert standings({}, NOISE) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(1e-6, 0.5))
def test_without_repeats_the_order_is_that_of_the_scores(firsts: list[float], sd: float) -> None:
    rows = standings({number: [score] for number, score in enumerate(firsts)}, Noise(sd, 5, "given"))
    assert [row.mean for row in rows] == sorted(firsts, reverse=True)
    assert rows[0].tied_with_best


@given(st.dictionaries(st.integers(0, 99), st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=12))
def test_a_correction_takes_off_no_more_than_luck_brings(scores: dict[int, list[float]]) -> None:
    for number, (estimate, variances) in estimates(scores, NOISE).items():
        runs = len(scores[number])
        taken = statistics.fmean(scores[number]) - estimate
        assert -1e-12 <= taken <= luck_of_best(len(scores)) * NOISE.sd / runs + 1e-12 or taken == pytest.approx(0)
        assert 0 < variances <= 1 / runs + 1e-12


@pytest.mark.parametrize("count", [2, 8, 60, 1000])
def test_the_luck_of_the_best_of_equal_ones(count: int) -> None:
    rng = random.Random(count)
    found = statistics.fmean(max(rng.gauss(0, 1) for _ in range(count)) for _ in range(20_000 // count + 200))
    assert luck_of_best(count) == pytest.approx(found, abs=0.1)


# The winner's curse.


def test_few_configurations_are_taken_as_they_are() -> None:
    scores = {number: [0.9 + number / 1000] for number in range(FEWEST_TO_DRAW - 1)}
    assert estimates(scores, NOISE) == {number: (runs[0], 1.0) for number, runs in scores.items()}


def test_equal_configurations_share_their_median_and_differing_ones_keep_their_scores() -> None:
    assert true_share([0.9 + 0.001 * n for n in range(9)], 0.01) == (pytest.approx(0.904), 0.0)
    centre, share = true_share([0.5 + 0.05 * n for n in range(9)], 0.01)
    assert (centre, share) == (pytest.approx(0.7), pytest.approx(1.0, abs=0.01))
    assert true_share([0.9] * 9, 0.01) == (0.9, 0.0)


def test_a_lucky_single_run_does_not_pass_a_confirmed_one() -> None:
    scores = {number: [0.89 + 0.001 * number] for number in range(12)}
    scores[20] = [0.912]
    scores[21] = [0.911, 0.909, 0.911]
    rows = standings(scores, NOISE)
    assert [row.number for row in rows[:2]] == [21, 20]
    assert rows[1].mean > rows[0].mean
    assert rows[1].tied_with_best


def test_the_best_of_many_is_expected_nearer_to_the_truth_than_it_scored() -> None:
    rng = random.Random(0)
    raw, corrected = [], []
    for _ in range(300):
        truth = [rng.gauss(0.88, 0.01) for _ in range(30)]
        scores = {number: [rng.gauss(mean, 0.01)] for number, mean in enumerate(truth)}
        best = standings(scores, NOISE)[0]
        raw.append(best.mean - truth[best.number])
        corrected.append(best.expected - truth[best.number])
    assert statistics.fmean(raw) > 0.01
    assert abs(statistics.fmean(corrected)) < 0.005


def test_a_score_far_above_the_others_is_not_all_luck() -> None:
    scores = {number: [0.88 + 0.0001 * number] for number in range(30)}
    scores[30] = [0.99]
    estimate, variances = estimates(scores, NOISE)[30]
    assert 0.97 < estimate < 0.99
    assert variances == 1, "what lies outside of what the others show is as uncertain as it was"


def test_scores_below_the_median_stay_as_they_are() -> None:
    scores = {number: [0.88 + 0.001 * number] for number in range(11)}
    found = estimates(scores, NOISE)
    assert all(found[number] == (scores[number][0], 1.0) for number in range(6))
    assert all(found[number][0] < scores[number][0] and found[number][1] < 1 for number in range(6, 11))


def test_new_data_are_less_certain_than_the_validation_images() -> None:
    (row,) = standings({0: [0.57] * 3}, Noise(0.005, 20, "known"))
    few, many = on_new_data(row, 500), on_new_data(row, 1_000_000)
    assert few[0] < many[0] < row.expected < many[1] < few[1]
    assert many == pytest.approx((row.low, row.high), abs=2e-4)
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * 0.0221, rel=0.05)
    (sure,) = standings({0: [1.0]}, NOISE)
    assert on_new_data(sure, 100)[1] == 1.0


# Trials.


def test_a_repeat_has_no_place_of_its_own() -> None:
    found = places([trial(0, [0.1, 0.5]), trial(1, [0.1, 0.6]), trial(2, [0.1, 0.8], repeat_of=0)])
    assert [(place.trial.number, place.runs, place.standing.mean) for place in found] == [
        (0, (0, 2), pytest.approx(0.65)),
        (1, (1,), pytest.approx(0.6)),
    ]


def test_a_run_that_diverged_counts_as_nothing_and_others_that_failed_are_named() -> None:
    trials = [
        trial(0, [0.5]),
        trial(1, [0.9], repeat_of=0, status="DIVERGED"),
        trial(2, [], repeat_of=0, status="FAILED"),
        trial(3, [0.9], repeat_of=0, status="PAUSED"),
    ]
    (place,) = places(trials)
    assert (place.runs, place.lost, place.standing.mean) == ((0,), (1, 2), 0.25)


def test_a_configuration_that_trains_at_times_only_is_not_the_best() -> None:
    trials = [trial(0, [0.95]), trial(1, [0.94])]
    trials += [trial(number, [0.2], repeat_of=0, status="DIVERGED") for number in (2, 3)]
    trials += [trial(number, [0.94 + number / 1e4], repeat_of=1) for number in (4, 5, 6)]
    first, second = places(trials)
    assert first.trial.number == 1
    assert (second.standing.runs, second.runs, second.lost) == (3, (0,), (2, 3))
    assert not second.standing.tied_with_best


def test_an_unstable_configuration_has_an_interval_of_its_own() -> None:
    """Its runs differ more than those of others, whose noise says nothing about it; it is no winner."""
    steady = {number: [0.9 + number / 1e3, 0.901 + number / 1e3, 0.899 + number / 1e3] for number in range(1, 6)}
    scores = {0: [0.96, 0.80, 0.97, 0.97], **steady}
    noise = measured(scores.values(), Noise(0.01, 2.0, "guess"))
    assert "left out" in noise.source
    rows = {row.number: row for row in standings(scores, noise)}
    assert rows[0].high - rows[0].low > 0.1
    assert all(row.tied_with_best for row in rows.values())
    assert rows[1].high - rows[1].low < 0.03


def test_a_repeat_stands_for_a_configuration_whose_own_trial_failed() -> None:
    (place,) = places([trial(0, [0.1], status="FAILED"), trial(4, [0.5, 0.6], repeat_of=0)])
    assert (place.trial.number, place.runs, place.lost, place.epochs) == (4, (4,), (0,), 2)


def test_like_is_compared_with_like() -> None:
    """A study that was extended to more epochs: what has been trained so far comes first, the shorter ones follow."""
    trials = [trial(0, [0.99] * 2), trial(1, [0.5] * 3), trial(2, [0.6] * 3), trial(3, [0.97] * 2)]
    found = places(trials)
    assert [(place.trial.number, place.epochs) for place in found] == [(2, 3), (1, 3), (0, 2), (3, 2)]
    assert found[2].standing.tied_with_best, "with the best of its own length"


def test_of_equal_means_the_lower_loss_is_first() -> None:
    trials = [trial(0, [0.5], loss=2.0), trial(1, [0.5], loss=1.0), trial(2, [0.5], loss=2.0)]
    assert [place.trial.number for place in places(trials)] == [1, 0, 2]
    assert [place.trial.number for place in places(list(reversed(trials)))] == [1, 0, 2]
