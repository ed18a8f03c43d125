from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from tunelab.tuning import ray_cluster
from tunelab.tuning.ray_cluster import JOB, Places, runtime_env
from tunelab.tuning.ray_home import SETTINGS
from tunelab.tuning.slots import Slots


def test_workers_have_our_settings_and_our_package() -> None:
    made = runtime_env({})
    assert made["env_vars"] == SETTINGS
    (package,) = made["py_modules"]
    assert (Path(package) / "tuning" / "worker.py").is_file()
    assert "/analysis/" in made["excludes"]


def test_what_a_job_was_submitted_with_wins() -> None:
    theirs = {"env_vars": {"RAY_DEDUP_LOGS": "1", "MINE": "x"}, "py_modules": ["gcs://mine.zip"], "excludes": ["*.bin"]}
    made = runtime_env({JOB: json.dumps({"runtime_env": theirs, "metadata": {}})})
    assert made["env_vars"] == {**SETTINGS, "RAY_DEDUP_LOGS": "1", "MINE": "x"}
    assert made["py_modules"][0] == "gcs://mine.zip"
    assert len(made["py_modules"]) == 2
    assert made["excludes"][0] == "*.bin"
    assert runtime_env({JOB: json.dumps({"runtime_env": None})}) == runtime_env({})


def test_places_follow_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_cluster, "_PAUSE", 0.0)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def add(cpus: float) -> None:
        has = {"NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": cpus}}
        nodes.append({"NodeID": str(len(nodes)), **has})

    slots = Slots(1, 1, 0.0, "cpu")
    free, capped = Places(slots), Places(slots, cap=3)
    assert (free.count(), capped.count()) == (1, 1), "one waits for a node"
    add(2.0)
    assert (free.count(), capped.count()) == (2, 3), "one more than there is room for"
    add(4.0)
    assert (free.count(), capped.count()) == (6, 3)
    assert Places(slots, most=1).count() == 2
    nodes[1]["Alive"] = False
    assert free.count() == 2
    monkeypatch.setattr(ray, "nodes", lambda: 1 / 0)
    assert free.count() == 2, "what was known stays"
