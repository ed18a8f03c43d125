from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.tuning import forecast as module
from tunelab.tuning.forecast import COVERAGE, Forecast, Range, length, span
from tunelab.tuning.simulation import Beside, Plan
from tunelab.tuning.speed import Load, Speed
from tunelab.tuning.stopping import NeverStop, SuccessiveHalving, rungs

IMAGES, VAL = 1000, 200


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as the forecast sees it, moved by hand."""
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def loads(count: int, seed: int = 0) -> list[Load]:
    random_ = random.Random(seed)
    return [
        Load(math.exp(random_.gauss(0, 1)), math.exp(random_.gauss(10, 0.8)), random_.randrange(10, 140), 64)
        for _ in range(count)
    ]


def make(
    trials: int = 16,
    epochs: int = 9,
    concurrent: int = 2,
    draws: Sequence[Load] | None = None,
    speed: Speed | None = None,
    **plan: Any,
) -> Forecast:
    given = {"rungs": rungs, "baseline": 0, "beside": Beside(10.0, 2.0, 0.2), **plan}
    known = [trial(number, load) for number, load in enumerate(draws or loads(64))]
    return Forecast(speed or Speed([], IMAGES, VAL), Plan(trials, epochs, concurrent, **given), known, seed=1)


def trial(number: int, load: Load, epochs: int = 0, seconds: float = 1.0, status: str = "RUNNING") -> Trial:
    config = {
        "arch": {"norm": "none"},
        "train": {"batch_size": load.batch_size, "epochs": 9},
    }
    stats = {"mflops": load.mflops, "activations": load.activations, "convs": load.convs}
    done = [EpochMetrics(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, seconds, 1.0, 1.0) for epoch in range(1, epochs + 1)]
    return Trial(number, config, {}, TrialStatus(status), "", done, stats=stats)


class Truth:
    """A search as it really goes: real rungs on real scores, configurations faster or slower than anyone knew.

    `off` multiplies all times, `spread` is that of single configurations. What happens is told to a forecast, if there
    is one, with the clock moved along; `asked` are its answers on the way, each with the truth.
    """

    def __init__(self, plan: Plan, draws: Sequence[Load], seed: int, off: float = 1.0, spread: float = 0.3) -> None:
        self.random = random.Random(seed)
        self.plan = plan
        self.draws = draws
        self.factor = off
        self.spread = spread
        self.speed = Speed([], IMAGES, VAL)
        self.trials: dict[int, Trial] = {}
        self.asked: list[tuple[float, Range]] = []

    def run(self, forecast: Forecast | None = None, clock: Clock | None = None) -> float:
        plan = self.plan
        stopping = SuccessiveHalving(plan.epochs, {0}) if plan.rungs(plan.epochs) else NeverStop()
        begin = plan.beside.start * math.exp(self.random.gauss(0, 0.1))
        origin = clock.now if clock else 0.0
        events: list[tuple[float, int]] = []
        each: dict[int, float] = {}
        quality: dict[int, float] = {}
        end = begin
        noise = self.random.uniform(0, 0.8)  # of 1, by which trials differ: gaps within it stop nobody

        def start(at: float) -> None:
            number = len(self.trials)
            if number >= plan.trials:
                return
            load = self.draws[number] if number < len(self.draws) else self.random.choice(list(self.draws))
            self.trials[number] = trial(number, load)
            quality[number] = self.random.gauss(0, 1)
            each[number] = self.speed.predict(load) * self.factor * math.exp(self.random.gauss(0, self.spread))
            if forecast is not None:
                forecast.started(self.trials[number])
            heapq.heappush(events, (at + plan.beside.trial + each[number], number))

        for _ in range(plan.concurrent):
            start(begin)
        while events:
            end, number = heapq.heappop(events)
            one = self.trials[number]
            score = quality[number] + self.random.gauss(0, 0.6)
            one.epochs.append(EpochMetrics(len(one.epochs) + 1, 1, 0, 1, score, 0.1, each[number] - 0.03, 1, 1))
            if clock is not None:
                clock.now = origin + end
            if forecast is not None:
                forecast.reported(one)
            decision = stopping.report(number, len(one.epochs), score, -score, noise)
            if decision is not None:
                one.decisions.append(decision.to_json())
            if len(one.epochs) < plan.epochs and not (decision is not None and decision.stop):
                heapq.heappush(events, (end + each[number], number))
            else:
                one.status = TrialStatus.COMPLETED if len(one.epochs) == plan.epochs else TrialStatus.STOPPED
                if forecast is not None:
                    forecast.ended(one)
                start(end)
            if forecast is not None:
                self.asked.append((end, forecast.time_left(list(self.trials.values()))))
        return end + plan.beside.stop


SIZES = [(8, 3, 2), (8, 12, 2), (12, 6, 1), (16, 9, 2), (24, 9, 4), (30, 12, 2), (60, 27, 4), (150, 27, 8)]


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_forecasts_are_close_and_their_ranges_hold_what_they_say(scheduler: str) -> None:
    close, inside, count = 0, 0, 0
    for trials, epochs, concurrent in SIZES:
        for seed in range(6):
            draws = loads(64, seed)
            given = {} if scheduler == "asha" else {"rungs": lambda epochs: ()}
            forecast = make(trials, epochs, concurrent, draws, **given)
            said = forecast.total()
            off = math.exp(random.Random(seed).gauss(0, 0.1))
            real = Truth(forecast.plan, draws, seed, off).run()
            close += abs(said.expected / real - 1) < 0.25
            inside += said.low <= real <= said.high
            count += 1
            assert said.low < said.expected < said.high
    assert close >= (0.7 if scheduler == "asha" else 0.9) * count, "what is off is luck: who goes on"
    assert COVERAGE - 0.15 <= inside / count <= COVERAGE + 0.2


def test_a_wrong_calibration_is_corrected_while_it_runs(clock: Clock) -> None:
    forecast = make(60, 9, 2, loads(64))
    before = forecast.total().expected
    truth = Truth(forecast.plan, loads(64), 3, off=4.0)
    forecast.begin()
    real = truth.run(forecast, clock)
    assert real > 2 * before
    halfway = [(at, said) for at, said in truth.asked if 0.5 * real < at < 0.6 * real]
    for at, said in halfway:
        assert said.low * 0.8 <= real - at <= said.high * 1.25
    at, said = truth.asked[-1]
    assert said.expected < 10


def test_more_of_anything_takes_longer() -> None:
    one = make(16, 9, 2).total().expected
    assert make(32, 9, 2).total().expected > 1.3 * one
    assert make(16, 27, 2).total().expected > 1.3 * one
    assert make(16, 9, 1).total().expected > 1.3 * one
    assert make(16, 9, 2, rungs=lambda epochs: ()).total().expected > 1.3 * one
    assert make(16, 9, 2, repeats=3).total().expected > one
    assert make(16, 9, 2, final_share=0.4).total().expected > 1.15 * one


def test_what_a_model_proposes_is_cheaper_as_usual_and_then_as_seen(clock: Clock) -> None:
    usual, draws = make(40, 9, 1), loads(64)
    thrifty = make(40, 9, 1, thrift=0.5, by_model=8)
    assert thrifty.total().expected < 0.8 * usual.total().expected
    few = make(8, 9, 1, thrift=0.5, by_model=8).total().expected
    assert few == pytest.approx(make(8, 9, 1).total().expected, rel=0.1), "none is proposed by the model"
    spread = {"rungs": lambda epochs: (), "speed": Speed([], IMAGES, VAL)}
    wide, narrow = make(40, 9, 1, thrift=1.0, by_model=8, **spread).total(), make(40, 9, 1, **spread).total()
    assert wide.high / wide.low > narrow.high / narrow.low, "what it goes for is not known before"

    def left(cost: float) -> float:
        begun = []
        for number in range(20):
            load = draws[0] if number < 8 else Load(cost * 1.0, cost * 22026.0, 60, 64)
            begun.append(trial(number, load, 9, status="COMPLETED"))
            begun[-1].origin = "model" if number >= 8 else "random"
        return make(40, 9, 1, thrift=0.5, by_model=8).time_left(begun).expected

    assert left(5.0) > 1.3 * left(0.2), "proposals that turn out dear are expected to go on so"


def test_trials_by_hand_run_in_full_and_as_often_as_asked(clock: Clock) -> None:
    by_hand = [trial(number, load) for number, load in enumerate(loads(10))]
    for one in by_hand[1:]:
        one.origin = "grid"
    given: dict[str, Any] = {"rungs": rungs, "baseline": 0, "beside": Beside(0.0, 0.0, 0.0)}

    def forecast(**more: Any) -> Forecast:
        return Forecast(Speed([], IMAGES, VAL), Plan(10, 27, 1, **given, **more), by_hand)

    stopped, full = forecast().total(), forecast(in_full=("grid",)).total()
    assert full.expected > 1.3 * stopped.expected
    assert forecast(in_full=("grid",), again=18).total().expected == pytest.approx(3 * full.expected, rel=0.3)
    begun = trial(3, loads(10)[3], 9)
    begun.origin = "grid"
    assert forecast(in_full=("grid",)).time_left([begun]).expected > forecast().time_left([begun]).expected


def test_equal_questions_have_equal_answers() -> None:
    assert make().total() == make().total()


def test_a_long_search_is_as_long_as_its_parts() -> None:
    """Beyond some hundred trials the rest is not played."""
    short, long = make(400, 27, 4).total().expected, make(4000, 27, 4).total().expected
    assert long == pytest.approx(10 * short, rel=0.15)
    begun = time.perf_counter()
    make(1_000_000, 100, 8).total()
    assert time.perf_counter() - begun < 60, "does not hang"


def test_what_fits_fits() -> None:
    forecast = make(100, 27, 2)
    whole = forecast.total().expected
    fits = forecast.what_fits(whole / 2)
    assert 20 < fits < 70
    assert forecast.total(trials=fits).expected < 1.15 * whole / 2
    epochs = forecast.epochs_that_fit(whole / 2)
    assert 3 <= epochs < 27
    assert forecast.total(epochs=epochs).expected < 1.15 * whole / 2
    assert forecast.what_fits(10 * whole) == 100
    assert forecast.epochs_that_fit(10 * whole) == 27
    assert (forecast.what_fits(1.0), forecast.epochs_that_fit(1.0)) == (0, 0)


def test_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = make(100, 30, 2)
    hours = Range(9.8 * 3600, 11.2 * 3600, 13.0 * 3600)
    monkeypatch.setattr(forecast, "total", lambda *given, **named: hours)
    monkeypatch.setattr(forecast, "what_fits", lambda seconds, known: 72)
    monkeypatch.setattr(forecast, "epochs_that_fit", lambda seconds: 20)
    assert forecast.describe() == "100 trials need 11.2 h (9.8 to 13.0)"
    assert forecast.describe(8 * 3600, "07:30") == (
        "100 trials need 11.2 h (9.8 to 13.0); until 07:30 there are 8 h: 72 trials, or 100 with --epochs 20"
    )
    assert forecast.describe(20 * 3600, "20h").endswith("; there are 20 h: all of them fit")
    assert forecast.describe(12 * 3600, "12h").endswith("; there are 12 h: likely to fit, not certain")
    known = [trial(0, loads(1)[0], 9, status="COMPLETED"), trial(1, loads(1)[0], 2, status="PAUSED")]
    assert forecast.describe(8 * 3600, "8h", known) == (
        "99 trials more need 11.2 h (9.8 to 13.0); there are 8 h: 73 trials"
    )
    monkeypatch.setattr(forecast, "epochs_that_fit", lambda seconds: 0)
    assert forecast.describe(8 * 3600, "8h").endswith("there are 8 h: 72 trials")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Range(40, 45.4, 52), "45 s (40 to 52)"),
        (Range(90, 100, 130), "1.7 min (1.5 to 2.2)"),
        (Range(3600, 6000, 9000), "1.7 h (1.0 to 2.5)"),
        (Range(300_000, 400_000, 500_000), "111 h (83.3 to 139)"),
    ],
)
def test_lengths_are_said_in_one_unit(found: Range, said: str) -> None:
    assert span(found) == said


def test_a_length() -> None:
    assert [length(seconds) for seconds in (8, 180, 28_800, 12_600)] == ["8 s", "3 min", "8 h", "3.5 h"]


def test_fixed_configurations_have_no_rungs() -> None:
    plan = Plan(3, 10, 3, beside=Beside(5.0, 1.0, 0.0))
    one = loads(1)
    forecast = Forecast(Speed([], IMAGES, VAL), plan, [trial(0, one[0])])
    assert forecast.total().expected == pytest.approx(6.0 + 10 * forecast.speed.predict(one[0]), rel=0.5)


def test_what_is_left_counts_what_is_done(clock: Clock) -> None:
    forecast = make(4, 9, 2, rungs=lambda epochs: (), beside=Beside(10.0, 2.0, 0.0))
    load = loads(64)[0]
    forecast.begin()
    clock.now += 10
    running = [trial(0, load), trial(1, load)]
    for one in running:
        forecast.started(one)
    for _ in range(8):
        clock.now += 5
        for one in running:
            one.epochs.append(trial(0, load, 1, seconds=5.0).epochs[0])
            forecast.reported(one)
    left = forecast.time_left(running)
    clock.now += 1
    assert forecast.time_left(running).expected == pytest.approx(left.expected - 1), "asked again soon: counted down"
    clock.now += 60
    assert forecast.time_left(running).expected != pytest.approx(left.expected - 61)
    ended = [trial(number, load, 9, 5.0, "COMPLETED") for number in range(4)]
    clock.now += 60
    assert forecast.time_left(ended).expected == pytest.approx(2.0, rel=0.3), "Ray ends"


def test_a_repeat_takes_as_long_as_what_it_repeats(clock: Clock) -> None:
    load = loads(1)[0]
    forecast = make(draws=[load] * 4)
    first = trial(0, load, 3, seconds=100.0)
    for _ in range(3):
        forecast.reported(first)
    again = trial(5, load)
    unknown = forecast.seconds(again, 3)
    again.repeat_of = 0
    assert forecast.seconds(again, 3) == pytest.approx(300, rel=0.01)
    assert unknown < 150
    left = forecast.time_left([first, again])
    assert left.expected > 9 * 90, "it is played so too"


def test_trials_that_wait_at_a_rung_do_not_go_on(clock: Clock) -> None:
    forecast = make(2, 9, 1, beside=Beside(0.0, 0.0, 0.0))
    load = loads(64)[0]
    interrupted, waiting = trial(0, load, 3, status="PAUSED"), trial(1, load, 3, status="PAUSED")
    waiting.decisions.append({"epoch": 3, "stop": False, "pause": True, "rank": 9, "rivals": 9, "places": 3})
    assert forecast.time_left([interrupted, waiting]).expected > 0
    clock.now += 100
    interrupted.status = TrialStatus.STOPPED
    assert forecast.time_left([interrupted, waiting]).expected == 0


def test_the_pace_of_a_trial() -> None:
    forecast = make()
    fast, slow = sorted(loads(64), key=forecast.speed.predict)[::63]
    assert forecast.seconds(trial(0, fast), 3) < forecast.seconds(trial(1, slow), 3)
    assert forecast.seconds(trial(1, slow), 3) < forecast.seconds(trial(1, slow), 6)
    forecast.reported(trial(1, slow, 1, seconds=100.0))
    assert forecast.seconds(trial(1, slow), 3) == pytest.approx(300, rel=0.01), "its own epochs say more"


def test_earlier_epochs_are_learnt_from() -> None:
    forecast = make()
    load = loads(64)[1]
    before = forecast.speed.predict(loads(64)[2])
    forecast.learn(trial(number, load, 3, seconds=100.0) for number in range(30))
    assert forecast.speed.predict(loads(64)[2]) > 2 * before


def test_plain_json() -> None:
    found = make(16, 9, 2).to_json()
    assert found["low"] < found["expected"] < found["high"]
    assert (found["trials"], found["epochs"], found["concurrent"], found["coverage"]) == (16, 9, 2, 0.8)
