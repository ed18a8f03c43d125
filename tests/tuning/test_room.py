from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunelab.config import DataConfig, TrialConfig, from_json, to_json
from tunelab.data.cache import prepare
from tunelab.files import free_bytes, free_files
from tunelab.records import Trial
from tunelab.space import load_space
from tunelab.training.fitting import fit
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.preflight import make_source
from tunelab.tuning.room import checkpoint_bytes, estimate


def drawn(params: int = 1_000_000) -> list[Trial]:
    return [Trial(0, {"train": {"optimizer": "sgd", "epochs": 30}}, {}, stats={"params": params})]


def test_a_file_system_that_does_not_say_what_it_has_is_not_taken_for_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _folder: os.statvfs_result([512, *9 * [0]]))
    assert free_bytes(tmp_path) > 2**60
    assert free_files(tmp_path) is None


def test_what_is_kept_and_what_runs_is_counted() -> None:
    size = checkpoint_bytes(drawn()[0])
    found = estimate(drawn(), SearchOptions(trials=100, race=0.0, keep_weights=10), 3)
    assert (found.live, found.kept, found.kept_trials) == (12 * size, 20 * size, 10)
    assert found.study > found.live + found.kept + found.record + found.events
    said = found.describe()
    assert said.startswith("space: about ")
    assert "of the best 10 153 MiB" in said
    assert said.endswith("to spare 100 MiB)"), "the parts are all of it"
    everything = estimate(drawn(), SearchOptions(trials=100, race=0.0), 3)
    assert everything.kept == 200 * size
    nothing = estimate(drawn(), SearchOptions(trials=100, race=0.0, keep_weights=0), 3)
    assert nothing.kept == 0
    paused = estimate(drawn(), SearchOptions(trials=100, race=0.0, keep_weights=10, scheduler="promote"), 3)
    assert paused.live == 12 * size + 180 * size
    few = estimate(drawn(), SearchOptions(trials=3, race=0.0, keep_weights=10), 3)
    assert few.kept == 6 * size
    assert estimate([], SearchOptions(keep_weights=10), 1).live == 0


def test_telemetry_counts() -> None:
    sizes = [estimate(drawn(), SearchOptions(telemetry=level), 1).events for level in ("off", "scalars", "full")]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert sizes[2] > 100 * 2**20


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_size_of_a_checkpoint_is_about_as_foreseen(space: Path, tmp_path: Path, optimizer: str) -> None:
    options = SearchOptions(data=DataConfig(limit_train=100), epochs=1)
    source = make_source(load_space(str(space)), options, prepare(options.data), 0, None)
    made = source.propose(0, {})
    config = to_json(made.config)
    config["train"] |= {"optimizer": optimizer, "lr": 0.01}
    trial = Trial(0, config, {}, stats=dict(made.stats))
    fit(from_json(TrialConfig, config), folder=tmp_path / "trial", device="cpu", threads=1, telemetry="off")
    size = (tmp_path / "trial" / "checkpoint" / "last.pt").stat().st_size
    assert size < checkpoint_bytes(trial) < 1.3 * size + 50_000
