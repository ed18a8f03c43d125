"""A search is refused for what nodes lack before anything is made; the rest is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import tunelab
from tunelab.config import DataConfig
from tunelab.errors import InputError
from tunelab.tuning import cluster_check, runner
from tunelab.tuning.cluster_check import require_fit
from tunelab.tuning.fleet import Fleet, Node
from tunelab.tuning.node_checks import NodeFinding
from tunelab.tuning.node_facts import tell
from tunelab.tuning.nodes import Facts, NodeReport, Visited
from tunelab.tuning.site import Site

SITE = Site("head:6379", fleet=Fleet((Node("a", "a", 2.0),)))
LATE = NodeFinding("a", "clock", "late", "warning", "set it")
FULL = NodeFinding("a", "storage", "it is full", "error", "free some")


def pretend(findings: Sequence[NodeFinding], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every look at the nodes find this."""
    visited = Visited(Facts.from_json(tell((), "/")), Path("/"), (NodeReport("a", "a", {"CPU": 2.0}),))
    monkeypatch.setattr(cluster_check, "look_at_nodes", lambda *_given, **_more: (visited, list(findings)))


def test_warnings_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend([LATE], monkeypatch)
    (node,) = require_fit(SITE, Path("/runs"), DataConfig(), "abc", show_progress=True)
    assert node.name == "a"
    assert capsys.readouterr().err == "note: a: clock: late (set it)\n"
    require_fit(SITE, Path("/runs"), DataConfig(), "abc", show_progress=False)
    assert capsys.readouterr().err == ""


def test_a_search_is_refused_before_a_study_is_made(
    no_calibration: None, monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    pretend([LATE, FULL], monkeypatch)
    monkeypatch.setattr(runner, "survey", lambda _site, **_more: SITE)
    with pytest.raises(InputError, match="a node of the cluster is not fit: a: storage: it is full"):
        tunelab.search("arch", trials=2, epochs=1, limit_train=200, address="head:6379", progress=False)
    assert not runs_dir.exists()
