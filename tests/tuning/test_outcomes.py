from __future__ import annotations

import random

import numpy as np
import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.outcomes import OutcomesSoFar, normal_scores, outcomes

EPOCHS = 27  # rungs at 1, 3 and 9


def trial(number: int, scores: list[float], status: TrialStatus, repeat_of: int | None = None) -> Trial:
    epochs = [EpochMetrics(place, 1.0, 0.0, 1.0, score, 0.1, 1.0, 1.0, 1.0) for place, score in enumerate(scores, 1)]
    return Trial(number, {"train": {"epochs": EPOCHS}}, status=status, epochs=epochs, repeat_of=repeat_of)


def complete(number: int, final: float, start: float = 0.2) -> Trial:
    return trial(number, list(np.linspace(start, final, EPOCHS)), TrialStatus.COMPLETED)


def of(*trials: Trial) -> dict[int, Trial]:
    return {one.number: one for one in trials}


def test_nothing_is_known_of_nothing() -> None:
    assert outcomes({}, EPOCHS).numbers == ()
    assert outcomes(of(trial(0, [], TrialStatus.RUNNING)), EPOCHS).numbers == ()


def test_a_complete_trial_is_expected_at_its_own_score_and_known_best() -> None:
    found = outcomes(of(complete(0, 0.8), complete(1, 0.6), trial(2, [0.3], TrialStatus.STOPPED)), EPOCHS)
    assert found.numbers == (0, 1, 2)
    assert found.expected[:2] == pytest.approx([0.8, 0.6])
    assert found.noise[0] == found.noise[1] < found.noise[2] == 1.0


def test_repeats_are_averaged_into_what_they_repeat() -> None:
    again = complete(1, 0.6)
    again.repeat_of = 0
    found = outcomes(of(complete(0, 0.8), again), EPOCHS)
    assert found.numbers == (0,)
    assert found.expected == pytest.approx([0.7])


def test_a_stopped_trial_keeps_its_place_among_those_that_went_on() -> None:
    whole = [complete(number, 0.5 + number / 10, start=0.1 + number / 10) for number in range(4)]
    first = [one.epochs[0].score for one in whole]
    stopped = trial(9, [(first[1] + first[2]) / 2], TrialStatus.STOPPED)
    found = outcomes(of(*whole, stopped), EPOCHS)
    assert whole[1].score is not None
    assert whole[2].score is not None
    assert whole[1].score < found.expected[-1] < whole[2].score


def test_an_early_trial_that_went_on_by_chance_is_no_better_for_having_come_far() -> None:
    """The first to reach a rung goes on whatever its score: what it came to counts, not how far it came."""
    weak = complete(0, 0.35, start=0.1)
    good = [trial(number, [0.5, 0.6, 0.7][:2], TrialStatus.STOPPED) for number in (1, 2, 3)]
    found = outcomes(of(weak, *good), EPOCHS)
    assert found.expected.argmin() == 0


def test_what_diverges_or_fails_at_once_is_the_worst() -> None:
    diverged, failed = trial(2, [0.9], TrialStatus.DIVERGED), trial(3, [], TrialStatus.FAILED)
    found = outcomes(of(complete(0, 0.8), complete(1, 0.6), diverged, failed), EPOCHS)
    assert found.numbers == (0, 1, 2, 3)
    assert found.expected[2] == found.expected[3] == found.expected.min()
    assert outcomes(of(trial(0, [], TrialStatus.DIVERGED)), EPOCHS).numbers == (0,)


def test_what_fails_later_counts_by_what_it_was() -> None:
    """Its process was killed, say: the configuration is no worse for that."""
    late = trial(2, [0.5, 0.6], TrialStatus.FAILED)
    stopped = trial(2, [0.5, 0.6], TrialStatus.STOPPED)
    others = complete(0, 0.8), complete(1, 0.6)
    assert outcomes(of(*others, late), EPOCHS).expected == pytest.approx(
        outcomes(of(*others, stopped), EPOCHS).expected
    )


def test_normal_scores_follow_the_ranks_and_share_ties() -> None:
    assert normal_scores([5.0, 1.0, 3.0]) == pytest.approx([0.967, -0.967, 0.0], abs=1e-3)
    tied = normal_scores([2.0, 2.0, 9.0])
    assert tied[0] == tied[1] < tied[2]
    assert normal_scores([4.0]) == pytest.approx([0.0])


def test_a_full_length_of_one_epoch_has_no_rungs() -> None:
    ended = [trial(number, [score], TrialStatus.COMPLETED) for number, score in enumerate((0.2, 0.6))]
    found = outcomes(of(*ended, trial(2, [], TrialStatus.RUNNING), trial(3, [], TrialStatus.DIVERGED)), 1)
    assert found.numbers == (0, 1, 3)
    assert found.expected == pytest.approx([0.2, 0.6, 0.2])


def test_outcomes_so_far_are_those_of_all_trials_at_any_time() -> None:
    """Whenever they are asked for, while trials are added, go on, end and are repeated."""
    luck = random.Random(0)
    trials: dict[int, Trial] = {}
    kept = OutcomesSoFar(EPOCHS)
    for _ in range(600):
        running = [one for one in trials.values() if not one.status.ended]
        if len(running) < 6:
            of = luck.choice(sorted(trials)) if trials and luck.random() < 0.2 else None
            of = None if of is None else trials[of].repeat_of or of
            trials[len(trials)] = Trial(len(trials), {"train": {"epochs": EPOCHS}}, repeat_of=of)
        else:
            one = luck.choice(running)
            for _ in range(luck.choice([1, 1, 2, 6])):
                at, score = len(one.epochs) + 1, luck.random()
                if at <= EPOCHS:
                    one.epochs.append(EpochMetrics(at, 1.0, 0.0, 1.0, score, 0.1, 1.0, 1.0, 1.0))
            if len(one.epochs) == EPOCHS:
                one.status = TrialStatus.COMPLETED
            elif luck.random() < 0.2:
                one.status = luck.choice([TrialStatus.STOPPED, TrialStatus.DIVERGED, TrialStatus.FAILED])
        if luck.random() < 0.3:
            found, whole = kept.of(trials), outcomes(dict(trials), EPOCHS)
            assert found.numbers == whole.numbers
            for name in ("expected", "ranked", "noise"):
                assert np.array_equal(getattr(found, name), getattr(whole, name))
    assert len({one.status for one in trials.values()}) == 5
    assert set(kept.open) == {number for number, one in trials.items() if not one.status.ended}
    assert kept.of({0: trials[0]}).numbers == outcomes({0: trials[0]}, EPOCHS).numbers  # another search
