"""Events of strangers and of later versions: what is known must be right, what is unknown is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tunelab.errors import InputError
from tunelab.journal import Journal, encode
from tunelab.record_checks import BadEventError, epoch_of, finding_of, number_of, require_proposal
from tunelab.records import EpochMetrics, Finding
from tunelab.study import replay

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

METRICS = EpochMetrics(1, 2.0, 0.5, 1.5, 0.6, 0.1, 0.25, 400.0, 300.0).to_json()
FINDING = Finding("dead units", "features.3", {"share": 0.9, "of": "relu"}, "a lower lr", 1, 3).to_json()
PROPOSED: dict[str, Any] = {
    "event": "proposed", "trial": 3, "config": {"train": {"epochs": 4}}, "params": {"lr": 0.1}, "stats": {"params": 9},
    "arch_id": "0a",
}  # fmt: skip


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert epoch_of({**METRICS, "later": [1]}) == epoch_of(METRICS)
    assert finding_of({**FINDING, "later": None}) == finding_of(FINDING)
    assert replay([{"event": "later", "when": "now"}, PROPOSED, {"event": "later", "trial": "x"}])[0].number == 3


@pytest.mark.parametrize(
    "change",
    [
        {"val_accuracy": 1e30}, {"val_accuracy": 1.5}, {"val_accuracy": "0.5"}, {"train_accuracy": None}, {"epoch": 0},
        {"epoch": True}, {"epoch": 1.0}, {"train_loss": float("nan")}, {"lr": float("inf")}, {"seconds": -1.0},
        {"val_loss": []}, {"weight_norm": 10**400}, {"peak_memory_mib": {}}, {"grad_norm": "x"},
    ],
)  # fmt: skip
def test_metrics_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadEventError, match=next(iter(change)) if change != {} else ""):
        epoch_of({**METRICS, **change})


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("weight_norm", "grad_norm", "update_ratio")])
def test_metrics_that_are_incomplete_are_refused(name: str) -> None:
    with pytest.raises(BadEventError, match=name):
        epoch_of({key: value for key, value in METRICS.items() if key != name})
    with pytest.raises(BadEventError, match="metrics is"):
        epoch_of([1, 2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": []}, "config is list"), ({"config": {"train": 3}}, "train of config is 3"),
        ({"config": {"train": {"epochs": 0}}}, "epochs of config is 0"), ({"params": {"a": 1e999}}, "params are"),
        ({"params": {"a": 10**400}}, "more than 300 digits"), ({"stats": {"mflops": "x"}}, "mflops of stats is 'x'"),
        ({"arch_id": 3}, "arch_id is 3"), ({"repeat_of": 3}, "a trial before 3"), ({"origin": None}, "origin is None"),
        ({"config": {"train": {"lr": "fast"}}}, "lr of config is 'fast'"),
    ],
)  # fmt: skip
def test_proposals_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    require_proposal(PROPOSED)
    with pytest.raises(BadEventError, match=said):
        require_proposal({**PROPOSED, **change})


@pytest.mark.parametrize("number", [None, -1, True, "0", 1.0, 10**30])
def test_events_of_no_trial_are_refused(number: Any) -> None:
    with pytest.raises(BadEventError, match="trial is"):
        number_of({"event": "result", "trial": number})
    with pytest.raises(BadEventError, match="time is"):
        number_of({"event": "result", "trial": 0, "time": "noon"})


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"evidence": {"a": []}},
        {"evidence": 3},
        {"epoch": "1"},
        {"step": -1},
        {"hopeless": "no"},
        {"layer": None},
    ],
)  # fmt: skip
def test_findings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadEventError, match="a finding is"):
        finding_of({**FINDING, **change})


def test_a_record_that_cannot_be_believed_is_named_with_its_event(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.5] * 4)])
    journal = Journal.open(study.path)
    journal.append({"event": "ended", "trial": 7, "status": "COMPLETED", "reason": ""})
    journal.close()
    with pytest.raises(InputError, match=r"journal.jsonl: event 7 of the record .* trial 7, which was not proposed"):
        study.list_trials()


def test_a_status_of_a_later_version_is_told(make_study: MakeStudy) -> None:
    study = make_study([("RUNNING", [0.5])])
    with (study.path / "journal.jsonl").open("ab") as file:
        file.write(encode({"event": "ended", "trial": 0, "status": "SLEEPING", "reason": ""}))
    with pytest.raises(InputError, match="status is 'SLEEPING'; this version of tunelab knows RUNNING, COMPLETED"):
        study.list_trials()


def test_no_high_score_of_a_trial_that_failed_or_is_short_is_best(make_study: MakeStudy) -> None:
    """Only trials of full length are ranked, by their last epoch."""
    study = make_study(
        [
            ("FAILED", [0.1, 0.2, 0.99, 0.99]), ("STOPPED", [0.98]), ("COMPLETED", [0.97, 0.5, 0.5, 0.5]),
            ("COMPLETED", [0.1, 0.2, 0.3, 0.6]), ("DIVERGED", [0.95] * 4), ("RUNNING", [0.96] * 3),
        ]
    )  # fmt: skip
    assert study.best().number == 3
    assert [trial.number for trial in study.ranked()] == [3, 2]
