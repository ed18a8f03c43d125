"""Two processes that train one network together, when one hangs, when they are stopped, and when their driver dies."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, arch_id
from tunelab.data.cache import prepare
from tunelab.records import TrialStatus
from tunelab.tuning.watchdog import LIMITS_VARIABLE

if TYPE_CHECKING:
    from tests.conftest import MakeStudy
    from tests.faults.conftest import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 12
DATA = DataConfig(limit_train=100)
ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))
LIMITS = {LIMITS_VARIABLE: json.dumps({"look": 0.2, "least": 10.0})}
TWO_CPUS = "from tunelab.tuning import hardware\nhardware.usable_cpus = lambda: 2"


def retrain(fault: Fault, *options: str, **more: str) -> None:
    """Starts the retraining of the study that the fault's lies in."""
    given = ["best", str(fault.study.parent), "--retrain", "--epochs", str(EPOCHS), *options]
    fault.command = fault.machine.start(*given, before=TWO_CPUS, **fault.environment(), **more)


def results(fault: Fault) -> int:
    return fault.results() if (fault.study / "journal.jsonl").exists() else 0


@pytest.fixture
def team(fault: Fault, make_study: MakeStudy) -> Fault:
    """A study whose winner can be retrained; the fault's own study is that retraining."""
    info: dict[str, Any] = {
        "data": prepare(DATA).to_json(),
        "options": {"trials": 1, "epochs": 4, "device": "cpu", "telemetry": "off", "data": {"limit_train": 100}},
    }
    config = TrialConfig(ARCH, TrainConfig(epochs=4, batch_size=20, precision="float32"), DATA)
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], path=fault.folder / "search", config=config, info=info)
    fault.study = study.path / f"retrain-{arch_id(ARCH)}-trial0000-{EPOCHS}epochs"
    fault.asked = (1, EPOCHS)
    return fault


def test_a_team_goes_on_after_a_hang_an_interrupt_and_a_kill_and_ends_alone(team: Fault) -> None:
    team.order({"do": "stop", "rank": 1, "epoch": 2, "times": 1}, {"do": "sleep", "seconds": 0.5})
    retrain(team, "--processes", "2", **LIMITS)
    team.wait_until(lambda: results(team) >= 3, 300)
    team.order({"do": "hold", "rank": 1})
    team.wait_until(lambda: team.trained("hold"))
    team.signal(signal.SIGINT, group=True)
    _, err = team.end(130, 60)
    assert "stopped before the end (SIGINT): 1 trial is left; the same command goes on" in err.splitlines()[-1]
    (trial,) = team.trials()
    assert [(retry["cause"], retry["epoch"]) for retry in trial.retries] == [("hung", 1)]
    known = results(team)
    team.kills += 1

    team.order({"do": "sleep", "seconds": 0.5})
    retrain(team, "--processes", "2")
    team.wait_until(lambda: results(team) >= known + 2, 300)
    team.kill()

    team.order()
    retrain(team)
    team.end(0, 300)
    (trial,) = team.check_books(retrained=1)
    assert trial.status is TrialStatus.COMPLETED
    assert "trained by 2 processes, which shared each batch" in trial.notes
    assert json.loads((team.study / "metrics.json").read_text())["processes"] == 1
    team.check_nothing_is_left()
