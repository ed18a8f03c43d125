"""Which configuration is trained again, when; who wins a race is tests/tuning/test_race.py's matter."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning.repeats import EARLY, TRIALS_BETWEEN, Again, NoRepeats, Race

LENGTH = 3


def make_trial(
    number: int,
    status: str = "COMPLETED",
    score: float = 0.5,
    *,
    epochs: int | None = None,
    of: int | None = None,
    length: int = LENGTH,
    seconds: float = 1.0,
) -> Trial:
    """A trial that scored the same in each epoch; one that is completed has had all of them."""
    count = length if epochs is None and status == "COMPLETED" else epochs or 0
    had = [EpochMetrics(n, 1.0, score, 1.0, score, 0.1, seconds, 1.0, 1.0) for n in range(1, count + 1)]
    config = {"train": {"epochs": length}}
    return Trial(number, config, status=TrialStatus(status), epochs=had, repeat_of=of)


def numbered(*trials: Trial) -> dict[int, Trial]:
    return {trial.number: trial for trial in trials}


def make_race(
    share: float = 0.2, total: int = 16, *, baseline: bool = True, number: int = 0, val_images: int = 1000
) -> Race:
    return Race(share, total, LENGTH, val_images, baseline=baseline, number=number)


# Early.


def early_repeats(race: Race, total: int, first: Trial | None = None) -> list[int]:
    """After how many trials the first one is repeated, in a search of one trial after another."""
    trials: dict[int, Trial] = {}
    after = []
    for begun in range(1, total + 1):
        trials[len(trials)] = make_trial(len(trials), "STOPPED") if trials else first or make_trial(0, "RUNNING")
        while race.early(trials) is not None:
            assert race.early(trials) == 0
            after.append(begun)
            trials[len(trials)] = make_trial(len(trials), "RUNNING", of=0)
    return after


@pytest.mark.parametrize(("total", "after"), [(3, []), (15, []), (16, [4]), (59, [4]), (60, [4, 8]), (1000, [4, 8])])
def test_the_baseline_is_repeated_early_once_or_twice(total: int, after: list[int]) -> None:
    assert (EARLY, TRIALS_BETWEEN) == ((16, 60), 4)
    assert early_repeats(make_race(total=total), min(total, 80)) == after


def test_what_is_no_baseline_is_not_repeated_early() -> None:
    assert early_repeats(make_race(baseline=False), 16) == []
    assert early_repeats(make_race(share=0.0), 16) == []
    assert early_repeats(make_race(), 16, make_trial(0, "DIVERGED")) == []
    assert early_repeats(make_race(), 16, make_trial(0, "FAILED")) == []
    assert early_repeats(make_race(), 16, make_trial(0, length=2)) == [], "of another length"
    assert make_race().early({}) is None
    moved = make_race(number=5)
    trials = numbered(*[make_trial(number, "STOPPED") for number in range(5)])
    assert moved.early(trials) is None
    assert moved.early({**trials, 5: make_trial(5, "RUNNING")}) == 5


def test_an_early_repeat_that_failed_is_not_made_again() -> None:
    trials = numbered(*[make_trial(number, "RUNNING") for number in range(10)], make_trial(10, "FAILED", of=0))
    assert make_race().early(trials) is None


# Late.


def search_of(trials: Iterable[Trial], long: int = 20) -> dict[int, Trial]:
    """These trials beside so many stopped ones, which make a search long enough for repeats."""
    found = numbered(*trials)
    return {**found, **{n: make_trial(n, "STOPPED", 0.1, epochs=LENGTH - 1) for n in range(100, 100 + long)}}


def test_a_race_needs_two_of_full_length() -> None:
    race = make_race()
    assert race.late({}) is None
    assert race.late(search_of([make_trial(0)])) is None
    others = [make_trial(0), make_trial(1, "STOPPED", epochs=2), make_trial(2, "FAILED"), make_trial(3, length=2)]
    assert race.late(search_of([*others, make_trial(4, "RUNNING", epochs=2), make_trial(5, of=0)])) is None
    assert race.late(search_of([make_trial(0), make_trial(1)])) in (0, 1)


def finish(race: Race, trials: dict[int, Trial], status: str = "COMPLETED") -> list[int]:
    """Runs the race to its end, one repeat after another; who was repeated."""
    asked = []
    while (of := race.late(trials)) is not None:
        asked.append(of)
        number = len(trials)
        trials[number] = make_trial(number, status, trials[of].epochs[-1].score, of=of)
        assert len(asked) < 100
    return asked


def dense(trials: dict[int, Trial]) -> dict[int, Trial]:
    """The same with numbers without gaps."""
    new = {old: place for place, old in enumerate(trials)}
    for trial in trials.values():
        trial.number = new[trial.number]
        trial.repeat_of = None if trial.repeat_of is None else new[trial.repeat_of]
    return numbered(*trials.values())


@pytest.mark.parametrize(("share", "runs"), [(0.0, 0), (0.1, 2), (0.2, 4), (0.5, 16)])
def test_the_race_has_its_share_of_the_time(share: float, runs: int) -> None:
    """Of 48 seconds: two trials of 3 and 21 of 2 seconds; a repeat takes 3."""
    trials = dense(search_of([make_trial(0), make_trial(1)], 21))
    assert sum(len(trial.epochs) for trial in trials.values()) == 48
    assert len(finish(make_race(share, baseline=False), trials)) == runs


def test_repeats_under_way_are_part_of_the_share() -> None:
    trials = dense(search_of([make_trial(0), make_trial(1)], 21))
    race = make_race(baseline=False)
    for number, epochs in ((23, 0), (24, 2), (25, 1)):
        of = race.late(trials)
        assert of is not None
        trials[number] = make_trial(number, "RUNNING", epochs=epochs, of=of)
    assert race.late(trials) is not None, "the fourth"
    trials[26] = make_trial(26, "PAUSED", of=0)
    assert race.late(trials) is None, "each will take 3 seconds"


def test_a_failed_repeat_is_not_asked_for_for_ever() -> None:
    """It took no time, so that the share never ends."""
    trials = dense(search_of([make_trial(0), make_trial(1)], 21))
    asked = finish(make_race(0.9), trials, "FAILED")
    assert 0 < len(asked) < 30


@pytest.mark.parametrize(("total", "early"), [(16, 1), (60, 2)])
def test_early_repeats_are_not_paid_by_the_race_and_others_of_the_baseline_are(total: int, early: int) -> None:
    def race_after(repeats: int) -> list[int]:
        had = [make_trial(2 + n, of=0) for n in range(repeats)]
        return finish(make_race(total=total), dense(search_of([make_trial(0), make_trial(1), *had], 21)))

    assert [len(race_after(repeats)) for repeats in range(early, early + 3)] == [4, 3, 2]
    assert 0 in race_after(early), "the baseline is among the best"


def test_shorter_and_longer_trials_do_not_take_part() -> None:
    trials = search_of([make_trial(0, score=0.5), make_trial(1, score=0.5), make_trial(2, score=0.9, length=2)])
    assert {make_race().late(trials), *finish(make_race(), dense(trials))} <= {0, 1}


def test_noise_is_that_of_the_repeats() -> None:
    race = make_race(val_images=0)
    runs = [make_trial(0, score=0.5), *[make_trial(n, score=0.5 + n / 10, of=0) for n in range(1, 5)]]
    trials = numbered(*runs)
    assert race.noise(trials, LENGTH).repeats == 4
    assert race.sd(trials, LENGTH) == race.noise(trials, LENGTH).sd
    assert 0.1 < race.sd(trials, LENGTH) < 0.2
    assert race.sd({}, LENGTH) > 0, "a guess"


def test_no_repeats() -> None:
    trials = search_of([make_trial(0), make_trial(1)], 60)
    assert (NoRepeats().early(trials), NoRepeats().late(trials)) == (None, None)


# Configurations that are to be trained several times.


def make_again(times: int = 3, *, begun: bool = True) -> Again:
    return Again(times, [{"lr": 0.1}, {"lr": 0.2}], lambda: begun, NoRepeats())


def with_params(trial: Trial, rate: float) -> Trial:
    trial.params = {"lr": rate}
    return trial


def test_each_is_trained_as_often_as_asked_for_in_turn() -> None:
    trials = numbered(with_params(make_trial(0), 0.3), *(with_params(make_trial(n), n / 10) for n in (1, 2)))
    again, order = make_again(), []
    assert again.owed(trials) == 4
    while (number := again.early(trials)) is not None:
        assert again.late(trials) == number
        order.append(number)
        trials[len(trials)] = make_trial(len(trials), "RUNNING", of=number)
    assert order == [1, 2, 1, 2]
    assert again.owed(trials) == 0


def test_none_is_trained_again_before_all_have_begun() -> None:
    trials = numbered(with_params(make_trial(0), 0.1))
    assert make_again(begun=False).early(trials) is None
    assert make_again(begun=False).owed(trials) == 2


@pytest.mark.parametrize("status", ["STOPPED", "DIVERGED", "FAILED"])
def test_what_came_to_nothing_is_not_trained_again(status: str) -> None:
    trials = numbered(with_params(make_trial(0, status), 0.1))
    assert make_again().early(trials) is None
    assert make_again().owed(trials) == 0


def test_what_others_repeat_comes_after() -> None:
    trials = numbered(with_params(make_trial(0), 0.3), *(make_trial(n, "STOPPED") for n in range(1, 5)))
    again = Again(2, [{"lr": 0.1}], lambda: True, make_race())
    assert again.early(trials) == 0
    trials[5] = with_params(make_trial(5), 0.1)
    assert again.early(trials) == 5


def test_a_finalist_that_diverges_when_trained_again_does_not_lead() -> None:
    """The race goes on among the others, and it is not taken for better for its one lucky run."""
    ends = (0.97, 0.94, 0.9, 0.9)
    trials = numbered(*[make_trial(number, score=score, seconds=9.0) for number, score in enumerate(ends)])
    trials |= numbered(*[make_trial(number, "DIVERGED", of=0) for number in (4, 5)])
    trials |= numbered(make_trial(6, score=0.941, of=1))
    asked = set()
    race = make_race(0.9)
    for number in range(7, 12):
        wanted = race.late(trials)
        if wanted is None:
            break
        asked.add(wanted)
        trials[number] = make_trial(number, score=ends[wanted], of=wanted)
    assert asked
    assert 1 in asked
    assert sum(trial.repeat_of == 0 for trial in trials.values()) <= 3
