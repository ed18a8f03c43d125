"""Looks at all nodes of a cluster, and refuses a search where trials would fail on some of them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunelab.config import DataConfig
from tunelab.errors import InputError, TunelabError, UnfitError
from tunelab.tuning.node_checks import LEAST_STUDY, judge
from tunelab.tuning.node_findings import NodeFinding, refusal, told
from tunelab.tuning.node_versions import requirements
from tunelab.tuning.node_visit import PATIENCE, visit
from tunelab.tuning.nodes import NodeReport, Visited
from tunelab.tuning.ray_cluster import joined
from tunelab.tuning.ray_home import quiet
from tunelab.tuning.site import Site
from tunelab.tuning.survey import reach


def look_at_nodes(
    site: Site,
    folder: Path,
    data: Mapping[DataConfig, str],
    *,
    build: bool = True,
    least: int = LEAST_STUDY,
    patience: float = PATIENCE,
    device: str = "",
) -> tuple[Visited, list[NodeFinding]]:
    """Joins a cluster for a moment, and looks at all of its nodes.

    Args:
        site: where the cluster is.
        folder: of the study, which need not exist.
        data: what is opened there, with the fingerprints that it must have ("": any).
        build: images that are not decoded yet are decoded there.
        least: bytes that the study needs.
        patience: seconds for each answer of a node.
        device: of the trials, "cpu" or "cuda"; "": it is not known.

    Raises:
        UnfitError: no cluster answers, or it has no nodes.
        InputError: the driver cannot write where the study is to be.
    """
    wanted, with_gpus = requirements(), device != "cpu"
    site = reach(site)
    try:
        with _signals_kept(), quiet(Path(os.devnull)), joined(site):
            visited = visit(folder, tuple(wanted), tuple(data), build=build, patience=patience, with_gpus=with_gpus)
    except InputError:
        raise
    except TunelabError as error:
        raise UnfitError(str(error)) from error
    if not visited.nodes:
        raise UnfitError(f"the cluster {site.address} has no nodes")
    fingerprints = {config.name: fingerprint for config, fingerprint in data.items()}
    found = [judge(node, visited, wanted, fingerprints, least, device) for node in visited.nodes]
    return visited, [one for of_one in found for one in of_one]


def require_fit(
    site: Site,
    device: str,
    folder: Path,
    data: DataConfig,
    fingerprint: str,
    least: int = LEAST_STUDY,
    *,
    mirrored: bool = False,
    show_progress: bool,
) -> tuple[NodeReport, ...]:
    """The nodes of a cluster that a search is about to run on, looked at by `look_at_nodes`; warnings are told.

    With `device` "cpu" it does not matter whether their GPUs can be used. With `mirrored` the study is in an object
    store too, and the nodes need not see its folder.

    Raises:
        UnfitError: no cluster answers, or trials would fail on some nodes.
        InputError: the driver cannot write where the study is to be.
    """
    visited, found = look_at_nodes(site, folder, {data: fingerprint}, least=least, device=device)
    found = [one for one in found if not (mirrored and one.name == "storage")]
    if any(one.verdict == "error" for one in found):
        raise UnfitError(refusal(found, site.address))
    for said in told(one for one in found if one.verdict == "warning"):
        if show_progress:
            print(f"note: {said}", file=sys.stderr)
    return visited.nodes


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
