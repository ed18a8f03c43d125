from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunelab.errors import InputError
from tunelab.tuning import spread as module
from tunelab.tuning.calibrate import Calibration, Layout
from tunelab.tuning.fleet import Fleet, Node
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.slots import Slots
from tunelab.tuning.spread import find_cluster_slots, layouts_here, on_cluster, spread

GIB = 2**30
OPTIONS = SearchOptions(trials=100, epochs=3)


def fleet(*nodes: tuple[float, float], processor: str = "P") -> Fleet:
    return Fleet(
        tuple(Node(str(at), f"n{at}", cpus, gpus, 16 * GIB, processor) for at, (cpus, gpus) in enumerate(nodes))
    )


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor_name", lambda: "P")
    monkeypatch.setattr(module, "usable_cpus", lambda: 4)
    monkeypatch.setattr(module, "count_gpus", lambda: 0)


def options(**given: Any) -> SearchOptions:
    return dataclasses.replace(OPTIONS, **given)


def test_trials_at_once_are_what_all_nodes_carry() -> None:
    assert find_cluster_slots(OPTIONS, fleet((0, 0), (4, 0), (2, 0))) == Slots(6, 1, 0.0, "cpu")
    assert find_cluster_slots(options(concurrent=3), fleet((4, 0), (2, 0))).concurrent == 3, "--concurrent caps it"
    assert find_cluster_slots(options(concurrent=9), fleet((4, 0), (2, 0))).concurrent == 6
    assert find_cluster_slots(options(cpus_per_trial=4), fleet((4, 0), (2, 0))) == Slots(1, 4, 0.0, "cpu")
    assert find_cluster_slots(options(trials=2), fleet((4, 0), (2, 0))) == Slots(2, 2, 0.0, "cpu"), "the smallest's"


def test_gpus_anywhere_are_used() -> None:
    mixed = fleet((0, 0), (4, 0), (8, 2), (16, 4))
    assert find_cluster_slots(OPTIONS, mixed) == Slots(6, 4, 1.0, "cuda")
    assert find_cluster_slots(options(gpus_per_trial=0.5), mixed) == Slots(12, 2, 0.5, "cuda")
    assert find_cluster_slots(options(gpus_per_trial=0.4), mixed) == Slots(12, 2, 0.4, "cuda"), "two on each"
    assert find_cluster_slots(options(device="cpu"), mixed).device == "cpu"


@pytest.mark.parametrize(
    ("given", "nodes", "words"),
    [
        ({"device": "cuda"}, [(4, 0)], "no node of the cluster has a GPU"),
        ({"gpus_per_trial": 0.5}, [(4, 0)], "there is no GPU to share"),
        ({"gpus_per_trial": 1.5}, [(4, 4)], "must be at most 1, or a whole number"),
        ({"cpus_per_trial": 8}, [(4, 0), (2, 0)], "no node of the cluster carries a trial, which takes 8 processors"),
        ({}, [(0, 0)], "no node of the cluster carries a trial"),
    ],
)
def test_what_no_node_has_is_refused(given: dict[str, Any], nodes: list[tuple[float, float]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_cluster_slots(options(**given), fleet(*nodes))


def test_a_search_may_wait_for_nodes() -> None:
    assert find_cluster_slots(options(concurrent=8), fleet((0, 0))) == Slots(1, 1, 0.0, "cpu")


def test_a_bound_on_memory_is_one_for_each_node() -> None:
    found = spread(Slots(1, 1, 0.0, "cpu"), options(memory=4 * GIB), fleet((8, 0), (1, 0)), needed=1500.0)
    assert found.concurrent == 3, "two on the first, one on the second"
    assert found.memory == 2 * GIB - 1500 * 2**20


def test_only_nodes_like_this_machine_are_measured_here() -> None:
    layouts = layouts_here(OPTIONS, fleet((4, 0), (4, 0)))
    assert len(layouts) > 1
    assert layouts_here(OPTIONS, fleet((8, 0), (4, 0))) == [Slots(4, 1, 0.0, "cpu")], "another size"
    assert layouts_here(OPTIONS, fleet((4, 0), processor="Q")) == [Slots(4, 1, 0.0, "cpu")]
    assert layouts_here(OPTIONS, fleet((4, 1))) == [], "nothing to measure with"
    assert layouts_here(options(device="cpu"), fleet((4, 1), (4, 0))) == layouts, "GPUs that no trial wants"


def test_what_is_assumed_is_said() -> None:
    measured = Calibration(Slots(1, 4, 0.0, "cpu"), (Layout(Slots(1, 4, 0.0, "cpu"), 1.0, 300.0),), (), 1, 1, 1, "so")
    same = on_cluster(measured, OPTIONS, fleet((4, 0), (4, 0)), 300.0)
    assert same.slots == Slots(2, 4, 0.0, "cpu"), "the threads that were fastest here"
    assert same.reason == "2 nodes carry 2 trials: 1 on n0, 1 on n1; so"
    other = on_cluster(measured, OPTIONS, fleet((4, 0), (8, 0)), 300.0)
    assert other.slots == Slots(12, 1, 0.0, "cpu")
    assert "each is taken to train as fast" in other.reason
    none = dataclasses.replace(measured, slots=Slots(1, 4, 1.0, "cuda"), layouts=())
    assert "this machine has no GPU" in on_cluster(none, OPTIONS, fleet((4, 2)), 0.0).reason
