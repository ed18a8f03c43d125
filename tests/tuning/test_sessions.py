"""What TensorBoard's own HPARAMS backend makes of the trials of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrialConfig, to_json
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.training.telemetry import EventWriter
from tunelab.tuning.sessions import MOST_PARAMS, Sessions, flat_params

STATUSES = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]


def table(folder: Path) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """The columns of TensorBoard's table, and its rows by their names: parameters, metrics, status, number of runs."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    backend = Context(TBContext(data_provider=provider))
    context = RequestContext()
    metadata = backend.hparams_metadata(context, "")
    experiment = backend.experiment_from_metadata(context, "", True, metadata, [])
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=STATUSES,
        slice_size=1000,
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    rows = {}
    for group in Handler(context, backend, "", request).run().session_groups:
        rows[group.name] = {
            "params": {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in group.hparams.items()},
            "metrics": {metric.name.tag: metric.value for metric in group.metric_values},
            "status": [api_pb2.Status.Name(session.status) for session in group.sessions],
        }
    return {info.name for info in experiment.hparam_infos}, rows


def make_trial(number: int, **content: Any) -> Trial:
    config = to_json(TrialConfig(ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))))
    given = {"params": {"lr": 0.1 * number, "norm": "batch", "bias": True, "width": 8}, "origin": "sampler", **content}
    return Trial(number, config, stats={"params": 1234, "mflops": 0.5, "activations": 7}, **given)


def train(folder: Path, number: int, accuracies: list[float], first_step: int = 0) -> None:
    writer = EventWriter(folder / "trials" / f"{number:04d}" / "events", first_step)
    for epoch, accuracy in enumerate(accuracies, start=max(first_step, 1)):
        writer.write(EpochMetrics(epoch, 0.5, 0.75, 0.25, accuracy, 0.125, 2.0, 1000.0, 300.0))
    writer.close()


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions("digits", lambda number: tmp_path / "trials" / f"{number:04d}")


def end(trial: Trial, status: TrialStatus) -> Trial:
    trial.status = status
    return trial


def test_each_trial_is_a_row_with_its_parameters_its_last_numbers_and_its_status(tmp_path, sessions):
    statuses = [TrialStatus.COMPLETED, TrialStatus.STOPPED, TrialStatus.DIVERGED, TrialStatus.FAILED]
    for number, status in enumerate(statuses):
        trial = make_trial(number)
        sessions.started(trial)
        train(tmp_path, number, [0.5, 0.625])
        sessions.ended(end(trial, status))
    sessions.started(make_trial(4))
    columns, rows = table(tmp_path)
    assert columns == {"lr", "norm", "bias", "width", "params", "mflops", "origin"}
    assert list(rows) == [f"digits {number:04d}" for number in range(5)]
    assert rows["digits 0001"]["params"] == {
        "lr": pytest.approx(0.1),
        "norm": "batch",
        "bias": True,
        "width": 8,
        "params": 1234,
        "mflops": 0.5,
        "origin": "sampler",
    }
    assert rows["digits 0001"]["metrics"]["accuracy/val_accuracy"] == 0.625
    assert [row["status"] for row in rows.values()] == [
        ["STATUS_SUCCESS"],
        ["STATUS_UNKNOWN"],
        ["STATUS_FAILURE"],
        ["STATUS_FAILURE"],
        ["STATUS_UNKNOWN"],
    ]
    assert rows["digits 0004"]["metrics"] == {}


def test_the_first_columns_are_what_trials_are_judged_by(tmp_path, sessions):
    sessions.started(make_trial(0))
    train(tmp_path, 0, [0.5])
    first = list(table(tmp_path)[1]["digits 0000"]["metrics"])[:4]
    assert first == ["accuracy/train_accuracy", "accuracy/val_accuracy", "loss/train_loss", "loss/val_loss"]


def test_the_runs_of_one_configuration_are_one_row_with_their_mean(tmp_path, sessions):
    for number, accuracy in enumerate([0.5, 0.75]):
        trial = make_trial(number, repeat_of=0 if number else None)
        sessions.started(trial)
        train(tmp_path, number, [accuracy])
        sessions.ended(end(trial, TrialStatus.COMPLETED))
    _, rows = table(tmp_path)
    assert list(rows) == ["digits 0000"]
    assert rows["digits 0000"]["metrics"]["accuracy/val_accuracy"] == 0.625
    assert len(rows["digits 0000"]["status"]) == 2


def test_a_trial_that_is_started_again_and_again_is_told_once(tmp_path, sessions):
    trial = make_trial(0)
    for first_step in (0, 2, 0):  # paused, gone on with, and begun anew without a checkpoint
        sessions.started(trial)
        train(tmp_path, 0, [0.5], first_step)
    folder = tmp_path / "trials" / "0000" / "events"
    assert len(list(folder.glob("*.started"))) == 1
    again = Sessions("digits", lambda number: tmp_path / "trials" / f"{number:04d}", [trial])
    assert not list(folder.glob("*.ended"))
    again.ended(end(trial, TrialStatus.COMPLETED))
    again.ended(trial)
    assert len(list(folder.glob("*.ended"))) == 1
    _, rows = table(tmp_path)
    assert rows["digits 0000"]["status"] == ["STATUS_SUCCESS"]
    assert rows["digits 0000"]["metrics"]["accuracy/val_accuracy"] == 0.5


def test_what_a_killed_search_did_not_tell_the_next_one_does(tmp_path):
    trials = [end(make_trial(number), TrialStatus.DIVERGED) for number in range(3)]
    train(tmp_path, 0, [0.5])
    train(tmp_path, 1, [0.5])  # the folder of trial 2 was removed by hand
    Sessions("digits", lambda number: tmp_path / "trials" / f"{number:04d}", trials)
    _, rows = table(tmp_path)
    assert {name: row["status"] for name, row in rows.items()} == {
        "digits 0000": ["STATUS_FAILURE"],
        "digits 0001": ["STATUS_FAILURE"],
    }
    assert not (tmp_path / "trials" / "0002").exists()


def test_what_cannot_be_written_ends_nothing(tmp_path, sessions):
    (tmp_path / "trials").write_text("a file where the folder should be")
    sessions.started(make_trial(0))
    sessions.ended(end(make_trial(0), TrialStatus.COMPLETED))
    assert (tmp_path / "trials").is_file()


def test_of_many_parameters_those_of_parts_are_left_out():
    blocks = {f"branch_1_block_{number:02d}_kind": "basic" for number in range(MOST_PARAMS)}
    shown = flat_params(make_trial(0, params={**blocks, "lr": 0.5, "conv2_width": 3}))
    assert shown.keys() == {"lr", "conv2_width", "params", "mflops", "origin"}
    few = {"branch_1_depth": 3, "lr": 0.5}
    assert flat_params(make_trial(0, params=few)).keys() >= few.keys()


def test_a_trial_that_no_space_suggested_shows_its_recipe_and_its_seed():
    shown = flat_params(make_trial(0, params={}))
    assert shown["optimizer"] == "sgd"
    assert shown["schedule.name"] == "cosine"
    assert shown["seed"] == 0
    assert all(isinstance(value, (bool, int, float, str)) for value in shown.values())


def test_a_value_of_another_kind_is_told_as_a_text():
    assert flat_params(make_trial(0, params={"layout": [256, 128], "none": None}))["layout"] == "[256, 128]"
