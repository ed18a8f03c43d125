from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.rank import summary
from tunelab.analysis.text import (
    count,
    describe_new_data,
    describe_ties,
    percent,
    print_best,
    print_study,
    print_trial,
    study_rows,
    study_summary,
)

from tunelab.journal import Journal

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

SCORES = [0.1, 0.2, 0.3, 0.4]


def test_numbers_for_people() -> None:
    assert [percent(score) for score in (None, 0.0, 0.12345, 1.0)] == ["-", "0.0%", "12.3%", "100.0%"]
    assert [count(number) for number in (None, 999, 123456, 11_173_962)] == ["-", "1.0k", "123.5k", "11.17M"]


def test_brackets_of_an_architecture_are_not_taken_for_markup(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    print_best(summary(make_study([("COMPLETED", SCORES)]), top=3))
    assert "[basic, /2 basic]" in capsys.readouterr().out


def test_a_study_and_a_trial_say_why_they_ended(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {"calibration": {"reason": "2 trials at once; bfloat16 channels_last: 1.5 x float32 channels_last"}}
    study = make_study([("COMPLETED", SCORES), ("STOPPED", [0.1])], info=chosen)
    print_study(study, study_summary(study))
    said = capsys.readouterr().out
    assert "stopped for a reason" in said
    assert "1.5 x float32" in said
    print_trial(study, study.trial(1))
    said = capsys.readouterr().out
    assert "stopped for a reason" in said
    assert "1.2k parameters" in said


def test_what_went_differently_and_the_memory_are_shown(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("COMPLETED", SCORES)])
    trial = study.trial(0)
    trial.notes.append("the 1.5 GiB of training images are streamed from the cache")
    print_trial(study, trial)
    assert "note: the 1.5 GiB of training images are streamed from the cache\n" in capsys.readouterr().out
    study.info["options"]["memory"] = 3 * 2**29
    print_study(study, study_summary(study))
    assert "memory 1.5 GiB" in capsys.readouterr().out


def test_a_trial_tells_when_it_was_lost(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study([("COMPLETED", [0.5, 0.6, 0.7, 0.8])])
    lost = {"cause": "hung", "why": "no step for 60 s", "epoch": 2, "split": 1, "fewer": False}
    journal = Journal.open(study.path)
    journal.append({"event": "retried", "trial": 0, "time": 1.0, **lost})
    journal.close()
    print_trial(study, study.trial(0))
    assert "lost after epoch 2 and tried again: no step for 60 s\n" in capsys.readouterr().out


def test_a_long_trial_is_shown_in_part_with_norm_and_teeth(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("COMPLETED", [0.5 + 0.01 * (epoch % 40) for epoch in range(200)])])
    trial = study.trial(0)
    trial.epochs = [dataclasses.replace(one, weight_norm=10.0, lr=0.5) for one in trial.epochs]
    print_trial(study, trial)
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if re.match(r"\d+ +\d", line)]
    assert [row[0] for row in rows] == [*map(str, range(1, 200, 4)), "200"]
    assert "one in 4 of 200 epochs; --json has all" in said
    assert "norm of the weights 10, effective rate lr / norm^2 0.005; 4 saw-teeth, one every 40 epochs, " in said
    print_trial(study, dataclasses.replace(trial, epochs=trial.epochs[:9]))
    said = capsys.readouterr().out
    assert "one in" not in said
    assert "no saw-teeth in the accuracy" in said


FOUR = [("COMPLETED", [0.1, 0.2, 0.3, score]) for score in (0.4, 0.41, 0.1, 0.39)]


def test_the_best_are_shown_with_their_runs_and_ties(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    print_best(summary(make_study([*FOUR, ("FAILED", [])], asked=3, repeats={3: 0, 4: 0}), top=3))
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert first.endswith(": 3 of 3 trials begun (3 completed), 2 repeats")
    assert header.split()[:7] == ["rank", "trial", "val", "acc", "expected", "runs", "tie"]
    assert rows[0].split()[:4] == ["1", "1", "41.0%", "41.0%"]
    assert re.match(r"   2 +0 +39\.5% +39\.5% \(\d+\.\d to \d+\.\d\) +2, 1 lost +=", rows[1])
    assert "=" not in rows[2].partition("[")[0]
    assert rows[3].startswith("trials 0 and 1 cannot be told apart (run-to-run noise ")
    assert "measured on 1 repeat and guessed from the binomial error of 269 validation images)" in rows[3]


def test_a_study_tells_repeats_from_trials(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(FOUR, asked=3, repeats={3: 0})
    shown = study_summary(study)
    assert [row["repeat_of"] for row in shown["trials"]] == [None, None, None, 0]
    print_study(study, shown)
    said = capsys.readouterr().out
    assert "finished: 3 of 3 trials begun (3 completed), 1 repeat" in said
    assert "trial 0 again" in said
    assert "cannot be told apart" in said
    (row,) = study_rows([study])
    assert (row["trials"], row["repeats"], row["best"], row["state"]) == ("3/3", 1, 0.41, "finished")


def test_a_repeat_under_way_is_not_the_end(make_study: MakeStudy) -> None:
    (row,) = study_rows([make_study([*FOUR[:2], ("RUNNING", [0.1])], asked=2, repeats={2: 0})])
    assert (row["trials"], row["state"]) == ("2/2", "paused")


@pytest.mark.parametrize("number", [0, 3])
def test_a_trial_tells_of_its_other_runs(
    number: int, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(FOUR, repeats={3: 0})
    print_trial(study, study.trial(number))
    said = capsys.readouterr().out
    assert "all runs of this configuration: trial 0: 40.0%, trial 3: 39.0%; mean 39.5%, expected 39.5% (" in said
    assert ("trial 0 again with another seed" in said) is (number == 3)
    print_trial(study, study.trial(1))
    assert "all runs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "rung at epoch 2: went on with 30.0% (place 1 of 3, 1 go on; the last that goes on has 25.0%)"),
        ({"stop": True}, "rung at epoch 2: stopped with 30.0%"),
        (
            {"pause": True, "noise": 0.0123},
            "paused with 30.0% (place 1 of 3, 1 go on; the last that goes on has 25.0%, ",
        ),
        ({"noise": 0.0123}, "25.0%, noise 1.2%)"),
    ],
)
def test_decisions_are_shown_with_their_numbers(
    changed: dict[str, Any], said: str, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("STOPPED", [0.1, 0.3])])
    trial = study.trial(0)
    numbers = {"epoch": 2, "stop": False, "score": 0.3, "cutoff": 0.25, "why": "place 1 of 3, 1 go on"}
    trial.decisions.append({**numbers, **changed})
    print_trial(study, trial)
    assert said in capsys.readouterr().out


def test_what_to_expect_on_new_data_in_words(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"trial": 7, "score": 0.571, "low": 0.549, "high": 0.562, "optimism": 0.0155, "configurations": 41}
    said = describe_new_data({**row, "val_images": 5000})
    assert said == (
        "trial 7: validation 57.1%, expected on new data 54.9 to 56.2% "
        "(the best of 41 on 5000 images; 1.6 of it is taken for luck)"
    )
    alone = describe_new_data({**row, "optimism": 0.0, "configurations": 1, "val_images": 500})
    assert alone.endswith("(the only one on 500 images)")
    print_best(summary(make_study(FOUR), top=3))
    assert "trial 1: validation 41.0%, expected on new data " in capsys.readouterr().out


def test_ties_in_words() -> None:
    noise = {"sd": 0.00912, "repeats": 4, "source": "measured on 4 repeats", "confidence": 0.95}
    judged = "(run-to-run noise 0.91%, measured on 4 repeats)"
    assert describe_ties(3, [7, 3, 9], noise, 20) == f"trials 3, 7 and 9 cannot be told apart {judged}"
    assert describe_ties(3, [], noise, 20) == f"trial 3 is better than every other at 95% confidence {judged}"
    many = describe_ties(0, list(range(20)), noise, 20)
    assert many == f"trials 0, 1, 2, 3, 4, 5, 6, 7 and 12 more cannot be told apart {judged}"
    guessed = {**noise, "repeats": 0, "source": "the jitter between epochs"}
    assert describe_ties(3, [], guessed, 20).endswith("0.91%, not measured: guessed from the jitter between epochs)")
    assert "the only configuration" in describe_ties(3, [], noise, 1)


def test_one_configuration_of_full_length_is_better_than_nothing(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study([("COMPLETED", [0.4] * 8), ("COMPLETED", [0.1] * 4)])  # extended: the other one is shorter
    print_best(summary(study, 9))
    print_study(study, study_summary(study))
    out = capsys.readouterr().out
    assert out.count("trial 0 is the only configuration of full length") == 2
    assert "better than every other" not in out


@pytest.mark.parametrize(("asked", "state"), [(2, "finished"), (3, "paused")])
def test_the_state_of_a_study(asked: int, state: str, make_study: MakeStudy) -> None:
    (row,) = study_rows([make_study([("COMPLETED", SCORES), ("STOPPED", [0.1])], asked=asked)])
    assert row["state"] == state
    assert row["trials"] == f"2/{asked}"
