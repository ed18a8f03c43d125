"""What an engine trains next: open trials, repeats, promotions, proposals, the race; and what a deadline leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, from_json, to_json
from tunelab.errors import ExhaustedError, InputError
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import replay
from tunelab.tuning import deadline as deadline_module
from tunelab.tuning import engine as engine_module
from tunelab.tuning.deadline import Deadline
from tunelab.tuning.engine import Engine
from tunelab.tuning.sources import FixedSource, Proposal
from tunelab.tuning.stopping import Decision, NeverStop, SuccessiveHalving

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))


class Record:
    """A record in memory; `said` tells in one list what it, the source and the listener are told."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.said: list[str] = []

    def append(self, *events: Mapping[str, Any]) -> None:
        self.said += [f"record {event['event']} {event['trial']}" for event in events]
        self.events += events

    def started(self, trial: Trial) -> None:
        self.said.append(f"started {trial.number}")

    def reported(self, trial: Trial) -> None:
        pass

    def retried(self, trial: Trial, why: str) -> None:
        pass

    def ended(self, trial: Trial) -> None:
        self.said.append(f"ended {trial.number} {trial.status.value}")


class ListedSource(FixedSource):
    """A list of configurations with one proposal per number, `left` of them; counts how often it is asked."""

    def __init__(self, record: Record, epochs: int, left: int = 1000) -> None:
        super().__init__(configs(40, epochs), lambda config: {"params": 1})
        self.said = record.said
        self.left = left
        self.asked = 0

    def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
        self.asked += 1
        if self.asked > self.left:
            raise InputError("nothing is left")
        return super().propose(number, trials)

    def adopt(self, trial: Trial) -> None:
        self.said.append(f"source adopt {trial.number}")

    def end(self, number: int, status: TrialStatus, score: float | None, costs: Mapping[str, float]) -> None:
        self.said.append(f"source end {number} {status.value} {score}")


def configs(count: int, epochs: int = 3) -> list[TrialConfig]:
    return [TrialConfig(ARCH, TrainConfig(epochs=epochs), seed=seed) for seed in range(count)]


def epoch(number: int, score: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0)


def make_engine(
    count: int = 3, stopping: Any = None, known: list[Trial] | None = None, *, epochs: int = 3, **more: Any
) -> tuple[Engine, Record, list[str]]:
    record: Any = Record()
    source = ListedSource(record, epochs)
    engine = Engine(record, known or [], source, stopping or NeverStop(), count, record, **more)
    return engine, record, record.said


def begin(engine: Engine) -> Trial:
    """The next trial, which there must be."""
    trial = engine.next_trial()
    assert trial is not None
    return trial


def finish(engine: Engine, number: int, epochs: int = 3) -> None:
    """The trial reports what is left of its epochs."""
    for at in range(len(engine.trials[number].epochs) + 1, epochs + 1):
        assert engine.report(number, epoch(at)) == (at < epochs)


# Waiting.


def test_it_waits_while_anything_runs_and_is_over_when_nothing_does() -> None:
    engine, _, _ = make_engine(2)
    assert not engine.waits
    for _ in range(2):
        begin(engine)
        assert engine.waits
    assert (engine.next_trial(), engine.waits) == (None, True)
    finish(engine, 0)
    assert (engine.next_trial(), engine.waits) == (None, True)
    engine.end(1, TrialStatus.FAILED, "x")
    assert (engine.next_trial(), engine.waits, engine.unfinished, engine.has_work) == (None, False, 0, False)


def test_it_does_not_wait_after_a_halt() -> None:
    engine, _, _ = make_engine(2)
    begin(engine)
    engine.halt("SIGINT")
    assert (engine.waits, engine.next_trial()) == (False, None)


class CountingRule(SuccessiveHalving):
    """Counts how often it is asked whom to promote."""

    def __init__(self) -> None:
        super().__init__(9, promote=True)
        self.asked = 0

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        self.asked += 1
        return super().promotable(paused, noise)


class Wanted:
    """Repeats of what is in the lists, in order; counts how often it is asked."""

    def __init__(self, early: list[int] | None = None, late: list[int] | None = None) -> None:
        self.wanted = {"early": list(early or []), "late": list(late or [])}
        self.asked = 0

    def _next_of(self, kind: str, trials: Mapping[int, Trial]) -> int | None:
        before = sum(trial.repeat_of is not None for trial in trials.values())
        before -= len(self.wanted["early"]) if kind == "late" else 0
        return self.wanted[kind][before] if trials and 0 <= before < len(self.wanted[kind]) else None

    def early(self, trials: Mapping[int, Trial]) -> int | None:
        self.asked += 1
        return self._next_of("early", trials)

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        return self._next_of("late", trials)

    def owed(self, trials: Mapping[int, Trial]) -> int:
        return 0


def test_nothing_is_worked_out_again_while_it_waits() -> None:
    """Ray asks for another trial many times a second."""
    rule, repeats = CountingRule(), Wanted()
    engine, _, _ = make_engine(4, rule, epochs=9, repeats=repeats)
    for number, score in enumerate((0.9, 0.8, 0.1)):
        begin(engine)
        engine.report(number, epoch(1, score))
    begin(engine)
    assert engine.trials[2].status is TrialStatus.PAUSED

    def asked_by(times: int) -> tuple[int, int]:
        before = rule.asked, repeats.asked
        assert [engine.next_trial() for _ in range(times)] == [None] * times
        return rule.asked - before[0], repeats.asked - before[1]

    assert asked_by(1) == (1, 1)
    assert asked_by(1000) == (0, 0)
    engine.report(3, epoch(1, 0.0))
    assert asked_by(1) == (1, 1), "a report may change what is next"
    assert asked_by(1000) == (0, 0)


def test_a_source_is_not_asked_again_while_it_waits() -> None:
    record: Any = Record()
    source = ListedSource(record, 3, left=1)
    engine = Engine(record, [], source, NeverStop(), 5, record)
    begin(engine)
    assert [engine.next_trial() for _ in range(100)] == [None] * 100
    engine.report(0, epoch(1))
    assert [engine.next_trial() for _ in range(100)] == [None] * 100
    assert source.asked == 2, "once for the first, once in vain: a source that has nothing never has"
    assert "nothing is left" in str(engine.error)


# Pausing and promotion.


def pause(engine: Engine) -> None:
    """Trials 0 to 3 come to the first rung, of 9 epochs; 2 and 3 pause there."""
    for number, score in enumerate((0.9, 0.8, 0.5, 0.3)):
        assert begin(engine).number == number
        assert engine.report(number, epoch(1, score)) == (number < 2)


def test_a_paused_trial_neither_runs_nor_has_it_ended() -> None:
    engine, record, said = make_engine(9, CountingRule(), epochs=9)
    pause(engine)
    assert [trial.status.value for trial in engine.trials.values()] == ["RUNNING", "RUNNING", "PAUSED", "PAUSED"]
    assert engine.unfinished == 9
    assert said[-1] == "record decision 3"
    assert (record.events[-1]["decision"]["pause"], record.events[-1]["decision"]["stop"]) == (True, False)
    assert not any(line.startswith(("ended", "source end")) for line in said)
    assert begin(engine).number == 4, "others come first"


def test_a_promotion_is_in_the_record_before_the_trial_goes_on() -> None:
    engine, record, said = make_engine(9, CountingRule(), epochs=9)
    pause(engine)
    for number in (4, 5, 6):
        begin(engine)
        engine.report(number, epoch(1, 0.1))
    before = len(said)
    trial = begin(engine)
    assert (trial.number, trial.status) == (2, TrialStatus.RUNNING)
    assert said[before:] == ["record decision 2", "started 2"]
    assert [one["pause"] for one in trial.decisions] == [True, False]
    assert record.events[-1]["decision"] == trial.decisions[-1]
    assert engine.report(2, epoch(1, 0.5)), "told again after it was taken from its checkpoint, it goes on"
    assert said[before + 2 :] == []
    assert engine.report(2, epoch(2, 0.5))
    assert begin(engine).number == 7, "each is promoted once"


def test_who_waits_for_a_place_in_vain_is_stopped_when_all_have_run() -> None:
    engine, record, said = make_engine(4, CountingRule(), epochs=9)
    pause(engine)
    assert (engine.next_trial(), engine.waits) == (None, True)
    for number in (0, 1):
        engine.end(number, TrialStatus.FAILED, "x")
        assert [engine.trials[n].status.value for n in (2, 3)] == ["PAUSED", "PAUSED"]
    before = len(said)
    assert (engine.next_trial(), engine.waits, engine.unfinished) == (None, False, 0)
    assert said[before:] == [
        *("record ended 2", "record ended 3"),
        *("source end 2 STOPPED 0.5", "ended 2 STOPPED"),
        *("source end 3 STOPPED 0.3", "ended 3 STOPPED"),
    ]
    assert record.events[-1]["reason"] == "epoch 1: place 4 of 4, 2 go on"


def test_a_place_that_falls_vacant_at_the_end_is_taken() -> None:
    """The last report makes room, and the trial goes on although nothing else is left to do."""
    engine, _, _ = make_engine(7, CountingRule(), epochs=9)
    pause(engine)
    for number in (4, 5):
        begin(engine)
        engine.report(number, epoch(1, 0.1))
    assert begin(engine).number == 6
    for number in (0, 1):
        engine.end(number, TrialStatus.FAILED, "x")
    assert (engine.next_trial(), engine.waits) == (None, True)
    engine.report(6, epoch(1, 0.1))
    assert begin(engine).number == 2


def test_a_paused_trial_waits_through_a_restart() -> None:
    engine, record, _ = make_engine(9, CountingRule(), epochs=9)
    pause(engine)
    again, _, said = make_engine(9, CountingRule(), replay(record.events), epochs=9)
    assert [begin(again).number for _ in range(3)] == [0, 1, 4]
    assert [again.trials[number].status.value for number in (2, 3)] == ["PAUSED", "PAUSED"]
    assert not again.report(2, epoch(1, 0.5)), "whoever tells it again is told to pause"
    for number in (4, 5, 6):
        again.report(number, epoch(1, 0.1))
        begin(again)
    assert again.trials[2].status is TrialStatus.RUNNING, "promoted"
    assert "record decision 2" in said


def test_a_promoted_trial_goes_on_after_a_restart() -> None:
    engine, record, _ = make_engine(9, CountingRule(), epochs=9)
    pause(engine)
    for number in (4, 5, 6):
        begin(engine)
        engine.report(number, epoch(1, 0.1))
    assert begin(engine).number == 2
    again, _, _ = make_engine(9, CountingRule(), replay(record.events), epochs=9)
    assert [begin(again).number for _ in range(4)] == [0, 1, 2, 7]


def test_a_paused_trial_that_is_given_up_is_not_promoted() -> None:
    engine, _, _ = make_engine(9, CountingRule(), epochs=9)
    pause(engine)
    engine.end(2, TrialStatus.FAILED, "its process died")
    for number in (4, 5, 6, 7):
        assert begin(engine).number == number
        engine.report(number, epoch(1, 0.1))


# Noise.


def test_the_noise_is_asked_for_at_the_rungs_alone() -> None:
    asked: list[tuple[int, int]] = []

    def noise(trials: Mapping[int, Trial], epoch: int) -> float:
        asked.append((len(trials), epoch))
        return 0.125

    rule = SuccessiveHalving(9)
    engine, record, _ = make_engine(2, rule, epochs=9, noise=noise)
    begin(engine)
    begin(engine)
    finish(engine, 0, 9)
    assert asked == [(2, 1), (2, 3)]
    decisions = [event["decision"] for event in record.events if event["event"] == "decision"]
    assert [one["noise"] for one in decisions] == [0.125, 0.125]


# Repeats.


def test_a_repeat_is_the_same_configuration_with_another_seed() -> None:
    engine, record, said = make_engine(2, repeats=Wanted([0, 0]))
    first = begin(engine)
    repeated = [begin(engine), begin(engine)]
    assert said == [
        *("record proposed 0", "started 0"),
        *("record proposed 1", "source adopt 1", "started 1"),
        *("record proposed 2", "source adopt 2", "started 2"),
    ]
    assert replay(record.events) == [first, *repeated]
    for trial in repeated:
        assert (trial.repeat_of, trial.origin, trial.status) == (0, "repeat", TrialStatus.RUNNING)
        assert {**trial.config, "seed": first.config["seed"]} == first.config
        assert (trial.params, trial.stats, trial.arch_id) == (first.params, first.stats, first.arch_id)
        assert (trial.epochs, trial.decisions) == ([], [])
        from_json(TrialConfig, trial.config)
    assert len({trial.config["seed"] for trial in (first, *repeated)}) == 3
    other, _, _ = make_engine(2, repeats=Wanted([0, 0]))
    assert [begin(other).config["seed"] for _ in range(3)] == [
        first.config["seed"],
        *[t.config["seed"] for t in repeated],
    ]


def test_a_repeat_is_no_trial_of_its_own_and_runs_its_full_length() -> None:
    engine, record, _ = make_engine(4, SuccessiveHalving(9), epochs=9, repeats=Wanted([0]))
    begun = [begin(engine) for _ in range(5)]
    assert [trial.repeat_of for trial in begun] == [None, 0, None, None, None]
    assert (engine.unfinished, engine.next_trial()) == (5, None)
    for number, score in ((0, 0.9), (2, 0.8), (1, 0.0)):
        assert engine.report(number, epoch(1, score))
    assert not engine.report(3, epoch(1, 0.1)), "others stop, and the repeat is no rival of theirs"
    assert engine.trials[3].decisions[-1]["rivals"] == 3
    finish(engine, 1, 9)
    assert engine.trials[1].status is TrialStatus.COMPLETED
    assert not any(event["trial"] == 1 for event in record.events if event["event"] == "decision")


def test_the_race_begins_when_all_trials_have_ended_and_runs_on_all_slots() -> None:
    engine, _, _ = make_engine(2, repeats=Wanted([], [0, 1, 0]))
    for number in (0, 1):
        assert begin(engine).number == number
        assert engine.has_work
    finish(engine, 0)
    assert (engine.next_trial(), engine.waits) == (None, True), "one is still running"
    finish(engine, 1)
    assert (engine.unfinished, engine.has_work) == (0, True)
    race = [begin(engine) for _ in range(3)]
    assert [trial.repeat_of for trial in race] == [0, 1, 0]
    assert (engine.next_trial(), engine.waits, engine.unfinished) == (None, True, 3)
    for trial in race:
        finish(engine, trial.number)
    assert (engine.next_trial(), engine.waits, engine.unfinished, engine.has_work) == (None, False, 0, False)


def test_paused_trials_are_stopped_before_the_race() -> None:
    engine, _, _ = make_engine(4, CountingRule(), epochs=9, repeats=Wanted([], [0]))
    pause(engine)
    for number in (0, 1):
        finish(engine, number, 9)
    assert begin(engine).repeat_of == 0
    assert [engine.trials[number].status.value for number in (2, 3)] == ["STOPPED", "STOPPED"]


def test_an_interrupted_race_goes_on() -> None:
    engine, record, _ = make_engine(1, repeats=Wanted([], [0, 0]))
    begin(engine)
    finish(engine, 0)
    begin(engine)
    engine.report(1, epoch(1))
    engine.halt("SIGINT")
    assert (engine.unfinished, engine.next_trial()) == (1, None)
    again, _, said = make_engine(1, known=replay(record.events), repeats=Wanted([], [0, 0]))
    assert (again.unfinished, again.has_work) == (1, True)
    open_one, other = begin(again), begin(again)
    assert ((open_one.number, len(open_one.epochs)), (other.number, other.repeat_of)) == ((1, 1), (2, 0))
    assert "record proposed 1" not in said


def test_a_finished_trial_with_a_race_to_come_is_work() -> None:
    done = Trial(0, to_json(configs(1)[0]), status=TrialStatus.COMPLETED, epochs=[epoch(1), epoch(2), epoch(3)])
    engine, _, _ = make_engine(1, known=[done], repeats=Wanted([], [0]))
    assert (engine.unfinished, engine.has_work) == (0, True)
    engine, _, _ = make_engine(1, known=[done], repeats=Wanted())
    assert (engine.unfinished, engine.has_work) == (0, False)


# A deadline, with a clock and a pace of their own.


class Clock:
    """`now` is the time; an epoch takes `each` seconds, of some trials another length."""

    def __init__(self, each: float | None = 10.0, **other: float) -> None:
        self.now = 0.0
        self.each = each
        self.other = {int(name.removeprefix("trial_")): seconds for name, seconds in other.items()}

    def seconds(self, trial: Trial, epochs: int) -> float | None:
        each = self.other.get(trial.number, self.each)
        return None if each is None else each * epochs


MakeClock = Callable[..., Clock]


@pytest.fixture
def make_clock(monkeypatch: pytest.MonkeyPatch) -> MakeClock:
    def make(*given: Any, **other: Any) -> Clock:
        clock = Clock(*given, **other)
        fake = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 0.0)
        monkeypatch.setattr(engine_module, "time", fake)
        monkeypatch.setattr(deadline_module, "time", fake)
        return clock

    return make


def test_a_deadline_is_so_many_seconds_from_now_and_its_last_share_is_for_the_race(make_clock: MakeClock) -> None:
    make_clock().now = 50.0
    assert Deadline.after(100, 0.2) == Deadline(150.0, 130.0, 150.0)
    assert Deadline.after(100, 0.0, 5.0) == Deadline(150.0, 150.0, 155.0)


def test_no_trial_is_begun_that_would_have_no_epoch_in_time(make_clock: MakeClock) -> None:
    clock = make_clock(10.0)
    engine, record, said = make_engine(3, deadline=Deadline(100.0), pace=clock)
    clock.now = 90.0
    assert begin(engine).number == 0
    clock.now = 90.1
    assert (engine.next_trial(), engine.waits, engine.halted) == (None, True, ""), "what runs goes on"
    engine.end(0, TrialStatus.FAILED, "x")
    assert (engine.next_trial(), engine.waits, engine.halted) == (None, False, "deadline")
    assert said[-1] == "ended 0 FAILED"
    assert (engine.trials[1].epochs, engine.unfinished) == ([], 2)
    again, _, _ = make_engine(3, known=replay(record.events), deadline=Deadline(200.0), pace=clock)
    assert [begin(again).number for _ in range(2)] == [1, 2]


def test_what_waits_for_time_waits_without_work(make_clock: MakeClock) -> None:
    clock = make_clock(10.0)
    engine, record, _ = make_engine(9, deadline=Deadline(100.0), pace=clock)
    begin(engine)
    clock.now = 95.0
    for at in (1, 2):
        assert [engine.next_trial() for _ in range(50)] == [None] * 50
        engine.report(0, epoch(at))
    assert [event["trial"] for event in record.events if event["event"] == "proposed"] == [0, 1]


def test_what_turns_out_to_be_faster_is_begun(make_clock: MakeClock) -> None:
    clock = make_clock(10.0)
    engine, _, _ = make_engine(3, deadline=Deadline(100.0), pace=clock)
    begin(engine)
    clock.now = 95.0
    assert engine.next_trial() is None
    clock.each = 2.0
    engine.report(0, epoch(1))
    assert begin(engine).number == 1


@pytest.mark.parametrize("pace", [None, Clock(None)])
def test_without_a_pace_everything_is_begun_until_the_end(make_clock: MakeClock, pace: Clock | None) -> None:
    clock = make_clock()
    engine, _, _ = make_engine(3, deadline=Deadline(100.0), pace=pace)
    clock.now = 99.9
    assert begin(engine).number == 0
    clock.now = 100.1
    assert engine.should_halt


def test_a_repeat_needs_time_for_all_its_epochs(make_clock: MakeClock) -> None:
    """Another trial takes its place; the repeat is not in the record."""
    clock = make_clock(10.0)
    engine, record, _ = make_engine(4, deadline=Deadline(100.0), pace=clock, repeats=Wanted([0, 0]))
    begin(engine)
    clock.now = 70.0
    assert begin(engine).repeat_of == 0
    clock.now = 70.1
    assert begin(engine).repeat_of is None
    assert [event["repeat_of"] for event in record.events] == [None, 0, None]


def test_a_race_without_time_is_left_for_another_start(make_clock: MakeClock) -> None:
    clock = make_clock(10.0)
    engine, record, _ = make_engine(1, deadline=Deadline(100.0), pace=clock, repeats=Wanted([], [0]))
    begin(engine)
    finish(engine, 0)
    clock.now = 71.0
    assert (engine.next_trial(), engine.waits, engine.halted) == (None, False, "deadline"), "and the caller is told"
    assert (engine.unfinished, engine.trials_left, engine.has_work) == (0, 0, True)
    again, _, _ = make_engine(1, known=replay(record.events), pace=clock, repeats=Wanted([], [0]))
    assert begin(again).repeat_of == 0


def test_an_open_repeat_without_time_keeps_nobody_waiting(make_clock: MakeClock) -> None:
    first = Trial(0, to_json(configs(1)[0]), status=TrialStatus.COMPLETED, epochs=[epoch(1), epoch(2), epoch(3)])
    repeat = dataclasses.replace(first, number=1, repeat_of=0, status=TrialStatus.PAUSED, epochs=[epoch(1)])
    third = Trial(2, to_json(configs(3)[2]), status=TrialStatus.PAUSED)
    clock = make_clock(10.0)
    engine, _, _ = make_engine(3, known=[first, repeat, third], deadline=Deadline(100.0), pace=clock)
    clock.now = 85.0
    assert [begin(engine).number for _ in range(2)] == [2, 3]
    assert (engine.next_trial(), engine.waits, engine.halted) == (None, True, "")
    for number in (2, 3):
        engine.end(number, TrialStatus.FAILED, "x")
    assert (engine.next_trial(), engine.waits, engine.halted, engine.unfinished) == (None, False, "deadline", 1)
    soon = dataclasses.replace(repeat, status=TrialStatus.PAUSED)
    engine, _, _ = make_engine(3, known=[first, soon, third], deadline=Deadline(105.1), pace=clock)
    assert begin(engine).number == 1, "two epochs are left of it"


def test_a_slow_open_trial_keeps_nobody_waiting(make_clock: MakeClock) -> None:
    """Others that are open go on, and so does the race; nothing more is proposed, to wait as well."""
    done = [
        Trial(number, to_json(one), status=TrialStatus.COMPLETED, epochs=[epoch(1), epoch(2), epoch(3)])
        for number, one in enumerate(configs(2))
    ]
    slow, fast = (Trial(number, to_json(configs(4)[number]), status=TrialStatus.PAUSED) for number in (2, 3))
    clock = make_clock(1.0, trial_2=50.0)
    deadline = Deadline(20.0, race_begins=10.0)
    engine, record, _ = make_engine(
        9, known=[*done, slow, fast], deadline=deadline, pace=clock, repeats=Wanted([], [0])
    )
    assert begin(engine).number == 3
    assert (engine.next_trial(), engine.halted) == (None, "")
    assert record.events == []
    clock.now = 11.0
    finish(engine, 3)
    assert begin(engine).repeat_of == 0
    finish(engine, 4)
    assert (engine.next_trial(), engine.halted, engine.trials_left) == (None, "deadline", 6)


def test_a_space_without_configurations_left_ends_the_search_well() -> None:
    """The trials that there are run to their end, paused ones are decided, and the race is held."""

    class Few(ListedSource):
        def propose(self, number: int, trials: Mapping[int, Trial]) -> Proposal:
            if len(trials) == 4:
                raise ExhaustedError("no configuration left")
            return super().propose(number, trials)

    record: Any = Record()
    engine = Engine(record, [], Few(record, 9), CountingRule(), 20, record, repeats=Wanted([], [0]))
    pause(engine)
    assert (engine.next_trial(), engine.waits, engine.error, engine.exhausted) == (
        None,
        True,
        None,
        "no configuration left",
    )
    for number in (0, 1):
        finish(engine, number, 9)
    assert begin(engine).repeat_of == 0
    finish(engine, 4, 9)
    assert (engine.next_trial(), engine.unfinished, engine.has_work, engine.begun) == (None, 0, False, 4)


def test_a_diverged_trial_is_the_worst_at_every_rung() -> None:
    engine, record, _ = make_engine(9, SuccessiveHalving(9), epochs=9)
    for number in range(4):
        assert begin(engine).number == number
    engine.report(0, epoch(1, 0.9))
    engine.end(0, TrialStatus.DIVERGED, "nan")
    engine.end(1, TrialStatus.DIVERGED, "nan")
    assert engine.report(2, epoch(1, 0.1)), "one of the best third of three"
    assert [(d["rank"], d["rivals"]) for d in engine.trials[2].decisions] == [(1, 3)]
    again, _, _ = make_engine(9, SuccessiveHalving(9), replay(record.events), epochs=9)
    begin(again)
    again.report(2, epoch(2))
    again.report(2, epoch(3, 0.2))
    assert [(d["rank"], d["rivals"]) for d in again.trials[2].decisions] == [(1, 3), (1, 3)]


def test_a_promoted_trial_without_time_is_kept_for_another_start(make_clock: MakeClock) -> None:
    clock = make_clock(10.0, trial_2=60.0)
    engine, record, _ = make_engine(9, CountingRule(), epochs=9, deadline=Deadline(100.0), pace=clock)
    pause(engine)
    for number in (4, 5, 6):
        begin(engine)
        engine.report(number, epoch(1, 0.1))
    clock.now = 50.0
    assert engine.next_trial() is None
    again, _, _ = make_engine(9, CountingRule(), replay(record.events), epochs=9)
    assert [begin(again).number for _ in range(4)] == [0, 1, 2, 7]


def test_the_race_has_the_last_share_of_the_time(make_clock: MakeClock) -> None:
    """Finalists come first then; when the race wants nothing more, others follow."""
    clock = make_clock(1.0)
    deadline = Deadline(100.0, race_begins=80.0)
    engine, _, _ = make_engine(9, deadline=deadline, pace=clock, repeats=Wanted([], [0, 0]))
    numbers = [begin(engine) for _ in range(2)]
    clock.now = 80.0
    numbers.append(begin(engine))
    clock.now = 80.1
    numbers += [begin(engine) for _ in range(3)]
    assert [trial.repeat_of for trial in numbers] == [None, None, None, 0, 0, None]
