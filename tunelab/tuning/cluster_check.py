"""Looks at all nodes of a cluster, and refuses a search where trials would fail on some of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tunelab.config import DataConfig
from tunelab.errors import InputError, TunelabError
from tunelab.tuning.node_checks import LEAST_STUDY, NodeFinding, judge, requirements
from tunelab.tuning.node_visit import PATIENCE, visit
from tunelab.tuning.nodes import NodeReport, Visited
from tunelab.tuning.ray_cluster import joined
from tunelab.tuning.ray_home import quiet
from tunelab.tuning.site import Site
from tunelab.tuning.survey import reach

_SHOWN = 6  # findings in one line of an error (our choice)


def look_at_nodes(
    site: Site,
    folder: Path,
    data: Mapping[DataConfig, str],
    *,
    build: bool = True,
    least: int = LEAST_STUDY,
    patience: float = PATIENCE,
) -> tuple[Visited, list[NodeFinding]]:
    """Joins a cluster for a moment, and looks at all of its nodes.

    Args:
        site: where the cluster is.
        folder: of the study, which need not exist.
        data: what is opened there, with the fingerprints that it must have ("": any).
        build: images that are not decoded yet are decoded there.
        least: bytes that the study needs.
        patience: seconds for each answer of a node.

    Raises:
        InputError: no cluster answers, it has no nodes, or the driver cannot write where the study is to be.
    """
    wanted = requirements()
    site = reach(site)
    try:
        with _signals_kept(), quiet(Path(os.devnull)), joined(site):
            visited = visit(folder, tuple(wanted), tuple(data), build=build, patience=patience)
    except TunelabError as error:
        raise InputError(str(error)) from error
    if not visited.nodes:
        raise InputError(f"the cluster {site.address} has no nodes")
    fingerprints = {config.name: fingerprint for config, fingerprint in data.items()}
    return visited, [one for node in visited.nodes for one in judge(node, visited, wanted, fingerprints, least)]


def require_fit(
    site: Site,
    folder: Path,
    data: DataConfig,
    fingerprint: str,
    least: int = LEAST_STUDY,
    *,
    mirrored: bool = False,
    show_progress: bool,
) -> tuple[NodeReport, ...]:
    """The nodes of a cluster that a search is about to run on, looked at by `look_at_nodes`; warnings are told.

    With `mirrored` the study is in an object store too, and the nodes need not see its folder.

    Raises:
        InputError: no cluster answers, trials would fail on some nodes, or the driver cannot write where the study is
            to be.
    """
    visited, found = look_at_nodes(site, folder, {data: fingerprint}, least=least)
    found = [one for one in found if not (mirrored and one.name == "storage")]
    if any(one.verdict == "error" for one in found):
        raise InputError(refusal(found, site))
    for said in told(one for one in found if one.verdict == "warning"):
        if show_progress:
            print(f"note: {said}", file=sys.stderr)
    return visited.nodes


def refusal(findings: Sequence[NodeFinding], site: Site) -> str:
    """Why no search starts, in one line: the errors with their nodes and mends, the same of several nodes as one."""
    errors = [one for one in findings if one.verdict == "error"]
    some = told(errors)
    shown = [*some[:_SHOWN], *([f"and {len(some) - _SHOWN} more findings"] if len(some) > _SHOWN else [])]
    count = len({one.node for one in errors})
    many = f"{count} nodes of the cluster are" if count > 1 else "a node of the cluster is"
    return f"{many} not fit: {'; '.join(shown)}. `tunelab doctor --address {site.address}` looks again"


def told(findings: Iterable[NodeFinding]) -> list[str]:
    """Findings in words, with their nodes and mends; what several nodes have alike is told once."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        alike.setdefault((one.name, one.measured, one.mend), []).append(one.node)
    lines = []
    for (name, measured, mend), nodes in alike.items():
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        lines.append(f"{', '.join(nodes[:3])}{more}: {name}: {measured}{f' ({mend})' if mend else ''}")
    return lines


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is joined; afterwards it is as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
