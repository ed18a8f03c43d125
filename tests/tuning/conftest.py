"""Whole searches in a moment: what a training measures is a formula, and nothing is calibrated."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunelab.records import EpochMetrics, Trial
from tunelab.tuning import ray_tune
from tunelab.tuning.engine import Engine

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"lr": 0.1, "width": 4},)


def draw(suggest):
    width = suggest.suggest_categorical("width", (4, 8, 16))
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", width, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=32, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""


class Played:
    """Trials that measure a formula: the higher the rate, the better. `halt` may stop it all before an epoch.

    `measure` gives what an epoch of a trial comes to.
    """

    def __init__(self) -> None:
        self.halt: Callable[[Trial, int], str] = lambda trial, epoch: ""
        self.measure: Callable[[Trial, int], EpochMetrics] = measured
        self.order: list[int] = []

    def run(self, engine: Engine, _slots: Any, *, log: Path, **_more: Any) -> None:
        """In place of Ray's."""
        log.touch()
        while (trial := engine.next_trial()) is not None:
            self.order.append(trial.number)
            goes_on = True
            while goes_on and not engine.should_halt:
                epoch = len(trial.epochs) + 1
                why = self.halt(trial, epoch)
                if why:
                    engine.halt(why)
                    break
                goes_on = engine.report(trial.number, self.measure(trial, epoch))


def measured(trial: Trial, epoch: int) -> EpochMetrics:
    """What an epoch of this trial measures; two runs of one configuration differ a little."""
    score = trial.config["train"]["lr"] + 0.01 * epoch + 1e-6 * (trial.config["seed"] % 100)
    return EpochMetrics(epoch, 1.0, score, 1 - score, score, 0.1, 1.0, 100.0, 10.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, no_calibration: None) -> Played:
    made = Played()
    monkeypatch.setattr(ray_tune, "run", made.run)
    return made


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """The file of a space of few parameters."""
    file = tmp_path / "plain.py"
    file.write_text(SPACE, encoding="utf-8")
    return file


@pytest.fixture
def sockets_beyond() -> Callable[[Iterable[psutil.Process]], list[str]]:
    """What of some processes listens beyond the loopback interface, a line for each socket."""

    def look(processes: Iterable[psutil.Process]) -> list[str]:
        found, seen = [], 0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                for one in process.net_connections(kind="inet"):
                    if one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr):
                        seen += 1
                        address = ipaddress.ip_address(one.laddr.ip)
                        mapped = getattr(address, "ipv4_mapped", None)
                        if not (mapped or address).is_loopback:
                            found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}: {one.laddr}")
        assert seen, "nothing listens at all"
        return found

    return look
