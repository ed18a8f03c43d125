"""Want of memory: which errors say so, how it is told, and how a process that lives gives back what it holds."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import re

import torch

from tunelab.capacity import describe_size, held_mib
from tunelab.data.batches import load_data
from tunelab.training.device import return_freed_memory

_SAYINGS = (
    "out of memory",
    "not enough memory",
    "allocate memory",  # can't, cannot
    "bad_alloc",
    "bad allocation",
    "status_alloc_failed",  # cuBLAS and cuDNN
    "can't start new thread",  # no room for its stack, or no more threads allowed: fewer trials beside it mend both
    "could not create a primitive",  # oneDNN tells no cause; a primitive that was described fails for want of memory
    "could not execute a primitive",
    "could not create a memory object",
)
"""What libraries that have no class for it say in the text of an error."""
_NOT_THAT = (
    "static tls",  # of a library that was loaded too late: "cannot allocate memory in static TLS block"
    "primitive descriptor",  # oneDNN has no code for such a layer
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[kmgtpe]?i?b)\b", re.IGNORECASE)
_ROOM = 32 * 2**20  # bytes: stacks of threads, code that oneDNN writes, what Python takes at once; our choice
_LONGEST = 200  # characters of a text without a number that is known


def is_shortage(error: BaseException) -> bool:
    """True if an error, or what it was raised from, says that memory was lacking: of the host or of a device."""
    seen: BaseException | None = error
    while seen is not None:
        if _says_so(seen):
            return True
        seen = seen.__cause__
    return False


def describe_shortage(error: BaseException, device: str) -> str:
    """A shortage in one line with its numbers: what was asked for, and what the process had by then."""
    text = " ".join(str(error).split())
    asked = _ASKED.search(text)
    if asked is not None:
        size = f"{asked[1]} {asked[2]}" if asked[2] != "bytes" else describe_size(float(asked[1]))
        said = f"{size} more could not be had"
    else:
        said = text[:_LONGEST] or type(error).__name__
    return f"{said}; the process held {_held(device)}"


def release() -> None:
    """Gives back what this process still holds of a training that was closed."""
    load_data.cache_clear()
    gc.collect()
    return_freed_memory(torch.device("cuda" if _has_cuda() else "cpu"))


def has_room() -> bool:
    """True if this process can have memory again; under a limit of its addresses, what is freed may stay its own.

    A C library gives pieces back from the end of its heap alone: one small piece there keeps all the free ones below.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return True
    try:
        mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, MemoryError):
        return False
    return True


def _says_so(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    kinds = (RuntimeError, OSError, ImportError)
    if not isinstance(error, kinds) or any(one in text for one in _NOT_THAT):
        return False
    return any(one in text for one in _SAYINGS)


def _held(device: str) -> str:
    if device.startswith("cuda") and _has_cuda():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"{describe_size(torch.cuda.memory_reserved())} of the GPU's {describe_size(total)}"
    return describe_size((held_mib(os.getpid()) or 0.0) * 2**20)


def _has_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
