"""Studies like those of real searches, written in a moment."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from tunelab.config import (
    ArchSpec,
    BlockSpec,
    DataConfig,
    ScheduleConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    arch_id,
    to_json,
)
from tunelab.journal import Journal, encode
from tunelab.records import EpochMetrics
from tunelab.study import Study

EPOCHS = 9
STATUSES = ("COMPLETED", "STOPPED", "STOPPED", "COMPLETED", "STOPPED", "DIVERGED", "STOPPED", "FAILED")


class MakeSearch(Protocol):
    """What the fixture `make_search` gives."""

    def __call__(
        self,
        trials: int,
        *,
        name: str = "search",
        running: bool = False,
        repeats: int = 0,
        info: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Study: ...


@pytest.fixture
def make_search(runs_dir: Path) -> MakeSearch:
    """Writes the study of a search with trials of all ends, rungs, several networks and schedules, times and repeats.

    A running search has its last two trials without an end, and half a line after them. `params` are other names for
    the space's parameters.
    """

    def make(
        trials: int,
        *,
        name: str = "search",
        running: bool = False,
        repeats: int = 0,
        info: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Study:
        return _write_search(runs_dir / name, trials, running, repeats, info or {}, params or {})

    return make


def _write_search(
    path: Path, trials: int, running: bool, repeats: int, info: Mapping[str, Any], params: Mapping[str, str]
) -> Study:
    study = Study.create(path, {**_info(trials), **info})
    draw = random.Random(trials)
    lines = []
    for number in range(trials + repeats):
        again = number - trials if number >= trials else None
        status = STATUSES[number % len(STATUSES)] if again is None else "COMPLETED"
        if running and number >= trials + repeats - 2:
            status = "RUNNING"
        lines += _events(draw, number, status, again, params)
    Journal.open(study.path).close()
    torn = lines[-1][:40] if running and lines else b""
    (study.path / "journal.jsonl").write_bytes(b"".join(lines) + torn)
    return study


def _info(trials: int) -> dict[str, Any]:
    return {
        "kind": "search",
        "space": {"name": "arch", "source": "arch", "version": 1},
        "options": {"trials": trials, "epochs": EPOCHS, "device": "cpu", "objective": ["val_accuracy"]},
        "data": {
            "name": "folder:зверь",
            "image_size": [32, 32],
            "channels": 3,
            "classes": ["кошка", "собака", "<script>alert(1)</script>"],
            "counts": {"train": 1000, "val": 500, "test": 300},
            "fingerprint": "0123456789abcdef",
        },
        "hardware": {"processor": "a processor", "cpus": 2, "gpus": []},
        "versions": {"tunelab": "0.1.0"},
    }


def _config(draw: random.Random) -> TrialConfig:
    width = draw.choice((8, 16, 32))
    branches = draw.randint(1, 3)
    kinds = [draw.choice(("basic", "bottleneck", "inception")) for _ in range(4)]
    blocks = tuple(
        BlockSpec(kind, 2 * width if place >= 1 else width, 2 if place == 1 else 1) for place, kind in enumerate(kinds)
    )
    return TrialConfig(
        arch=ArchSpec(StemSpec(width, pool=draw.random() < 0.5), (blocks,) * branches),
        train=TrainConfig(
            epochs=EPOCHS,
            optimizer=draw.choice(("sgd", "adamw")),
            lr=10 ** draw.uniform(-3, -0.5),
            schedule=ScheduleConfig(draw.choice(("cosine", "one_cycle", "step"))),
        ),
        data=DataConfig(),
    )


def _events(draw: random.Random, number: int, status: str, again: int | None, names: Mapping[str, str]) -> list[bytes]:
    config = _config(draw)
    train = config.train
    drawn: dict[str, Any] = {
        "optimizer": train.optimizer,
        f"lr_{train.optimizer}": train.lr,
        "schedule": train.schedule.name,
        "dropout": draw.uniform(0, 0.5),
        "flip": draw.random() < 0.5,
        "branches": len(config.arch.branches) if isinstance(config.arch, ArchSpec) else 0,
    }
    when = 1_790_000_000.0 + 100 * number
    common = {"trial": number, "time": when}
    lines = [
        {
            "event": "proposed",
            **common,
            "arch_id": arch_id(config.arch),
            "params": {names.get(name, name): value for name, value in drawn.items()},
            "stats": {"params": draw.randint(10_000, 900_000), "mflops": draw.uniform(1, 40), "depth": 6},
            "config": to_json(config),
            "origin": "baseline" if number == 0 else "sampler",
            "repeat_of": again,
        }
    ]
    length = {"COMPLETED": EPOCHS, "STOPPED": draw.choice((1, 3)), "DIVERGED": 2, "FAILED": 0, "RUNNING": 2}[status]
    top = 0.55 + 0.1 * (train.schedule.name == "one_cycle") + draw.gauss(0, 0.03)
    for epoch in range(1, length + 1):
        score = max(0.05, top * (1 - 0.7**epoch) + draw.gauss(0, 0.01))
        rate = train.lr * (1 - (epoch - 1) / EPOCHS)
        metrics = EpochMetrics(
            epoch,
            2.0 / epoch,
            score + 0.05,
            2 - score,
            score,
            rate,
            draw.uniform(3, 9),
            400.0,
            600.0,
            weight_norm=20 * 0.95**epoch,
        )
        lines.append({"event": "result", **common, "time": when + 10 * epoch, "metrics": metrics.to_json()})
        if epoch in (1, 3) and again is None:
            stop = status == "STOPPED" and epoch == length
            decision = {"epoch": epoch, "stop": stop, "score": score, "loss": 1.0, "rank": 1, "rivals": 3, "places": 1}
            decision |= {"cutoff": 0.3, "noise": 0.01, "why": "", "pause": False}
            lines.append({"event": "decision", **common, "time": when + 10 * epoch, "decision": decision})
    if status != "RUNNING":
        reason = {"FAILED": "out of memory: CUDA out of memory <b>", "DIVERGED": "the loss is nan"}.get(status, "")
        lines.append({"event": "ended", **common, "time": when + 95, "status": status, "reason": reason})
    return [encode(line) for line in lines]


class MakeRetraining(Protocol):
    """What the fixture `make_retraining` gives."""

    def __call__(self, study: Study, *, name: str = "retrain-x", accuracy: float = 0.6, images: int = 60) -> Path: ...


@pytest.fixture
def make_retraining() -> MakeRetraining:
    """Writes what a retraining leaves behind: its record, metrics of two seeds, predictions; of three classes.

    The last class is right in a tenth of its images, the others in nine of ten.
    """

    return _write_retraining


def _write_retraining(study: Study, *, name: str = "retrain-x", accuracy: float = 0.6, images: int = 60) -> Path:
    folder = study.path / name
    runs = Study.create(folder, {"kind": "retrain", "options": {"trials": 2, "epochs": EPOCHS}})
    lines = [line for number in range(2) for line in _events(random.Random(number), number, "COMPLETED", None, {})]
    Journal.open(runs.path).close()
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    labels = np.arange(images) % 3
    wrong = np.where(labels == 2, np.arange(images) % 10 != 2, np.arange(images) % 10 == 5)
    predicted = np.where(wrong, (labels + 1) % 3, labels)
    confusion = np.bincount(labels * 3 + predicted, minlength=9).reshape(3, 3).tolist()
    seed = {"seed": 1, "test": {"confusion": confusion, "n": images}, "seconds": 9.0}
    metrics = {
        "trial": 0, "epochs": EPOCHS, "trained_on": "train+val", "test_accuracy": accuracy,
        "test_accuracy_std": 0.01,
        "test_interval": {"low": 0.55, "high": 0.65},
        "ensemble": {"accuracy": 0.71}, "test_images": images, "search_val_accuracy": 0.62, "seeds": [seed, seed],
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"trial_config": to_json(_config(random.Random(0)))}))
    np.savez(
        folder / "test_predictions.npz",
        labels=labels,
        predicted=predicted,
        probability=np.linspace(0.4, 0.99, images),
    )
    return folder


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A search of 24 trials with a retraining, its name in several scripts and with markup; to be read alone."""
    study = _write_search(tmp_path_factory.mktemp("whole") / "имя <img src=x> & 猫", 24, False, 2, {}, {})
    _write_retraining(study)
    return study
