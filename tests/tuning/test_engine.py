from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, derive_seed, from_json, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.journal import Journal, read_journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace, Suggest
from tunelab.study import replay
from tunelab.tuning.engine import FAILURES_IN_A_ROW, Engine, Listener
from tunelab.tuning.progress import Silent
from tunelab.tuning.searcher import FixedSource, OptunaSource, Proposal, Source
from tunelab.tuning.stopping import Decision, NeverStop, SuccessiveHalving

EPOCHS = 9  # rungs at 1 and 3
ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))


@pytest.fixture(autouse=True)
def fast_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of events are written here; that each is on the disk in time is tests/test_journal.py's matter."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def draw(suggest: Suggest) -> TrialConfig:
    kind = suggest.suggest_categorical("kind", ("learns", "learns well", "diverges", "fails"))
    rate = suggest.suggest_float("rate", 0.01, 0.99)
    label_smoothing = {"learns": 0.0, "learns well": 0.1, "diverges": 0.2, "fails": 0.3}[kind]
    return TrialConfig(ARCH, TrainConfig(lr=rate, label_smoothing=label_smoothing))


SPACE = SearchSpace("test", "test.py", 1, "a test", draw, ({"kind": "learns", "rate": 0.2},))


def make_source(folder: Path) -> OptunaSource:
    def complete(config: TrialConfig, number: int) -> TrialConfig:
        train = dataclasses.replace(config.train, epochs=EPOCHS)
        return dataclasses.replace(config, train=train, seed=derive_seed(0, number))

    return OptunaSource(SPACE, 0, "tpe", complete, lambda config: {"params": 1}, folder / "optuna.journal")


def measured(config: Mapping[str, Any], epoch: int) -> EpochMetrics:
    """What a training of this configuration measures, always the same; many scores are equal."""
    score = round(config["train"]["lr"] * (1 - 1 / (epoch + 1)), 1) * (1 + config["train"]["label_smoothing"]) / 2
    return EpochMetrics(epoch, 1.0, 0.0, 1 - config["train"]["lr"], score, 0.1, 1.0, 1.0, 1.0)


class Workers:
    """Processes that train in turn, as Ray's do. `disk` holds the checkpoints, `trained` every epoch ever trained."""

    def __init__(self) -> None:
        self.disk: dict[int, int] = {}
        self.trained: list[tuple[int, int]] = []

    def run(self, engine: Engine, concurrent: int = 1, order: random.Random | None = None) -> None:
        """Runs the engine until it has nothing more to do or halts."""
        running: dict[int, list[int]] = {}
        while not engine.should_halt:
            while len(running) < concurrent:
                trial = engine.next_trial()
                if trial is None:
                    break
                done = self.disk.get(trial.number, 0)
                known = len(trial.epochs)
                running[trial.number] = list(range(known + 1, done + 1)) or ([done] if done else [])
            if not running:
                return
            number = min(running) if order is None else order.choice(sorted(running))
            if not self.step(engine, number, running[number]):
                del running[number]

    def step(self, engine: Engine, number: int, untold: list[int]) -> bool:
        config = engine.trials[number].config
        smoothing = config["train"]["label_smoothing"]
        if untold:
            return engine.report(number, measured(config, untold.pop(0)))
        epoch = self.disk.get(number, 0) + 1
        if (smoothing, epoch) == (0.2, 3):
            engine.end(number, TrialStatus.DIVERGED, "the loss became nan")
            return False
        if (smoothing, epoch) == (0.3, 2):
            engine.end(number, TrialStatus.FAILED, f"trial {number} cannot")
            return False
        self.trained.append((number, epoch))
        self.disk[number] = epoch
        return engine.report(number, measured(config, epoch))


class Search:
    """A search in a folder that can be killed and gone on with."""

    def __init__(self, folder: Path, total: int = 12) -> None:
        self.folder = folder
        self.total = total
        folder.mkdir(exist_ok=True)

    def known(self) -> list[Trial]:
        return replay(read_journal(self.folder / "journal.jsonl"))

    def start(self, workers: Workers, concurrent: int = 1, order: random.Random | None = None) -> Engine:
        journal = Journal.open(self.folder)
        stopping = SuccessiveHalving(EPOCHS, protected={0})
        engine = Engine(journal, self.known(), make_source(self.folder), stopping, self.total, Silent())
        workers.run(engine, concurrent, order)
        journal.close()
        return engine


def books(search: Search) -> list[Trial]:
    """The trials, after checking what must hold at the end of every search."""
    events = list(read_journal(search.folder / "journal.jsonl"))
    trials = search.known()
    assert [trial.number for trial in trials] == list(range(search.total))
    assert all(trial.status.ended for trial in trials)
    for name in ("proposed", "ended"):
        numbers = [event["trial"] for event in events if event["event"] == name]
        assert sorted(numbers) == list(range(search.total)), f"{name} once each"
    results = [(event["trial"], event["metrics"]["epoch"]) for event in events if event["event"] == "result"]
    assert len(set(results)) == len(results), "no epoch twice"
    decisions = [(event["trial"], event["decision"]["epoch"]) for event in events if event["event"] == "decision"]
    assert len(set(decisions)) == len(decisions), "no decision twice"
    assert len({str(trial.params) for trial in trials}) == search.total
    for trial in trials:
        assert [metrics.epoch for metrics in trial.epochs] == list(range(1, len(trial.epochs) + 1))
        assert (trial.status is TrialStatus.COMPLETED) == (len(trial.epochs) == EPOCHS)
        assert (trial.status is TrialStatus.STOPPED) == any(decision["stop"] for decision in trial.decisions)
    return trials


def truncate(search: Search, folder: Path, lines: int, extra: bytes = b"") -> Search:
    """A copy of a search as a crash after so many events would have left it."""
    copy = Search(folder, search.total)
    whole = (search.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(whole[:lines]) + extra)
    mirror = search.folder / "optuna.journal"
    (folder / "optuna.journal").write_bytes(mirror.read_bytes())  # ahead of the record
    return copy


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search of one trial at a time, with every kind of end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        search = Search(tmp_path_factory.mktemp("unbroken"))
        workers = Workers()
        engine = search.start(workers)
    trials = books(search)
    assert engine.unfinished == 0
    assert {trial.status.value for trial in trials} == {"COMPLETED", "STOPPED", "DIVERGED", "FAILED"}
    assert len(set(workers.trained)) == len(workers.trained)
    return search


def test_a_crash_at_every_event_changes_nothing(unbroken: Search, tmp_path: Path) -> None:
    """The search that goes on ends as the unbroken one: configurations, results, decisions and ends."""
    expected = unbroken.known()
    lines = (unbroken.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines) + 1):
        for ahead in (0, 1):  # the trial's process had trained one more epoch than the record holds
            search = truncate(
                unbroken, tmp_path / f"cut-{cut}-{ahead}", cut, lines[cut][:7] if cut < len(lines) else b""
            )
            workers = Workers()
            workers.disk = {trial.number: len(trial.epochs) for trial in search.known()}
            running = [trial for trial in search.known() if not trial.status.ended]
            if ahead:
                if not running or len(running[0].epochs) >= len(expected[running[0].number].epochs):
                    continue
                workers.disk[running[0].number] += 1
            before = dict(workers.disk)
            search.start(workers)
            assert books(search) == expected, f"after {cut} events"
            retrained = [(number, epoch) for number, epoch in workers.trained if epoch <= before.get(number, 0)]
            assert retrained == [], "no epoch that was trained is trained again"


@pytest.mark.parametrize("seed", range(6))
def test_crashes_of_a_parallel_search_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    search, workers = Search(tmp_path / "study", total=15), Workers()
    for _ in range(40):
        journal = Journal.open(search.folder)
        source = make_source(search.folder)
        engine = Engine(journal, search.known(), source, SuccessiveHalving(EPOCHS, {0}), search.total, Silent())
        left = generator.randrange(1, 12)
        monkey = journal.append

        def append(event: Mapping[str, Any], monkey: Callable[..., None] = monkey) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # the power goes
            monkey(event)

        journal.append = append  # type: ignore[method-assign]
        try:
            workers.run(engine, 3, generator)
            break
        except KeyboardInterrupt:
            pass
        finally:
            journal.close()
    search.start(workers, 3)
    books(search)
    assert len(set(workers.trained)) == len(workers.trained), "no epoch is trained twice"


def test_a_finished_search_has_nothing_to_do(unbroken: Search, tmp_path: Path) -> None:
    copy = truncate(unbroken, tmp_path / "copy", 10_000)
    before = (copy.folder / "journal.jsonl").read_bytes()
    workers = Workers()
    engine = copy.start(workers)
    assert engine.next_trial() is None
    assert (engine.unfinished, engine.halted, workers.trained) == (0, "", [])
    assert (copy.folder / "journal.jsonl").read_bytes() == before


# One engine, driven by hand.


class Log:
    """Writes down, in one list, what the record, the source and the listener are told."""

    def __init__(self) -> None:
        self.said: list[str] = []


class LoggingJournal:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.events: list[Mapping[str, Any]] = []
        self.broken = False

    def append(self, event: Mapping[str, Any]) -> None:
        if self.broken:
            raise TunelabError("the record cannot be written: No space left on device")
        self.log.said.append(f"record {event['event']} {event['trial']}")
        self.events.append(event)


class LoggingSource(FixedSource):
    def __init__(self, log: Log, configs: list[TrialConfig]) -> None:
        super().__init__(configs, lambda config: {"params": 1})
        self.log = log

    def observe(self, number: int, epoch: int, score: float) -> None:
        self.log.said.append(f"source observe {number} {epoch} {score}")

    def end(self, number: int, status: TrialStatus, score: float | None) -> None:
        self.log.said.append(f"source end {number} {status.value} {score}")


class LoggingListener:
    def __init__(self, log: Log) -> None:
        self.log = log

    def started(self, trial: Trial) -> None:
        self.log.said.append(f"started {trial.number}")

    def reported(self, trial: Trial) -> None:
        self.log.said.append(f"reported {trial.number} {len(trial.epochs)}")

    def ended(self, trial: Trial) -> None:
        self.log.said.append(f"ended {trial.number} {trial.status.value}")


class StopsAtTwo:
    """A rule with a rung at epoch 2, where everything stops."""

    def report(self, number: int, epoch: int, score: float, loss: float) -> Decision | None:
        return Decision(2, True, score, loss, 2, 3, 1, 0.9, "place 2 of 3, 1 go on") if epoch == 2 else None

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        pass


def configs(count: int, epochs: int = 3) -> list[TrialConfig]:
    return [TrialConfig(ARCH, TrainConfig(epochs=epochs), seed=seed) for seed in range(count)]


def epoch(number: int, score: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0)


def make_engine(
    count: int = 3, stopping: Any = None, known: list[Trial] | None = None, ends: float | None = None
) -> tuple[Engine, LoggingJournal, list[str]]:
    log = Log()
    journal = LoggingJournal(log)
    source: Source = LoggingSource(log, configs(count))
    listener: Listener = LoggingListener(log)
    engine = Engine(journal, known or [], source, stopping or NeverStop(), count, listener, ends)  # type: ignore[arg-type]
    return engine, journal, log.said


def test_everything_is_in_the_record_before_it_is_acted_on() -> None:
    engine, journal, said = make_engine(1, StopsAtTwo())
    trial = engine.next_trial()
    assert trial is not None
    assert engine.report(0, epoch(1, 0.25))
    assert not engine.report(0, epoch(2, 0.5))
    assert said == [
        "record proposed 0",
        "started 0",
        "record result 0",
        "source observe 0 1 0.25",
        "reported 0 1",
        "record result 0",
        "source observe 0 2 0.5",
        "reported 0 2",
        "record decision 0",
        "record ended 0",
        "source end 0 STOPPED 0.5",
        "ended 0 STOPPED",
    ]
    assert from_json(TrialConfig, journal.events[0]["config"]) == configs(1)[0]
    assert journal.events[-1]["reason"] == "epoch 2: place 2 of 3, 1 go on"
    assert journal.events[3]["decision"]["cutoff"] == 0.9
    assert replay(journal.events) == [trial]


def test_the_last_epoch_completes_a_trial() -> None:
    engine, journal, said = make_engine(1)
    engine.next_trial()
    assert [engine.report(0, epoch(number)) for number in (1, 2, 3)] == [True, True, False]
    assert said[-3:] == ["record ended 0", "source end 0 COMPLETED 0.5", "ended 0 COMPLETED"]
    assert journal.events[-1]["status"] == "COMPLETED"
    assert engine.unfinished == 0


def test_a_report_that_comes_twice_changes_nothing() -> None:
    engine, _, said = make_engine(1, StopsAtTwo())
    engine.next_trial()
    engine.report(0, epoch(1))
    before = list(said)
    assert engine.report(0, epoch(1)), "it goes on"
    assert engine.report(0, epoch(1, 0.9)), "the first result stays, whatever comes again"
    assert said == before
    engine.report(0, epoch(2))
    before = list(said)
    assert not engine.report(0, epoch(2))
    assert not engine.report(0, epoch(3)), "an ended trial stays ended"
    engine.end(0, TrialStatus.FAILED, "too late")
    assert said == before
    assert engine.trials[0].status is TrialStatus.STOPPED


def test_what_was_told_before_a_restart_and_comes_again_changes_nothing() -> None:
    known = [Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2)])]
    engine, _, said = make_engine(2, known=known)
    assert engine.next_trial() is known[0]
    assert said == ["started 0"]
    assert engine.report(0, epoch(2))
    assert said == ["started 0"]
    assert not engine.report(0, epoch(3))
    second = engine.next_trial()
    assert second is not None
    assert second.number == 1


def test_open_trials_come_first_after_a_restart() -> None:
    def known(number: int, status: str) -> Trial:
        return Trial(number, to_json(configs(6)[number]), status=TrialStatus(status), epochs=[epoch(1)])

    trials = [known(0, "COMPLETED"), known(1, "PAUSED"), known(2, "FAILED"), known(3, "RUNNING")]
    engine, _, _ = make_engine(6, known=trials)
    assert engine.unfinished == 4
    handed = [engine.next_trial() for _ in range(5)]
    assert [None if trial is None else trial.number for trial in handed] == [1, 3, 4, 5, None]
    assert all(trial is None or trial.status is TrialStatus.RUNNING for trial in handed)


def test_what_a_crash_left_undecided_is_decided_at_the_start() -> None:
    full = Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2), epoch(3)])
    engine, journal, _ = make_engine(1, known=[full])
    assert [event["event"] for event in journal.events] == ["ended"]
    assert (engine.unfinished, engine.next_trial()) == (0, None)
    at_rung = Trial(0, to_json(configs(1)[0]), epochs=[epoch(1), epoch(2)])
    engine, journal, _ = make_engine(1, StopsAtTwo(), known=[at_rung])
    assert [event["event"] for event in journal.events] == ["decision", "ended"]
    decided = dataclasses.replace(at_rung, status=TrialStatus.RUNNING, decisions=[{**DECIDED}])
    engine, journal, _ = make_engine(1, SuccessiveHalving(54), known=[decided])
    assert [(event["event"], event["reason"]) for event in journal.events] == [("ended", "epoch 2: as it was then")]


DECIDED = {"epoch": 2, "stop": True, "score": 0.5, "loss": 1.0, "why": "as it was then"}


def test_rungs_are_filled_again_after_a_restart() -> None:
    def known(number: int, score: float) -> Trial:
        decision = {"epoch": 2, "stop": False, "score": score, "loss": 1.0}
        status = TrialStatus.COMPLETED
        return Trial(number, to_json(configs(4, 54)[number]), status=status, epochs=[epoch(1)], decisions=[decision])

    rule = SuccessiveHalving(54)
    make_engine(4, rule, known=[known(0, 0.9), known(1, 0.8), known(2, 0.7)])
    decision = rule.report(3, 2, 0.1, 1.0)
    assert decision is not None
    assert (decision.rank, decision.rivals) == (4, 4)


def test_a_deadline_halts_and_nothing_more_is_handed_out() -> None:
    engine, _, said = make_engine(2, ends=-1.0)  # the monotonic clock began at 0
    assert engine.next_trial() is None
    assert engine.should_halt
    assert (engine.halted, engine.error, engine.unfinished, said) == ("deadline", None, 2, [])
    engine, _, _ = make_engine(2, ends=float("inf"))
    assert engine.next_trial() is not None
    assert not engine.should_halt


def test_the_first_reason_to_halt_stays() -> None:
    engine, _, _ = make_engine(2, ends=-1.0)
    engine.halt("SIGINT")
    engine.halt("SIGTERM")
    assert engine.should_halt
    assert engine.halted == "SIGINT"


def test_results_that_come_after_a_halt_are_recorded_still() -> None:
    engine, journal, _ = make_engine(2)
    engine.next_trial()
    engine.halt("SIGINT")
    assert engine.report(0, epoch(1))
    assert journal.events[-1]["event"] == "result"


def fail(engine: Engine, reason: str, status: TrialStatus = TrialStatus.FAILED) -> None:
    trial = engine.next_trial()
    assert trial is not None
    engine.end(trial.number, status, reason)


def test_five_failures_in_a_row_with_one_cause_end_the_search() -> None:
    engine, _, _ = make_engine(20)
    for _ in range(FAILURES_IN_A_ROW - 1):
        fail(engine, "no data")
    assert not engine.should_halt
    fail(engine, "no data")
    assert engine.should_halt
    assert engine.next_trial() is None
    assert engine.halted == "failures"
    assert str(engine.error) == "5 trials in a row failed with: no data"
    assert isinstance(engine.error, TunelabError)
    assert engine.error.exit_status == 1
    assert engine.unfinished == 15


def test_failures_of_several_causes_or_with_others_between_them_do_not() -> None:
    engine, _, _ = make_engine(20)
    for number in range(8):
        fail(engine, f"cause {number % 2}")
    for _ in range(3):
        fail(engine, "no data")
        fail(engine, "no data")
        fail(engine, "no data")
        fail(engine, "the loss became nan", TrialStatus.DIVERGED)
    assert not engine.should_halt


@pytest.mark.parametrize("at", ["proposed", "result", "ended"])
def test_a_record_that_cannot_be_written_ends_the_search(at: str) -> None:
    engine, journal, said = make_engine(3)
    if at == "proposed":
        journal.broken = True
        with pytest.raises(TunelabError, match="No space left"):
            engine.next_trial()
        assert engine.trials == {}, "what is not recorded did not happen"
    else:
        engine.next_trial()
        before = list(said)
        journal.broken = True
        with pytest.raises(TunelabError, match="No space left"):
            engine.report(0, epoch(1)) if at == "result" else engine.end(0, TrialStatus.FAILED, "x")
        assert said == before
        assert engine.trials[0].epochs == []
        assert engine.trials[0].status is TrialStatus.RUNNING
    assert engine.should_halt
    assert "No space left" in str(engine.error)


def test_a_source_without_proposals_ends_the_search_and_lets_the_running_trials_end() -> None:
    class Empty(LoggingSource):
        def propose(self, number: int) -> Proposal:
            if number == 2:
                raise InputError("none of 500 draws is within the limits")
            return super().propose(number)

    log = Log()
    source = Empty(log, configs(5))
    engine = Engine(LoggingJournal(log), [], source, NeverStop(), 5, LoggingListener(log))  # type: ignore[arg-type]
    assert [engine.next_trial() is None for _ in range(4)] == [False, False, True, True]
    assert "none of 500 draws" in str(engine.error)
    assert not engine.should_halt
    assert engine.report(0, epoch(1))


def test_a_record_with_more_trials_than_asked_for_is_finished_all_the_same() -> None:
    known = [Trial(number, to_json(configs(3)[number]), epochs=[epoch(1)]) for number in range(3)]
    engine, _, _ = make_engine(2, known=known)
    assert engine.unfinished == 3
    handed = [engine.next_trial() for _ in range(4)]
    assert [trial.number for trial in handed if trial is not None] == [0, 1, 2]
