"""A search is refused for what nodes lack before anything is made; the rest is told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

import tunelab
from tunelab.config import DataConfig
from tunelab.errors import InputError
from tunelab.tuning import cluster_check, runner
from tunelab.tuning.cluster_check import require_fit
from tunelab.tuning.fleet import Fleet, Node
from tunelab.tuning.node_facts import tell
from tunelab.tuning.node_findings import NodeFinding
from tunelab.tuning.node_versions import requirements
from tunelab.tuning.nodes import Facts, NodeReport, Visited
from tunelab.tuning.site import Site

SITE = Site("head:6379", fleet=Fleet((Node("a", "a", 2.0),)))
LATE = NodeFinding("a", "clock", "late", "warning", "set it")
FULL = NodeFinding("a", "storage", "it is full", "error", "free some")


def pretend(findings: Sequence[NodeFinding], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has every look at the nodes find this; gives the devices that they are looked at for."""
    visited = Visited(Facts.from_json(tell((), "/")), Path("/"), (NodeReport("a", "a", {"CPU": 2.0}),))
    devices: list[str] = []

    def look(*_given: object, device: str, **_more: object) -> tuple[Visited, list[NodeFinding]]:
        devices.append(device)
        return visited, list(findings)

    monkeypatch.setattr(cluster_check, "look_at_nodes", look)
    return devices


def test_warnings_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend([LATE], monkeypatch)
    (node,) = require_fit(SITE, "cpu", Path("/runs"), DataConfig(), "abc", show_progress=True)
    assert node.name == "a"
    assert capsys.readouterr().err == "note: a: clock: late (set it)\n"
    require_fit(SITE, "cpu", Path("/runs"), DataConfig(), "abc", show_progress=False)
    assert capsys.readouterr().err == ""


def test_a_search_is_refused_before_a_study_is_made(
    no_calibration: None, monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    devices = pretend([LATE, FULL], monkeypatch)
    with_gpu = dataclasses.replace(SITE, fleet=Fleet((Node("a", "a", 2.0, gpus=1.0),)))
    monkeypatch.setattr(runner, "survey", lambda _site, **_more: with_gpu)
    with pytest.raises(InputError, match="a node of the cluster is not fit: a: storage: it is full"):
        tunelab.search("arch", trials=2, epochs=1, limit_train=200, device="cpu", address="head:6379", progress=False)
    assert devices == ["cpu"]
    assert not runs_dir.exists()


def test_gpus_that_torch_cannot_use_refuse_no_search_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is torch asked for them, which takes long where a driver is broken."""
    asked = []

    def visit(*_given: object, with_gpus: bool, **_more: object) -> Visited:
        asked.append(with_gpus)
        home = Facts.from_json(tell(tuple(requirements()), "/"))
        told = {"torch": ["2.13.0", None, 0]} if with_gpus else {}
        return Visited(home, Path("/"), (NodeReport("a", "a", {"CPU": 2.0, "GPU": 1.0}, facts=home, training=told),))

    monkeypatch.setattr(cluster_check, "visit", visit)
    monkeypatch.setattr(cluster_check, "joined", lambda _site: contextlib.nullcontext())
    require_fit(SITE, "cpu", Path("/runs"), DataConfig(), "abc", show_progress=False)
    with pytest.raises(InputError, match="can use 0"):
        require_fit(SITE, "cuda", Path("/runs"), DataConfig(), "abc", show_progress=False)
    assert asked == [False, True]
