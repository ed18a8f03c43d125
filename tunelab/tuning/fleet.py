"""The nodes of a cluster: what each has, and how many trials they carry."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunelab.tuning.slots import Slots, shares


@dataclass(frozen=True)
class Node:
    """A node as Ray has it: `cpus`, `gpus` and `memory` (bytes) are what Ray may give to trials there.

    `processor` and `models`, those of its GPUs, are "" and () where the node was not asked.
    """

    id: str
    name: str
    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    processor: str = ""
    models: tuple[str, ...] = ()

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Node:
        """From an entry of `ray.nodes()`."""
        has = told["Resources"]
        return cls(
            told["NodeID"], told["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0)
        )

    def carries(self, slots: Slots, most: int | None = None) -> int:
        """How many trials with these processors and GPUs fit on the node; `most`: never more than that."""
        fits = int(self.cpus // slots.cpus)
        if slots.gpus:
            fits = min(fits, shares(self.gpus, slots.gpus))
        return fits if most is None else min(fits, most)


@dataclass(frozen=True)
class Fleet:
    """All nodes that are alive. `most` is how many trials a node may carry at most (None: what its resources say)."""

    nodes: tuple[Node, ...]
    most: int | None = None

    def carries(self, slots: Slots) -> int:
        """How many trials run at once."""
        return sum(node.carries(slots, self.most) for node in self.nodes)

    def working(self, slots: Slots) -> list[Node]:
        """The nodes that carry a trial at all."""
        return [node for node in self.nodes if node.carries(slots, self.most)]

    def packs(self, slots: Slots, needs: Iterable[int]) -> bool:
        """True if trials that need so many bytes each can all run at once: the largest are placed first."""
        places = {node.id: node.carries(slots, self.most) for node in self.nodes}
        free = {node.id: node.memory for node in self.nodes}
        for need in sorted(needs, reverse=True):
            fitting = [name for name, places_left in places.items() if places_left and free[name] >= need]
            if not fitting:
                return False
            least = min(fitting, key=lambda name: free[name])
            places[least] -= 1
            free[least] -= need
        return True

    def describe(self, slots: Slots) -> str:
        """Where the trials run, in words such as "2 nodes carry 3 trials: 2 on 10.0.0.1, 1 on 10.0.0.2"."""
        working = self.working(slots)
        if len(working) > 8:  # our choice
            counts = Counter(node.carries(slots, self.most) for node in working)
            each = ", ".join(f"{trials} each on {nodes}" for trials, nodes in sorted(counts.items(), reverse=True))
        else:
            each = ", ".join(f"{node.carries(slots, self.most)} on {node.name}" for node in working)
        nodes, trials = len(working), self.carries(slots)
        verb = "node carries" if nodes == 1 else "nodes carry"
        return f"{nodes} {verb} {trials} trial{'' if trials == 1 else 's'}: {each}"

    def to_json(self) -> list[dict[str, Any]]:
        """The nodes as plain JSON values, for the manifest."""
        return [dataclasses.asdict(node) for node in self.nodes]

    def capped(self, most: int | None) -> Fleet:
        """The same nodes with no more than so many trials on each."""
        return dataclasses.replace(self, most=most)


def fleet_of(told: Sequence[Mapping[str, Any]], most: int | None = None) -> Fleet:
    """The nodes of `ray.nodes()` that are alive."""
    return Fleet(tuple(Node.of(one) for one in told if one["Alive"]), most)
