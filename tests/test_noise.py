from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunelab.noise import (
    PRIOR_DEGREES,
    UNKNOWN,
    Noise,
    NoiseSoFar,
    binomial_error,
    counted_epochs,
    ended_early,
    half_width,
    jitter,
    margin_between,
    measured,
    noise_at,
    noise_of,
    student_t,
)
from tunelab.records import EpochMetrics, Trial, TrialStatus

GUESS = Noise(0.01, PRIOR_DEGREES, "a guess")


def trial(
    number: int,
    scores: Sequence[float],
    *,
    repeat_of: int | None = None,
    epochs: int | None = None,
    held_out: bool = True,
) -> Trial:
    metrics = [
        EpochMetrics(n, 1.0, score, 1.0, score if held_out else None, 0.1, 1.0, 1.0, 1.0)
        for n, score in enumerate(scores, start=1)
    ]
    config = {"train": {"epochs": epochs or len(scores)}}
    return Trial(number, config, status=TrialStatus.COMPLETED, epochs=metrics, repeat_of=repeat_of)


# The arithmetic.


@pytest.mark.parametrize("degrees", [2.0, 2.5, 3.0, 3.5, 4.0, 6.0, 10.0, 30.0, 1000.0])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_the_quantiles_are_those_of_scipy(degrees: float, confidence: float) -> None:
    assert student_t(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=2e-3)


def test_importing_it_loads_nothing_slow() -> None:
    code = "import sys, tunelab.noise; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy", "numpy", "torch", "ray", "pandas", "optuna"} & set(loaded)


def test_the_binomial_error() -> None:
    assert binomial_error(0.9, 10_000) == pytest.approx(0.003, rel=0.01)
    assert 0 < binomial_error(1.0, 100) < 0.03, "all right is not certain"


def test_jitter_is_about_a_curve_and_not_of_its_rise() -> None:
    assert jitter([0.1, 0.3, 0.45, 0.55, 0.6]) == pytest.approx(0.0, abs=1e-12), "a parabola"
    rng = random.Random(0)
    found = [jitter([0.01 * n + rng.gauss(0, 0.02) for n in range(6)]) for _ in range(2000)]
    assert math.sqrt(statistics.fmean(sd**2 for sd in found)) == pytest.approx(0.02, rel=0.05)


# From repeats and a guess.


def test_without_repeats_the_guess_stays() -> None:
    assert measured([[0.5], [0.9]], GUESS) == GUESS


def test_two_equal_runs_do_not_mean_that_there_is_no_noise() -> None:
    noise = measured([[0.5, 0.5], [0.9]], GUESS)
    assert noise.sd == pytest.approx(0.01 * math.sqrt(2 / 3))
    assert (noise.degrees, noise.repeats) == (3, 1)
    assert noise.source == "measured on 1 repeat and guessed from a guess"


def test_many_repeats_outweigh_a_bad_guess() -> None:
    rng = random.Random(0)
    groups = [[rng.gauss(mean, 0.02) for _ in range(3)] for mean in (0.3, 0.5, 0.7, 0.8, 0.9, 0.91)]
    noise = measured(groups, Noise(0.001, PRIOR_DEGREES, "a guess"))
    assert noise.sd == pytest.approx(0.02, rel=0.35)
    assert noise.source == "measured on 12 repeats"


@pytest.mark.parametrize("repeats", [1, 2, 4])
@pytest.mark.parametrize("guessed", [0.5, 1.0, 1.5])
def test_intervals_hold_with_few_repeats(repeats: int, guessed: float) -> None:
    """Noise of 1%, known from few repeats and a guess that is half to one and a half times as large.

    At 95%; one repeat does not make good for a guess of half the noise.
    """
    rng = random.Random(repeats)
    held = 0
    for _ in range(1000):
        group = [rng.gauss(0.9, 0.01) for _ in range(1 + repeats)]
        noise = measured([group], Noise(0.01 * guessed, PRIOR_DEGREES, "a guess"))
        mean, margin = statistics.fmean(rng.gauss(0.8, 0.01) for _ in range(2)), half_width(noise, 1 / 2)
        low, high = mean - margin, mean + margin
        held += low <= 0.8 <= high
    assert held / 1000 >= (0.93 if guessed >= 1 else 0.86)


def test_one_configuration_that_collapses_is_no_measure_of_the_others() -> None:
    groups = [[0.80, 0.81], [0.85, 0.84], [0.9, 0.905], [0.88, 0.10]]
    noise = measured(groups, GUESS)
    assert noise.sd < 0.012
    assert (noise.repeats, noise.source) == (3, "measured on 3 repeats, 1 unstable configuration left out")
    assert measured([[0.88, 0.10]], GUESS).sd > 0.2, "alone it is all that is known"


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), max_size=6), st.randoms())
def test_the_order_of_configurations_means_nothing(groups: list[list[float]], rng: random.Random) -> None:
    shuffled = list(groups)
    rng.shuffle(shuffled)
    one, other = measured(groups, GUESS), measured(shuffled, GUESS)
    assert one.sd == pytest.approx(other.sd)
    assert one.sd > 0
    assert one.degrees == other.degrees


# From trials.


def test_noise_is_that_of_repeats_at_the_epoch_asked_for() -> None:
    trials = [trial(0, [0.1, 0.5]), trial(1, [0.3, 0.52], repeat_of=0), trial(2, [0.9]), trial(3, [0.2, 0.8])]
    early, late = noise_at(trials, 1, 10_000), noise_at(trials, 2, 10_000)
    assert (early.repeats, late.repeats) == (1, 1)
    assert early.sd > 5 * late.sd
    assert late.source == "measured on 1 repeat and guessed from the binomial error of 10000 validation images"
    assert noise_at(trials, 3, 10_000) == Noise(UNKNOWN, PRIOR_DEGREES, "nothing")


def test_repeats_of_a_repeated_configuration_are_one_group() -> None:
    trials = [trial(0, [0.5]), trial(1, [0.5], repeat_of=0), trial(2, [0.5], repeat_of=0)]
    assert noise_at(trials, 1, 1000).repeats == 2


def test_runs_of_another_full_length_are_another_matter() -> None:
    """The schedule of a training of 60 epochs is elsewhere after 30."""
    trials = [trial(0, [0.5] * 2), trial(1, [0.9] * 4, repeat_of=0)]
    assert noise_at(trials, 2, 1000).repeats == 0


def test_the_larger_guess_counts() -> None:
    calm, wild = [0.9] * 6, [0.8, 0.9, 0.8, 0.9, 0.8, 0.9]
    assert noise_at([trial(0, calm)], 6, 1000).source == "the binomial error of 1000 validation images"
    assert noise_at([trial(0, calm)], 6, 1000).sd == binomial_error(0.9, 1000)
    found = noise_at([trial(0, wild)], 6, 1000)
    assert (found.source, found.sd) == ("the jitter between epochs", jitter(wild))


def test_scores_of_training_images_have_no_binomial_error_of_validation_images() -> None:
    assert noise_at([trial(0, [0.9], held_out=False)], 1, 1000).source == "nothing"


def test_nothing_at_all_is_known_before_the_first_epoch() -> None:
    assert noise_at([], 1, 1000) == Noise(UNKNOWN, PRIOR_DEGREES, "nothing")


# What follows from it.


def test_margins_of_means_and_of_their_differences() -> None:
    noise = Noise(0.01, 1e6, "known")
    assert half_width(noise, 1 / 4) == pytest.approx(0.0098, abs=1e-5)
    assert margin_between([0.5, 0.5], [0.4, 0.4], noise) == pytest.approx(0.0196, abs=1e-5)
    assert half_width(noise, 1, confidence=0.5) < half_width(noise, 1)


def test_two_runs_differ_by_chance_within_a_margin_that_shrinks_with_more() -> None:
    noise = Noise(0.01, 1e6, "known")
    assert 0.027 < margin_between([0.5], [0.53], noise) < 0.03
    assert margin_between([0.5, 0.5], [0.527, 0.527], noise) < 0.027
    assert margin_between([0.53], [0.5], noise) == margin_between([0.5], [0.53], noise)
    assert margin_between([0.5], [0.53], Noise(0.01, 3, "hardly known")) > 0.03


def test_an_unstable_configuration_has_a_noise_of_its_own() -> None:
    noise = Noise(0.01, 20, "known")
    wild = [0.5, 0.6, 0.7]
    assert noise_of([0.5, 0.51, 0.49], noise) == noise
    assert noise_of(wild[:2], noise) == noise, "two runs are too few to tell"
    assert noise_of([0.5, 0.51, 0.0, 0.0], noise) == noise, "runs that diverged say nothing about the others"
    own = noise_of(wild, noise)
    assert (own.sd, own.degrees) == pytest.approx((0.1, 2))
    assert margin_between(wild, [0.9], noise) > 10 * margin_between([0.5, 0.5, 0.5], [0.9], noise)


def test_a_run_that_ended_early_counts_with_its_last_score() -> None:
    """Beside runs of its configuration that went on; a run that was stopped does not."""
    patient = {"train": {"epochs": 4, "patience": 0.5}}
    whole = Trial(0, patient, epochs=trial(0, [0.5, 0.6, 0.7, 0.8]).epochs)
    early = Trial(1, patient, repeat_of=0, epochs=trial(1, [0.5, 0.7, 0.6]).epochs)
    stopped = Trial(2, patient, repeat_of=0, epochs=trial(2, [0.5, 0.7]).epochs)
    assert [ended_early(one) != "" for one in (whole, early, stopped)] == [False, True, False]
    assert [counted_epochs(one) for one in (whole, early, stopped)] == [4, 4, 2]
    found = noise_at([whole, early, stopped], 4, 0)
    assert found.repeats == 1
    assert noise_at([whole, stopped], 4, 0).repeats == 0
    guess = noise_at([whole], 4, 0)
    assert found.sd == pytest.approx(measured([[0.8, 0.6]], guess).sd)


def test_where_all_runs_ended_early_the_noise_is_guessed_as_elsewhere() -> None:
    patient = {"train": {"epochs": 12, "patience": 0.25}}
    early = [Trial(0, patient, epochs=trial(0, [0.5, 0.7, 0.6, 0.65]).epochs), Trial(1, patient, epochs=[])]
    assert [counted_epochs(one) for one in early] == [12, 0]
    found = noise_at(early, 12, 25)
    assert found == noise_at([trial(0, [0.5, 0.7, 0.6, 0.65])], 4, 25)
    assert found.sd > 0.09
    assert found.source in ("the binomial error of 25 validation images", "the jitter between epochs")


def test_noise_so_far_is_that_of_all_trials_at_any_time() -> None:
    """Whenever it is asked, while trials are added, go on, end early and are repeated."""
    luck = random.Random(0)
    trials: dict[int, Trial] = {}
    kept = {epoch: NoiseSoFar(epoch, 300) for epoch in (1, 3, 9)}
    for step in range(600):
        running = [one for one in trials.values() if not one.status.ended]
        if len(running) < 5:
            of = luck.choice(sorted(trials)) if trials and luck.random() < 0.2 else None
            of = None if of is None else trials[of].repeat_of or of
            patience = 0.2 if luck.random() < 0.2 else None
            made = Trial(len(trials), {"train": {"epochs": 9, "patience": patience}}, repeat_of=of)
            trials[made.number] = made
        else:
            one = luck.choice(running)
            at, score = len(one.epochs) + 1, round(luck.random(), 2)
            one.epochs.append(EpochMetrics(at, 1.0, score, 1.0, score, 0.1, 1.0, 1.0, 1.0))
            if ended_early(one) or at == 9:
                one.status = TrialStatus.COMPLETED
            elif luck.random() < 0.08:
                one.status = luck.choice([TrialStatus.STOPPED, TrialStatus.DIVERGED])
        if step % 3 == 0:
            for epoch, so_far in kept.items():
                assert so_far.noise(trials) == noise_at(trials.values(), epoch, 300)
    assert kept[9].noise(trials).repeats > 3
    assert kept[9].noise({0: trials[0]}) == noise_at([trials[0]], 9, 300)  # another search
