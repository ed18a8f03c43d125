from __future__ import annotations

import csv
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunelab
from tunelab.config import TrialConfig, to_json
from tunelab.errors import InputError, TunelabError
from tunelab.journal import Journal, read_journal
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import (
    Study,
    count_statuses,
    describe_counts,
    flat_row,
    list_studies,
    load,
    newest_study,
    proposed,
    rank,
    replay,
    runs_dir,
    write_csv,
)

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

FULL = [0.1, 0.2, 0.3, 0.4]


def epoch(number: int, score: float, loss: float = 1.0) -> EpochMetrics:
    return EpochMetrics(number, 2.0, 0.0, loss, score, 0.1, 1.0, 100.0, 300.0)


def trial(number: int, score: float, loss: float = 1.0, status: str = "COMPLETED") -> Trial:
    return Trial(number, {}, status=TrialStatus(status), epochs=[epoch(1, 0.99), epoch(2, score, loss)])


# The folder.


def test_the_seeds_of_a_list_of_trainings_are_runs_of_one_configuration(make_study: MakeStudy) -> None:
    scores = [[0.1, 0.2, 0.3, last] for last in (0.5, 0.6, 0.7)]
    study = make_study([("COMPLETED", own) for own in scores], info={"kind": "retrain"})
    (place,) = study.standings()
    assert place.runs == (0, 1, 2)
    assert place.standing.mean == pytest.approx(0.6)
    assert [trial.repeat_of for trial in study.list_trials()] == [None, None, None], "the record is as it was written"
    study.info["kind"] = "search"
    assert len(study.standings()) == 3


def test_a_new_study_is_a_private_folder_that_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "study"
    made = Study.create(path, {"kind": "none", "seed": 7, "name": "Prüfung"})
    assert path.stat().st_mode & 0o077 == 0
    opened = load(str(path))
    assert opened.info == made.info
    assert opened.info["seed"] == 7
    assert opened.info["name"] == "Prüfung"
    assert opened.info["format"] == 1
    assert opened.name == "study"
    assert list(path.iterdir()) == [path / "study.json"], "no temporary file is left"


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study"
    Study.create(path, {"seed": 1})
    before = (path / "study.json").read_bytes()
    with pytest.raises(InputError, match=r"exists already; `tunelab resume .*study` goes on with it"):
        Study.create(path, {"seed": 2})
    assert (path / "study.json").read_bytes() == before


def test_what_was_killed_before_it_was_a_study_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "study"
    path.mkdir(mode=0o755)
    (path / ".study.json-x7").write_text("{")
    assert Study.create(path, {"seed": 1}).info["seed"] == 1
    assert [file.name for file in path.iterdir()] == ["study.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(InputError, match="exists already"):
        Study.create(tmp_path / "notes", {})
    assert (tmp_path / "notes" / "mine.txt").exists()


@pytest.mark.parametrize("full", [False, True])
def test_an_empty_folder_that_cannot_be_removed_is_taken(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is mounted there, or the folder above is closed, as in a container."""

    def fail(*_given: object, **_more: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    path = tmp_path / "study"
    path.mkdir(mode=0o755)
    monkeypatch.setattr(Path, "rmdir", fail)
    if full:
        monkeypatch.setattr(os, "rmdir", fail)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match="cannot be made: Device or resource busy"):
            Study.create(path, {"kind": "none"})
        assert list(path.iterdir()) == []
    else:
        Study.create(path, {"kind": "none"})
        assert Study.open(path).info["kind"] == "none"
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_study_inside_a_file_is_refused_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "study", tmp_path / "file" / "deep" / "study"):
        with pytest.raises(InputError, match=r"study cannot be made: (Not a directory|File exists)"):
            Study.create(path, {})


def test_a_study_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="cannot be made: No space left on device"):
        Study.create(tmp_path / "study", {"kind": "none"})
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_a_new_study_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Study.create(tmp_path / "study", {"kind": "none"})
    assert {"study", tmp_path.name} <= set(synced)
    assert any(name.startswith(".study.json-") for name in synced), "what is in the file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not a study"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("[]", "has format None; this version of tunelab reads format 1"),
        ('{"format": 2}', "has format 2; this version of tunelab reads format 1"),
        ("{}", "has format None"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "study.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said) as refused:
        load(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_no_folder_and_a_file_are_no_studies(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match="is not a study"):
            load(path)


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Study.create(tmp_path / "study", {"kind": "none"})
    assert load("~/study").path == tmp_path / "study"
    assert runs_dir("~/runs") == tmp_path / "runs"


def test_the_folder_of_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_RUNS", "from-variable")
    assert runs_dir() == Path("from-variable")
    assert runs_dir("given") == Path("given")
    monkeypatch.delenv("TUNELAB_RUNS")
    assert runs_dir() == Path("runs")


def test_studies_are_listed_newest_first(tmp_path: Path) -> None:
    for name, created in (("b", "2026-01-02T00:00:00+00:00"), ("a", "2026-03-01T00:00:00+00:00"), ("c", "2025-01-01")):
        Study.create(tmp_path / name, {"kind": "none", "created": created})
    (tmp_path / "no-study").mkdir()
    (tmp_path / "file").touch()
    Study.create(tmp_path / "a" / "retrain-x", {"kind": "none", "created": "2027-01-01"})
    assert [study.name for study in list_studies(tmp_path)] == ["a", "b", "c"]
    assert newest_study(tmp_path).name == "a"


def test_the_newest_study_is_so_whatever_the_clock_shows(tmp_path: Path) -> None:
    """A night's study that was begun before the clocks went back, and the one after it."""
    Study.create(tmp_path / "before", {"kind": "none", "created": "2026-10-25T02:50:00+02:00"})
    Study.create(tmp_path / "after", {"kind": "none", "created": "2026-10-25T02:10:00+01:00"})
    assert newest_study(tmp_path).name == "after"


def test_no_studies(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert list_studies(folder) == []
        with pytest.raises(InputError, match=r"there is no study in .*`tunelab search arch` makes one"):
            newest_study(folder)


# What the record tells.


def test_the_record_is_replayed(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", FULL), ("STOPPED", [0.3]), ("FAILED", [])])
    first, second, third = study.list_trials()
    assert [one.number for one in (first, second, third)] == [0, 1, 2]
    assert [metrics.score for metrics in first.epochs] == FULL
    assert [metrics.epoch for metrics in first.epochs] == [1, 2, 3, 4]
    assert (first.status, first.reason) == (TrialStatus.COMPLETED, "")
    assert (second.status, second.reason) == (TrialStatus.STOPPED, "stopped for a reason")
    assert third.score is None
    assert second.params == {"width": 4, "rate": 0.1}
    assert first.stats["params"] == 1234
    assert isinstance(study.config(first), TrialConfig)
    assert to_json(study.config(first)) == first.config
    assert study.trial(1).status is TrialStatus.STOPPED
    assert study.trial_folder(7) == study.path / "trials" / "0007"


def test_decisions_are_replayed() -> None:
    decision = {"epoch": 2, "stop": True, "score": 0.5, "loss": 1.0, "rank": 2, "rivals": 3, "places": 1, "why": "late"}
    decision["cutoff"] = 0.6
    proposed = {"event": "proposed", "trial": 0, "config": {}, "params": {}, "stats": {}, "arch_id": ""}
    (one,) = replay([proposed, {"event": "decision", "trial": 0, "decision": decision}])
    assert one.decisions == [decision]


def test_trials_come_in_the_order_of_their_numbers() -> None:
    proposed = {"event": "proposed", "config": {}, "params": {}, "stats": {}, "arch_id": ""}
    assert [one.number for one in replay({**proposed, "trial": number} for number in (2, 0, 1))] == [0, 1, 2]


def test_events_of_a_later_version_are_passed_over() -> None:
    assert replay([{"event": "something new", "trial": 0}]) == []


def test_an_unknown_trial_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(InputError, match="has no trial 2; it has 2 trials, numbered from 0"):
        make_study([("COMPLETED", FULL)] * 2).trial(2)


def test_an_open_trial_is_paused_unless_somebody_runs_it(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", FULL), ("RUNNING", [0.1]), ("RUNNING", [])])
    assert [one.status.value for one in study.list_trials()] == ["COMPLETED", "PAUSED", "PAUSED"]
    assert not study.running
    journal = Journal.open(study.path)
    try:
        assert study.running
        assert [one.status.value for one in study.list_trials()] == ["COMPLETED", "RUNNING", "RUNNING"]
    finally:
        journal.close()


def test_a_damaged_record_is_no_empty_study(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", FULL)])
    file = study.path / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b"proposed", b"prOposed"))
    with pytest.raises(TunelabError, match="line 1 is damaged"):
        study.best()


# The ranking.


def test_the_last_epoch_decides_and_not_the_best_one() -> None:
    fell = Trial(0, {}, status=TrialStatus.COMPLETED, epochs=[epoch(1, 0.9), epoch(2, 0.1)])
    rose = Trial(1, {}, status=TrialStatus.COMPLETED, epochs=[epoch(1, 0.1), epoch(2, 0.2)])
    assert [one.number for one in rank([fell, rose])] == [1, 0]


def test_of_equal_scores_the_lower_loss_is_first_and_then_the_earlier_trial() -> None:
    trials = [trial(3, 0.5, 1.0), trial(0, 0.5, 2.0), trial(2, 0.5, 1.0), trial(1, 0.6, 9.0)]
    assert [one.number for one in rank(trials)] == [1, 2, 3, 0]


@pytest.mark.parametrize("status", [status.value for status in TrialStatus if status is not TrialStatus.COMPLETED])
def test_only_trials_of_full_length_are_ranked(status: str) -> None:
    assert [one.number for one in rank([trial(0, 0.999, 0.0, status), trial(1, 0.1)])] == [1]


def test_a_failed_trial_with_a_high_score_never_wins(make_study: MakeStudy) -> None:
    study = make_study([("FAILED", [0.99] * 4), ("DIVERGED", [1.0]), ("STOPPED", [0.98]), ("COMPLETED", FULL)])
    assert study.best().number == 3
    assert [one.number for one in study.ranked()] == [3]


def test_no_trial_of_full_length_is_an_error_that_says_how_they_ended(make_study: MakeStudy) -> None:
    study = make_study([("STOPPED", [0.5]), ("STOPPED", [0.5]), ("FAILED", []), ("RUNNING", [])])
    with pytest.raises(InputError, match=r"run its full length yet \(2 stopped, 1 paused, 1 failed\)"):
        study.best()
    assert study.ranked() == []


def test_an_empty_study_has_no_best(make_study: MakeStudy) -> None:
    with pytest.raises(InputError, match=r"\(no trials\)"):
        make_study().best()


@given(st.lists(st.tuples(st.sampled_from(list(TrialStatus)), st.floats(0, 1), st.floats(0, 9)), max_size=12))
def test_the_ranking_is_in_order_and_complete(ends: list[tuple[TrialStatus, float, float]]) -> None:
    trials = [trial(number, score, loss, status.value) for number, (status, score, loss) in enumerate(ends)]
    ranked = rank(trials)
    assert {one.number for one in ranked} == {n for n, end in enumerate(ends) if end[0] is TrialStatus.COMPLETED}
    keys = [(-one.epochs[-1].score, one.epochs[-1].loss, one.number) for one in ranked]
    assert keys == sorted(keys)
    assert [one.number for one in rank(reversed(trials))] == [one.number for one in ranked]


def test_statuses_are_counted_in_words() -> None:
    trials = [trial(0, 0.1), trial(1, 0.1), trial(2, 0.1, status="FAILED")]
    assert count_statuses(trials) == {TrialStatus.COMPLETED: 2, TrialStatus.FAILED: 1}
    assert describe_counts(trials) == "2 completed, 1 failed"
    assert describe_counts([]) == "no trials"


def test_repeats_are_no_configurations(make_study: MakeStudy) -> None:
    lucky, steady = ("COMPLETED", [0.1, 0.2, 0.3, 0.5]), ("COMPLETED", [0.1, 0.2, 0.3, 0.48])
    unlucky, again = ("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("COMPLETED", [0.1, 0.2, 0.3, 0.47])
    study = make_study([lucky, steady, unlucky, again, ("FAILED", [])], repeats={2: 0, 3: 1, 4: 1})
    assert [one.number for one in study.ranked()] == [1, 0], "by the mean of all runs"
    assert study.best().number == 1
    first, second = study.standings()
    assert (first.runs, first.lost, first.standing.mean) == ((1, 3), (4,), pytest.approx(0.475))
    assert (second.runs, second.lost, second.standing.mean) == ((0, 2), (), pytest.approx(0.45))
    trials = study.list_trials()
    assert [one.number for one in proposed(trials)] == [0, 1]
    assert describe_counts(trials) == "2 completed, 3 repeats"
    assert describe_counts(trials[:3]) == "2 completed, 1 repeat"
    assert [row["repeat_of"] for row in map(flat_row, trials)] == [None, None, 0, 1, 1]


def test_the_noise_is_judged_by_the_validation_images(make_study: MakeStudy, tmp_path: Path) -> None:
    ends = [("COMPLETED", [0.4] * 4), ("COMPLETED", [0.43] * 4)]
    few = make_study(ends)
    counts = {"train": 100, "val": 1_000_000, "test": 1}
    many = make_study(ends, path=tmp_path / "many", info={"data": {**few.info["data"], "counts": counts}})
    assert few.val_images == 269
    assert [place.standing.tied_with_best for place in few.standings()] == [True, True]
    assert [place.standing.tied_with_best for place in many.standings()] == [True, False]


# The tables.


def test_tables_are_written_from_the_record(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", FULL), ("STOPPED", [0.9, 0.3]), ("FAILED", []), ("RUNNING", [0.1])])
    study.write_tables()
    lines = [json.loads(line) for line in (study.path / "trials.jsonl").read_text().splitlines()]
    assert [(line["number"], line["status"], line["reason"]) for line in lines] == [
        (0, "COMPLETED", ""),
        (1, "STOPPED", "stopped for a reason"),
        (2, "FAILED", "failed for a reason"),
    ]
    assert [metrics["val_accuracy"] for metrics in lines[0]["epochs"]] == FULL
    assert lines[0]["config"] == study.trial(0).config
    assert lines[0]["params"] == {"width": 4, "rate": 0.0}
    with (study.path / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["COMPLETED", "STOPPED", "FAILED", "PAUSED"]
    assert (rows[0]["epochs"], rows[0]["score"], rows[0]["seconds"], rows[0]["width"]) == ("4", "0.4", "1.0", "4")
    assert (rows[1]["score"], rows[1]["best_val_accuracy"]) == ("0.3", "0.9")
    assert "effective_lr" in rows[0]
    assert (rows[2]["score"], rows[2]["val_loss"], rows[2]["params"]) == ("", "", "1234")
    before = {file: (study.path / file).read_bytes() for file in ("trials.jsonl", "trials.csv")}
    study.write_tables()
    assert {file: (study.path / file).read_bytes() for file in before} == before
    assert not list(study.path.glob(".*"))


def test_the_table_in_memory(make_study: MakeStudy) -> None:
    table = make_study([("COMPLETED", FULL), ("FAILED", [])]).trials
    assert list(table["number"]) == [0, 1]
    assert list(table["status"]) == ["COMPLETED", "FAILED"]
    assert table["score"][0] == 0.4
    assert table["score"].isna()[1]
    assert list(table["rate"]) == [0.0, 0.1]
    assert make_study(path=runs_dir() / "empty").trials.empty


def test_a_parameter_with_the_name_of_a_column_hides_nothing() -> None:
    """A space may call a parameter `lr`, `depth` or `score`; the measured columns stay what they are."""
    params = {"lr": 0.5, "depth": 3, "score": 9.0, "status": "x", "epochs": 99, "width": 4}
    params["effective_lr"] = 7.0
    stats = {"params": 10, "depth": 18}
    rows = [
        flat_row(Trial(0, {}, params, TrialStatus.COMPLETED, stats=stats, epochs=[epoch(1, 0.5)])),
        flat_row(Trial(1, {}, params, TrialStatus.FAILED, stats=stats)),
    ]
    for row in rows:
        assert row["depth"] == 18
        assert row["params"] == 10
        assert row["width"] == 4
        assert row["param_effective_lr"] == 7.0
        assert {row[f"param_{name}"] for name in ("lr", "depth", "score", "status", "epochs")} == {0.5, 3, 9.0, "x", 99}
    assert (rows[0]["status"], rows[0]["score"], rows[0]["epochs"], rows[0]["lr"]) == ("COMPLETED", 0.5, 1, 0.1)
    assert (rows[1]["status"], rows[1]["score"], rows[1]["epochs"], rows[1].get("lr")) == ("FAILED", None, 0, None)


def test_rows_of_differing_columns_are_one_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"a": 1, "b": 'x,"y"\n'}, {"a": None, "c": 3}])
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [{"a": "1", "b": 'x,"y"\n', "c": ""}, {"a": "", "b": "", "c": "3"}]
    write_csv(tmp_path / "empty.csv", [])


# A large study.


def test_a_study_of_a_thousand_trials(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # 12,000 writes to a real disk are another test's matter
        trials: list[tuple[str, list[float]]] = [("STOPPED", [0.5] * 10)] * 990
        trials += [("COMPLETED", [0.1] * 9 + [number / 100]) for number in range(10)]
        study = make_study(trials)
    command = [sys.executable, "-m", "tunelab.cli", "best", str(study.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["trials"], shown["statuses"]) == (1000, {"COMPLETED": 10, "STOPPED": 990})
    assert [row["trial"] for row in shown["ranking"]] == list(range(999, 989, -1))
    study.write_tables()
    assert (study.path / "trials.jsonl").read_text().count("\n") == 1000


def test_the_public_way(make_study: MakeStudy) -> None:
    study = tunelab.load(make_study([("COMPLETED", FULL)]).path)
    assert isinstance(study, tunelab.Study)
    assert study.best().status is tunelab.TrialStatus.COMPLETED
    assert sum(1 for _ in read_journal(study.path / "journal.jsonl")) == 6


def test_one_damaged_study_does_not_hide_the_others(make_study: MakeStudy, runs_dir: Path) -> None:
    good = make_study()
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "study.json").write_text("{")
    left_out: list[str] = []
    assert [study.path for study in list_studies(runs_dir, left_out)] == [good.path]
    assert newest_study(runs_dir).path == good.path
    assert len(left_out) == 1
    assert "bad" in left_out[0]


def test_what_a_changed_space_set_aside_is_ranked_last(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [score] * 4) for score in (0.9, 0.5, 0.7)])
    assert [place.trial.number for place in study.standings()] == [0, 2, 1]
    study.update(lambda info: {"spaces": [{"from": 1, "to": 2, "set_aside": [0]}]})
    assert [place.trial.number for place in study.standings()] == [2, 1, 0]
    assert [one.number for one in study.ranked()] == [2, 1, 0]
    assert study.best().number == 2
