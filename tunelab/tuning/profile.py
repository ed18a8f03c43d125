"""What one training takes at different batch sizes, on different devices, with different numbers of threads.

Each point is measured in a process of its own that is gone before the next one begins, so that its peak memory is its
own. There are no loader workers to choose: a training gathers and augments its images itself, with the same threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunelab.capacity import free_memory_mib
from tunelab.config import DataConfig, TrialConfig, to_json
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError
from tunelab.records import Trial
from tunelab.space import load_space
from tunelab.study import Study
from tunelab.tuning.hardware import count_gpus, usable_cpus
from tunelab.tuning.options import LIMITS, SearchOptions
from tunelab.tuning.preflight import absolute_paths, make_source
from tunelab.tuning.probes import COMMAND, PATIENCE, ProbeError, Probes, TooSlowError
from tunelab.tuning.prospect import open_data
from tunelab.tuning.sharing import computing_like
from tunelab.tuning.slots import Slots

DEVICES = ("cpu", "cuda")
_SHARES = (0.25, 0.5, 1, 2, 4)  # of the configuration's own batch size, where none are asked for; our choice
_LEFT_OUT = 0.05  # of the training images fill no batch: from here on that is said; our choice
OUT_OF_MEMORY, TOO_SLOW = "out of memory", "too slow"
# What torch, CUDA's libraries and Python say then.
_SAYS_OUT_OF_MEMORY = ("outofmemory", "out of memory", "memoryerror", "can't allocate memory", "alloc_failed")


@dataclass(frozen=True)
class Subject:
    """A configuration that is to be measured, and its data.

    `name` says in words whose it is, `stats` are those of its network (models/check.py). `source` is where it comes
    from, as plain JSON values: a study and a trial, or a space. `study` is the study of the trial.
    """

    name: str
    config: TrialConfig
    info: DataInfo
    stats: Mapping[str, Any]
    source: Mapping[str, Any]
    study: Study | None = None

    def compute(self, device: str) -> dict[str, Any]:
        """How the trial is computed on a device, as the JSON of a ComputeConfig: as in its study, on that machine."""
        slots = Slots(1, 1, 0.0, device)
        return (slots if self.study is None else computing_like(slots, self.study)).compute


@dataclass(frozen=True)
class Setting:
    """How a configuration is trained: `device` is one of DEVICES."""

    device: str
    threads: int
    batch_size: int

    @property
    def line(self) -> str:
        """Device and threads in words: what has one line in a plot."""
        return f"{self.device}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def describe(self) -> str:
        """The setting in words."""
        return f"{self.line}, batch {self.batch_size}"


@dataclass(frozen=True)
class Figures:
    """What was measured at one setting. Times are in seconds, memory in MiB.

    `step`: the median training step. `epoch`: the training steps of an epoch and its validation. `images_per_second`:
    in training. `host_memory`: the peak of the process's resident memory, Python and torch included; `device_memory`:
    the peak of torch's allocations on the GPU, None without one. `steps`: how many were timed, on a GPU in tens.
    """

    step: float
    epoch: float
    images_per_second: float
    host_memory: float
    device_memory: float | None
    steps: int

    @classmethod
    def of(cls, found: Mapping[str, Any], info: DataInfo, device: str) -> Figures:
        """From the answer of the process that measured, a `tunelab.training.probe.Measured` as plain JSON."""
        step, batch = float(found["step"]), int(found["images"])
        validation = info.counts["val"] * float(found["val_image"] or 0.0)
        return cls(
            step=step,
            epoch=info.counts["train"] // batch * step + validation,
            images_per_second=batch / step,
            host_memory=float(found["host_memory"]),
            device_memory=float(found["memory"]) if device == "cuda" else None,
            steps=int(found["steps"]),
        )


@dataclass(frozen=True)
class Point:
    """One setting and what came of it: `figures`, or the reason in `failed`. `note` is what else is to be known."""

    setting: Setting
    figures: Figures | None = None
    failed: str = ""
    note: str = ""


def trial_subject(study: Study, trial: Trial) -> Subject:
    """The configuration of a trial.

    Raises:
        InputError: its data cannot be opened any more.
    """
    config = study.config(trial)
    info = open_data(config.data, show_progress=True)
    source = {"study": str(study.path), "trial": trial.number}
    return Subject(f"{study.name}, trial {trial.number}", config, info, trial.stats, source, study)


def baseline_subject(space_name: str, data: DataConfig, device: str) -> Subject:
    """The configuration that a search of a space would begin with on `device`: its baseline, within the usual limits.

    Raises:
        InputError: there is no such space, it raises, none of it fits, or the data cannot be opened.
    """
    space = load_space(space_name)
    max_params, max_mflops = LIMITS[device]
    options = SearchOptions(data=absolute_paths(data), max_params=max_params, max_mflops=max_mflops)
    info = open_data(options.data, show_progress=True)
    source = make_source(space, options, info, options.seed, None)
    what = "baseline" if source.has_baseline else "first draw"
    found = source.propose(0, {})
    name = f"{what} of {space.name} on {info.name}"
    return Subject(name, found.config, info, found.stats, {"space": space.source, "params": dict(found.params)})


def find_devices(asked: Sequence[str]) -> list[str]:
    """The devices to measure on: those that are asked for, else the processor, and a GPU where there is one.

    Raises:
        InputError: there is no GPU.
    """
    gpus = count_gpus()
    if "cuda" in asked and gpus == 0:
        raise InputError("--device cuda: torch finds no CUDA device on this machine; use --device cpu")
    return list(dict.fromkeys(asked)) or [name for name in DEVICES if name == "cpu" or gpus]


def find_threads(asked: Sequence[int]) -> dict[str, list[int]]:
    """The numbers of threads for each device: those that are asked for, else 1 and all processors, all beside a GPU.

    Raises:
        InputError: one is more than the processors of this machine.
    """
    cpus = usable_cpus()
    if asked and max(asked) > cpus:
        raise InputError(f"--threads {max(asked)} is more than the {cpus} processors of this machine")
    return {"cpu": sorted({*asked} or {1, cpus}), "cuda": sorted({*asked} or {cpus})}


def plan(
    subject: Subject, devices: Sequence[str], threads: Mapping[str, Sequence[int]], batch_sizes: Sequence[int]
) -> list[Setting]:
    """The settings to measure: for each device and number of threads the batch sizes, small ones first.

    Without `batch_sizes` they are around the configuration's own, from a quarter of it to four times as many, and none
    but its own is more than the training images.
    """
    own, images = subject.config.train.batch_size, subject.info.counts["train"]
    around = {size for share in _SHARES if 1 <= (size := int(own * share)) <= images}
    sizes = sorted({*batch_sizes} or {own, *around})
    return [Setting(device, each, size) for device in devices for each in threads[device] for size in sizes]


def measure(
    subject: Subject, setting: Setting, seconds: float, before: Sequence[Point] = (), command: Sequence[str] = COMMAND
) -> Point:
    """Measures one setting in a process of its own, which is gone afterwards; what fails is told in the point.

    Args:
        subject: what is trained.
        setting: how.
        seconds: how long it is trained; at least one step, and a validation beside it.
        before: what was measured before, smaller batches first. Where that leaves no hope, nothing is tried.
        command: what is run, for tests.
    """
    images = subject.info.counts["train"]
    note = _note(setting.batch_size, images)
    hopeless = no_hope(setting, before, images, free_memory_mib())
    if hopeless:
        return Point(setting, failed=hopeless, note=note)
    train = dataclasses.replace(subject.config.train, batch_size=setting.batch_size)
    config = to_json(dataclasses.replace(subject.config, train=train))
    try:
        with Probes(1, command) as probes:
            where = {"device": setting.device, "threads": setting.threads, "compute": subject.compute(setting.device)}
            probes.build([{"config": config, **where}])
            (found,) = probes.measure(1, setting.threads, seconds, seconds + PATIENCE, full_validation=True)
    except ProbeError as error:
        return Point(setting, failed=why(error), note=note)
    return Point(setting, Figures.of(found, subject.info, setting.device), note=note)


def no_hope(setting: Setting, before: Sequence[Point], images: int, free: float) -> str:
    """Why a setting need not be tried, "" if it may work.

    A smaller batch on the same device with as many threads was too slow or too large; or this one would need more
    than the `free` MiB of the machine, going by how the memory of the two before it grew. A machine that runs out of
    memory may stop other programs.
    """
    mine = [
        point
        for point in before
        if (point.setting.device, point.setting.threads) == (setting.device, setting.threads)
        and point.setting.batch_size < setting.batch_size
    ]
    for point in mine:
        if OUT_OF_MEMORY in point.failed or point.failed.startswith(TOO_SLOW):
            return f"not tried after batch {point.setting.batch_size}: {point.failed.partition(':')[0]}"
    known = [(min(point.setting.batch_size, images), point.figures.host_memory) for point in mine if point.figures]
    if setting.device == "cuda" or len(known) < 2 or known[-1][0] == known[-2][0]:
        return ""
    (smaller, less), (larger, more) = known[-2:]
    growth = max(0.0, more - less) / (larger - smaller)
    needed = more + growth * (min(setting.batch_size, images) - larger)
    if needed <= free:
        return ""
    return f"not tried: it would need about {needed / 1024:.1f} GiB of {free / 1024:.1f} GiB of free memory"


def why(error: ProbeError) -> str:
    """Why a measurement failed, in a few words where the reason is a usual one."""
    text = str(error)
    if isinstance(error, TooSlowError):
        return f"{TOO_SLOW}: {text}"
    killed = text.startswith("the process was killed")  # by the system, most likely for its memory
    return OUT_OF_MEMORY if not killed and any(word in text.lower() for word in _SAYS_OUT_OF_MEMORY) else text


def _note(batch_size: int, images: int) -> str:
    """What is to be known of a batch size on so many training images, if anything."""
    if batch_size > images:
        return f"one batch of all {images} images"
    left = images % batch_size
    return f"leaves out {left} of {images} images" if left > _LEFT_OUT * images else ""
