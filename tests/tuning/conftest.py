"""Whole searches in a moment: what a training measures is a formula, and nothing is calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
