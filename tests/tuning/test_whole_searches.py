"""Whole searches on simulated workers: interrupted anywhere they end as if they had not been, and the books balance."""

from __future__ import annotations

import dataclasses
import heapq
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, derive_seed
from tunelab.journal import Journal, read_journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace, Suggest
from tunelab.study import replay
from tunelab.tuning import deadline as deadline_module
from tunelab.tuning import engine as engine_module
from tunelab.tuning.deadline import Deadline
from tunelab.tuning.engine import Engine
from tunelab.tuning.ledger import open_mirror
from tunelab.tuning.progress import Silent
from tunelab.tuning.repeats import Race
from tunelab.tuning.searcher import OptunaSource
from tunelab.tuning.sources import FixedSource, Source
from tunelab.tuning.stopping import SuccessiveHalving

EPOCHS = 9  # rungs at 1 and 3
ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))
KINDS = {"learns": 0.0, "learns well": 0.1, "diverges": 0.2, "fails": 0.3}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of events are written here; that each is on the disk in time is tests/test_journal.py's matter."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def draw(suggest: Suggest) -> TrialConfig:
    kind = suggest.suggest_categorical("kind", tuple(KINDS))
    rate = suggest.suggest_float("rate", 0.05, 0.95, step=0.05)
    return TrialConfig(ARCH, TrainConfig(lr=rate, label_smoothing=KINDS[kind]))


SPACE = SearchSpace("test", "test.py", 1, "a test", draw, ({"kind": "learns", "rate": 0.2},))


def make_source(folder: Path, sampler: str, seed: int) -> OptunaSource:
    def complete(config: TrialConfig, number: int) -> TrialConfig:
        train = dataclasses.replace(config.train, epochs=EPOCHS)
        return dataclasses.replace(config, train=train, seed=derive_seed(0, number))

    return OptunaSource(SPACE, seed, sampler, complete, lambda config: {"params": 1}, folder / "optuna.journal")


def measured(config: Mapping[str, Any], epoch: int) -> EpochMetrics:
    """What a training of this configuration measures, always the same; many scores are equal, but for the seed."""
    rate, well = config["train"]["lr"], config["train"]["label_smoothing"] == KINDS["learns well"]
    score = rate * (1 - 1 / (epoch + 1)) * (1.0 if well else 0.9) + config["seed"] % 2 / 100
    return EpochMetrics(epoch, 1.0, 0.0, 1 - rate, score, 0.1, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Mode:
    """How a search decides."""

    promote: bool
    repeats: bool
    sampler: str = "random"
    seed: int = 7

    def stopping(self) -> SuccessiveHalving:
        return SuccessiveHalving(EPOCHS, {0}, promote=self.promote)

    def engine(self, journal: Any, known: list[Trial], source: Source, total: int, **more: Any) -> Engine:
        race = Race(0.3, 16, EPOCHS, 10_000, baseline=True)
        if self.repeats:
            more = {"repeats": race, "noise": race.sd, **more}
        return Engine(journal, known, source, self.stopping(), total, Silent(), **more)


MODES = {
    "asha": Mode(promote=False, repeats=False, sampler="tpe", seed=0),
    "promote": Mode(promote=True, repeats=False),
    "asha, repeats": Mode(promote=False, repeats=True),
    "promote, repeats": Mode(promote=True, repeats=True),
}


class Workers:
    """Processes that train in turn, as Ray's do. `disk` holds the checkpoints, `trained` every epoch ever trained."""

    def __init__(self) -> None:
        self.disk: dict[int, int] = {}
        self.trained: list[tuple[int, int]] = []
        self.handed: list[tuple[int, int]] = []

    def run(self, engine: Engine, concurrent: int = 1, order: random.Random | None = None) -> None:
        """Runs the engine until it has nothing more to do or halts."""
        running: dict[int, list[int]] = {}
        while not engine.should_halt:
            while len(running) < concurrent:
                assert engine.waits == bool(running), "it is not over while anything runs"
                trial = engine.next_trial()
                if trial is None:
                    break
                assert trial.number not in running
                assert trial.status is TrialStatus.RUNNING
                self.handed.append((trial.number, len(trial.epochs)))
                running[trial.number] = self.untold(trial)
            if not running:
                return
            number = min(running) if order is None else order.choice(sorted(running))
            if not self.step(engine, number, running[number]):
                del running[number]

    def untold(self, trial: Trial) -> list[int]:
        """What the trial's worker tells before it trains: what the record does not hold, at least the last epoch."""
        done = self.disk.get(trial.number, 0)
        return list(range(len(trial.epochs) + 1, done + 1)) or ([done] if done else [])

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

    def __init__(self, folder: Path, mode: Mode, total: int = 12) -> None:
        self.folder = folder
        self.mode = mode
        self.total = total
        folder.mkdir(exist_ok=True)

    def known(self) -> list[Trial]:
        return replay(read_journal(self.folder / "journal.jsonl"))

    def engine(self, journal: Journal) -> Engine:
        source = make_source(self.folder, self.mode.sampler, self.mode.seed)
        return self.mode.engine(journal, self.known(), source, self.total)

    def start(self, workers: Workers, concurrent: int = 1, order: random.Random | None = None) -> Engine:
        journal = Journal.open(self.folder)
        engine = self.engine(journal)
        workers.run(engine, concurrent, order)
        journal.close()
        return engine


def books(search: Search) -> list[Trial]:
    """The trials, after checking what must hold at the end of every search."""
    trials = check_books(list(read_journal(search.folder / "journal.jsonl")), search.mode, search.total)
    assert trials == search.known()
    assert len({str(trial.config["train"]) for trial in trials if trial.repeat_of is None}) == search.total
    ledger = open_mirror(search.folder / "optuna.journal", "test", trials)
    assert ledger is not None, "Optuna's journal is as the record"
    return trials


def check_books(events: list[dict[str, Any]], mode: Mode, total: int) -> list[Trial]:
    trials = replay(events)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.status.ended for trial in trials)
    own = [trial for trial in trials if trial.repeat_of is None]
    assert len(own) == total
    for name in ("proposed", "ended"):
        numbers = [event["trial"] for event in events if event["event"] == name]
        assert sorted(numbers) == list(range(len(trials))), f"{name} once each"
    results = [(event["trial"], event["metrics"]["epoch"]) for event in events if event["event"] == "result"]
    assert len(set(results)) == len(results), "no epoch twice"
    decided = [(event["trial"], event["decision"]) for event in events if event["event"] == "decision"]
    numbers = [(number, decision["epoch"], decision["pause"]) for number, decision in decided]
    assert len(set(numbers)) == len(numbers), "decided once, and promoted once if it paused"
    assert len({trial.config["seed"] for trial in trials}) == len(trials)
    for trial in trials:
        assert [metrics.epoch for metrics in trial.epochs] == list(range(1, len(trial.epochs) + 1))
        assert (trial.status is TrialStatus.COMPLETED) == (len(trial.epochs) == EPOCHS)
        check_decisions(trial, mode)
        if trial.repeat_of is not None:
            first = trials[trial.repeat_of]
            assert {**trial.config, "seed": 0} == {**first.config, "seed": 0}
            assert (trial.params, trial.stats, trial.arch_id) == (first.params, first.stats, first.arch_id)
    assert mode.repeats or len(own) == len(trials)
    check_promotions(own, mode)
    return trials


def check_decisions(trial: Trial, mode: Mode) -> None:
    """The trial stands as its decisions say, and went on or waited where they say so."""
    made = trial.decisions
    assert trial.repeat_of is None or made == [], "a repeat is never compared at a rung"
    rungs = [rung for rung in mode.stopping().rungs if rung <= len(trial.epochs)]
    if trial.repeat_of is None and trial.status is not TrialStatus.FAILED:
        assert sorted({one["epoch"] for one in made}) == rungs
    assert [one["epoch"] for one in made] == sorted(one["epoch"] for one in made)
    weak = [one for one in made if one["stop"] or one["pause"]]
    assert all(one["pause"] == mode.promote for one in weak)
    ended_weak = bool(made) and (made[-1]["stop"] or made[-1]["pause"])
    assert (trial.status is TrialStatus.STOPPED) == ended_weak
    if ended_weak:
        assert trial.reason == f"epoch {made[-1]['epoch']}: {made[-1]['why']}"
        assert len(trial.epochs) == made[-1]["epoch"]
    if not mode.promote:
        assert len(made) == len({one["epoch"] for one in made})
    assert trial.number != 0 or not weak, "the baseline runs its full length"


def check_promotions(trials: list[Trial], mode: Mode) -> None:
    """Nobody was left waiting who is one of the best of the rung."""
    rule = mode.stopping()
    for trial in trials:
        for one in trial.decisions:
            rule.restore(trial.number, one["epoch"], one["score"], one["loss"])
    stopped = [trial.number for trial in trials if trial.status is TrialStatus.STOPPED]
    assert not mode.promote or rule.promotable(stopped) is None


def truncate(search: Search, folder: Path, lines: int, extra: bytes = b"") -> Search:
    """A copy of a search as a crash after so many events would have left it."""
    copy = Search(folder, search.mode, search.total)
    whole = (search.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(whole[:lines]) + extra)
    mirror = search.folder / "optuna.journal"
    (folder / "optuna.journal").write_bytes(mirror.read_bytes())  # ahead of the record
    return copy


@pytest.fixture(scope="module", params=MODES)
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search of one trial at a time, with every kind of end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        search = Search(tmp_path_factory.mktemp("unbroken"), MODES[request.param])
        workers = Workers()
        engine = search.start(workers)
        trials = books(search)
    assert (engine.unfinished, engine.has_work, engine.waits) == (0, False, False)
    assert {trial.status.value for trial in trials} == {"COMPLETED", "STOPPED", "DIVERGED", "FAILED"}
    assert len(set(workers.trained)) == len(workers.trained)
    return search


def test_a_search_has_what_its_mode_brings(unbroken: Search) -> None:
    """Otherwise the other tests of this file would show nothing."""
    trials, events = unbroken.known(), list(read_journal(unbroken.folder / "journal.jsonl"))
    promoted = [trial.number for trial in trials if any(one["pause"] for one in trial.decisions[:-1])]
    assert bool(promoted) == unbroken.mode.promote
    repeats = [trial for trial in trials if trial.repeat_of is not None]
    assert bool(repeats) == unbroken.mode.repeats
    if repeats:
        early, late = repeats[0], repeats[-1]
        assert (early.repeat_of, early.number, late.number) == (0, 4, len(trials) - 1)
        assert {trial.repeat_of for trial in repeats} - {0}, "finalists beside the baseline"
        last_own = max(trial.number for trial in trials if trial.repeat_of is None)
        assert last_own < repeats[1].number, "the race begins when all have been tried"
        assert any(one["noise"] > 0 for trial in trials for one in trial.decisions)
        race = [index for index, event in enumerate(events) if event["trial"] > last_own]
        assert {event["trial"] for event in events[race[0] :]} == {trial.number for trial in repeats[1:]}


def test_a_crash_at_every_event_changes_nothing(unbroken: Search, tmp_path: Path) -> None:
    """The search that goes on ends as the unbroken one: configurations, results, decisions and ends."""
    expected = unbroken.known()
    lines = (unbroken.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines) + 1):
        for ahead in (0, 1) if unbroken.mode == MODES["asha"] else (cut % 2,):  # trained one more than is recorded
            search = truncate(
                unbroken, tmp_path / f"cut-{cut}-{ahead}", cut, lines[cut][:7] if cut < len(lines) else b""
            )
            workers = Workers()
            workers.disk = {trial.number: len(trial.epochs) for trial in search.known()}
            waiting = {trial.number: len(trial.decisions) for trial in search.known() if is_paused(trial)}
            running = [trial for trial in search.known() if not trial.status.ended and trial.number not in waiting]
            if ahead and running and len(running[0].epochs) < len(expected[running[0].number].epochs):
                workers.disk[running[0].number] += 1
            before = dict(workers.disk)
            search.start(workers)
            assert books(search) == expected, f"after {cut} events"
            retrained = [(number, epoch) for number, epoch in workers.trained if epoch <= before.get(number, 0)]
            assert retrained == [], "no epoch that was trained is trained again"
            again = {number for number, _ in workers.handed} & set(waiting)
            assert again == {number for number, made in waiting.items() if len(expected[number].decisions) > made}


def is_paused(trial: Trial) -> bool:
    """True if the trial waits at a rung."""
    return not trial.status.ended and bool(trial.decisions) and trial.decisions[-1]["pause"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_crashes_of_a_parallel_search_lose_and_double_nothing(tmp_path: Path, seed: int, mode: str) -> None:
    generator = random.Random(seed)
    search, workers = Search(tmp_path / "study", MODES[mode], total=15), Workers()
    for _ in range(40):
        journal = Journal.open(search.folder)
        left = generator.randrange(1, 12)
        monkey = journal.append

        def append(*events: Mapping[str, Any], monkey: Callable[..., None] = monkey) -> None:
            nonlocal left
            written = events[: max(0, left)]  # of those that are written together, the first may be all there is
            left -= len(events)
            monkey(*written)
            if left < 0:
                raise KeyboardInterrupt  # the power goes

        journal.append = append  # type: ignore[method-assign]
        try:
            workers.run(search.engine(journal), 3, generator)
            break
        except KeyboardInterrupt:
            pass
        finally:
            journal.close()
    engine = search.start(workers, 3)
    assert not engine.has_work
    books(search)
    assert len(set(workers.trained)) == len(workers.trained), "no epoch is trained twice"


def test_a_finished_search_has_nothing_to_do(unbroken: Search, tmp_path: Path) -> None:
    copy = truncate(unbroken, tmp_path / "copy", 10_000)
    before = (copy.folder / "journal.jsonl").read_bytes()
    workers = Workers()
    engine = copy.start(workers)
    assert engine.next_trial() is None
    assert (engine.unfinished, engine.has_work, engine.waits) == (0, False, False)
    assert (engine.halted, workers.trained) == ("", [])
    assert (copy.folder / "journal.jsonl").read_bytes() == before


# Any order, without a disk.


class Memory:
    """A record that is kept in memory."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def append(self, *events: Mapping[str, Any]) -> None:
        self.events += map(dict, events)


def make_list(seed: int, count: int = 60) -> FixedSource:
    """Configurations of all kinds, half of them such that learn."""
    luck = random.Random(seed)
    kinds = [*KINDS.values(), 0.0, 0.1]
    recipes = [
        TrainConfig(lr=luck.randrange(1, 20) / 20, label_smoothing=luck.choice(kinds) if n else 0.0, epochs=EPOCHS)
        for n in range(count)
    ]
    return FixedSource([TrialConfig(ARCH, recipe, seed=n) for n, recipe in enumerate(recipes)], lambda _: {"params": 1})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    luck=st.randoms(use_true_random=False),
    mode=st.sampled_from(sorted(MODES)),
    total=st.integers(1, 18),
    concurrent=st.integers(1, 5),
    kills=st.integers(0, 3),
)
def test_the_books_balance_in_any_order(
    luck: random.Random, mode: str, total: int, concurrent: int, kills: int
) -> None:
    record, workers, source = Memory(), Workers(), make_list(luck.randrange(1000))
    for start in range(kills + 1):
        engine = MODES[mode].engine(record, replay(record.events), source, total)
        if start < kills:
            until, step = luck.randrange(1, 60), engine.report

            def report(number: int, metrics: EpochMetrics, step: Any = step, until: int = until) -> bool:
                if len(record.events) > until:
                    raise KeyboardInterrupt
                return bool(step(number, metrics))

            engine.report = report  # type: ignore[method-assign]
        try:
            workers.run(engine, concurrent, luck)
        except KeyboardInterrupt:
            continue
    trials = check_books(record.events, MODES[mode], total)
    assert not engine.has_work
    assert len(set(workers.trained)) == len(workers.trained)
    repeats = [trial for trial in trials if trial.repeat_of is not None]
    race = sum(len(trial.epochs) for trial in repeats if trial.repeat_of != 0)
    searched = sum(len(trial.epochs) for trial in trials if trial.repeat_of is None)
    assert race <= 0.3 / 0.7 * searched + EPOCHS, "the race keeps to its share of the time"


# A deadline, on a clock of its own.


class Clock:
    """A machine whose epochs take `1 + number % 3` seconds, and who knows it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.begun: list[tuple[float, Trial]] = []

    def seconds(self, trial: Trial, epochs: int) -> float:
        return float((1 + trial.number % 3) * epochs)

    def run(self, engine: Engine, workers: Workers, concurrent: int) -> None:
        """Runs the engine on slots until it halts or is done; what runs when it halts is lost."""
        jobs: list[tuple[float, int, list[int]]] = []
        while not engine.should_halt:
            while len(jobs) < concurrent and (trial := engine.next_trial()) is not None:
                self.begun.append((self.now, trial))
                heapq.heappush(jobs, (self.now + self.seconds(trial, 1), trial.number, workers.untold(trial)))
            if not jobs:
                return
            self.now, number, untold = heapq.heappop(jobs)
            goes_on = not engine.should_halt and workers.step(engine, number, untold)
            while goes_on and untold:
                goes_on = workers.step(engine, number, untold)
            if goes_on:
                heapq.heappush(jobs, (self.now + self.seconds(engine.trials[number], 1), number, untold))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(
    mode=st.sampled_from(sorted(MODES)),
    ends=st.floats(0.5, 120),
    share=st.floats(0.0, 0.9),
    concurrent=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_before_a_deadline_nothing_is_begun_in_vain(
    mode: str, ends: float, share: float, concurrent: int, seed: int
) -> None:
    """Each trial that is begun has an epoch at least, each repeat all of them; then the search goes on to its end."""
    clock, workers, record, source = Clock(), Workers(), Memory(), make_list(seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine_module, deadline_module):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 0.0))
        deadline = Deadline.after(ends, share)
        assert deadline == Deadline(ends, ends * (1 - share), ends)
        engine = MODES[mode].engine(record, [], source, 16, deadline=deadline, pace=clock)
        clock.run(engine, workers, concurrent)
        assert engine.halted == ("deadline" if engine.has_work else "")
        assert clock.now <= ends + 3
        for at, trial in clock.begun:
            least = 1 if trial.repeat_of is None else EPOCHS
            failed = trial.status in (TrialStatus.DIVERGED, TrialStatus.FAILED)
            assert len(trial.epochs) >= least or failed, f"trial {trial.number} was begun at {at} in vain"
        again = MODES[mode].engine(record, replay(record.events), source, 16)
        clock.run(again, workers, concurrent)
    check_books(record.events, MODES[mode], 16)
    assert not again.has_work
    assert len(set(workers.trained)) == len(workers.trained)
