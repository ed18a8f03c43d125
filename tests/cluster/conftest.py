"""Searches from the command line on a cluster of real Ray nodes on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.journal import read_journal
from tunelab.records import Trial
from tunelab.study import load

if TYPE_CHECKING:
    from tests.ray_nodes import RayNodes

LIMIT = 100  # training images
SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 1
BASELINES = ({"lr": 0.1},)


def draw(suggest):
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=8, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""


class Search:
    """One study on a cluster, and the commands that search it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study = folder / "study"
        self.space = folder / "small.py"
        self.space.write_text(SPACE, encoding="utf-8")

    def start(
        self,
        nodes: RayNodes,
        *options: str,
        trials: int = 6,
        epochs: int = 2,
        address: str | None = None,
        before: str = "",
        **more: str,
    ) -> subprocess.Popen[str]:
        """Starts a search on `nodes`, in which each trial is trained to its end."""
        words = ["--trials", str(trials), "--epochs", str(epochs), "--limit-train", str(LIMIT), "--telemetry", "off"]
        words += ["--race", "0", "--scheduler", "none", "--address", address or nodes.address, *options]
        nodes.forget()
        return nodes.start("search", str(self.space), "--study", str(self.study), *words, before=before, **more)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What the record holds."""
        path = self.study / "journal.jsonl"
        return [event for event in read_journal(path) if event["event"] in kinds] if path.exists() else []

    def trials(self) -> list[Trial]:
        return load(self.study).list_trials()


@pytest.fixture(scope="session", autouse=True)
def decoded(cache_dir: Path) -> None:
    """The images are in the cache."""
    prepare(DataConfig(limit_train=LIMIT))


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A study that is not begun yet."""
    return Search(tmp_path)
