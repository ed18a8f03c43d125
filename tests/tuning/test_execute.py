"""The end of a run: finished, paused, or with nothing left to propose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tunelab.config import TrialConfig, from_json
from tunelab.errors import InputError, TunelabError
from tunelab.records import Trial, TrialStatus
from tunelab.study import load
from tunelab.tuning import execute, ray_tune
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.execute import PausedError
from tunelab.tuning.guard import Guard
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import resume, search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played
    from tunelab.tuning.engine import Engine

LATE = """

def late(suggest):
    if Path(__file__).with_name("raised").joinpath("journal.jsonl").exists():
        if b'"ended"' in Path(__file__).with_name("raised").joinpath("journal.jsonl").read_bytes():
            raise RuntimeError("too late")


from pathlib import Path
"""


@pytest.fixture
def few(space: Path) -> Path:
    """A space of three configurations."""
    text = space.read_text().replace('suggest.suggest_float("lr", 0.001, 0.5, log=True)', "0.1")
    space.write_text(text.replace('{"lr": 0.1, "width": 4}', '{"width": 4}'))
    return space


@pytest.mark.parametrize("sampler", ["model", "random"])
def test_a_space_that_runs_out_ends_the_search_and_is_resumed_to_nothing(
    played: Played, few: Path, sampler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = search(str(few), trials=20, epochs=3, limit_train=100, sampler=sampler, scheduler="none", race=0.6)
    trials = load(study.path).list_trials()
    own = [trial for trial in trials if trial.repeat_of is None]
    assert {trial.params["width"] for trial in own} == {4, 8, 16}
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    assert len(trials) > 3, "there was a race"
    assert study.info["options"]["trials"] == load(study.path).info["options"]["trials"] == 3
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "has no configuration left" in notes[0]
    assert notes[0].endswith("the study has 3 trials")
    played.order.clear()
    assert resume(study.path, progress=False).list_trials() == trials
    assert played.order == []


@pytest.mark.parametrize(("at", "said"), [(1, "1 trial is left"), (0, "2 trials are left")])
def test_what_is_left_is_said_in_words(played: Played, space: Path, at: int, said: str) -> None:
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == at else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), trials=2, epochs=2, limit_train=100, scheduler="none", race=0.0, progress=False)
    assert str(paused.value) == (
        f"stopped before the end (SIGTERM): {said}; `tunelab resume {paused.value.study.path}` goes on"
    )
    assert paused.value.exit_status == 3


def test_the_driver_leaves_the_processors_to_the_trials(played: Played, space: Path) -> None:
    def blas_threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    def note(trial: Trial, epoch: int) -> str:
        during.append(blas_threads())
        return ""

    during: list[set[int]] = []
    played.halt = note
    with threadpool_limits(2, "blas"):
        if blas_threads() != {2}:
            pytest.skip("the algebra library has one thread, whatever it is told")
        search(str(space), trials=1, epochs=1, limit_train=100, race=0.0, progress=False)
        assert blas_threads() == {2}
    assert during == [{1}]


def test_what_ended_a_search_is_told_with_what_to_do(played: Played, space: Path, tmp_path: Path) -> None:
    """Trials that all fail are one thing to mend, a draw that raises late is another."""

    def fail(engine: Engine, _slots: object, **_more: object) -> None:
        while (trial := engine.next_trial()) is not None:
            engine.end(trial.number, TrialStatus.FAILED, "ValueError: no such layer")

    options = {"trials": 9, "epochs": 2, "limit_train": 100, "race": 0.0, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_tune, "run", fail)
        with pytest.raises(TunelabError) as failed:
            search(str(space), study=tmp_path / "failed", **options)
    path = tmp_path / "failed"
    assert failed.value.exit_status == 1
    assert str(failed.value) == (
        "5 trials in a row failed with: ValueError: no such layer; "
        f"`tunelab show {path} TRIAL` and error.txt in the trial's folder tell more; "
        f"when that is mended, `tunelab resume {path}` goes on"
    )
    late = space.read_text().replace("def draw(suggest):", "def draw(suggest):\n    late(suggest)")
    space.write_text(late + LATE)
    with pytest.raises(InputError) as raised:
        search(str(space), study=tmp_path / "raised", **options)
    assert "raised RuntimeError: too late" in str(raised.value)
    assert str(raised.value).endswith(f"; when that is mended, `tunelab resume {tmp_path / 'raised'}` goes on")
    assert load(tmp_path / "raised").list_trials(), "some had been tried"


def test_the_timeout_of_a_search_is_none_of_its_retrainings(
    played: Played, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner in full takes many times as long as a trial may."""

    def note(folder_of: Any, pace: Any, timeout: float | None, *more: Any) -> Guard:
        given.append(timeout)
        return Guard(folder_of, pace, timeout, *more)

    given: list[float | None] = []
    monkeypatch.setattr(execute, "Guard", note)
    study = search(str(space), trials=1, epochs=1, limit_train=100, race=0.0, trial_timeout="5s", progress=False)
    config = from_json(TrialConfig, study.list_trials()[0].config)
    options = from_json(SearchOptions, study.info["options"])
    shown = {"kind": "retrain", "title": "again", "about": {}, "show_progress": False}
    run_configs(tmp_path / "again", [config], options, like=study, **shown)
    assert given == [5.0, None]
