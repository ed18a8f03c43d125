"""Where a training runs, in which precision, and how much memory it took."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from tunelab.errors import InputError

_CPU_INFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 2**30  # more free memory than this goes back to the kernel at once; our choice
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def pick_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one, else the processor.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"device {name!r} is unknown; allowed are auto, cpu, cuda and cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise InputError(f"device {name!r} is not here; torch {torch.__version__} sees {count} GPUs")
    return torch.device("cuda", int(number or 0))


def claim_device(name: str, threads: int | None) -> torch.device:
    """The device of this name, with which this process computes from now on; its peak of memory is counted anew.

    Raises:
        InputError: there is no such device, or `threads` is less than 1.
    """
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    set_up_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    reset_peak_memory(device)
    return device


def set_up_threads(threads: int | None) -> None:
    """Let torch compute with `threads` threads in this process; None leaves the number as it is.

    Denormal numbers are flushed to zero (by the calling thread): they mean nothing in training and are up to a hundred
    times slower.

    Raises:
        InputError: `threads` is less than 1.
    """
    torch.set_flush_denormal(True)
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads must be at least 1 (got {threads})")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep up to 1 GiB of memory that it frees for its next allocations, where the C library is glibc.

    Every step allocates and frees the same tensors. Otherwise glibc returns them to the kernel, which clears each page
    when it is touched again. Without that a 10-block ResNet of width 16 trains 1.1 to 1.2 times as fast with batches of
    128, and 1.4 times with batches of 1024, for which it takes a quarter more memory (measured on one core).
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory(device: torch.device) -> None:
    """Give the memory that this process holds but does not use back to the GPU or the kernel."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after a recording that became invalid
            torch.cuda.empty_cache()
        return
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def autocast_dtype(
    precision: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device
) -> torch.dtype | None:
    """The type that convolutions and matrix products compute in, None for plain float32.

    "auto" is bfloat16 where the hardware computes in it; where it is emulated, it is slower than float32. A GPU without
    it computes in float16, whose gradients must be scaled.

    Raises:
        InputError: float16 is asked for on a processor.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device)):
        return torch.bfloat16
    if device.type == "cuda":
        return torch.float16
    if precision == "float16":
        raise InputError("precision 'float16' is for GPUs; on a processor there are float32 and bfloat16")
    return None


def computes_bfloat16(device: torch.device) -> bool:
    """True if the GPU, or the processor by AVX512_BF16 or AMX instructions, multiplies in bfloat16.

    The processor's instructions are read from /proc/cpuinfo; where there is none the answer is False.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_computes_bfloat16()


@functools.cache
def _cpu_computes_bfloat16() -> bool:
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())


def reset_peak_memory(device: torch.device) -> None:
    """Start the measurement of `peak_memory_mib` anew, so that one process can run many trials."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then of the whole process's life
        _CLEAR_REFS.write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """The most memory held since `reset_peak_memory`, in MiB.

    On a GPU: what torch had taken of it, recorded graphs included. On a processor: the resident memory of the whole
    process (VmHWM), Python, torch and touched pages of memory-mapped data included. Where the kernel offers no reset it
    is the process's peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def contiguous(images: torch.Tensor) -> torch.Tensor:
    """A copy with the values of a channel side by side; grey images are so already, but their strides do not say it."""
    return images.clone(memory_format=torch.contiguous_format)
