from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.tuning.stopping import FACTOR, Decision, NeverStop, StopAfter, SuccessiveHalving, rungs

SCORES = st.sampled_from([0.1, 0.1, 0.2, 0.5, 0.9])  # few values, so that ties are common
LOSSES = st.sampled_from([0.5, 1.0, 2.0])


def ask(
    rule: SuccessiveHalving, number: int, epoch: int, score: float, loss: float = 1.0, noise: float = 0.0
) -> Decision:
    decision = rule.report(number, epoch, score, loss, noise)
    assert decision is not None
    return decision


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, ()),
        (2, (1,)),
        (3, (1,)),
        (4, (1, 3)),
        (10, (1, 3, 9)),
        (27, (1, 3, 9)),
        (28, (2, 6, 18)),
        (30, (2, 6, 18)),
        (54, (2, 6, 18)),
        (55, (3, 9, 27)),
        (81, (3, 9, 27)),
        (150, (6, 18, 54)),
        (600, (23, 69, 207)),
    ],
)
def test_the_rungs(epochs: int, expected: tuple[int, ...]) -> None:
    assert rungs(epochs) == expected


@given(st.integers(1, 1_000_000))
def test_the_first_rung_is_a_27th_to_a_9th_of_the_length_and_each_three_times_the_last(epochs: int) -> None:
    found = rungs(epochs)
    assert all(later == FACTOR * earlier for earlier, later in itertools.pairwise(found))
    assert all(0 < rung < epochs for rung in found)
    if found:
        assert found[0] == 1 or epochs / 27 <= found[0] <= epochs / 9
        assert found[0] == math.ceil(epochs / 27)
        assert found[-1] * FACTOR >= epochs, "no rung is missing at the end"
    else:
        assert epochs == 1


def test_epochs_between_the_rungs_decide_nothing() -> None:
    rule = SuccessiveHalving(30)
    for epoch in set(range(1, 31)) - {2, 6, 18}:
        assert rule.report(0, epoch, 0.0, 9.0) is None


def test_no_trial_is_stopped_before_three_have_come() -> None:
    rule = SuccessiveHalving(30)
    assert not ask(rule, 0, 2, 0.9).stop
    few = ask(rule, 1, 2, 0.1)
    assert not few.stop
    assert few.why == "only 2 of 3 rivals have come this far"
    third = ask(rule, 2, 2, 0.2)
    assert third.stop
    assert (third.rank, third.rivals, third.places, third.cutoff) == (2, 3, 1, 0.9)
    assert third.why == "place 2 of 3, 1 go on"
    assert not ask(rule, 0, 6, 0.1).stop, "each rung counts its own"


def test_the_best_third_goes_on() -> None:
    rule = SuccessiveHalving(30)
    for number in range(8):
        rule.restore(number, 2, number / 10, 1.0)
    made = [ask(rule, number, 2, score) for number, score in ((8, 0.65), (9, 0.62), (10, 0.61), (11, 0.605), (12, 0.0))]
    assert [(one.rank, one.rivals, one.places) for one in made] == [
        (2, 9, 3),
        (3, 10, 4),
        (4, 11, 4),
        (5, 12, 4),
        (12, 13, 5),  # as trial 0
    ]
    assert [one.stop for one in made] == [False, False, False, True, True]
    assert made[3].cutoff == 0.61


def test_the_protected_trial_goes_on_and_is_a_rival() -> None:
    rule = SuccessiveHalving(30, protected={0})
    rule.restore(1, 2, 0.5, 1.0)
    rule.restore(2, 2, 0.6, 1.0)
    baseline = ask(rule, 0, 2, 0.1)
    assert not baseline.stop
    assert baseline.rank == 3
    assert "baseline" in baseline.why
    high = SuccessiveHalving(30, protected={0})
    ask(high, 0, 2, 0.9)
    high.restore(1, 2, 0.1, 1.0)
    assert ask(high, 2, 2, 0.5).stop, "the baseline takes the one place"


def test_equal_scores_are_put_in_order_by_their_losses() -> None:
    rule = SuccessiveHalving(30)
    rule.restore(0, 2, 0.5, 1.0)
    rule.restore(1, 2, 0.1, 0.1)
    assert ask(rule, 2, 2, 0.5, 1.1).stop
    assert not ask(rule, 3, 2, 0.5, 0.9).stop
    assert not ask(rule, 4, 2, 0.5, 0.9).stop, "who is equal in both shares a place"


def test_a_guessing_crowd_does_not_pass_together() -> None:
    """A hundred trials with one score, each with a higher loss than the one before."""
    rule = SuccessiveHalving(30)
    assert sum(ask(rule, number, 2, 0.1, 2.0 + number).stop for number in range(100)) == 98


def test_a_decision_is_plain_json() -> None:
    decision = ask(SuccessiveHalving(30), 0, 2, 0.5)
    assert Decision(**decision.to_json()) == decision
    assert (decision.to_json()["epoch"], decision.to_json()["noise"]) == (2, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 3, 9]), SCORES, LOSSES, st.booleans()), max_size=40),
)
def test_restarts_change_no_decision(reports: list[tuple[int, int, float, float, bool]]) -> None:
    """A new rule that is told what was reported decides as the old one; a report that comes again counts once."""
    unbroken, broken = SuccessiveHalving(27), SuccessiveHalving(27)
    told: dict[tuple[int, int], tuple[float, float]] = {}
    for number, epoch, score, loss, restart in reports:
        if (number, epoch) in told:
            score, loss = told[number, epoch]  # what comes again is what was measured
        expected = unbroken.report(number, epoch, score, loss)
        assert broken.report(number, epoch, score, loss) == expected
        assert broken.report(number, epoch, score, loss) == expected
        told[number, epoch] = (score, loss)
        if restart:
            broken = SuccessiveHalving(27)
            for (known, at), (its_score, its_loss) in told.items():
                broken.restore(known, at, its_score, its_loss)


def test_restoring_what_is_no_rung_does_nothing() -> None:
    rule = SuccessiveHalving(27)
    rule.restore(0, 5, 0.5, 1.0)
    assert ask(rule, 1, 1, 0.1).rivals == 1


def test_stop_after_stops_there_and_nowhere_else() -> None:
    rule = StopAfter(3)
    rule.restore(0, 3, 0.9, 1.0)
    assert [rule.report(0, epoch, 0.9, 1.0) for epoch in (1, 2, 4)] == [None] * 3
    decision = rule.report(0, 3, 0.9, 1.0)
    assert decision is not None
    assert (decision.stop, decision.pause, decision.epoch) == (True, False, 3)
    assert rule.promotable({0}) is None


def test_never_stop_never_stops() -> None:
    rule = NeverStop()
    for number in range(9):
        rule.restore(number, 1, 0.9, 0.1)
        assert rule.report(number, 1, 0.0, 9.0) is None
    assert rule.rungs == ()
    assert rule.promotable([0, 1, 2]) is None


# Noise.


@pytest.mark.parametrize(
    ("noise", "stops", "why"),
    [
        (0.0, True, "place 2 of 3, 1 go on"),
        (0.019, True, "place 2 of 3, 1 go on"),
        (0.021, False, "place 2 of 3, 1 go on, but 2.00% behind is within the noise of 2.10%"),
        (0.5, False, "place 2 of 3, 1 go on, but 2.00% behind is within the noise of 50.00%"),
    ],
)
@pytest.mark.parametrize("promote", [False, True])
def test_nothing_is_stopped_within_the_noise(promote: bool, noise: float, stops: bool, why: str) -> None:
    rule = SuccessiveHalving(30, promote=promote)
    rule.restore(0, 2, 0.80, 1.0)
    rule.restore(1, 2, 0.10, 1.0)
    decision = ask(rule, 2, 2, 0.78, noise=noise)
    assert (decision.stop, decision.pause) == (stops and not promote, stops and promote)
    assert (decision.why, decision.noise, decision.cutoff) == (why, noise, 0.80)


def test_the_noise_is_of_the_gap_to_the_last_that_goes_on() -> None:
    """Not to the best one."""
    rule = SuccessiveHalving(30)
    for number, score in enumerate((0.9, 0.8, 0.3, 0.2, 0.1)):
        rule.restore(number, 2, score, 1.0)
    assert not ask(rule, 5, 2, 0.79, noise=0.02).stop
    assert ask(rule, 6, 2, 0.5, noise=0.02).stop


def test_equal_scores_are_within_any_noise() -> None:
    rule = SuccessiveHalving(30)
    rule.restore(0, 2, 0.5, 1.0)
    rule.restore(1, 2, 0.1, 0.1)
    decision = ask(rule, 2, 2, 0.5, 1.1, noise=0.001)
    assert not decision.stop
    assert decision.rank == 2


@given(st.lists(st.tuples(SCORES, LOSSES), min_size=1, max_size=30), st.sampled_from([0.0, 0.05, 0.3]))
def test_who_stops_is_worse_than_who_goes_on(reports: list[tuple[float, float]], noise: float) -> None:
    """By more than the noise; and with more noise no more are stopped."""
    quiet, noisy = SuccessiveHalving(27), SuccessiveHalving(27)
    for number, (score, loss) in enumerate(reports):
        decision = ask(noisy, number, 1, score, loss, noise)
        if decision.stop:
            assert decision.rivals >= 3
            assert decision.rank > decision.places
            assert decision.cutoff - score > noise or noise == 0.0
            assert ask(quiet, number, 1, score, loss).stop
        else:
            quiet.restore(number, 1, score, loss)


# Promotion.


def fill(rule: SuccessiveHalving, epoch: int, scores: list[float]) -> list[int]:
    """Trials 0, 1, ... report these scores; those that pause."""
    return [number for number, score in enumerate(scores) if ask(rule, number, epoch, score).pause]


def test_a_paused_trial_is_promoted_when_it_has_become_one_of_the_best() -> None:
    rule = SuccessiveHalving(30, promote=True)
    assert fill(rule, 2, [0.9, 0.8, 0.5]) == [2], "two have come when the second reports, which is too few"
    assert rule.promotable([2]) is None
    paused = ask(rule, 3, 2, 0.6)
    assert (paused.pause, paused.stop, paused.rank, paused.places) == (True, False, 3, 2)
    assert rule.promotable([2, 3]) is None
    assert [ask(rule, number, 2, 0.1).pause for number in (4, 5, 6)] == [True] * 3
    found = rule.promotable([2, 3, 4, 5, 6])
    assert found is not None
    number, decision = found
    assert (number, decision.epoch, decision.rank, decision.rivals, decision.places) == (3, 2, 3, 7, 3)
    assert (decision.pause, decision.stop, decision.why) == (False, False, "place 3 of 7, 3 go on")
    assert rule.promotable([2, 4, 5, 6]) is None, "who goes on keeps its place"
    assert Decision(**decision.to_json()) == decision


def test_the_best_is_promoted_first_and_from_the_highest_rung() -> None:
    rule = SuccessiveHalving(30, promote=True)
    for number in range(9):
        rule.restore(number, 2, 0.9 - number / 10, 1.0)
    for number, score in ((0, 0.9), (1, 0.8), (9, 0.1)):
        rule.restore(number, 6, score, 1.0)
    waiting = [8, 7, 6, 5, 4, 3, 2, 1]
    found = rule.promotable(waiting)
    assert found is not None
    assert (found[0], found[1].epoch) == (2, 2), "at rung 6 the one place is taken; at rung 2 there are three"
    rule.restore(10, 6, 0.1, 1.0)
    found = rule.promotable(waiting)
    assert found is not None
    assert (found[0], found[1].epoch) == (1, 6)
    both = SuccessiveHalving(30, promote=True)
    for number, score in enumerate((0.1, 0.8, 0.9, 0.1, 0.1)):
        both.restore(number, 2, score, 1.0)
    found = both.promotable([1, 2])
    assert found is not None
    assert found[0] == 2


def test_who_waits_at_a_higher_rung_is_not_promoted_from_a_lower_one() -> None:
    rule = SuccessiveHalving(30, promote=True)
    fill(rule, 2, [0.9, 0.1, 0.1])
    for number, score in ((0, 0.1), (1, 0.9), (2, 0.8)):
        ask(rule, number, 6, score)
    assert rule.promotable([0]) is None


def test_a_protected_trial_is_not_paused() -> None:
    rule = SuccessiveHalving(30, protected={2}, promote=True)
    assert fill(rule, 2, [0.9, 0.8, 0.1]) == []


@given(
    st.lists(st.tuples(SCORES, LOSSES), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.15]),
    st.randoms(use_true_random=False),
)
def test_promotion_keeps_to_the_best_third(
    reports: list[tuple[float, float]], noise: float, luck: random.Random
) -> None:
    """Whoever is promoted is among the best third then; when nobody is left to promote, nobody of them waits.

    A rule that was told it all after a restart promotes the same.
    """
    rule = SuccessiveHalving(27, promote=True)
    told: list[tuple[int, float, float]] = []
    waiting: set[int] = set()
    for number, (score, loss) in enumerate(reports):
        if ask(rule, number, 1, score, loss, noise).pause:
            waiting.add(number)
        told.append((number, score, loss))
        if luck.random() < 0.3:
            restored = SuccessiveHalving(27, promote=True)
            for known in luck.sample(told, len(told)):
                restored.restore(known[0], 1, known[1], known[2])
            assert restored.promotable(waiting, noise) == rule.promotable(waiting, noise)
        while (found := rule.promotable(waiting, noise)) is not None:
            waiting.remove(found[0])
            assert found[1].rank <= found[1].places
        best = sorted(told, key=lambda one: (-one[1], one[2], one[0]))[: math.ceil(len(told) / 3)]
        assert not waiting & {one[0] for one in best}
