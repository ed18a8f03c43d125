from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.diagnose import (
    describe_curve,
    describe_divergence,
    diagnose_study,
    diagnose_trial,
    divergence,
)
from tunelab.analysis.diagnose_text import name_trials, print_study_diagnosis, print_trial_diagnosis
from tunelab.analysis.rank import summary
from tunelab.analysis.report import gather
from tunelab.analysis.text import print_best, print_study, print_trial, study_summary

from tunelab.cli import run
from tunelab.journal import Journal
from tunelab.records import EpochMetrics, Finding, Trial, TrialStatus
from tunelab.study import Study

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeStudy

RATE = Finding("learning rate too high", "", {"lr": 50.0}, "divide the learning rate by 1000", 1, 2, hopeless=True)
DEAD = Finding("dead units", "features.0", {"dead_share": 1.0, "units": 8}, "start the biases at 0", 1, 4)
OVER = Finding("over-fitting", "", {"train_accuracy": 0.9, "val_accuracy": 0.5}, "more augmentation", 3)
HEALTH = {
    "layers": ["features.0", "classifier"],
    "looks": [
        {"epoch": 1, "step": step, "steps": 4,
         "layers": {"weight": [2.0, 4.0], "gradient": [None, 0.5], "update": [0.0, step / 10],
                    "dead": [1.0, None], "saturated": [None, None]}}
        for step in (1, 2, 4)
    ],
}  # fmt: skip


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """Trial 0 is well, 1 and 2 diverged for their rates, 3 for numbers alone, 4 over-fits."""
    made = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], asked=5)
    (config,) = [trial.config for trial in made.list_trials()]
    journal = Journal.open(made.path)
    for number, (status, findings) in enumerate(
        [("DIVERGED", [RATE, DEAD]), ("DIVERGED", [RATE]), ("DIVERGED", []), ("COMPLETED", [OVER])], start=1
    ):
        plain = {"config": config, "params": {}, "stats": {"params": 1, "mflops": 1.0}, "arch_id": "0" * 8}
        journal.append({"event": "proposed", "trial": number, **plain})
        metrics = EpochMetrics(1, 2.0, 0.2, 2.0, 0.2, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 0.01)
        told = {"findings": [finding.to_json() for finding in findings]} if findings else {}
        journal.append({"event": "result", "trial": number, "metrics": metrics.to_json(), **told})
        reason = "epoch 2: the training loss became nan" if status == "DIVERGED" else ""
        journal.append({"event": "ended", "trial": number, "status": status, "reason": reason})
    journal.close()
    made.trial_folder(1).mkdir(parents=True)
    (made.trial_folder(1) / "health.json").write_text(json.dumps(HEALTH))
    return made


def test_the_story_of_a_trial(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    shown = diagnose_trial(study, study.trial(1))
    assert not shown["healthy"]
    assert [row["name"] for row in shown["findings"]] == ["learning rate too high", "dead units"]
    assert shown["change"] == ["divide the learning rate by 1000"]
    assert shown["looked_at"] == {"epoch": 1, "step": 4, "steps": 4}
    assert shown["layers"] == [
        {"layer": "features.0", "gradient_norm": None, "update_ratio": 0.0, "dead_share": 1.0, "saturated_share": None},
        {"layer": "classifier", "gradient_norm": 0.5, "update_ratio": 0.1, "dead_share": None, "saturated_share": None},
    ]
    print_trial_diagnosis(shown)
    said = capsys.readouterr().out
    for words in (
        "diverged (epoch 2: the training loss became nan)",
        "1 epoch: training loss 2, accuracy 20.0% in training, 20.0% in validation",
        "found in epoch 1, causes first:",
        "step 2: learning rate too high (lr 50); hopeless",
        "step 4: dead units in features.0 (dead share 1, units 8)",
        "what to change first: divide the learning rate by 1000",
        "its layers in epoch 1, step 4 of 4:",
    ):
        assert words in said


def test_a_trial_that_is_well_and_one_that_nobody_looked_at(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    shown = diagnose_trial(study, study.trial(4))
    assert shown["healthy"]
    print_trial_diagnosis(shown)
    said = capsys.readouterr().out
    assert "nothing is wrong with it" in said
    assert "remark, epoch 3: over-fitting (train accuracy 0.9, val accuracy 0.5): more augmentation" in said
    old = diagnose_trial(study, study.trial(0))
    assert (old["healthy"], old["watched"], old["layers"], old["looked_at"]) == (False, False, [], None)
    print_trial_diagnosis(old)
    assert "trained without being looked at" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"layers": ["a"], "looks": [{}]}', '{"layers": ["a"], "looks": [{"layers": 1}]}']
)
def test_a_damaged_file_hides_the_layers_alone(study: Study, content: str) -> None:
    (study.trial_folder(1) / "health.json").write_text(content)
    shown = diagnose_trial(study, study.trial(1))
    assert shown["layers"] == []
    assert len(shown["findings"]) == 2


def test_the_findings_of_a_study(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    shown = diagnose_study(study)
    assert [(row["finding"], row["trials"], row["remark"]) for row in shown["findings"]] == [
        ("learning rate too high", [1, 2], False),
        ("dead units", [1], False),
        ("over-fitting", [4], True),
    ]
    assert shown["diverged"] == {"count": 3, "cause": "learning rate too high", "times": 2}
    assert (shown["well"], shown["unknown"]) == ([4], [0])
    print_study_diagnosis(shown)
    said = capsys.readouterr().out
    assert "nothing is wrong with 1 of 5 trials" in said
    assert "not looked at while they were trained: 0" in said
    assert "over-fitting (remark)" in said


@pytest.mark.parametrize("status", [TrialStatus.RUNNING, TrialStatus.FAILED])
def test_a_trial_without_an_epoch_is_neither_well_nor_unseen(
    study: Study, capsys: pytest.CaptureFixture[str], status: TrialStatus
) -> None:
    trial = dataclasses.replace(study.trial(0), number=9, status=status, epochs=[], findings=[])
    shown = diagnose_trial(study, trial)
    print_trial_diagnosis(shown)
    said = capsys.readouterr().out
    assert "no epoch was trained to its end" in said
    assert "nothing is wrong" not in said
    assert "without being looked at" not in said


def test_of_equally_frequent_findings_the_cause_comes_first(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = dataclasses.replace(study.trial(1), findings=[RATE, DEAD])  # by their names it would be the other order
    monkeypatch.setattr(type(study), "list_trials", lambda self: [trial])
    assert [row["finding"] for row in diagnose_study(study)["findings"]] == ["learning rate too high", "dead units"]


def test_a_trial_that_failed_is_not_called_well(study: Study) -> None:
    assert not diagnose_trial(study, dataclasses.replace(study.trial(4), status=TrialStatus.FAILED))["healthy"]


def test_an_old_study_can_be_read(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    shown = diagnose_study(make_study([("COMPLETED", [0.1] * 4), ("DIVERGED", [0.1])]))
    assert (shown["findings"], shown["well"]) == ([], [])
    assert shown["diverged"] == {"count": 1, "cause": "a loss or a weight was not finite", "times": 1}
    print_study_diagnosis(shown)
    assert "nothing is wrong with 0 of 2 trials" in capsys.readouterr().out


def test_why_trials_diverged_in_one_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    line = "3 trials diverged, most often (2): learning rate too high; `tunelab diagnose` tells more"
    print_study(study, study_summary(study))
    assert f"health    {line}\n" in capsys.readouterr().out
    print_best(summary(study, 3))
    assert f"{line}\n" in capsys.readouterr().out
    print_trial(study, study.trial(1))
    assert "finding, epoch 1: dead units in features.0 (dead share 1, units 8): start the biases" in (
        capsys.readouterr().out
    )
    assert divergence([]) is None
    assert describe_divergence({"count": 1, "cause": "x", "times": 1}).startswith("1 trial diverged, x;")
    assert describe_divergence({"count": 2, "cause": "x", "times": 2}).startswith("2 trials diverged, all of them: x;")


def test_without_a_trial_of_full_length_the_reason_is_told_too(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    print_best(summary(make_study([("DIVERGED", [0.1])]), 3))
    assert "1 trial diverged" in capsys.readouterr().out


def test_the_page_has_the_findings(study: Study, tmp_path: Path) -> None:
    rows = gather(study, tmp_path)["health"]
    assert [row["finding"] for row in rows] == ["learning rate too high", "dead units", "over-fitting (remark)"]
    assert rows[0]["trials"] == "1, 2"


def test_the_command_answers_in_words_and_in_json(study: Study, capfd: pytest.CaptureFixture[str]) -> None:
    def asked(*words: str) -> str:
        capfd.readouterr()
        assert run(["diagnose", *words]) == 0
        return capfd.readouterr().out

    assert "learning rate too high" in asked()
    assert json.loads(asked("study", "--json"))["well"] == [4]
    assert "dead units in features.0" in asked("study", "1")
    assert json.loads(asked("1", "--json"))["trial"] == 1


def epoch(number: int, loss: float, score: float | None, **more: Any) -> EpochMetrics:
    return EpochMetrics(number, loss, 0.5, None if score is None else 1.0, score, 0.1, 1.0, 1.0, 1.0, **more)


def test_a_curve_in_words() -> None:
    assert describe_curve([]) == "no epoch was trained to its end"
    falls = [epoch(1, 2.0, 0.3), epoch(2, 1.0, 0.6), epoch(3, 0.5, 0.55)]
    assert describe_curve(falls) == (
        "3 epochs: the training loss falls from 2 to 0.5; accuracy 50.0% in training, 55.0% in validation, the best "
        "60.0% after epoch 2"
    )
    assert "stays from 2 to 1.99; accuracy 50.0% in training" in describe_curve(
        [epoch(1, 2.0, None), epoch(2, 1.99, None)]
    )
    assert "rises from 2 to 9" in describe_curve([epoch(1, 2.0, 0.1), epoch(2, 9.0, 0.1)])


def test_many_trials_are_counted() -> None:
    assert name_trials([3, 7]) == "3, 7"
    assert name_trials(list(range(14))).endswith("10, 11 and 2 more")


def test_the_diagnosis_of_a_trial_is_its_cause() -> None:
    trial = Trial(0, {}, status=TrialStatus.COMPLETED, findings=[OVER, DEAD, RATE])
    assert trial.diagnosis == RATE, "it left no hope"
    assert Trial(0, {}, findings=[OVER, DEAD]).diagnosis == DEAD
    assert Trial(0, {}, findings=[OVER]).diagnosis is None
