"""A space that has changed; studies that were extended are tests/tuning/test_extend.py's matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.config import from_json
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.records import TrialStatus
from tunelab.space import load_space
from tunelab.study import Study, current
from tunelab.tuning.extend import extend
from tunelab.tuning.lineage import TAKEN_OVER, baseline_number, best_first, best_of, study_source
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import PausedError, resume, search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

SMALL: dict[str, Any] = {"epochs": 9, "limit_train": 100, "progress": False, "race": 0.0, "sampler": "tpe"}


def change(space: Path, old: str, new: str, version: int = 2) -> None:
    """Another version of the space."""
    text = space.read_text()
    assert old in text
    for line in text.splitlines():
        if line.startswith("VERSION"):
            text = text.replace(line, f"VERSION = {version}")
    space.write_text(text.replace(old, new))


@pytest.fixture
def begun(played: Played, space: Path) -> Study:
    """Stopped while trial 9 of 12 was in its second epoch."""
    played.halt = lambda trial, epoch: "SIGTERM" if (trial.number, epoch) == (9, 2) else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), trials=12, **{**SMALL, "scheduler": "none"})
    played.halt = lambda trial, epoch: ""
    return paused.value.study


def test_what_is_still_drawn_is_taken_over_and_the_rest_is_history(
    begun: Study, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = begun.list_trials()
    gone = [trial.number for trial in before if trial.params["width"] == 8]
    assert 0 < len(gone) < 10
    change(space, "(4, 8, 16)", "(4, 16, 32)")
    study = resume(begun.path, progress=True)
    said = capsys.readouterr().err
    assert (
        f"the space 'plain' is now version 2: {10 - len(gone)} of 10 trials are taken over, {len(gone)} are kept as "
        "history" in said
    )
    info = json.loads((study.path / "study.json").read_text())
    assert info["space"]["version"] == 2
    (entry,) = info["spaces"]
    assert (entry["from"], entry["to"], entry["set_aside"]) == (1, 2, gone)
    trials = study.list_trials()
    assert [trial.params for trial in trials[:10]] == [trial.params for trial in before]
    mine = current(info, trials)
    assert len(mine) == 12
    assert not {trial.number for trial in mine} & set(gone)
    assert all(trial.params["width"] in (4, 16, 32) for trial in mine)
    assert all(trial.status is TrialStatus.COMPLETED for trial in mine)
    assert resume(study.path, progress=False).info["spaces"] == [entry], "the same version changes nothing"
    storage = JournalStorage(JournalFileBackend(str(study.path / "optuna.journal")))
    told = optuna.load_study(study_name="plain", storage=storage).trials
    assert [trial.number for trial in told] == [trial.number for trial in trials]


def test_an_open_trial_that_is_gone_ends(begun: Study, space: Path) -> None:
    width = begun.trial(9).params["width"]
    rest = tuple(other for other in (4, 8, 16) if other != width)
    change(space, "(4, 8, 16)", str(rest))
    trial = resume(begun.path, progress=False).trial(9)
    assert trial.status is TrialStatus.STOPPED
    assert trial.reason == "version 2 of the space does not draw this configuration"
    assert len(trial.epochs) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {'"lr", 0.001, 0.5': '"lr", 0.6, 0.9', '"lr": 0.1': '"lr": 0.7'},
        {"((BlockSpec(": '((BlockSpec("basic", 4), BlockSpec('},
        {"    arch =": '    suggest.suggest_int("more", 1, 2)\n    arch =', '{"lr"': '{"more": 1, "lr"'},
        {'suggest.suggest_categorical("width", (4, 8, 16))': "4", ', "width": 4': ""},
    ],
    ids=["other ranges", "other networks", "one name more", "one name less"],
)
def test_where_nothing_is_the_same_the_search_begins_anew(begun: Study, space: Path, changes: dict[str, str]) -> None:
    for old, new in changes.items():
        change(space, old, new)
    study = resume(begun.path, progress=False)
    assert study.info["spaces"][0]["set_aside"] == list(range(10))
    trials = study.list_trials()
    assert len(trials) == 22
    assert [trial.origin for trial in trials[10:12]] == ["baseline", "tpe"]


def test_another_baseline_takes_the_place_of_the_one_before(begun: Study, space: Path) -> None:
    """It alone is spared by the rungs from now on, though the old one is still a configuration of the space."""
    first = begun.info["options"]
    change(space, '"lr": 0.1', '"lr": 0.2')
    options = from_json(SearchOptions, first)
    info = prepare(options.data)
    known = begun.list_trials()
    source = study_source(begun, load_space(str(space)), options, info, known)
    assert baseline_number(begun.info, known, source) == len(known)
    study = resume(begun.path, progress=False)
    trials = study.list_trials()
    (new,) = [trial for trial in trials if trial.origin == "baseline" and trial.number >= 10]
    assert new.params["lr"] == 0.2
    assert baseline_number(study.info, trials, source) == new.number


def test_a_version_alone_changes_nothing_but_its_number(begun: Study, space: Path) -> None:
    change(space, "SUMMARY", "SUMMARY")
    study = resume(begun.path, progress=False)
    assert study.info["spaces"][0]["set_aside"] == []
    assert len(study.list_trials()) == 12


def test_a_change_that_is_taken_back(begun: Study, space: Path) -> None:
    change(space, "(4, 8, 16)", "(4, 16, 32)")
    resume(begun.path, progress=False)
    change(space, "(4, 16, 32)", "(4, 8, 16)", version=3)
    study = resume(begun.path, progress=False)
    assert [entry["to"] for entry in study.info["spaces"]] == [2, 3]
    assert len(current(study.info, study.list_trials())) >= 12
    assert not set(range(10)) & set(study.info["spaces"][1]["set_aside"])


def test_an_extension_takes_over_what_it_can(begun: Study, space: Path) -> None:
    change(space, "(4, 8, 16)", "(4, 16, 32)")
    study = extend(begun.path, epochs=12, trials=12, progress=False)
    new = [trial for trial in study.list_trials() if trial.config["train"]["epochs"] == 12]
    assert len(new) == 12
    taken = [trial for trial in new if trial.origin.startswith("extended from trial")]
    assert taken
    assert all(trial.params["width"] in (4, 16) for trial in taken)


def test_repeats_of_what_is_gone_are_gone_too(played: Played, space: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("- {width: 8}\n- {width: 16}\n")
    study = search(str(space), grid=grid, repeat=2, **SMALL)
    assert [trial.repeat_of for trial in study.list_trials()] == [None, None, None, 1, 2]
    change(space, "(4, 8, 16)", "(4, 16, 32)")
    study = resume(study.path, progress=False)
    assert study.info["spaces"][0]["set_aside"] == [1, 3]
    assert [trial.number for trial in current(study.info, study.list_trials())] == [0, 2, 4, 5]


def test_what_earlier_studies_knew_is_missed_when_it_is_gone(played: Played, space: Path, tmp_path: Path) -> None:
    old = search(str(space), trials=3, study=tmp_path / "old", **SMALL)
    study = search(str(space), trials=2, study=tmp_path / "new", warm_start=[old.path], **SMALL)
    kept = study.path / "earlier.jsonl"
    content = kept.read_text()
    kept.unlink()
    for go_on in (lambda: resume(study.path, progress=False), lambda: extend(study.path, trials=3, progress=False)):
        with pytest.raises(InputError, match=rf"{kept} is missing, .* of {old.path}; put it back, or an empty file"):
            go_on()
    kept.write_text(content)
    assert len(extend(study.path, trials=3, progress=False).list_trials()) == 3


def test_the_best_is_taken_over_beside_what_is_tried_anyway(played: Played, space: Path) -> None:
    trials = search(str(space), trials=12, **{**SMALL, "scheduler": "none"}).list_trials()
    best = [one["params"] for one in best_of(trials, 100)]
    assert len(best) == TAKEN_OVER
    others = [one["params"] for one in best_of(trials, 100, best[:3])]
    assert others[:5] == best[3:]
    assert len(others) == TAKEN_OVER
    entries = [{"origin": "grid", "params": params} for params in ({"lr": 9.0}, best[2], {"lr": 8.0}, best[0])]
    assert best_first(entries, trials, 100) == [entries[3], entries[1], entries[0], entries[2]]
