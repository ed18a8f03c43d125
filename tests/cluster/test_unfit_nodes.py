"""A cluster with a node that is unfit in several ways at once, and one whose storage is not shared.

The doctor names it all, and no search begins.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.conftest import Search
    from tests.conftest import MakeRayNodes
    from tests.ray_nodes import Node, RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MISSING = "tensorboard"
SITE = f"""
import importlib.metadata as metadata
import sys
found = metadata.Distribution.from_name


def from_name(name):
    if name == {MISSING!r}:
        raise metadata.PackageNotFoundError(name)
    return found(name)


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {MISSING!r}:
            raise ModuleNotFoundError(name)


metadata.Distribution.from_name = from_name
sys.meta_path.insert(0, Hidden())
"""
# In a mount namespace: the node's own folder is a small disk, and what is shared is read-only.
MOUNTS = """
for word; do
    case $word in --temp-dir=*) mount -t tmpfs -o size=60m tmpfs "${word#--temp-dir=}" ;; esac
done
mount --bind "$SHARED" "$SHARED" && mount -o remount,ro,bind "$SHARED" && exec "$@"
"""
# What is shared has something else in its place.
APART = 'mount -t tmpfs tmpfs "$SHARED" && exec "$@"'
SILENT = """
import json, sys
from pathlib import Path
from tunelab.tuning.cluster_check import look_at_nodes
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.site import Site
visited, found = look_at_nodes(Site(sys.argv[1], fleet=Fleet(())), Path(sys.argv[2]), {}, patience=4.0)
print(json.dumps([[one.node, one.name, one.measured, one.verdict] for one in found]))
"""


def may_mount() -> bool:
    """True where this user may mount in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


class Unfit:
    """A fit node and unfit ones, and what the doctor says of them."""

    def __init__(self, nodes: RayNodes, shared: Path) -> None:
        self.nodes, self.shared, self.mounts = nodes, shared, may_mount()
        site = nodes.folder / "site"
        (site / "torch-2.9.0.dist-info").mkdir(parents=True)
        (site / "torch-2.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
        (site / "sitecustomize.py").write_text(SITE)
        within = ["unshare", "-m", "sh", "-c", MOUNTS, "sh"] if self.mounts else []
        self.bad: Node = nodes.add(within=within, PYTHONPATH=str(site), SHARED=str(shared))
        if self.mounts:
            nodes.add(within=["unshare", "-m", "sh", "-c", APART, "sh"], SHARED=str(shared))
        command = nodes.start("doctor", "--address", nodes.address, "--runs-dir", str(shared / "runs"), "--json")
        out, self.err = command.communicate(timeout=200)
        self.status, self.told = command.returncode, json.loads(out)

    def errors(self) -> dict[str, list[str]]:
        """What is wrong, by what it is about."""
        found: dict[str, list[str]] = {}
        for one in self.told["findings"]:
            if one["verdict"] == "error":
                found.setdefault(one["name"].rpartition(": ")[2], []).append(one["measured"])
        return found

    def nodes_with(self, verdict: str, name: str = "") -> set[str]:
        """The nodes of which there are findings with a verdict, about `name` if it is given."""
        found = [one for one in self.told["findings"] if one["verdict"] == verdict]
        return {one["group"].removeprefix("node ") for one in found if name in ("", one["name"].rpartition(": ")[2])}


@pytest.fixture(scope="module")
def unfit(make_ray_nodes: MakeRayNodes, tmp_path_factory: pytest.TempPathFactory) -> Unfit:
    """A fit node and unfit ones, with a folder that they should share."""
    return Unfit(make_ray_nodes(nodes=1), tmp_path_factory.mktemp("shared"))


def test_the_doctor_names_a_missing_package_and_a_wrong_version_with_their_node(unfit: Unfit) -> None:
    assert unfit.status == 1
    assert unfit.told["fit"] is False
    assert "a search would not run on this cluster" in unfit.err
    packages = unfit.errors()["packages"]
    assert any(one == f"{MISSING} is missing" for one in packages), packages
    assert any(one.startswith("torch is 2.9.0, tunelab works with torch>=") for one in packages), packages
    assert len(unfit.nodes_with("error", "packages")) == 1
    assert len(unfit.nodes_with("ok")) == 1, "the head is fit"
    assert not unfit.nodes_with("ok") & unfit.nodes_with("error")
    assert all(one["mend"] for one in unfit.told["findings"] if one["verdict"] == "error")


def test_the_doctor_names_a_node_without_write_access_and_a_full_disk(unfit: Unfit) -> None:
    if not unfit.mounts:
        pytest.skip("mounting is not allowed here")
    assert f"{unfit.shared} is read-only there" in unfit.errors()["storage"]
    (disk,) = unfit.errors()["temporary folder"]
    assert str(unfit.bad.temporary) in disk
    assert "MiB free, 64 MiB are needed" in disk


def test_the_doctor_names_a_node_whose_storage_is_not_shared(unfit: Unfit) -> None:
    if not unfit.mounts:
        pytest.skip("mounting is not allowed here")
    said = f"{unfit.shared} is not shared: what the driver wrote there is not in it"
    assert said in unfit.errors()["storage"]
    assert len(unfit.nodes_with("error", "storage")) == 2
    assert len(unfit.nodes_with("error")) == 2


def test_the_doctor_leaves_nothing(unfit: Unfit) -> None:
    assert list(unfit.shared.iterdir()) == []


def test_no_search_begins_there(unfit: Unfit, search: Search) -> None:
    search.study = unfit.shared / "study"
    command = search.start(unfit.nodes)
    out, err = command.communicate(timeout=200)
    assert (command.returncode, out) == (2, ""), err
    (line,) = [one for one in err.splitlines() if one.startswith("tunelab: ")]
    assert f"{MISSING}" in line
    assert "torch" in line
    assert list(unfit.shared.iterdir()) == []


def test_a_node_that_does_not_answer_is_named(unfit: Unfit) -> None:
    raylet = unfit.bad.raylet()
    raylet.send_signal(signal.SIGSTOP)
    try:
        nodes = unfit.nodes
        asked = nodes.start_program(sys.executable, "-c", SILENT, nodes.address, os.fspath(unfit.shared / "runs"))
        out, err = asked.communicate(timeout=200)
        found: list[list[Any]] = json.loads(out.splitlines()[-1])
    finally:
        raylet.send_signal(signal.SIGCONT)
    assert asked.returncode == 0, err
    (bad,) = unfit.nodes_with("error", "packages")
    assert [one for one in found if one[0] == bad] == [[bad, "answer", "no answer within 4 s", "error"]]


def test_no_search_begins_where_storage_is_not_shared(unfit: Unfit, search: Search) -> None:
    if not unfit.mounts:
        pytest.skip("mounting is not allowed here")
    unfit.nodes.kill(unfit.bad)
    unfit.nodes.wait_until(lambda: unfit.nodes.alive() == 2)
    search.study = unfit.shared / "study"
    command = search.start(unfit.nodes)
    out, err = command.communicate(timeout=200)
    assert (command.returncode, out) == (2, ""), err
    (line,) = [one for one in err.splitlines() if one.startswith("tunelab: ")]
    assert line.startswith("tunelab: a node of the cluster is not fit: ")
    assert f"storage: {unfit.shared} is not shared" in line
    assert list(unfit.shared.iterdir()) == []
