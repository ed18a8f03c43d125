"""What is not fit for a search on the nodes of a cluster: facts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.specifiers import SpecifierSet

from tunelab.capacity import describe_size
from tunelab.tuning.node_findings import LEAVE_OUT, NodeFinding
from tunelab.tuning.node_versions import judge_versions
from tunelab.tuning.nodes import Clock, Disk, Facts, NodeReport, Visited, describe_error
from tunelab.tuning.ray_home import ROOM_BYTES

LEAST_STUDY = 100 * 2**20
"""Bytes for a study, unless it is said how many it needs (our choice)."""
_LEAST_MEMORY = 512  # MiB without which not even one trial starts, and what each takes (our choice; 0.3 to 0.5 GiB)
_LEAST_CACHE = 2**24  # bytes for kernels that are compiled and small data (our choice)
_FILES = 200  # that can still be made where trials write; our choice
_CLOCK = 2.0  # seconds that clocks may differ by (our choice)
_CROWDED = 0.1  # of a GPU's memory taken by others: worth a warning (our choice)


def judge(
    node: NodeReport,
    visited: Visited,
    wanted: Mapping[str, SpecifierSet],
    fingerprints: Mapping[str, str],
    least: int = LEAST_STUDY,
    device: str = "",
) -> list[NodeFinding]:
    """What is to be said of a node, or one finding that it is fit.

    Where no trial can run, because it has no processors or GPUs to give, errors are warnings.

    Args:
        node: what it told.
        visited: what the driver told, and where the study is.
        wanted: the versions that each package may have.
        fingerprints: of data by name, as the driver has it; "": any.
        least: bytes that the study needs.
        device: of the trials, "cpu" or "cuda"; "": it is not known. GPUs that no trial wants are not judged.
    """
    judged = _Judge(node)
    if node.facts is None or node.silent:
        mend = f"see `ray status` and raylet.out in Ray's logs there, start Ray there again, {LEAVE_OUT}"
        judged.error("answer", node.silent or "none", mend)
    if node.facts is not None:
        _judge_storage(judged, node, visited)
        _judge_disks(judged, node.facts.disks, least)
        judged.found += judge_versions(node.name, node.facts.versions, visited.home.versions, wanted)
        _judge_tunelab(judged, node.facts, visited.home)
        _judge_training(judged, node, fingerprints)
        _judge_memory(judged, node, node.facts)
        if device != "cpu":
            _judge_gpus(judged, node, node.facts)
        _judge_clock(judged, node.clock)
    if not node.carries_trials(device):
        judged.found = [
            NodeFinding(one.node, one.name, f"{one.measured}; it runs no trials", "warning", one.mend)
            for one in judged.found
        ]
    return judged.found or [NodeFinding(node.name, "node", describe(node))]


def describe(node: NodeReport) -> str:
    """What a node has, in a line."""
    cpus, gpus = (node.resources.get(name, 0.0) for name in ("CPU", "GPU"))
    parts = [f"{cpus:g} {'processor' if cpus == 1 else 'processors'}"]
    if gpus:
        parts.append(f"{gpus:g} {'GPU' if gpus == 1 else 'GPUs'}")
    if node.facts is not None:
        free = [gpu.free_mib for gpu in node.facts.gpus if gpu.free_mib is not None]
        if gpus and free:
            parts[-1] += f" ({', '.join(describe_size(one * 2**20) for one in free)} free)"
        parts.append(f"{describe_size(node.facts.free_memory_mib * 2**20)} of memory free")
        disks = node.facts.disks
        parts += [
            f"{describe_size(disk.free)} free in {disk.folder}" for name, disk in disks.items() if name == "study"
        ]
        versions = [f"{name} {node.facts.packages[name]}" for name in ("torch", "torchvision", "ray")]
        parts.append(f"Python {node.facts.python}, {', '.join(versions)}")
    return "; ".join(parts)


class _Judge:
    """Collects the findings of a node."""

    def __init__(self, node: NodeReport) -> None:
        self.found: list[NodeFinding] = []
        self._node = node.name

    def error(self, name: str, measured: str, mend: str) -> None:
        """Trials would fail there."""
        self.found.append(NodeFinding(self._node, name, measured, "error", mend))

    def warning(self, name: str, measured: str, mend: str) -> None:
        """Worth knowing."""
        self.found.append(NodeFinding(self._node, name, measured, "warning", mend))


def _judge_storage(judged: _Judge, node: NodeReport, visited: Visited) -> None:
    there = node.storage
    if there is None or node.facts is None:
        return
    place, user = visited.place, visited.home.user
    share = f"mount the same folder there under the same path, or name one that all nodes share; {LEAVE_OUT}"
    if there.problem == "missing":
        judged.error("storage", f"{place} is not there", share)
    elif there.problem == "another":
        judged.error("storage", f"{place} is not shared: what the driver wrote there is not in it", share)
    elif there.problem == "EROFS":
        judged.error("storage", f"{place} is read-only there", f"mount -o remount,rw {place}; {LEAVE_OUT}")
    elif there.problem in ("EACCES", "EPERM"):
        said = f"{place} cannot be written there by user {node.facts.user}"
        judged.error("storage", said, f"start Ray there as user {user}, whose folder it is; {LEAVE_OUT}")
    elif there.problem in ("ENOSPC", "EDQUOT"):
        judged.error("storage", f"{place} is full there: {describe_error(there.problem)}", "free some")
    elif there.problem:
        said = f"{place} cannot be written there: {describe_error(there.problem)}"
        judged.error("storage", said, f"look at that disk (dmesg); {LEAVE_OUT}")
    elif there.lost:
        judged.error("storage", f"what is written in {place} there is not seen by the driver", share)
    elif there.unseen:
        others = f"{', '.join(there.unseen[:3])}{' and others' if len(there.unseen) > 3 else ''}"
        judged.error("storage", f"{place} there has not what {others} wrote", share)
    elif there.stale:
        said = f"{place} is stale there: a file that was replaced is seen as it was before"
        judged.warning("storage", said, "mount it with actimeo=1 or lookupcache=none; trials may repeat epochs")


def _judge_disks(judged: _Judge, disks: Mapping[str, Disk], least: int) -> None:
    if "study" in disks and disks["study"].free < least:
        said = f"{describe_size(disks['study'].free)} free in {disks['study'].folder}"
        judged.error("storage", f"{said}; the study needs {describe_size(least)}", "free some, or name another folder")
    seen: list[tuple[int, int | None]] = []
    for name in ("temporary", "ray"):
        disk = disks.get(name)
        if disk is None or (disk.free, disk.files) in seen:  # the same disk
            continue
        seen.append((disk.free, disk.files))
        mend = "free some there, or start Ray there with another TMPDIR and --temp-dir"
        if disk.free < ROOM_BYTES:
            said = f"the disk of {disk.folder} is full: {describe_size(disk.free)} free"
            judged.error("temporary folder", f"{said}, {describe_size(ROOM_BYTES)} are needed", mend)
        elif disk.files is not None and disk.files < _FILES:
            judged.error("temporary folder", f"{disk.folder} has room for {disk.files} more files", mend)
    cache = disks.get("cache")
    if cache is not None and cache.free < _LEAST_CACHE:
        said = f"{describe_size(cache.free)} free in {cache.folder}"
        judged.warning("cache folder", said, "free some there, or start Ray there with another TUNELAB_CACHE")


def _judge_tunelab(judged: _Judge, facts: Facts, home: Facts) -> None:
    here, install = home.tunelab, f"{facts.executable} -m pip install"
    if facts.tunelab is None:
        judged.error("packages", "tunelab is missing", f"{install} tunelab{f'=={here.version}' if here else ''} there")
    elif here is not None and facts.tunelab.version != here.version:
        said = f"tunelab is {facts.tunelab.version} in {facts.tunelab.folder}, the driver has {here.version}"
        judged.error("packages", said, f"{install} tunelab=={here.version} there")
    elif here is not None and facts.tunelab.digest != here.digest:
        said = f"tunelab {here.version} in {facts.tunelab.folder} is not the code of the driver's {here.version}"
        judged.warning("packages", said, "install the same there")


def _judge_training(judged: _Judge, node: NodeReport, fingerprints: Mapping[str, str]) -> None:
    told = node.training
    if told is None:
        return
    if told.get("problem") and not any(one.name == "packages" and one.verdict == "error" for one in judged.found):
        judged.error("training", f"it does not load: {told['problem']}", "reinstall there what the message names")
    for one in told.get("data", ()):
        name, expected = f"data {one['name']}", fingerprints.get(one["name"], "")
        if one.get("problem"):
            said, _, mend = one["problem"].partition("; ")
            judged.error(name, said, mend or "put the data where this node finds it, too")
        elif expected and one["fingerprint"] not in ("", expected):
            said = f"it is other data there: fingerprint {one['fingerprint']}, the driver's is {expected}"
            judged.error(name, said, "copy the driver's data there, or put it where all nodes read it")


def _judge_memory(judged: _Judge, node: NodeReport, facts: Facts) -> None:
    cpus = int(node.resources.get("CPU", 0.0))
    said = f"{describe_size(facts.free_memory_mib * 2**20)} free of {describe_size(facts.all_memory_mib * 2**20)}"
    if facts.free_memory_mib < _LEAST_MEMORY:
        judged.error("memory", f"{said}; no trial starts with that", "end other programs there, or raise its limit")
    elif facts.free_memory_mib < cpus * _LEAST_MEMORY:
        fewer = facts.free_memory_mib // _LEAST_MEMORY
        said = f"{said}; that is for about {fewer} of {cpus} trials at once"
        judged.warning("memory", said, f"start Ray there with --num-cpus={fewer}, or end other programs there")


def _judge_gpus(judged: _Judge, node: NodeReport, facts: Facts) -> None:
    count, told = int(node.resources.get("GPU", 0.0)), node.training or {}
    if not count:
        return
    mend = f"start Ray there with --num-gpus={len(facts.gpus)}, or mend the driver"
    if facts.gpu_problem:
        judged.warning("GPUs", facts.gpu_problem, "restart that machine, or look at dmesg | grep -i nvrm")
    elif 0 < len(facts.gpus) < count:
        judged.warning("GPUs", f"Ray counts {count}, nvidia-smi lists {len(facts.gpus)}", mend)
    if told.get("torch_problem"):
        judged.error("GPUs", f"torch does not load there: {told['torch_problem']}", "reinstall torch there")
    elif told.get("torch") and told["torch"][2] < count:
        version, cuda, usable = told["torch"]
        built = f"built for CUDA {cuda}" if cuda else "built for processors"
        why = f": {told['torch_warning']}" if told.get("torch_warning") else ""
        fewer = f"start Ray there with --num-gpus={usable}"
        said = f"Ray counts {count}, torch {version} ({built}) can use {usable}{why}"
        judged.error("GPUs", said, f"{fewer}, mend the driver or torch, or search with --device cpu")
    for number, gpu in enumerate(facts.gpus):
        if gpu.total_mib and gpu.free_mib is not None and gpu.free_mib < (1 - _CROWDED) * gpu.total_mib:
            said = f"{describe_size(gpu.free_mib * 2**20)} of {describe_size(gpu.total_mib * 2**20)} free ({gpu.name})"
            judged.warning(f"GPU {number}", said, "end what is on it, or leave it out with CUDA_VISIBLE_DEVICES")


def _judge_clock(judged: _Judge, clock: Clock | None) -> None:
    if clock is not None and abs(clock.ahead) - clock.doubt > _CLOCK:
        way = "ahead of" if clock.ahead > 0 else "behind"
        said = f"it is {abs(clock.ahead):.0f} s {way} the driver's"
        judged.warning("clock", said, "timedatectl set-ntp true there, or start chronyd")
