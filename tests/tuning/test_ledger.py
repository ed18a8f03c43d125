"""Optuna's journal of a search: what its dashboard reads, written beside the record, made anew if it does not fit."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, derive_seed, to_json
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace, Suggest
from tunelab.tuning import ledger as ledger_module
from tunelab.tuning.ledger import STATES, Ledger, journal_storage, open_mirror
from tunelab.tuning.searcher import OptunaSource

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))
BASELINE: dict[str, Any] = {"x": 0.125, "kind": "sgd"}


def draw(suggest: Suggest) -> TrialConfig:
    """A space with a parameter that is only there sometimes."""
    x = suggest.suggest_float("x", 0.001, 1.0)
    kind = suggest.suggest_categorical("kind", ("sgd", "adam", "adamw"))
    batch = 8 * suggest.suggest_int("batch", 1, 9) if kind == "adam" else 32
    return TrialConfig(ARCH, TrainConfig(lr=x, optimizer=kind, batch_size=batch))


SPACE = SearchSpace("test", "test.py", 1, "a test", draw, (BASELINE,))


def make_source(storage: Path, known: list[Trial] | None = None) -> OptunaSource:
    def complete(config: TrialConfig, number: int) -> TrialConfig:
        return dataclasses.replace(config, seed=derive_seed(1, "trial", number))

    def check(_config: TrialConfig) -> Mapping[str, Any]:
        return {"params": 10}

    source = OptunaSource(SPACE, 1, "tpe", complete, check, storage)
    source.restore(known or [])
    return source


class Run:
    """A search without Ray and without training: what an engine does with a source, kept as trials."""

    def __init__(self, source: OptunaSource, trials: list[Trial] | None = None) -> None:
        self.source = source
        self.trials = list(trials or [])

    def propose(self) -> Trial:
        proposal = self.source.propose(len(self.trials), {trial.number: trial for trial in self.trials})
        trial = Trial(len(self.trials), to_json(proposal.config), dict(proposal.params), stats=dict(proposal.stats))
        self.trials.append(trial)
        return trial

    def repeat(self, of: int) -> Trial:
        first = self.trials[of]
        trial = Trial(len(self.trials), {**first.config, "seed": 5}, first.params, stats=first.stats, repeat_of=of)
        self.trials.append(trial)
        self.source.adopt(trial)
        return trial

    def report(self, trial: Trial, *scores: float) -> None:
        for score in scores:
            metrics = EpochMetrics(len(trial.epochs) + 1, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0)
            trial.epochs.append(metrics)
            self.source.observe(trial.number, metrics.epoch, score)

    def end(self, trial: Trial, status: TrialStatus) -> None:
        trial.status = status
        self.source.end(trial.number, status, trial.score)

    def add(self, status: TrialStatus, *scores: float) -> Trial:
        trial = self.propose()
        self.report(trial, *scores)
        if status.ended:
            self.end(trial, status)
        return trial

    def add_one_of_each(self) -> None:
        self.add(TrialStatus.COMPLETED, 0.1, 0.2, 0.3, 0.4)
        self.add(TrialStatus.STOPPED, 0.3)
        self.add(TrialStatus.DIVERGED, 0.2)
        self.add(TrialStatus.FAILED)
        self.add(TrialStatus.RUNNING, 0.15)
        self.add(TrialStatus.RUNNING)
        self.add(TrialStatus.RUNNING, 0.1, 0.2).status = TrialStatus.PAUSED
        repeated = self.repeat(0)
        self.report(repeated, 0.2, 0.3, 0.4, 0.5)
        self.end(repeated, TrialStatus.COMPLETED)
        self.report(self.repeat(0), 0.25)


def optunas_view(path: Path) -> list[optuna.trial.FrozenTrial]:
    """The study as Optuna's own tools open it."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage).trials


def assert_agrees(path: Path, trials: list[Trial]) -> None:
    """Optuna's journal holds just these trials, as they are."""
    seen = optunas_view(path)
    assert [one.user_attrs["tunelab_trial"] for one in seen] == [trial.number for trial in trials]
    for one, trial in zip(seen, trials, strict=True):
        assert one.number == trial.number
        assert one.params == trial.params
        assert one.intermediate_values == {metrics.epoch: metrics.score for metrics in trial.epochs}
        assert one.state is STATES.get(trial.status, TrialState.RUNNING)
        assert one.value == (trial.score if trial.status is TrialStatus.COMPLETED else None) or (
            one.state is TrialState.PRUNED
        )


# What Optuna is told.


def test_optuna_is_told_the_truth(tmp_path: Path) -> None:
    run = Run(make_source(tmp_path / "optuna.journal"))
    run.add_one_of_each()
    seen = optunas_view(tmp_path / "optuna.journal")
    assert [one.state.name for one in seen] == [
        *("COMPLETE", "PRUNED", "FAIL", "FAIL", "RUNNING", "RUNNING", "RUNNING"),
        *("COMPLETE", "RUNNING"),  # the repeats
    ]
    assert seen[0].value == 0.4
    assert seen[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert seen[0].params == BASELINE
    assert seen[1].intermediate_values == {1: 0.3}
    assert_agrees(tmp_path / "optuna.journal", run.trials)


def test_every_end_has_a_state() -> None:
    assert {status for status in TrialStatus if status.ended} == set(STATES)
    assert [status for status in STATES if STATES[status] is TrialState.COMPLETE] == [TrialStatus.COMPLETED]


def test_the_study_is_maximised(tmp_path: Path) -> None:
    run = Run(make_source(tmp_path / "optuna.journal"))
    run.add(TrialStatus.COMPLETED, 0.2)
    run.add(TrialStatus.COMPLETED, 0.7)
    run.add(TrialStatus.COMPLETED, 0.5)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    assert optuna.load_study(study_name="test", storage=storage).best_trial.number == 1


# Optuna's journal after a crash.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    path = tmp_path_factory.mktemp("finished") / "optuna.journal"
    run = Run(make_source(path))
    run.add_one_of_each()
    return path, run.trials


def go_on(path: Path, known: list[Trial]) -> None:
    """Restores a source from the record and runs on; Optuna's journal agrees before and after."""
    copies = [dataclasses.replace(trial, epochs=list(trial.epochs)) for trial in known]
    run = Run(make_source(path, known), copies)
    assert_agrees(path, run.trials)
    for trial in run.trials:
        if not trial.status.ended:
            run.report(trial, 0.5)
            run.end(trial, TrialStatus.STOPPED)
    run.add(TrialStatus.COMPLETED, 0.1, 0.2)
    assert_agrees(path, run.trials)


def test_a_journal_that_fits_is_kept(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    path = Path(shutil.copy(finished[0], tmp_path / "optuna.journal"))
    before = path.read_bytes()
    make_source(path, finished[1])
    assert path.read_bytes() == before
    go_on(path, finished[1])
    assert path.read_bytes().startswith(before)


def test_a_torn_journal_is_made_anew(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    whole = finished[0].read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    path = tmp_path / "optuna.journal"
    for cut in (0, 1, len(whole) // 2, last - 1, last, last + 1, (last + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        go_on(path, finished[1])


def test_a_damaged_journal_is_made_anew(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    whole = finished[0].read_bytes()
    path = tmp_path / "optuna.journal"
    generator = random.Random(0)
    for _ in range(25):
        at = generator.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ generator.choice([1, 4, 0x80])]) + whole[at + 1 :])
        run = Run(make_source(path, finished[1]), finished[1])
        run.add(TrialStatus.STOPPED, 0.3)
        seen = optunas_view(path)
        assert [one.user_attrs["tunelab_trial"] for one in seen] == list(range(len(finished[1]) + 1))


def test_a_missing_journal_is_made_anew(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    go_on(tmp_path / "optuna.journal", finished[1])


def test_an_older_journal_is_made_anew(tmp_path: Path) -> None:
    """The record is written first, so that a crash between the two leaves Optuna's journal one event behind."""
    path = tmp_path / "optuna.journal"
    run = Run(make_source(path))
    run.add(TrialStatus.COMPLETED, 0.1, 0.2)
    older = [path.read_bytes()]
    trial = run.propose()
    older.append(path.read_bytes())
    run.report(trial, 0.3)
    older.append(path.read_bytes())
    run.end(trial, TrialStatus.STOPPED)
    for content in older:
        path.write_bytes(content)
        go_on(path, run.trials)


def test_a_journal_ahead_of_the_record_is_made_anew(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    for known in ([], finished[1][:1], finished[1][:3]):
        go_on(Path(shutil.copy(finished[0], tmp_path / "optuna.journal")), known)
    path = Path(shutil.copy(finished[0], tmp_path / "optuna.journal"))
    earlier = [dataclasses.replace(trial, epochs=trial.epochs[:1], status=TrialStatus.RUNNING) for trial in finished[1]]
    go_on(path, earlier)


def test_a_journal_of_another_study_is_made_anew(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    other = optuna.create_study(study_name="other", storage=JournalStorage(JournalFileBackend(str(path))))
    other.add_trial(optuna.create_trial(value=1.0))
    go_on(path, finished[1])


def test_what_was_written_is_not_read_again_and_is_as_a_reader_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "optuna.journal"
    ledger = Ledger(journal_storage(path), "test")
    opened: list[str] = []
    read = JournalFileBackend.read_logs

    def read_logs(backend: JournalFileBackend, first: int) -> Any:
        opened.append(backend._file_path)
        return read(backend, first)

    monkeypatch.setattr(JournalFileBackend, "read_logs", read_logs)
    x = optuna.distributions.FloatDistribution(0.0, 1.0)
    kind = optuna.distributions.CategoricalDistribution((None, "a", 2, 0.5))
    for number in range(4):
        ledger.start(number, {"x": number / 4, "kind": kind.choices[number]}, {"x": x, "kind": kind})
        for epoch in range(1, 3 + number):
            ledger.observe(number, epoch, 0.1 * epoch)
    ledger.end(0, TrialState.COMPLETE, 0.2)
    ledger.end(1, TrialState.PRUNED, 0.3)
    assert opened == []
    again = Ledger(journal_storage(path), "test")
    assert set(opened) == {str(path)}, "a reader does"
    assert again.trials() == ledger.trials()
    assert len(again.trials()) == 4


def test_a_journal_that_was_not_read_to_its_end_is_read_from_the_file(tmp_path: Path) -> None:
    backend: Any = journal_storage(tmp_path / "optuna.journal")._backend
    backend.append_logs([{"n": 0}, {"n": 1}])
    assert next(backend.read_logs(0)) == {"n": 0}
    backend.append_logs([{"n": 2}])
    assert list(backend.read_logs(1)) == [{"n": 1}, {"n": 2}]
    backend.append_logs([{"n": 3}])
    assert list(backend.read_logs(3)) == [{"n": 3}]
    assert list(backend.read_logs(0)) == [{"n": n} for n in range(4)]


def test_no_lock_file_is_left(finished: tuple[Path, list[Trial]]) -> None:
    assert list(finished[0].parent.iterdir()) == [finished[0]]


def test_an_optuna_journal_that_cannot_be_written_does_not_end_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(make_source(tmp_path / "optuna.journal"))
    run.add(TrialStatus.COMPLETED, 0.1, 0.2, 0.3, 0.4)

    def full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module._Derived, "append_logs", full)
        run.add(TrialStatus.STOPPED, 0.1)
        resumed = make_source(tmp_path / "optuna.journal", run.trials)  # nor the beginning of another start
        resumed.observe(0, 4, 0.4)
    make_source(tmp_path / "optuna.journal", run.trials)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    states = [one.state for one in optuna.load_study(study_name="test", storage=storage).trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED], "it is made anew from the record"


# The ledger itself.


def make_trial(number: int, status: str, *scores: float, repeat_of: int | None = None) -> Trial:
    epochs = [EpochMetrics(n, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0) for n, score in enumerate(scores, start=1)]
    params = {"x": 0.5, "kind": "sgd"}
    return Trial(number, {}, params, TrialStatus(status), epochs=epochs, repeat_of=repeat_of)


DISTRIBUTIONS = {
    "x": optuna.distributions.FloatDistribution(0.001, 1.0),
    "kind": optuna.distributions.CategoricalDistribution(("sgd", "adam")),
}


def test_a_trial_put_at_once_is_as_one_told_step_by_step() -> None:
    """What is rebuilt from the record is what was written while it happened."""
    trials = [
        make_trial(0, "COMPLETED", 0.1, 0.4),
        make_trial(1, "STOPPED", 0.3),
        make_trial(2, "DIVERGED", 0.2),
        make_trial(3, "FAILED"),
        make_trial(4, "PAUSED", 0.6),
    ]
    told, put = Ledger(InMemoryStorage(), "one"), Ledger(InMemoryStorage(), "other")
    for trial in trials:
        told.start(trial.number, trial.params, DISTRIBUTIONS)
        for metrics in trial.epochs:
            told.observe(trial.number, metrics.epoch, metrics.score)
        if trial.status.ended:
            told.end(trial.number, STATES[trial.status], trial.score)
        put.put(trial, DISTRIBUTIONS)
    for one, other, trial in zip(told.trials(), put.trials(), trials, strict=True):
        assert (one.state, one.values, one.params) == (other.state, other.values, other.params)
        assert one.intermediate_values == other.intermediate_values
        assert one.user_attrs == other.user_attrs == {"tunelab_trial": trial.number}
        assert one.distributions == other.distributions
    assert told.fits(trials)
    assert put.fits(trials)


@pytest.mark.parametrize(
    "other",
    [
        [],
        [make_trial(0, "STOPPED", 0.1, 0.4), make_trial(1, "PAUSED", 0.3)],
        [make_trial(0, "COMPLETED", 0.1, 0.4), make_trial(1, "STOPPED", 0.3)],
        [make_trial(0, "COMPLETED", 0.1, 0.5), make_trial(1, "PAUSED", 0.3)],
        [make_trial(0, "COMPLETED", 0.1, 0.4), make_trial(1, "PAUSED", 0.3, 0.3)],
        [make_trial(0, "COMPLETED", 0.1, 0.4), make_trial(2, "PAUSED", 0.3)],
        [make_trial(0, "COMPLETED", 0.1, 0.4), make_trial(1, "PAUSED", 0.3), make_trial(2, "RUNNING")],
    ],
)
def test_only_just_these_trials_fit(other: list[Trial], tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    ledger = Ledger(journal_storage(path), "test")
    trials = [make_trial(0, "COMPLETED", 0.1, 0.4), make_trial(1, "PAUSED", 0.3)]
    for trial in trials:
        ledger.put(trial, DISTRIBUTIONS)
    found = open_mirror(path, "test", trials)
    assert found is not None
    assert 1 in found
    assert open_mirror(path, "test", other) is None


def test_a_trial_that_waits_is_open_and_goes_on(tmp_path: Path) -> None:
    """A paused trial is RUNNING to Optuna, before and after a restart, until it ends."""
    path = tmp_path / "optuna.journal"
    run = Run(make_source(path))
    run.add(TrialStatus.RUNNING, 0.1).status = TrialStatus.PAUSED
    assert optunas_view(path)[0].state is TrialState.RUNNING
    before = path.read_bytes()
    run = Run(make_source(path, run.trials), run.trials)
    assert path.read_bytes() == before
    run.report(run.trials[0], 0.2)
    run.end(run.trials[0], TrialStatus.COMPLETED)
    seen = optunas_view(path)
    assert (seen[0].state, seen[0].intermediate_values) == (TrialState.COMPLETE, {1: 0.1, 2: 0.2})
    assert len(seen) == 1


def test_a_refused_draw_can_be_emptied() -> None:
    """A sampler that learns from the others goes on as if it had kept its values."""
    kept, emptied = Ledger(InMemoryStorage(), "test"), Ledger(InMemoryStorage(), "test")

    def search(ledger: Ledger, forget: bool) -> list[dict[str, Any]]:
        study = optuna.load_study(study_name="test", storage=ledger.storage)
        drawn = []
        for number in range(30):
            study.sampler = optuna.samplers.TPESampler(seed=number)
            asked = study.ask()
            drawn.append({"x": asked.suggest_float("x", 0.0, 1.0)})
            if number % 3:
                study.tell(asked, asked.params["x"])
                continue
            study.tell(asked, state=TrialState.FAIL)
            if forget:
                ledger.forget(asked._trial_id)
        return drawn

    assert search(kept, False) == search(emptied, True)
    for one, other in zip(kept.trials(), emptied.trials(), strict=True):
        assert one.state is other.state
        assert (other.params, other.distributions) == (
            ({}, {}) if one.number % 3 == 0 else (one.params, one.distributions)
        )
