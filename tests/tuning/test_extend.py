from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.errors import InputError
from tunelab.journal import Journal, StudyLockedError
from tunelab.noise import full_length
from tunelab.records import Trial, TrialStatus
from tunelab.study import current, history
from tunelab.tuning.extend import extend, lacking
from tunelab.tuning.lineage import TAKEN_OVER
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import PausedError, resume, search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

SMALL: dict[str, Any] = {"epochs": 3, "limit_train": 100, "progress": False, "race": 0.0, "sampler": "tpe"}


def stop_before(number: int, epoch: int = 1) -> Any:
    return lambda trial, its_epoch: "SIGTERM" if (trial.number, its_epoch) == (number, epoch) else ""


def names(trials: list[Trial]) -> list[str]:
    return [trial.origin for trial in trials]


def test_more_trials_are_those_of_a_search_that_was_longer_from_the_start(played: Played, space: Path) -> None:
    study = extend(search(str(space), trials=3, **SMALL), trials=6, progress=False)
    longer = search(str(space), trials=6, **SMALL)
    assert [trial.params for trial in study.list_trials()] == [trial.params for trial in longer.list_trials()]
    assert len(study.list_trials()) == 6
    info = json.loads((study.path / "study.json").read_text())
    assert info["options"]["trials"] == 6
    (extension,) = info["extended"]
    assert (extension["from"], extension["to"]) == ({"trials": 3, "epochs": 3}, {"trials": 6, "epochs": 3})
    assert extend(study.path, trials=7, progress=False).info["extended"][0] == extension
    assert history(info, study.list_trials()) == {}


def test_more_epochs_begin_with_the_best_and_compare_nothing_with_the_shorter_ones(played: Played, space: Path) -> None:
    study = search(str(space), trials=12, scheduler="none", **SMALL)
    before = study.list_trials()
    best = sorted(before, key=lambda trial: -trial.config["train"]["lr"])[:TAKEN_OVER]
    study = extend(study, trials=11, epochs=30, progress=False)
    trials = study.list_trials()
    assert trials[:12] == before, "what was is as it was"
    new = trials[12:]
    assert len(new) == 11
    assert {full_length(trial) for trial in new} == {30}
    assert names(new)[0] == "baseline"
    taken = [f"extended from trial {trial.number}" for trial in best if trial.params != before[0].params]
    assert names(new)[1 : 1 + len(taken)] == taken
    assert [trial.params for trial in new[1 : 1 + len(taken)]] == [
        trial.params for trial in best if trial.params != before[0].params
    ]
    assert new[-1].origin == "tpe"
    assert current(study.info, trials) == new
    ranked = study.ranked()
    assert full_length(ranked[0]) == 30
    assert [full_length(trial) for trial in ranked] == sorted((full_length(trial) for trial in ranked), reverse=True)


def test_open_trials_of_the_shorter_length_end(played: Played, space: Path) -> None:
    played.halt = stop_before(2, 3)
    with pytest.raises(PausedError) as paused:
        search(str(space), trials=4, scheduler="none", **SMALL)
    played.halt = lambda trial, epoch: ""
    study = extend(paused.value.study, epochs=9, trials=2, progress=False)
    trials = study.list_trials()
    assert (trials[2].status, trials[2].reason) == (TrialStatus.STOPPED, "the study was extended to 9 epochs")
    assert len(trials[2].epochs) == 2
    assert len(trials) == 5, "two new ones"
    assert not study.running


def test_scores_of_the_shorter_length_are_at_no_rung(played: Played, space: Path) -> None:
    study = search(str(space), trials=9, **{**SMALL, "epochs": 9})
    assert any(trial.decisions for trial in study.list_trials())
    study = extend(study, epochs=27, trials=9, progress=False)
    rivals = [decision["rivals"] for trial in study.list_trials()[9:] for decision in trial.decisions]
    assert rivals
    assert max(rivals) <= 9
    baseline = study.list_trials()[9]
    assert baseline.origin == "baseline"
    assert all("the baseline" in decision["why"] for decision in baseline.decisions)


def test_an_extension_that_was_interrupted_goes_on_as_if_it_had_not_been(
    played: Played, space: Path, tmp_path: Path
) -> None:
    def run(path: Path) -> list[tuple[Any, ...]]:
        study = search(str(space), trials=4, study=path, **SMALL)
        try:
            study = extend(study, epochs=9, trials=8, progress=False)
        except PausedError as paused:
            played.halt = lambda trial, epoch: ""
            study = resume(paused.study, progress=False)
        return [(trial.number, trial.origin, trial.params, trial.status) for trial in study.list_trials()]

    whole = run(tmp_path / "whole")
    for number in (4, 7, 11):
        played.halt = stop_before(number)
        assert run(tmp_path / f"broken at {number}") == whole


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to extend: ask for more than the study's --trials 2 or --epochs 3"),
        ({"trials": 2, "epochs": 3}, "nothing to extend"),
        ({"trials": 1}, "--trials 1 is less than the 2 trials"),
        ({"trials": 5, "epochs": 2}, "--epochs 2 is less than the 3 epochs"),
        ({"trials": 5, "deadline": "soon"}, "--deadline 'soon'"),
    ],
)
def test_what_is_not_more_changes_nothing(played: Played, space: Path, asked: dict[str, Any], said: str) -> None:
    study = search(str(space), trials=2, **SMALL)
    before = {file.name: file.read_bytes() for file in study.path.iterdir() if file.is_file()}
    with pytest.raises(InputError, match=said) as refused:
        extend(study, **asked, progress=False)
    assert refused.value.exit_status == 2
    assert {file.name: file.read_bytes() for file in study.path.iterdir() if file.is_file()} == before


def test_a_study_that_runs_is_not_changed(played: Played, space: Path) -> None:
    study = search(str(space), trials=2, **SMALL)
    before = (study.path / "study.json").read_bytes()
    journal = Journal.open(study.path)
    with pytest.raises(StudyLockedError):
        extend(study, trials=4, progress=False)
    journal.close()
    assert (study.path / "study.json").read_bytes() == before


def test_optunas_journal_has_all_trials_of_both_lengths(played: Played, space: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = extend(search(str(space), trials=3, **SMALL), epochs=9, trials=3, progress=False)
    for again in (False, True):
        if again:  # made anew from the record
            (study.path / "optuna.journal").unlink()
            study = extend(study, trials=4, progress=False)
        storage = JournalStorage(JournalFileBackend(str(study.path / "optuna.journal")))
        told = optuna.load_study(study_name="plain", storage=storage).trials
        assert [trial.user_attrs["tunelab_trial"] for trial in told] == list(range(len(study.list_trials())))


def test_room_is_asked_for_what_is_not_there_yet() -> None:
    """The best of the trials so far have their checkpoints, and give them up for better ones."""
    statuses = [TrialStatus.COMPLETED] * 4 + [TrialStatus.STOPPED] * 3 + [TrialStatus.FAILED, TrialStatus.PAUSED]
    known = [Trial(number, {}, {}, status=status) for number, status in enumerate(statuses)]
    for keep, left in ((10, 3), (5, 0), (None, None)):
        before = SearchOptions(trials=9, epochs=5, keep_weights=keep)
        more = lacking(before, SearchOptions(trials=30, epochs=5, keep_weights=keep), known)
        assert (more.trials, more.keep_weights) == (21, left)
        longer = lacking(before, SearchOptions(trials=30, epochs=9, keep_weights=keep), known)
        assert (longer.trials, longer.keep_weights) == (30, left)
