"""What is said of a cluster's nodes: facts in, findings out; and how a refusal reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from tunelab.tuning.node_checks import describe, judge
from tunelab.tuning.node_findings import NodeFinding, refusal, told
from tunelab.tuning.node_versions import NEEDED, WANTED, requirements
from tunelab.tuning.nodes import Clock, Disk, Facts, NodeGpu, NodeReport, Package, Storage, Visited

VERSIONS: dict[str, str | None] = dict.fromkeys((*NEEDED, *WANTED), "2.0.0")
VERSIONS |= {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "ray": "2.60.0"}
LIMITS = {name: SpecifierSet(">=0.1") for name in VERSIONS} | {"torch": SpecifierSet(">=2.10")}
GIB = 2**30
DISKS = {name: Disk(f"/{name}", 100 * GIB, 10**6) for name in ("study", "temporary", "ray", "cache")}
HOME = Facts(
    user="mia (1000)",
    python="3.11.7",
    executable="/venv/bin/python",
    packages=VERSIONS,
    tunelab=Package("0.1.0", "0123", "/venv/tunelab"),
    free_memory_mib=60_000,
    all_memory_mib=64_000,
    disks=DISKS,
    gpus=(),
)
READY: dict[str, Any] = {"data": [{"name": "digits", "fingerprint": "abc"}]}
NODE = NodeReport(
    "10.0.0.2", "id2", {"CPU": 8.0}, facts=HOME, clock=Clock(0.1, 0.01), storage=Storage(), training=READY
)


def found_of(node: NodeReport, least: int = 0, device: str = "") -> list[NodeFinding]:
    return judge(node, Visited(HOME, Path("/runs"), (node,)), LIMITS, {"digits": "abc"}, least, device)


def with_facts(**changed: Any) -> NodeReport:
    return dataclasses.replace(NODE, facts=dataclasses.replace(HOME, **changed))


def with_packages(**changed: str | None) -> NodeReport:
    return with_facts(packages={**VERSIONS, **{name.replace("_", "-"): version for name, version in changed.items()}})


def with_disk(name: str, free: int, files: int | None = 10**6) -> NodeReport:
    return with_facts(disks={**DISKS, name: Disk(f"/{name}", free, files)})


def with_gpus(
    *gpus: NodeGpu, count: float = 1.0, training: dict[str, Any] | None = None, problem: str = ""
) -> NodeReport:
    node = with_facts(gpus=gpus, gpu_problem=problem)
    return dataclasses.replace(node, resources={"CPU": 8.0, "GPU": count}, training={**READY, **(training or {})})


def test_a_fit_node_is_described() -> None:
    (one,) = found_of(NODE)
    assert (one.node, one.verdict, one.mend) == ("10.0.0.2", "ok", "")
    assert one.measured == describe(NODE)
    assert (
        "8 processors; 58.6 GiB of memory free; 100.0 GiB free in /study; Python 3.11.7, torch 2.13.0" in one.measured
    )


@pytest.mark.parametrize(
    ("storage", "said", "mend"),
    [
        (Storage("missing"), "/runs is not there", "mount the same folder"),
        (Storage("another"), "/runs is not shared", "mount the same folder"),
        (Storage("EROFS"), "/runs is read-only there", "remount,rw"),
        (Storage("EACCES"), "cannot be written there by user ben (1001)", "as user mia (1000)"),
        (Storage("ENOSPC"), "/runs is full there", "free some"),
        (Storage("EIO"), "Input/output error", "dmesg"),
        (Storage(lost=True), "not seen by the driver", "mount the same folder"),
        (Storage(unseen=("a", "b", "c", "d")), "/runs there has not what a, b, c and others wrote", "mount the same"),
    ],
)
def test_storage_that_trials_would_fail_of(storage: Storage, said: str, mend: str) -> None:
    (one,) = found_of(dataclasses.replace(with_facts(user="ben (1001)"), storage=storage))
    assert (one.name, one.verdict) == ("storage", "error")
    assert said in one.measured
    assert mend in one.mend


def test_storage_that_is_stale_is_worth_knowing() -> None:
    (one,) = found_of(dataclasses.replace(NODE, storage=Storage(stale=True)))
    assert (one.name, one.verdict) == ("storage", "warning")
    assert "stale" in one.measured


@pytest.mark.parametrize(
    ("node", "name", "verdict", "said"),
    [
        (with_disk("temporary", 3 * 2**20), "temporary folder", "error", "/temporary is full: 3.0 MiB free, 64 MiB"),
        (with_disk("ray", 0), "temporary folder", "error", "/ray is full"),
        (with_disk("ray", GIB, files=7), "temporary folder", "error", "/ray has room for 7 more files"),
        (with_disk("cache", 2**20), "cache folder", "warning", "1.0 MiB free in /cache"),
        (with_disk("study", 2**20), "storage", "error", "1.0 MiB free in /study; the study needs 5.0 GiB"),
        (with_packages(torch=None), "packages", "error", "torch is missing"),
        (with_packages(torch="2.9.1"), "packages", "error", "torch is 2.9.1, tunelab works with torch>=2.10"),
        (with_packages(torch="2.12.0"), "packages", "error", "torch is 2.12.0, the driver has 2.13.0+cpu"),
        (with_packages(ray="2.61.0"), "packages", "error", "ray is 2.61.0, the driver has 2.60.0"),
        (with_packages(torchvision="0.27.0"), "packages", "warning", "torchvision is 0.27.0"),
        (with_packages(numba=None), "packages", "warning", "numba is missing; networks train far slower"),
        (with_packages(scikit_learn=None), "packages", "warning", "scikit-learn is missing; the data digits"),
        (with_facts(python="3.12.1"), "Python", "error", "it is 3.12.1, the driver has 3.11.7"),
        (with_facts(python="3.11.9"), "Python", "warning", "it is 3.11.9"),
        (with_facts(tunelab=None), "packages", "error", "tunelab is missing"),
        (with_facts(tunelab=Package("0.2.0", "0", "/x")), "packages", "error", "tunelab is 0.2.0 in /x"),
        (with_facts(tunelab=Package("0.1.0", "9", "/x")), "packages", "warning", "is not the code of the driver's"),
        (with_facts(free_memory_mib=300), "memory", "error", "300 MiB free of 62.5 GiB; no trial starts"),
        (with_facts(free_memory_mib=2048), "memory", "warning", "for about 4 of 8 trials at once"),
    ],
)
def test_each_kind_of_fact(node: NodeReport, name: str, verdict: str, said: str) -> None:
    (one,) = found_of(node, 5 * GIB)
    assert (one.name, one.verdict) == (name, verdict)
    assert said in one.measured
    assert one.mend


def test_a_disk_that_is_two_folders_is_told_once() -> None:
    full = Disk("/tmp", 5, 10**6)
    (one,) = found_of(
        with_facts(disks={**DISKS, "temporary": full, "ray": dataclasses.replace(full, folder="/tmp/ray")})
    )
    assert one.name == "temporary folder"


def test_builds_of_one_release_are_the_same() -> None:
    assert found_of(with_packages(torch="2.13.0+cu126"))[0].verdict == "ok"


@pytest.mark.parametrize(
    ("training", "name", "said"),
    [
        ({"problem": "ImportError: libcudart.so.12"}, "training", "it does not load: ImportError: libcudart.so.12"),
        ({"data": [{"name": "digits", "problem": "no such file; copy it"}]}, "data digits", "no such file"),
        ({"data": [{"name": "digits", "fingerprint": "xyz"}]}, "data digits", "fingerprint xyz, the driver's is abc"),
    ],
)
def test_what_does_not_train(training: dict[str, Any], name: str, said: str) -> None:
    (one,) = found_of(dataclasses.replace(NODE, training=training))
    assert (one.name, one.verdict) == (name, "error")
    assert said in one.measured


def test_data_that_is_not_decoded_yet_is_no_finding() -> None:
    training = {"data": [{"name": "digits", "fingerprint": ""}]}
    assert found_of(dataclasses.replace(NODE, training=training))[0].verdict == "ok"


def test_a_missing_package_is_named_and_not_what_follows_from_it() -> None:
    node = dataclasses.replace(with_packages(torch=None), training={"problem": "ModuleNotFoundError: torch"})
    assert [one.name for one in found_of(node)] == ["packages"]


@pytest.mark.parametrize(
    ("node", "name", "verdict", "said"),
    [
        (with_gpus(NodeGpu("H100", 80_000, 79_000), count=2.0), "GPUs", "warning", "counts 2, nvidia-smi lists 1"),
        (with_gpus(problem="nvidia-smi fails: no driver"), "GPUs", "warning", "nvidia-smi fails: no driver"),
        (with_gpus(training={"torch_problem": "no CUDA"}), "GPUs", "error", "torch does not load there: no CUDA"),
        (
            with_gpus(training={"torch": ["2.13.0", None, 0], "torch_warning": "old driver"}),
            "GPUs",
            "error",
            "Ray counts 1, torch 2.13.0 (built for processors) can use 0: old driver",
        ),
        (with_gpus(NodeGpu("H100", 80_000, 20_000)), "GPU 0", "warning", "19.5 GiB of 78.1 GiB free (H100)"),
    ],
)
def test_gpus(node: NodeReport, name: str, verdict: str, said: str) -> None:
    (one,) = found_of(node)
    assert (one.name, one.verdict) == (name, verdict)
    assert said in one.measured


def test_gpus_that_ray_does_not_give_are_not_looked_at() -> None:
    assert found_of(with_gpus(NodeGpu("H100", 80_000, 20_000), count=0.0))[0].verdict == "ok"
    fit = with_gpus(NodeGpu("H100", 80_000, None), training={"torch": ["2.13.0", "12.6", 1]})
    assert "1 GPU;" in found_of(fit)[0].measured


def test_gpus_that_no_trial_wants_are_not_looked_at() -> None:
    """Of a search with --device cpu: Ray counts a GPU that torch cannot use there."""
    unusable = with_gpus(NodeGpu("H100", 80_000, 20_000), training={"torch": ["2.13.0", None, 0]})
    assert [one.verdict for one in found_of(unusable, device="cpu")] == ["ok"]
    for device in ("cuda", ""):
        error, _ = found_of(unusable, device=device)
        assert (error.name, error.verdict) == ("GPUs", "error")
        assert "--device cpu" in error.mend


def test_a_node_without_gpus_refuses_no_search_on_gpus() -> None:
    unfit = dataclasses.replace(NODE, storage=Storage("EROFS"))
    assert [found_of(unfit, device=device)[0].verdict for device in ("cuda", "cpu", "")] == [
        "warning",
        "error",
        "error",
    ]


@pytest.mark.parametrize(("clock", "said"), [(Clock(90.0, 0.1), "90 s ahead of"), (Clock(-7.0, 0.1), "7 s behind")])
def test_clocks_that_differ(clock: Clock, said: str) -> None:
    (one,) = found_of(dataclasses.replace(NODE, clock=clock))
    assert (one.name, one.verdict) == ("clock", "warning")
    assert said in one.measured
    assert found_of(dataclasses.replace(NODE, clock=Clock(30.0, 29.0)))[0].verdict == "ok"


def test_a_node_that_does_not_answer_is_an_error() -> None:
    silent = NodeReport("10.0.0.3", "id3", {"CPU": 4.0}, "no answer within 90 s")
    (one,) = found_of(silent)
    assert (one.name, one.measured, one.verdict) == ("answer", "no answer within 90 s", "error")
    assert "ray stop" in one.mend
    later = dataclasses.replace(NODE, silent="ActorDiedError", training=None)
    assert [one.name for one in found_of(later)] == ["answer"]


def test_a_node_without_processors_refuses_no_search() -> None:
    head = dataclasses.replace(NODE, resources={}, storage=Storage("EROFS"))
    (one,) = found_of(head)
    assert one.verdict == "warning"
    assert "runs no trials" in one.measured


def test_the_refusal_is_one_line_with_nodes_and_mends() -> None:
    full = NodeFinding("a", "storage", "it is full", "error", "free some")
    nodes = [dataclasses.replace(full, node=name) for name in "abcde"]
    notes = [NodeFinding("a", "clock", "late", "warning", "set it")]
    line = refusal([*nodes, *notes], "head:6379")
    assert line == (
        "5 nodes of the cluster are not fit: a, b, c and 2 more: storage: it is full (free some). "
        "`tunelab doctor --address head:6379` looks again"
    )
    many = [dataclasses.replace(full, measured=str(number)) for number in range(9)]
    assert "; and 3 more findings." in refusal(many, "auto")
    assert refusal(many, "auto").startswith("a node of the cluster is not fit: a: storage: 0")
    assert told(notes) == ["a: clock: late (set it)"]


def test_what_is_required_is_in_the_metadata() -> None:
    found = requirements()
    assert set(found) == {*NEEDED, *WANTED}
    assert not found["torch"].contains("2.9")
    assert all(str(specifier) for specifier in found.values())
