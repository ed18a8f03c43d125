from __future__ import annotations

import json
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus


def metrics(**changed: Any) -> EpochMetrics:
    fields = {
        "epoch": 3,
        "train_loss": 0.5,
        "train_accuracy": 0.8,
        "val_loss": 0.6,
        "val_accuracy": 0.7,
        "lr": 0.1,
        "seconds": 1.5,
        "images_per_second": 200.0,
        "peak_memory_mib": 300.0,
    }
    return EpochMetrics(**{**fields, **changed})


def test_trials_are_compared_by_their_validation_images_where_there_are_some() -> None:
    assert (metrics().score, metrics().loss) == (0.7, 0.6)
    assert (metrics(val_loss=None, val_accuracy=None).score, metrics(val_loss=None, val_accuracy=None).loss) == (
        0.8,
        0.5,
    )
    assert metrics(val_accuracy=0.0).score == 0.0  # none is right, which is not "not measured"
    assert metrics(val_loss=0.0).loss == 0.0


def test_metrics_are_plain_json_and_come_back() -> None:
    for one in (metrics(), metrics(val_loss=None, val_accuracy=None)):
        assert EpochMetrics(**json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("status", list(TrialStatus))
def test_only_running_and_paused_trials_go_on(status: TrialStatus) -> None:
    assert status.ended == (status.value not in ("RUNNING", "PAUSED"))


def test_the_statuses_are_those_of_the_record() -> None:
    """Studies on people's disks hold these words."""
    words = [status.value for status in TrialStatus]
    assert words == ["RUNNING", "COMPLETED", "STOPPED", "PAUSED", "DIVERGED", "FAILED"]


def test_the_score_of_a_trial_is_that_of_its_last_epoch() -> None:
    trial = Trial(number=0, config={})
    assert trial.score is None
    trial.epochs += [metrics(epoch=1, val_accuracy=0.9), metrics(epoch=2, val_accuracy=0.4)]
    assert trial.score == 0.4


def test_trials_share_nothing() -> None:
    one, other = Trial(0, {}), Trial(1, {})
    one.epochs.append(metrics())
    one.params["x"] = 1
    one.decisions.append({})
    one.stats["params"] = 1
    assert (other.epochs, other.params, other.decisions, other.stats) == ([], {}, [], {})
