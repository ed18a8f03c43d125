"""The nodes of a cluster: who they are, what they told of themselves, and what came of trying things out there."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NodeGpu:
    """A GPU; memory in MiB, None where nvidia-smi does not say."""

    name: str
    total_mib: int | None
    free_mib: int | None


@dataclass(frozen=True)
class Disk:
    """What is free where a folder is, or would be: bytes, and files where they are counted."""

    folder: str
    free: int
    files: int | None


@dataclass(frozen=True)
class Package:
    """The package tunelab: its version, the digest of what a worker needs of it, where it is."""

    version: str
    digest: str
    folder: str


@dataclass(frozen=True)
class Versions:
    """The Python of a machine and where it is, and the versions of its packages, None where one is missing."""

    python: str
    executable: str
    packages: Mapping[str, str | None]


@dataclass(frozen=True)
class Facts:
    """What a machine tells of itself; memory as the control groups leave it, in MiB.

    `packages` have None where one is missing. `disks` are those of "study", "temporary", "ray" and "cache". The `gpus`
    are all that nvidia-smi lists; how many Ray may use is in a node's resources.
    """

    user: str
    python: str
    executable: str
    packages: Mapping[str, str | None]
    tunelab: Package | None
    free_memory_mib: int
    all_memory_mib: int
    disks: Mapping[str, Disk]
    gpus: tuple[NodeGpu, ...]
    gpu_problem: str = ""

    @property
    def versions(self) -> Versions:
        """Those of Python and the packages."""
        return Versions(self.python, self.executable, self.packages)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Facts:
        """What `node_facts.tell` gave."""
        return cls(
            **{
                **plain,
                "tunelab": None if plain["tunelab"] is None else Package(**plain["tunelab"]),
                "disks": {name: Disk(**disk) for name, disk in plain["disks"].items()},
                "gpus": tuple(NodeGpu(**gpu) for gpu in plain["gpus"]),
            }
        )


@dataclass(frozen=True)
class Storage:
    """What came of the tokens that nodes and driver wrote into the folder of the study.

    `problem` as `node_facts.leave_token` names it. `unseen` are those whose tokens this node does not see. It is
    `stale` if a file that the driver replaced is still what it was. `lost`: the driver does not see this node's token.
    """

    problem: str = ""
    unseen: tuple[str, ...] = ()
    stale: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Clock:
    """By how many seconds a node's clock is ahead of the driver's, and how wrong that may be."""

    ahead: float
    doubt: float


@dataclass(frozen=True)
class NodeReport:
    """What is known of a node that is alive.

    `name` is its address, with its port where several nodes have one address. `resources` are Ray's: "CPU", "GPU" and
    so on. `silent` says why it did not answer, "" if it did; what it did not come to is None. `training` is what
    `node_facts.prepare` gave.
    """

    name: str
    identity: str
    resources: Mapping[str, float]
    silent: str = ""
    facts: Facts | None = None
    clock: Clock | None = None
    storage: Storage | None = None
    training: Mapping[str, Any] | None = None

    def carries_trials(self, device: str = "") -> bool:
        """True if a trial could run there: it has a processor to give, and a GPU if `device` is "cuda"."""
        return self.resources.get("CPU", 0.0) >= 1 and (device != "cuda" or self.resources.get("GPU", 0.0) > 0)


@dataclass(frozen=True)
class Visited:
    """The driver's own facts, where it tried the storage out, and the nodes by name."""

    home: Facts
    place: Path
    nodes: tuple[NodeReport, ...]


def describe_error(name: str) -> str:
    """What an error of the operating system means, from its name."""
    number = getattr(errno, name, None)
    return name if number is None else os.strerror(number)
