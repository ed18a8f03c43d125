"""What a person is told of Ray's dashboard; searches on real Ray are in test_search_on_ray.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunelab import ray_address
from tunelab.tuning.ray_home import Ports
from tunelab.tuning.ray_tune import _shown


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


def test_a_cluster_without_a_dashboard_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    with _shown(Ports("", ""), tmp_path, None, said.append):
        assert list(tmp_path.iterdir()) == []
    assert said == ["note: this Ray cluster has no dashboard"]
