"""GPUs: the driver, what nvidia-smi says, what torch can use of it, and who else is on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunelab.capacity import describe_size
from tunelab.doctor.findings import MachineFinding, error, ok, warning

_FIELDS = "index,uuid,name,driver_version,memory.total,memory.used,utilization.gpu,mig.mode.current,compute_mode"
_PATIENCE = 8.0  # seconds for nvidia-smi, which hangs where a GPU has fallen off the bus (our choice)
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI's numbers of the maker, and of what shows or computes pictures
_CROWDED = 0.1  # of a GPU's memory taken by others: worth a warning (our choice)
_BUSY = 20  # percent of a GPU's time taken by others (our choice)
_OTHER_PERMISSION = "this user may not use the GPU"


class SmiError(Exception):
    """nvidia-smi is missing or fails; the message says how."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi tells of it; memory in MiB, None where it does not say."""

    index: int
    uuid: str
    name: str
    driver: str
    total: int | None
    used: int | None
    busy: int | None
    mig: bool
    mode: str


@dataclass(frozen=True)
class TorchView:
    """What torch says: its version, the CUDA that it is built for (None: none), how many GPUs it finds.

    `problem` is what went wrong when a GPU was to compute, or when torch looked for one; "" if nothing did.
    """

    version: str
    cuda: str | None
    count: int
    problem: str = ""


def ask_smi(environ: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that nvidia-smi lists.

    Raises:
        SmiError: there is no nvidia-smi, it fails or does not answer.
    """
    text = _run_smi([f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"], environ)
    gpus = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != len(_FIELDS.split(",")) or not words[0].isdigit():
            raise SmiError(f"nvidia-smi answers {line.strip()[:120]!r}")
        total, used, busy = (int(word) if word.isdigit() else None for word in words[4:7])
        mig = words[7] == "Enabled"
        gpus.append(Gpu(int(words[0]), words[1], words[2], words[3], total, used, busy, mig, words[8]))
    return gpus


def ask_programs(environ: Mapping[str, str]) -> dict[str, list[int]]:
    """The ids of the processes that compute on each GPU, by the GPU's uuid.

    Raises:
        SmiError: as `ask_smi`.
    """
    found: dict[str, list[int]] = {}
    text = _run_smi(["--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits"], environ)
    for line in text.splitlines():
        uuid, _, pid = (word.strip() for word in line.partition(","))
        if pid.isdigit():
            found.setdefault(uuid, []).append(int(pid))
    return found


def _run_smi(words: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env=dict(environ),
        )
    except FileNotFoundError:
        raise SmiError("nvidia-smi is not there") from None
    except OSError as wrong:
        raise SmiError(f"nvidia-smi does not start: {wrong.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SmiError(f"nvidia-smi did not answer within {_PATIENCE:.0f} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SmiError(f"nvidia-smi fails with status {done.returncode}: {said[0] if said else 'it says nothing'}")
    return done.stdout


def find_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> list[MachineFinding]:
    """The GPUs that there are, their driver, and who else is on them."""
    driver, cards = driver_version(root), count_cards(root)
    try:
        gpus = ask_smi(environ)
        programs = ask_programs(environ) if gpus else {}
    except SmiError as wrong:
        if driver:
            said = f"the driver {driver} is loaded, but {wrong}"
            mend = "restart the machine (a driver that was updated while loaded), or look at dmesg | grep -i nvrm"
            return [warning("nvidia-smi", said, mend)]
        if cards:
            said = f"{cards} NVIDIA {'card' if cards == 1 else 'cards'} without a driver: {wrong}"
            mend = "install the driver (ubuntu-drivers install), or in a container docker run --gpus all"
            return [warning("GPU", said, mend)]
        return [ok("GPU", "none; a search runs on the processors")]
    if not gpus:
        return [warning("GPU", "nvidia-smi lists no GPU", "docker run --gpus all, or ask the batch system for one")]
    found = []
    for gpu in gpus:
        found += _judge(gpu, programs.get(gpu.uuid, []))
    return found


def _judge(gpu: Gpu, programs: Sequence[int]) -> list[MachineFinding]:
    name = f"GPU {gpu.index}"
    said = f"{gpu.name}, driver {gpu.driver}"
    if gpu.total is not None and gpu.used is not None:
        said += f", {describe_size((gpu.total - gpu.used) * 2**20)} of {describe_size(gpu.total * 2**20)} free"
    found = []
    who = f" by {', '.join(f'process {pid}' for pid in programs)}" if programs else ""
    if gpu.total and gpu.used is not None and gpu.used > _CROWDED * gpu.total:
        mend = f"end what is on it (ps -fp {','.join(map(str, programs))})" if programs else "end what is on it"
        hide = f"{mend}, or leave it out with CUDA_VISIBLE_DEVICES"
        found.append(warning(name, f"{said}; {describe_size(gpu.used * 2**20)} taken{who}", hide))
    elif gpu.busy is not None and gpu.busy > _BUSY:
        found.append(warning(name, f"{said}; {gpu.busy}% busy{who}", "end what is on it, or wait for it"))
    if gpu.mig:
        mend = "CUDA_VISIBLE_DEVICES=MIG-... for one slice (nvidia-smi -L), or nvidia-smi -mig 0 for the whole"
        found.append(warning(name, f"{said}; it is divided (MIG), and a process sees one slice alone", mend))
    if gpu.mode == "Prohibited":
        found.append(error(name, f"{said}; it may not compute (compute mode)", f"nvidia-smi -i {gpu.index} -c 0"))
    elif gpu.mode.startswith("Exclusive"):
        mend = f"nvidia-smi -i {gpu.index} -c 0, or search with --gpus-per-trial 1"
        found.append(warning(name, f"{said}; only one process at a time may use it (compute mode)", mend))
    return found or [ok(name, said)]


def driver_version(root: Path = Path("/")) -> str:
    """The version of NVIDIA's driver that is loaded, "" if none is."""
    try:
        words = (root / "proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "of an unknown version")


def count_cards(root: Path = Path("/")) -> int:
    """How many cards of NVIDIA's that compute are plugged in, with or without a driver."""
    return sum(
        _text(folder / "vendor") == _NVIDIA and _text(folder / "class").startswith(_DISPLAY)
        for folder in (root / "sys/bus/pci/devices").glob("*")
    )


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def look_with_torch() -> TorchView:
    """What torch finds; each GPU that it finds adds up a few numbers."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        problem = str(told[0].message).splitlines()[0] if told else ""
        problem = next(filter(None, map(_compute, range(count))), problem)
    return TorchView(torch.__version__, torch.version.cuda, count, problem)


def _compute(index: int) -> str:
    """Adds up a few numbers on a GPU; what went wrong, "" if nothing did."""
    import torch

    try:
        torch.ones(64, device=f"cuda:{index}").sum().item()
    except Exception as wrong:  # whatever a driver answers
        return f"GPU {index}: {type(wrong).__name__}: {next(iter(str(wrong).splitlines()), '')}"
    return ""


def find_torch(view: TorchView, environ: Mapping[str, str], root: Path = Path("/")) -> list[MachineFinding]:
    """What torch can use, against the driver that is loaded."""
    said = f"torch {view.version}, {f'built for CUDA {view.cuda}' if view.cuda else 'built for processors'}"
    driver = driver_version(root)
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    if view.count and view.problem:
        mend = "update the driver, or install a torch built for this GPU (pytorch.org/get-started), or --device cpu"
        return [error("torch and GPU", f"{said}; {view.problem}", mend)]
    if view.count:
        return [ok("torch and GPU", f"{said}; {view.count} usable")]
    if not driver:
        return [ok("torch and GPU", f"{said}; no driver is loaded")]
    if view.cuda is None:
        mend = f"pip install --force-reinstall 'torch=={view.version.partition('+')[0]}' (PyPI's is built for CUDA)"
        return [warning("torch and GPU", f"{said}, but the driver {driver} is loaded: no GPU will be used", mend)]
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        said += f"; CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs"
        return [warning("torch and GPU", said, "unset CUDA_VISIBLE_DEVICES")]
    device = root / "dev/nvidia0"
    if device.exists() and not os.access(device, os.R_OK | os.W_OK):
        mend = "usermod -aG video,render $USER, and log in anew"
        return [warning("torch and GPU", f"{said}; {device} cannot be opened: {_OTHER_PERMISSION}", mend)]
    said += f" finds no GPU beside the driver {driver}" + (f": {view.problem}" if view.problem else "")
    mend = f"update the driver to one for CUDA {view.cuda}, or install a torch built for the older CUDA"
    return [warning("torch and GPU", said, mend)]
