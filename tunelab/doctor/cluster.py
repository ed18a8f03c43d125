"""The nodes of a Ray cluster: what is found there of what a search needs."""

from __future__ import annotations

from pathlib import Path

from tunelab.config import DataConfig
from tunelab.data.cache import known
from tunelab.doctor.checks import Asked
from tunelab.doctor.findings import MachineFinding, worst_first
from tunelab.errors import TunelabError
from tunelab.tuning.cluster_check import look_at_nodes
from tunelab.tuning.node_findings import NodeFinding
from tunelab.tuning.preflight import absolute_paths
from tunelab.tuning.ray_token import MEND, RISK, is_open
from tunelab.tuning.site import Site
from tunelab.tuning.survey import reach


def examine_cluster(address: str, asked: Asked) -> list[MachineFinding]:
    """What is found on each node of a cluster, worst first; nothing is decoded, downloaded or left there.

    Args:
        address: of the cluster.
        asked: the folder of studies, which all nodes must share, and data; the rest is not looked at.

    Raises:
        InputError: no cluster answers, or this machine cannot write into the folder of studies.
    """
    configs = [absolute_paths(DataConfig(name=name, data_dir=asked.data_dir)) for name in asked.data]
    data = {config: _fingerprint(config) for config in configs}
    site = reach(Site(address))
    _, found = look_at_nodes(site, Path(asked.runs_dir), data, build=False)
    return worst_first([*_lock(site), *(_plain(one) for one in found)])


def _lock(site: Site) -> list[MachineFinding]:
    """That a cluster lets anybody in, if it does."""
    if site.address is None or not is_open(site.address):
        return []
    return [MachineFinding("token", f"the cluster asks for none: {RISK}", "warning", MEND, group="cluster")]


def _fingerprint(config: DataConfig) -> str:
    """That of data which is decoded here, "" where it is not."""
    try:
        decoded = known(config)
    except TunelabError:  # the nodes are asked all the same
        return ""
    return "" if decoded is None else decoded[1].fingerprint


def _plain(one: NodeFinding) -> MachineFinding:
    name = one.node if one.verdict == "ok" else f"{one.node}: {one.name}"
    return MachineFinding(name, one.measured, one.verdict, one.mend, group=f"node {one.node}")
