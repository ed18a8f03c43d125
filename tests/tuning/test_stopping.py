from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.tuning.stopping import FACTOR, Decision, NeverStop, SuccessiveHalving, rungs

SCORES = st.sampled_from([0.1, 0.1, 0.2, 0.5, 0.9])  # few values, so that ties are common
LOSSES = st.sampled_from([0.5, 1.0, 2.0])


def ask(rule: SuccessiveHalving, number: int, epoch: int, score: float, loss: float = 1.0) -> Decision:
    decision = rule.report(number, epoch, score, loss)
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
    assert decision.to_json()["epoch"] == 2


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


def test_never_stop_never_stops() -> None:
    rule = NeverStop()
    for number in range(9):
        rule.restore(number, 1, 0.9, 0.1)
        assert rule.report(number, 1, 0.0, 9.0) is None
    assert rule.rungs == ()
