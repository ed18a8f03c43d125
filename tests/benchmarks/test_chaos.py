"""What is counted as lost or doubled, and a search that is killed for real."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("chaos")


@pytest.fixture
def search(script: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A search of two trials that is not started."""
    made = script.Search(tmp_path, 2, random.Random(0), threading.Event())
    yield made
    shutil.rmtree(made._temporary)


def trained(folder: Path, *epochs: tuple[int, int]) -> None:
    """What workers told of (trial, epoch)."""
    lines = [json.dumps({"what": "end", "trial": trial, "epoch": epoch}) for trial, epoch in epochs]
    (folder / "log").write_text("\n".join(lines))


def test_a_trial_that_is_not_what_it_was_is_lost(search: Any, make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study([("COMPLETED", [0.5, 0.6]), ("RUNNING", [0.1])], path=tmp_path / "study")
    search._compare()
    assert search.outcome.lost == 0
    shutil.rmtree(study.path)
    make_study([("COMPLETED", [0.5, 0.7]), ("COMPLETED", [0.1, 0.2])], path=tmp_path / "study")
    search._compare()
    assert search.outcome.lost == 1
    shutil.rmtree(study.path)
    make_study([("COMPLETED", [0.5, 0.7])], path=tmp_path / "study")
    search._compare()
    assert search.outcome.lost == 2
    assert search.outcome.harm == 2


def test_what_may_not_be_is_counted(search: Any, make_study: MakeStudy, script: ModuleType, tmp_path: Path) -> None:
    make_study([("COMPLETED", [0.5]), ("RUNNING", [0.6])], path=tmp_path / "study")
    trained(tmp_path, (0, 1), (0, 1), (0, 1), (1, 1), (1, 1))
    (search._temporary / "tunelab-left").mkdir()
    search.outcome.drivers_killed = 1
    search._check()
    found = search.outcome
    assert (found.trials, found.same_configurations, found.same_epochs) == (1, 1, 0)
    assert (found.not_ended, found.folders_left) == (1, 1)
    assert (found.trained_twice, found.too_often) == (3, 1), "two ran when the driver was killed"
    assert found.harm == 4
    total = script.Outcome()
    total.add(found)
    total.add(found)
    lines = [line.split(maxsplit=1) for line in script.table(total).splitlines()]
    assert ["2", "searches"] in lines
    assert ["6", "epochs trained twice"] in lines
    assert len(lines) == len(script.WORDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_is_killed_and_loses_nothing(cache_dir: Path) -> None:
    """Ctrl-C after the first of three: there is a table of it, and nothing runs any more."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(FOLDER / "chaos.py"), "--searches", "3", "--trials", "3", "--seed", "1"]
        environment = {**os.environ, "TMPDIR": folder, "TUNELAB_TEST_CHAOS": folder, "PROVOKED_QUICK": "1"}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
            process.communicate()
        assert re.match(r"search 0: [3-9] trials, ", said)  # those asked for, and their repeats
        assert "nothing lost" in said
        assert process.returncode == 130, err
        lines = [line.split(maxsplit=1) for line in out.splitlines()]
        assert ["1", "searches"] in lines
        assert ["0", "finished trials lost or changed"] in lines
        known = [one.info["environ"] or {} for one in psutil.process_iter(["environ"])]
        left = [one for one in known if "TUNELAB_TEST_CHAOS" in one]
        assert left == []
