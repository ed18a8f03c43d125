"""What Optuna's dashboard shows of a search on real Ray, while trials wait and after they have gone on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.records import TrialStatus
from tunelab.study import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block; the score is one of the parameters"
VERSION = 1
BASELINES = ({"kind": "good", "score": 0.9},)
SCORES = ((0.8, "good"), (0.5, "good"), (0.1, "raises"), (0.1, "diverges"), (0.3, "good"), (0.2, "good"))
SCORES += ((0.1, "good"), (0.85, "good"), (0.05, "good"), (0.04, "good"), (0.03, "good"))
STARTERS = tuple(({"kind": kind, "score": score},) for score, kind in SCORES)


def draw(suggest):
    kind = suggest.suggest_categorical("kind", ("good", "raises", "diverges"))
    lr = 0.1 + suggest.suggest_float("score", 0.0, 1.0) / 100  # no two configurations are equal
    good = {"lr": lr, "batch_size": 32}
    recipe = {"lr": 1000.0, "batch_size": 8, "precision": "float32"} if kind == "diverges" else good
    arch = ArchSpec(
        StemSpec(4),
        ((BlockSpec("basic", 4, 2, 1),),),
        activation="leaky_relu",
        norm="none" if kind == "diverges" else "batch",
    )
    return TrialConfig(arch, TrainConfig(optimizer="nothing" if kind == "raises" else "sgd", **recipe))
"""
# A search whose trials score what their parameters say; it halts when trial 8 has had an epoch, unless it goes on.
PROGRAM = """
import dataclasses, sys
import tunelab
from tunelab.tuning.engine import Engine
from tunelab.tuning.runner import resume

space, study = sys.argv[1:]
real = Engine.report


def report(engine, number, metrics, *_more):
    told = dataclasses.replace(metrics, val_accuracy=engine.trials[number].params["score"])
    goes_on = real(engine, number, told)
    if space and number == 8:
        engine.halt("SIGTERM")
    return goes_on


Engine.report = report
given = dict(trials=12, epochs=4, limit_train=100, concurrent=1, scheduler="promote", race=0.5, telemetry="off")
try:
    tunelab.search(space, study=study, **given) if space else resume(study)
except tunelab.TunelabError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for Ray, whose sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp") as folder:
        yield Path(folder)


def run(temporary: Path, *arguments: str) -> tuple[int, str]:
    """Runs the program; its exit status and the last line that it wrote."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said.strip().splitlines()[-1]


def dashboard(study: Path) -> list[optuna.trial.FrozenTrial]:
    """The study as Optuna's own tools open it."""
    storage = JournalStorage(JournalFileBackend(str(study / "optuna.journal")))
    trials = optuna.load_study(study_name="states", storage=storage).trials
    told = load(study).list_trials()
    assert [one.user_attrs["tunelab_trial"] for one in trials] == [trial.number for trial in told]
    for one, trial in zip(trials, told, strict=True):
        assert one.intermediate_values == {metrics.epoch: metrics.score for metrics in trial.epochs}
        assert (one.state.name == "COMPLETE") == (len(trial.epochs) == 4), "never for a shortened trial"
    return trials


@pytest.mark.usefixtures("no_calibration")
def test_optuna_sees_true_states(temporary: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    (tmp_path / "states.py").write_text(SPACE)
    status, said = run(temporary, str(tmp_path / "states.py"), str(study))
    assert status == 1
    assert "stopped before the end (SIGTERM): 8 trials are left" in said
    trials = load(study).list_trials()
    assert [trial.status.value for trial in trials] == [
        *("COMPLETED", "COMPLETED", "PAUSED", "FAILED", "DIVERGED", "PAUSED", "PAUSED", "PAUSED", "PAUSED"),
    ]
    assert [trial.decisions[-1]["pause"] for trial in trials[5:]] == [True, True, True, False], "the last one ran"
    before = dashboard(study)
    assert [one.state.name for one in before] == [
        *("COMPLETE", "COMPLETE", "RUNNING", "FAIL", "FAIL", "RUNNING", "RUNNING", "RUNNING", "RUNNING"),
    ]

    status, said = run(temporary, "", str(study))
    assert status == 0, said
    trials = load(study).list_trials()
    after = dashboard(study)
    assert [one.state.name for one in after[:12]] == [
        *("COMPLETE", "COMPLETE", "PRUNED", "FAIL", "FAIL", "PRUNED", "PRUNED", "PRUNED", "COMPLETE"),
        *("PRUNED", "PRUNED", "PRUNED"),
    ]
    assert [len(trial.epochs) for trial in trials[:12]] == [4, 4, 3, 0, 0, 1, 1, 1, 4, 1, 1, 1]
    third, ninth = trials[2], trials[8]
    assert [(one["epoch"], one["pause"]) for one in third.decisions] == [(1, True), (1, False), (3, True)]
    assert [(one["epoch"], one["pause"]) for one in ninth.decisions] == [(1, False), (3, False)]
    assert third.status is TrialStatus.STOPPED
    assert third.reason == f"epoch 3: {third.decisions[-1]['why']}"
    repeats = trials[12:]
    assert {trial.repeat_of for trial in repeats} <= {0, 1, 8}
    assert repeats, "there was time for a race"
    assert {one.state.name for one in after[12:]} == {"COMPLETE"}
    for one, other in zip(before, after, strict=False):
        assert (one.params, one.datetime_start) == (other.params, other.datetime_start), "the same trial has gone on"
