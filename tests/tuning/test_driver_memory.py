"""What the driver keeps of each trial: a search of a thousand trials that only report must fit beside the training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_BYTES = 100_000
# In a process of its own: what it holds when trial 100 begins, and when all have ended.
PROGRAM = """
import dataclasses, os, sys
from pathlib import Path

from tunelab.config import derive_seed
from tunelab.journal import Journal
from tunelab.records import EpochMetrics
from tunelab.space import load_space
from tunelab.tuning.engine import Engine
from tunelab.tuning.progress import Silent
from tunelab.tuning.repeats import Race
from tunelab.tuning.searcher import OptunaSource
from tunelab.tuning.stopping import SuccessiveHalving

folder, trials, epochs = Path(sys.argv[1]), 1000, 30
os.fsync = lambda descriptor: None


def complete(config, number):
    train = dataclasses.replace(config.train, epochs=epochs)
    return dataclasses.replace(config, train=train, seed=derive_seed(0, number))


def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


space = load_space("arch")
stats = {"params": 100_000, "mflops": 10.0, "activations": 50_000, "depth": 18, "convs": 17}
source = OptunaSource(space, 0, "random", complete, lambda config: stats, folder / "optuna.journal")
race = Race(0.2, trials, epochs, 300, baseline=True)
rule = SuccessiveHalving(epochs, {0}, promote=True)
journal = Journal.open(folder)
engine = Engine(journal, [], source, rule, trials, Silent(), repeats=race, noise=race.sd)
before = reports = 0
while (trial := engine.next_trial()) is not None:
    before = held() if trial.number == 100 else before
    score = trial.config["seed"] % 997 / 997
    goes_on = True
    while goes_on:
        at = len(trial.epochs) + 1
        metrics = EpochMetrics(at, 1.0, 0.5, 1.0, score * (1 - 1 / (at + 1)), 0.1, 0.5, 1000.0, 300.0)
        goes_on = engine.report(trial.number, metrics)
        reports += 1
print(reports, len(engine.trials), engine.unfinished, (held() - before) / (len(engine.trials) - 100))
"""


@pytest.mark.slow
def test_a_thousand_trials_fit_into_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    reports, trials, unfinished, bytes_each = (float(word) for word in done.stdout.split())
    assert (trials > 1000, unfinished) == (True, 0)
    assert reports > 3 * trials
    assert bytes_each < MOST_BYTES
