"""Ways into a cluster: as a job, as a client, with nodes that join later; and what is said where there is no way."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunelab.records import TrialStatus

if TYPE_CHECKING:
    from tests.cluster.conftest import Search
    from tests.conftest import Bucket, MakeRayNodes
    from tests.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# In a mount namespace: what is shared has something else in its place.
APART = 'mount -t tmpfs tmpfs "$SHARED" && exec "$@"'
MODEL = """
from torch import nn
from . import layers


def make(channels, classes, image_size, width):
    return nn.Sequential(nn.Flatten(), layers.first(channels * image_size[0] * image_size[1], width), nn.ReLU(),
                         nn.Linear(width, classes))
"""
OWN_SPACE = """
from tunelab.config import CustomSpec, TrainConfig, TrialConfig

SUMMARY = "a network of one's own"
VERSION = 1
BASELINES = ({"width": 8},)


def draw(suggest):
    width = suggest.suggest_int("width", 4, 64)
    return TrialConfig(CustomSpec("model.py:make", {"width": width}), TrainConfig(batch_size=8, lr=0.1))
"""


def may_mount() -> bool:
    """True where this user may mount in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def nodes(make_ray_nodes: MakeRayNodes) -> RayNodes:
    """A head that carries no trials but takes jobs and clients, and a node."""
    return make_ray_nodes(head_cpus=0, dashboard=True, client=True)


def test_a_ray_job_searches(nodes: RayNodes, search: Search) -> None:
    words = ["search", str(search.space), "--study", str(search.study), "--trials", "2", "--epochs", "1"]
    words += ["--limit-train", "100", "--telemetry", "off", "--race", "0", "--scheduler", "none", "--address", "auto"]
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", nodes.dashboard]
    submit += ["--runtime-env-json", '{"env_vars": {"RAY_DEDUP_LOGS": "1"}}', "--submission-id", uuid.uuid4().hex]
    nodes.orders()
    job = nodes.start_program(*submit, "--", sys.executable, "-m", "tunelab.cli", *words)
    out, err = job.communicate(timeout=200)
    assert job.returncode == 0, out + err
    assert "1 node carries 1 trial" in out
    assert "2 of 2 trials begun" in out
    assert {trial.status for trial in search.trials()} == {TrialStatus.COMPLETED}


def test_a_ray_client_searches(nodes: RayNodes, search: Search) -> None:
    nodes.orders()
    command = search.start(nodes, trials=3, epochs=1, address=nodes.client)
    _, err = command.communicate(timeout=270)
    assert command.returncode == 0, err
    assert {trial.status for trial in search.trials()} == {TrialStatus.COMPLETED}


def test_a_node_that_joins_is_used_and_is_sent_tunelab_and_the_users_code(
    nodes: RayNodes, search: Search, tmp_path: Path
) -> None:
    """The node has another tunelab, and a cache of its own, in which nothing is allowed."""
    other = tmp_path / "other"
    (other / "tunelab").mkdir(parents=True)
    (other / "tunelab" / "__init__.py").write_text("raise ImportError('not this one')")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "layers.py").write_text(
        "from torch import nn\n\n\ndef first(n, width):\n    return nn.Linear(n, width)\n"
    )
    search.space.write_text(OWN_SPACE)
    nodes.orders({"do": "wait", "epoch": 2})
    command = search.start(nodes, trials=4)
    nodes.wait_until(lambda: command.poll() is not None or nodes.trained())
    joined = nodes.add("--num-cpus=1", TUNELAB_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(other))
    nodes.wait_until(lambda: command.poll() is not None or joined.workers())
    nodes.orders()
    _, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    trials = search.trials()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}, [trial.reason for trial in trials]
    nodes.kill(joined)


def test_memory_runs_out_on_a_node_that_does_not_see_the_study(
    nodes: RayNodes, search: Search, bucket: Bucket, tmp_path: Path
) -> None:
    """What its process wrote at its end is told by the outpost there; the trial goes on in parts, from the store."""
    if not may_mount():
        pytest.skip("mounting is not allowed here")
    nodes.orders({"do": "eat", "trial": 0, "epoch": 2, "times": 1})
    node = nodes.add("--num-cpus=1", within=["unshare", "-m", "sh", "-c", APART, "sh"], SHARED=str(tmp_path))
    command = search.start(nodes, "--storage", bucket.uri, "--memory", "1200MB", trials=1)
    _, err = command.communicate(timeout=270)
    nodes.kill(node)
    assert command.returncode == 0, err
    (trial,) = search.trials()
    assert trial.status is TrialStatus.COMPLETED
    (retry,) = trial.retries
    assert (retry["cause"], retry["epoch"], retry["split"]) == ("memory", 1, 4)
    assert retry["why"].startswith("its process held ")
    begun = nodes.trained("begin")
    assert begun[(0, 2)] == 2
    assert 1 <= begun[(0, 1)] <= 2, "again, if the store did not have its checkpoint yet"
    assert (search.study / "trials" / "0000" / "checkpoint").is_dir(), "fetched at the end"


@pytest.mark.parametrize(
    ("address", "more", "words"),
    [
        ("127.0.0.1:1", {}, ["no Ray cluster answers at 127.0.0.1:1", "refused", "6379"]),
        ("ray://127.0.0.1:1", {}, ["no Ray cluster answers at ray://127.0.0.1:1", "10001"]),
        ("nowhere", {}, ["--address 'nowhere'", "auto, HOST:PORT and ray://HOST:PORT"]),
        ("", {"RAY_AUTH_MODE": "disabled"}, ["wants its token", "RAY_AUTH_MODE=token", "ray get-auth-token"]),
        ("", {"RAY_AUTH_TOKEN": "ab" * 32}, ["wants its token"]),
    ],
)
def test_no_way_in_is_one_line(
    nodes: RayNodes, search: Search, address: str, more: dict[str, str], words: list[str]
) -> None:
    command = search.start(nodes, address=address or nodes.address, **more)
    _, err = command.communicate(timeout=200)
    assert command.returncode == 2, err
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert not search.study.exists()


def test_an_address_in_the_environment_is_not_believed(nodes: RayNodes, search: Search) -> None:
    """Without --address the search is on this machine alone, which --dry-run tells of."""
    words = ["search", str(search.space), "--trials", "2", "--limit-train", "100", "--dry-run"]
    alone = nodes.start(*words, RAY_ADDRESS=nodes.address)
    there = nodes.start(*words, "--address", "auto", RAY_ADDRESS=nodes.address)
    out = [_answer(alone), _answer(there)]
    assert " carr" not in out[0]
    assert re.search(r"nodes? carr(y|ies) \d trials?: ", out[1])


def test_a_ray_client_pauses_when_the_head_is_gone(nodes: RayNodes, search: Search) -> None:
    """The last test on these nodes: they are gone after it."""
    nodes.wait_until(lambda: nodes.alive() == len(nodes.nodes))
    nodes.orders({"do": "wait", "epoch": 2})
    command = search.start(nodes, address=nodes.client, RAY_CLIENT_RECONNECT_GRACE_PERIOD="3")
    nodes.wait_until(lambda: command.poll() is not None or nodes.trained("wait"), 270)
    nodes.kill(nodes.nodes[0])
    _, err = command.communicate(timeout=200)
    assert command.returncode == 3, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("tunelab: stopped before the end (the ")
    assert "the cluster's head 127.0.0.1:" in last
    assert f"`tunelab resume {search.study}` goes on" in last
    assert all(not trial.retries for trial in search.trials())


def _answer(command: subprocess.Popen[str]) -> str:
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    return out
