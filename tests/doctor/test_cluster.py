"""What `tunelab doctor --address` finds beside what the nodes tell, which tests/cluster looks at with real nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunelab.doctor import cluster
from tunelab.doctor.checks import Asked
from tunelab.doctor.findings import is_fit
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.node_findings import NodeFinding
from tunelab.tuning.site import Site


@pytest.mark.parametrize("lets_in", [True, False])
def test_a_cluster_without_a_token_is_a_warning(lets_in: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Site("10.0.0.2:6379", fleet=Fleet(()))

    def look(site: Site, *_given: Any, **_named: Any) -> tuple[None, list[NodeFinding]]:
        assert site is known
        return None, [NodeFinding("10.0.0.2", "node", "all of it", "ok", "")]

    monkeypatch.setattr(cluster, "reach", lambda _site: known)
    monkeypatch.setattr(cluster, "look_at_nodes", look)
    monkeypatch.setattr(cluster, "is_open", lambda address: lets_in and address == "10.0.0.2:6379")
    found = cluster.examine_cluster("auto", Asked(str(tmp_path), (), None))
    assert is_fit(found)
    assert [(one.name, one.verdict) for one in found] == [("token", "warning")] * lets_in + [("10.0.0.2", "ok")]
    if lets_in:
        assert "asks for none: whoever reaches its ports" in found[0].measured
        assert "RAY_AUTH_MODE=token" in found[0].mend
