"""What this machine has: processors, GPUs, memory, versions; and how many trials it could carry at once."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import joblib
import psutil

from tunelab.errors import InputError
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.roll_call import processor_name
from tunelab.tuning.slots import Slots, shares

_PACKAGES = ("tunelab", "ray", "torch", "torchvision", "optuna", "numpy")


def usable_cpus() -> int:
    """Processors that this process may use, container limits included."""
    return int(joblib.cpu_count())


def count_gpus() -> int:
    """CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def precisions(device: str) -> tuple[str, ...]:
    """The types that a device computes in, the usual one first: float32, and what is faster there."""
    import torch

    from tunelab.training.device import autocast_dtype

    usual = autocast_dtype("auto", torch.device(device))
    return ("float32",) if usual is None else (str(usual).removeprefix("torch."), "float32")


def find_slots(options: SearchOptions) -> Slots:
    """How many trials run at once, and with what.

    On a CPU each trial has one thread and there are as many trials as processors: many one-thread trials beat one
    many-thread trial on small images (measured). Fewer trials than processors share them all. On GPUs each trial has
    one GPU unless `gpus_per_trial` says less.

    Raises:
        InputError: the machine lacks what is asked for.
    """
    cpus, gpus = usable_cpus(), 0 if options.device == "cpu" else count_gpus()
    if options.device == "cuda" and gpus == 0:
        raise InputError("--device cuda: torch finds no CUDA device on this machine; use --device cpu or auto")
    if gpus == 0 and options.gpus_per_trial is not None:
        raise InputError(f"--gpus-per-trial {options.gpus_per_trial:g}: there is no GPU to share; leave it out")
    if gpus:
        share = options.gpus_per_trial or 1.0
        if share > gpus or (share > 1 and share != int(share)):
            raise InputError(f"--gpus-per-trial {share:g} must be at most 1, or a whole number up to {gpus}")
        fits = shares(gpus, share)
        concurrent = options.concurrent or fits
        if concurrent > fits:
            carry = f"the GPUs of this machine ({gpus}) carry {fits} at once"
            raise InputError(f"--concurrent {concurrent}: with --gpus-per-trial {share:g} {carry}")
        return Slots(concurrent, options.cpus_per_trial or max(1, cpus // concurrent), share, "cuda")
    per_trial = options.cpus_per_trial or max(1, cpus // max(options.trials, options.concurrent or 1))
    if per_trial > cpus:
        raise InputError(f"--cpus-per-trial {per_trial} is more than the {cpus} processors of this machine")
    return Slots(options.concurrent or min(cpus // per_trial, options.trials), per_trial, 0.0, "cpu")


def find_team(options: SearchOptions, gpus: int | None, processes: int | None) -> Slots | None:
    """What each of several processes is given that train one network together; None if it is one process.

    Args:
        options: those of the study.
        gpus: one process on each of so many GPUs.
        processes: so many processes on processors, which they divide among themselves.

    Raises:
        InputError: the machine lacks what is asked for, or both are given.
    """
    if gpus is not None and processes is not None:
        raise InputError(f"--gpus {gpus} and --processes {processes} exclude each other: a GPU has one process")
    if gpus is not None:
        have = 0 if options.device == "cpu" else count_gpus()
        if not 1 <= gpus <= have:
            why = (
                "the study trains on processors (--device cpu)"
                if options.device == "cpu"
                else f"torch finds {have} here"
            )
            raise InputError(f"--gpus {gpus}: {why}; allowed are 1 to the number of GPUs, or --processes without a GPU")
        return Slots(1, max(1, usable_cpus() // gpus), 1.0, "cuda", processes=gpus) if gpus > 1 else None
    if processes is None:
        return None
    if options.device == "cuda" or (options.device == "auto" and count_gpus()):
        raise InputError(f"--processes {processes}: the study trains on a GPU; --gpus says on how many")
    cpus = usable_cpus()
    if not 1 <= processes <= cpus:
        raise InputError(f"--processes {processes} must be 1 to {cpus}, the number of processors of this machine")
    return Slots(1, cpus // processes, 0.0, "cpu", processes=processes) if processes > 1 else None


def find_layouts(options: SearchOptions) -> list[Slots]:
    """The ways to divide the machine that are worth measuring, the usual one of `find_slots` first.

    On a CPU: all processors shared by as many trials as there are processors, half as many, and so on down to one. On a
    GPU: 1, 2, 4 and 8 trials on each, no more than there are processors. What the options fix stays as it is.

    Raises:
        InputError: the machine lacks what is asked for.
    """
    usual = find_slots(options)
    cpus = usable_cpus()
    found = [usual]
    if usual.device == "cuda":
        if options.gpus_per_trial is None and options.concurrent is None:
            for share in (2, 4, 8):
                shared = usual.concurrent * share
                if shared <= min(options.trials, cpus):
                    found.append(Slots(shared, options.cpus_per_trial or max(1, cpus // shared), 1 / share, "cuda"))
        return found
    if options.concurrent is not None and options.cpus_per_trial is None:
        found += [Slots(usual.concurrent, threads, 0.0, "cpu") for threads in _halves(cpus // usual.concurrent)]
    elif options.concurrent is None and options.cpus_per_trial is None:
        found += [
            Slots(concurrent, cpus // concurrent, 0.0, "cpu")
            for concurrent in _halves(cpus)
            if concurrent <= options.trials
        ]
    return list(dict.fromkeys(found))


def _halves(most: int) -> list[int]:
    """A number, half of it, and so on down to 1; none for 0."""
    return [most >> shift for shift in range(most.bit_length()) if most >> shift]


def describe_hardware() -> dict[str, Any]:
    """Processor, memory and GPUs, for the study's manifest."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(count_gpus())]
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpus": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def torch_version() -> str:
    """The version of torch that is installed."""
    return importlib.metadata.version("torch")


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the results, and tunelab's git commit in a checkout."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    commit = _git_commit()
    return {"python": platform.python_version(), **found, **({"tunelab_commit": commit} if commit else {})}


def _git_commit() -> str:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
