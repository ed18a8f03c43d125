"""A search on two Ray nodes, from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunelab.records import TrialStatus

if TYPE_CHECKING:
    from tests.cluster.conftest import Search
    from tests.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_search_uses_all_nodes_and_leaves_them_as_they_were(ray_nodes: RayNodes, search: Search) -> None:
    ray_nodes.orders({"do": "wait", "epoch": 2})
    command = search.start(ray_nodes)
    ray_nodes.wait_until(lambda: command.poll() is not None or all(node.workers() for node in ray_nodes.nodes))
    ray_nodes.orders()
    out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    assert "6 of 6 trials begun" in out
    assert {trial.status for trial in search.trials()} == {TrialStatus.COMPLETED}
    assert set(ray_nodes.trained()) == {(trial, epoch) for trial in range(6) for epoch in (1, 2)}
    ray_nodes.wait_until(lambda: not any(node.workers() for node in ray_nodes.nodes), 30)
    assert ray_nodes.alive() == 2
