from __future__ import annotations

from tunelab.tuning.fleet import Fleet, Node, fleet_of
from tunelab.tuning.slots import Slots

GIB = 2**30
ONE, TWO = Slots(1, 1, 0.0, "cpu"), Slots(1, 2, 0.0, "cpu")


def fleet(*cpus: float, gpus: float = 0.0, memory: float = 8 * GIB) -> Fleet:
    return Fleet(tuple(Node(str(at), f"n{at}", count, gpus, memory) for at, count in enumerate(cpus)))


def test_each_node_carries_what_fits_on_it_alone() -> None:
    assert fleet(3, 3).carries(TWO) == 2, "no trial has a processor of each"
    assert fleet(0, 4).carries(ONE) == 4
    assert [node.name for node in fleet(0, 4).working(ONE)] == ["n1"]
    assert fleet(8, 8, gpus=2).carries(Slots(1, 1, 0.5, "cuda")) == 8
    assert fleet(2, 8, gpus=2).carries(Slots(1, 1, 0.5, "cuda")) == 6, "and processors for each"
    assert fleet(8, gpus=1).carries(Slots(1, 1, 1 / 3, "cuda")) == 3
    assert fleet(8, gpus=2).carries(Slots(1, 1, 0.4, "cuda")) == 4, "none has a part of each GPU"
    assert fleet(8, 1).capped(2).carries(ONE) == 3


def test_trials_are_packed_by_their_memory() -> None:
    nodes = fleet(4, 4, memory=8 * GIB)
    assert nodes.packs(ONE, [5 * GIB, 3 * GIB, 5 * GIB, 3 * GIB])
    assert not nodes.packs(ONE, [5 * GIB, 5 * GIB, 5 * GIB])
    assert not nodes.packs(ONE, [9 * GIB])
    assert nodes.packs(ONE, [0] * 8)
    assert not nodes.packs(ONE, [0] * 9)


def test_nodes_that_are_gone_do_not_count() -> None:
    told = [
        {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 2.0, "memory": 5.0}},
        {"NodeID": "b", "NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {"CPU": 2.0}},
        {"NodeID": "c", "NodeManagerAddress": "10.0.0.3", "Alive": True, "Resources": {"node:10.0.0.3": 1.0}},
    ]
    found = fleet_of(told)
    assert [(node.name, node.cpus, node.memory) for node in found.nodes] == [("10.0.0.1", 2.0, 5.0), ("10.0.0.3", 0, 0)]
    assert found.describe(ONE) == "1 node carries 2 trials: 2 on 10.0.0.1"
    assert fleet(*[2] * 20, 4).describe(ONE) == "21 nodes carry 44 trials: 4 each on 1, 2 each on 20"
