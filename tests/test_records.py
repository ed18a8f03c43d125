from __future__ import annotations

import json
from typing import Any

import pytest

from tunelab.records import EpochMetrics, Trial, TrialStatus, out_of_patience


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


def test_the_effective_rate_is_the_rate_by_the_square_of_the_norm() -> None:
    assert metrics(weight_norm=4.0).effective_lr == 0.1 / 16
    assert metrics(weight_norm=4.0, lr=0.0).effective_lr == 0.0
    assert metrics(weight_norm=None).effective_lr is None
    assert metrics(weight_norm=0.0).effective_lr is None, "of weights that are all 0 nothing can be said"
    assert "effective_lr" not in metrics(weight_norm=4.0).to_json(), "it follows from the record"


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


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "since"),
    [
        ([0.5, 0.4, 0.3, 0.2], 0.25, 8, None),
        ([0.5, 0.4, 0.4], 0.25, 8, None),  # one epoch of the two
        ([0.5, 0.4, 0.4, 0.45], 0.25, 8, 2),
        ([0.5, 0.4, 0.4, 0.45, 0.3], 0.25, 8, None),  # one that went on all the same
        ([0.5, 0.49999, 0.49998], 0.25, 8, 1),  # no progress worth the name
        ([0.5, 0.5], 0.001, 8, 1),  # of one epoch at least
        ([0.5], 0.001, 8, None),
        ([0.5, 0.6, 0.6, 0.6], 0.25, 4, None),  # it is at its full length
        ([0.5, 0.6, 0.6, 0.6], None, 9, None),
        ([0.5, 0.6, 0.6, 0.6], 1.0, 4, None),
    ],
)
def test_patience_ends_after_a_share_of_the_epochs_without_progress(
    losses: list[float], patience: float | None, epochs: int, since: int | None
) -> None:
    history = [metrics(epoch=epoch, val_loss=loss) for epoch, loss in enumerate(losses, start=1)]
    why = out_of_patience(history, patience, epochs)
    waited = len(losses) - (since or 0)
    said = f"early stopping: no progress of the loss since epoch {since}, for {waited} of {epochs} epochs"
    assert why == ("" if since is None else said)
    trained_on_all = [metrics(epoch=one.epoch, train_loss=one.val_loss, val_loss=None) for one in history]
    assert out_of_patience(trained_on_all, patience, epochs) == why
