from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tunelab.tuning.simulation import Beside, Job, Plan, Play, Rungs, finals
from tunelab.tuning.stopping import rungs

PLAIN = Plan(trials=4, epochs=9, concurrent=2, beside=Beside(0.0, 0.0, 0.0))
JOB = Job(seconds=1.0, spread=0.0, full=False, overhead=0.0)


def play(jobs: list[Job], plan: Plan = PLAIN, seed: int = 0) -> Play:
    return Play(iter(jobs), plan, Rungs(plan.factor, plan.least), random.Random(seed))


def test_without_rungs_it_is_plain_packing() -> None:
    assert play([JOB] * 4).end == 18.0
    assert play([JOB] * 5).end == 27.0
    assert play([replace(JOB, seconds=2.0), JOB, JOB, JOB]).end == 27.0
    assert play([JOB] * 4, replace(PLAIN, concurrent=10)).end == 9.0
    assert play([]).end == 0.0
    assert play([JOB] * 4).spent == 36.0
    assert play([JOB] * 4).starts == [0.0, 0.0, 9.0, 9.0]


def test_what_is_behind_a_job_is_not_played_again() -> None:
    assert play([replace(JOB, done=6)]).end == 3.0
    assert play([replace(JOB, done=6, overhead=-0.5)]).end == 2.5
    assert play([replace(JOB, done=8, overhead=-5.0)]).end == 0.0, "never before now"
    assert play([replace(JOB, done=6)]).spent == 9.0, "but it was spent"


def test_about_a_third_goes_on_at_each_rung() -> None:
    plan = replace(PLAIN, rungs=rungs, concurrent=1)
    done = play([JOB] * 20_000, plan)
    at_rungs = (done.spent - 20_000) / 20_000  # 2 more epochs for those that pass the first rung, 6 the second
    assert at_rungs == pytest.approx(2 / 3 + 6 / 9, rel=0.15)
    assert len(done.completed) / 20_000 == pytest.approx(1 / 9, rel=0.15)


def test_in_a_small_search_more_go_on_at_the_second_rung() -> None:
    plan = replace(PLAIN, rungs=rungs, concurrent=1)
    found = [play([JOB] * 24, plan, seed) for seed in range(50)]
    assert sum(len(one.completed) for one in found) / 50 > 1.5 * 24 / 9


def test_the_first_ones_and_the_full_ones_go_on() -> None:
    plan = replace(PLAIN, rungs=rungs)
    assert len(play([JOB] * 2, plan).completed) == 2
    assert len(play([replace(JOB, full=True)] * 50, plan).completed) == 50


def test_the_good_ones_go_on() -> None:
    plan = replace(PLAIN, rungs=rungs)
    rivals = [replace(JOB, quality=0.0)] * 30
    for quality, full_length in ((3.0, True), (-3.0, False)):
        one = replace(JOB, quality=quality, seconds=7.0)
        assert (7.0 in play([*rivals, one], plan).completed) is full_length


def test_more_go_on_where_later_ones_are_better() -> None:
    plan = replace(PLAIN, rungs=rungs, concurrent=1)
    better = [replace(JOB, promise=number / 20) for number in range(60)]
    found = [[len(play(jobs, plan, seed).completed) for seed in range(20)] for jobs in ([JOB] * 60, better)]
    assert sum(found[1]) > 1.5 * sum(found[0])


def test_repeats_are_no_rivals() -> None:
    plan = replace(PLAIN, rungs=rungs)
    best = [replace(JOB, quality=9.0, full=True, ranked=False)] * 50
    assert len(play([*best, *[JOB] * 2], plan).completed) == 52
    assert len(play([*[replace(one, ranked=True) for one in best], *[JOB] * 2], plan).completed) == 50


def decision(rank: int, rivals: int, places: int, stop: bool, epoch: int = 1, pause: bool = False) -> dict[str, Any]:
    return {"epoch": epoch, "rank": rank, "rivals": rivals, "places": places, "stop": stop, "pause": pause}


def test_recorded_decisions_tell_who_is_good() -> None:
    kept = Rungs(3, 3)
    best = kept.learn([decision(1, 10, 4, False), decision(1, 3, 1, False, epoch=3)])
    worst = kept.learn([decision(10, 10, 4, True)])
    assert best is not None
    assert worst is not None
    assert 0 < best < 2
    assert worst == pytest.approx(-best)
    assert kept.learn([]) is None
    assert [len(kept.values[rung]) for rung in (1, 3)] == [2, 1]
    assert (kept.weak, kept.excused) == (1, 0)


def test_trials_excused_by_noise_make_excuses_likely() -> None:
    luck = random.Random(0)
    strict, lenient, unknown = Rungs(3, 3), Rungs(3, 3), Rungs(3, 3)
    for _ in range(100):
        strict.learn([decision(9, 10, 4, True)])
        lenient.learn([decision(9, 10, 4, False)])
    went = [sum(one.for_play(luck).goes_on(1, -9.0, luck) for _ in range(200)) for one in (strict, lenient)]
    assert went[0] < 10
    assert went[1] > 190
    unknown.values[1] = [0.0] * 9
    chances = [unknown.for_play(luck).excuse for _ in range(200)]
    assert min(chances) < 0.1
    assert max(chances) > 0.6, "it varies from search to search"


def test_a_paused_trial_that_goes_on_later_counts_once() -> None:
    kept = Rungs(3, 3)
    kept.learn([decision(9, 10, 4, False, pause=True)])
    assert (kept.weak, kept.excused) == (1, 0)
    kept.learn([decision(9, 10, 4, False, pause=True), decision(4, 12, 4, False)])
    assert (len(kept.values[1]), kept.weak, kept.excused) == (2, 1, 0)


def test_plays_leave_no_trace() -> None:
    kept = Rungs(3, 3, {1: [0.5]})
    Play(iter([JOB] * 9), replace(PLAIN, rungs=rungs), kept.for_play(random.Random(0)), random.Random(0))
    assert kept.values == {1: [0.5]}


def test_finals_take_their_share() -> None:
    plan = replace(PLAIN, final_share=0.5, concurrent=2)
    done = play([JOB] * 4, plan)
    assert finals(done, plan, 0.0, 0, []) == 18.0, "four more trainings, two at once"
    assert finals(done, plan, 36.0, 0, []) == 36.0
    assert finals(done, plan, 0.0, 3, []) == 9.0
    assert finals(done, plan, 0.0, 9, []) == 0.0
    assert finals(done, replace(plan, final_share=0.0), 0.0, 0, []) == 0.0
    assert finals(play([JOB], plan), plan, 0.0, 0, []) == 0.0, "one alone has no rival"
    assert finals(play([JOB], plan), plan, 0.0, 0, [1.0]) > 0.0
    late = replace(plan, beside=Beside(0.0, 0.0, 0.0, worker=5.0))
    assert finals(done, late, 0.0, 0, []) == 23.0, "a process that had been given up starts again"
    assert finals(done, late, 0.0, 9, []) == 0.0
