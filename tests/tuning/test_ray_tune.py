"""What a person is told of Ray's dashboard; searches on real Ray are in test_search_on_ray.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tunelab import ray_address
from tunelab.errors import UnfitError
from tunelab.liveness import SignsOfLife
from tunelab.tuning import ray_tune
from tunelab.tuning.guard import Guard
from tunelab.tuning.outposts import Outposts
from tunelab.tuning.ray_home import Ports
from tunelab.tuning.ray_tune import _shown
from tunelab.tuning.site import Site
from tunelab.tuning.slots import Slots


@pytest.mark.parametrize(
    ("ports", "token", "line"),
    [
        (
            Ports("127.0.0.1:8265", "127.0.0.1:4711"),
            Path("/tmp/of mine/token"),
            "Ray's dashboard: http://127.0.0.1:8265 (it asks for a token; `cat '/tmp/of mine/token'` shows it); "
            "metrics: http://127.0.0.1:4711/metrics",
        ),
        (Ports("head.example:8265", ""), None, "Ray's dashboard: http://head.example:8265"),
    ],
)
def test_the_address_is_told_and_in_the_study_meanwhile(
    ports: Ports, token: Path | None, line: str, tmp_path: Path
) -> None:
    """A cluster's own dashboard is opened by whatever its owner has set."""
    said: list[str] = []
    with _shown(ports, tmp_path, token, said.append):
        found = ray_address.find(tmp_path)
        assert found is not None
        assert found.describe() == line
    assert said == [line]
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_let_a_search_begin_is_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when its nodes were looked at."""

    def refuse(_site: Site) -> None:
        raise UnfitError("the cluster 10.0.0.1:6379 does not answer")

    class Halts:
        halted = error = None

        def halt(self, why: str) -> None:
            self.halted = why

    monkeypatch.setattr(ray_tune, "joined", refuse)
    engine: Any = Halts()
    given: dict[str, Any] = {"folder_of": lambda _number: tmp_path, "telemetry": "off", "log": tmp_path / "ray.log"}
    given |= {"site": Site("10.0.0.1:6379")}
    with pytest.raises(UnfitError):
        ray_tune.run(engine, Slots(1, 1, 0.0, "cpu"), **given)
    guard = Guard(lambda _number: tmp_path, None, None, SignsOfLife(tmp_path), sys.stderr, Outposts())
    ray_tune.run(engine, Slots(1, 1, 0.0, "cpu"), guard=guard, **given)
    assert engine.halted == "the cluster 10.0.0.1:6379 does not answer"


def test_a_cluster_without_a_dashboard_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    with _shown(Ports("", ""), tmp_path, None, said.append):
        assert list(tmp_path.iterdir()) == []
    assert said == ["note: this Ray cluster has no dashboard"]
