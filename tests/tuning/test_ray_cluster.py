from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from tunelab.errors import UnfitError
from tunelab.tuning import ray_cluster
from tunelab.tuning.ray_cluster import JOB, Places, joined, runtime_env
from tunelab.tuning.ray_home import SETTINGS
from tunelab.tuning.roll_call import FAILED_START, TRIES
from tunelab.tuning.site import Site
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


def test_of_the_environment_only_what_was_set_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space, or another thread, may have set variables of its own while the cluster was joined."""
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.setenv("MINE", "before")
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)

    def init(**_options: object) -> SimpleNamespace:
        os.environ["PYTHONBREAKPOINT"] = "ray.util.rpdb.set_trace"
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = dict(os.environ)
    with joined(Site("head:6379", token="token")):
        assert (os.environ["RAY_DEDUP_LOGS"], os.environ["RAY_AUTH_MODE"]) == ("0", "token")
        os.environ["MINE"] = "meanwhile"
    assert dict(os.environ) == {**before, "MINE": "meanwhile"}


def test_a_client_that_its_head_did_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [ConnectionAbortedError(f"{FAILED_START}: it is gone"), None]

    def init(**_options: object) -> SimpleNamespace:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with joined(Site("ray://head:10001")):
        assert answers == []
    answers += [ConnectionError("another reason\nand more"), None]
    with (
        pytest.raises(UnfitError, match=r"^the cluster head:1 does not answer: ConnectionError: another reason$"),
        joined(Site("head:1")),
    ):
        pass
    answers[:] = [ConnectionAbortedError(FAILED_START)] * TRIES
    with pytest.raises(UnfitError, match=FAILED_START), joined(Site("head:1")):
        pass


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
