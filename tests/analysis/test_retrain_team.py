"""Retraining by two processes under Ray Train."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tunelab.analysis.retrain import retrain
from tunelab.analysis.retrain_text import retrained_lines

from tests.ray_nodes import PROVOKED, give_orders, trained
from tunelab.config import (
    ArchSpec,
    AveragingConfig,
    BlockSpec,
    CustomSpec,
    DataConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    from_json,
)
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.study import Study
from tunelab.training.fitting import fit
from tunelab.tuning import hardware

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

DATA = DataConfig(limit_train=200)


@pytest.fixture
def studied(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study on digits, on a machine with at least two processors."""
    monkeypatch.setattr(hardware, "usable_cpus", lambda: 2)
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),), activation="silu")
    recipe = TrainConfig(
        epochs=4, batch_size=20, lr=0.05, precision="float32", averaging=AveragingConfig("ema", start=0.5)
    )
    return make_study(
        [("COMPLETED", [0.1, 0.2, 0.3, 0.4])],
        config=TrialConfig(arch, recipe, DATA),
        info={
            "data": prepare(DATA).to_json(),
            "options": {"trials": 1, "epochs": 4, "device": "cpu", "data": {"limit_train": 200}},
        },
    )


def members(parent: psutil.Process) -> list[psutil.Process]:
    """The processes that train, which Ray names after its class."""
    return [process for process in parent.children(recursive=True) if "RayTrainWorker" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.slow
def test_two_processes_come_to_what_one_does_and_that_is_recorded(studied: Study) -> None:
    metrics = retrain(studied, epochs=3, keep_val=True, processes=2, progress=False)

    runs = Study.open(Path(metrics["folder"]))
    (trial,) = runs.list_trials()
    alone = fit(from_json(TrialConfig, trial.config), device="cpu", threads=1)
    for own, other in zip(alone, trial.epochs, strict=True):
        assert other.train_loss == pytest.approx(own.train_loss, rel=2e-3)
        assert other.val_loss == pytest.approx(own.val_loss, rel=2e-3)
        assert other.weight_norm == pytest.approx(own.weight_norm, rel=2e-3)
    assert (metrics["processes"], runs.info["slots"]["processes"], runs.info["slots"]["cpus"]) == (2, 2, 1)
    assert "note: trained by 2 processes, which shared each batch" in retrained_lines(metrics)
    card = (runs.path / "card.md").read_text()
    assert "--keep-val --processes 2\n" in card
    assert "by 2 processes, which shared each batch" in card
    assert list((runs.path / "trials" / "0000" / "events").iterdir())
    assert retrain(studied, epochs=3, keep_val=True, progress=False) == metrics, "it is finished"


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_they_go_on_from_the_last_checkpoint(
    studied: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, orders = tmp_path / "log", tmp_path / "orders.json"
    for name, value in (("PYTHONPATH", PROVOKED), ("PROVOKED_LOG", log), ("PROVOKED_ORDERS", orders)):
        monkeypatch.setenv(name, str(value))
    give_orders(tmp_path, [{"do": "wait", "epoch": 5}])
    killed: list[int] = []

    def kill_one() -> None:
        ends = time.monotonic() + 240
        while not killed and time.monotonic() < ends:
            time.sleep(0.05)
            told = sum(file.read_bytes().count(b'"result"') for file in studied.path.glob("retrain-*/journal.jsonl"))
            if trained(log, "wait") and told == 4 and (found := members(psutil.Process())):
                found[-1].kill()
                killed.append(found[-1].pid)
        give_orders(tmp_path, [])

    killer = threading.Thread(target=kill_one)
    killer.start()
    metrics: dict[str, Any] = retrain(studied, epochs=10, processes=2, progress=False)
    killer.join()

    assert killed
    folder = Path(metrics["folder"])
    (trial,) = Study.open(folder).list_trials()
    assert [retry["cause"] for retry in trial.retries] == ["lost"]
    assert trial.retries[0]["epoch"] == 4
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    epochs = [event["metrics"]["epoch"] for event in events if event["event"] == "result"]
    assert epochs == list(range(1, 11)), "no epoch is told twice"
    assert not members(psutil.Process())


def test_fewer_gpus_than_asked_for_is_a_line_before_anything_is_made(studied: Study) -> None:
    with pytest.raises(InputError, match="--gpus 4: the study trains on processors"):
        retrain(studied, gpus=4, progress=False)
    with pytest.raises(InputError, match="--processes 3 must be 1 to 2"):
        retrain(studied, processes=3, progress=False)
    with pytest.raises(InputError, match="a batch of 1 images cannot be shared by 2 processes"):
        retrain(studied, processes=2, changes={"batch_size": 1}, progress=False)
    with pytest.raises(InputError, match="on this machine alone; leave --address out"):
        retrain(studied, gpus=4, address="auto", progress=False)
    assert not list(studied.path.glob("retrain-*"))


def test_a_network_of_ones_own_needs_equal_shares(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its processes draw the same numbers, as long as they draw as many: layers that it leaves out are the same."""
    monkeypatch.setattr(hardware, "usable_cpus", lambda: 2)
    own = TrialConfig(CustomSpec("/net.py:build", {}, "0" * 64), TrainConfig(epochs=4, batch_size=33), DATA)
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], config=own)
    with pytest.raises(InputError, match="33 images cannot be shared equally by 2 processes, which a network of your"):
        retrain(study, processes=2, progress=False)
