"""The checks by name, each with what it is about and how long it may take; the order is that of their running."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.doctor.findings import MachineFinding

_SAMPLE = 0.5  # seconds in which other programs and the clocks are watched (our choice)
_GRACE = 2.0  # seconds in which processes may end whose program is gone (our choice)


@dataclass(frozen=True)
class Asked:
    """What is looked at: plain data, so that it can be sent to a process or another machine.

    `scratch` is an empty folder for temporary files, "" where none could be made.
    """

    runs_dir: str = "runs"
    data: tuple[str, ...] = ()
    data_dir: str | None = None
    scratch: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Asked:
        """What `to_json` gave."""
        return cls(**{**plain, "data": tuple(plain["data"])})


@dataclass(frozen=True)
class Check:
    """What a check is about, seconds that it may take, and the check itself.

    `lane`: checks of one lane run one after another in one process, the lanes beside each other; "first" runs alone,
    before the others, because it measures the load and looks for processes that the others would start.
    """

    group: str
    limit: float
    lane: str
    look: Callable[[Asked], list[MachineFinding]]


def _processors(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import processors
    from tunelab.tuning.hardware import usable_cpus

    usable = usable_cpus()
    before = processors.moment()
    time.sleep(_SAMPLE)
    after = processors.moment()
    ours = frozenset((os.getpid(), os.getppid()))
    return [
        *processors.find_count(usable),
        *processors.find_threads(usable, os.environ),
        *processors.find_load(before, after, usable, ours),
    ]


def _memory(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import memory
    from tunelab.tuning.hardware import usable_cpus

    return [
        *memory.find_free(usable_cpus()),
        *memory.find_kills(),
        *memory.find_swap(),
        *memory.find_address_space(),
        *memory.find_shared_memory(),
    ]


def _limits(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import limits
    from tunelab.tuning.hardware import usable_cpus

    usable = usable_cpus()
    return [*limits.find_open_files(usable), *limits.find_processes(usable), *limits.find_file_size()]


def _clock(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import clock

    before = clock.read_clocks()
    time.sleep(_SAMPLE)
    found = clock.find_clock(before, clock.read_clocks(), clock.is_synchronised())
    return [*found, *clock.find_zone(os.environ)]


def _environment(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import environment
    from tunelab.tuning.ray_home import SETTINGS

    return environment.find_variables(os.environ, SETTINGS)


def _runs(asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import folders

    place = folders.Place("runs folder", Path(asked.runs_dir), 100 * 2**20, 5 * 2**30, "--runs-dir")
    return folders.find_place(place, folders.read_mounts())


def _cache(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import folders
    from tunelab.files import wanted_root

    place = folders.Place("cache folder", wanted_root(), 2**24, 2**30, "TUNELAB_CACHE")
    found = folders.find_place(place, folders.read_mounts())  # a search has another folder where it cannot be written
    softened = [dataclasses.replace(one, verdict="warning") if one.verdict == "error" else one for one in found]
    return [*softened, *folders.find_home(os.environ)]


def _temporary(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import folders
    from tunelab.tuning.ray_home import LONGEST_TEMPORARY, temporary_parent

    return folders.find_temporary(LONGEST_TEMPORARY, temporary_parent, folders.read_mounts(), os.environ)


def _leftovers(asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import leftovers
    from tunelab.files import wanted_root
    from tunelab.tuning.ray_home import IN_USE, PREFIX, temporary_parent

    seen = leftovers.processes()
    if any(one.verdict != "ok" for one in leftovers.find_processes(seen)):
        time.sleep(_GRACE)  # workers of a Ray that has just ended are about to follow it
        known = {one.pid for one in seen}
        seen = [one for one in leftovers.processes() if one.pid in known]
    return [
        *leftovers.find_processes(seen),
        *leftovers.find_folders(temporary_parent(), PREFIX, IN_USE),
        *leftovers.find_builds(wanted_root()),
    ]


def _studies(asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import leftovers

    return leftovers.find_studies(Path(asked.runs_dir).expanduser(), leftovers.processes())


def _versions(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import software

    return software.find_versions()


def _gpus(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import gpus

    return gpus.find_gpus(os.environ)


def _torch(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import gpus

    return gpus.find_torch(gpus.look_with_torch(), os.environ)


def _torchvision(_asked: Asked) -> list[MachineFinding]:
    from tunelab.data.vision import import_torchvision
    from tunelab.doctor import software

    return software.find_torchvision(import_torchvision)


def _kernels(_asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import software, traces
    from tunelab.models import kernels

    with traces.leaving_no_folders(*kernels.folders()):
        return software.find_kernels(kernels.usable, kernels.compiled)


def _ray(asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import ray_start

    return ray_start.find_ray(asked.scratch)


def _data(asked: Asked) -> list[MachineFinding]:
    from tunelab.doctor import images

    return [one for name in asked.data for one in images.find_data(name, asked.data_dir)]


CHECKS: dict[str, Check] = {
    "processors": Check("processors", 5.0, "first", _processors),
    "memory": Check("memory", 3.0, "system", _memory),
    "limits": Check("limits", 3.0, "system", _limits),
    "clock": Check("clock", 3.0, "system", _clock),
    "environment": Check("environment", 3.0, "system", _environment),
    "runs": Check("folders", 5.0, "folders", _runs),
    "cache": Check("folders", 5.0, "folders", _cache),
    "temporary": Check("folders", 5.0, "folders", _temporary),
    "leftovers": Check("leftovers", 5.0, "first", _leftovers),
    "studies": Check("leftovers", 5.0, "first", _studies),
    "gpus": Check("GPUs", 10.0, "system", _gpus),
    "versions": Check("software", 5.0, "software", _versions),
    "torch": Check("GPUs", 20.0, "software", _torch),
    "torchvision": Check("software", 15.0, "software", _torchvision),
    "kernels": Check("software", 15.0, "software", _kernels),
    "ray": Check("Ray", 30.0, "ray", _ray),
    "data": Check("data", 15.0, "data", _data),
}
"""A Ray cluster's nodes are asked for all but "ray", "runs" and "studies", which are the driver's."""
