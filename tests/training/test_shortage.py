from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch

from tunelab.errors import DivergedError
from tunelab.training.shortage import describe_shortage, is_shortage, release


def of_numpy() -> MemoryError:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.uint8)
    return caught.value


def of_torch() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


def raised_from(cause: Exception) -> Exception:
    error = ValueError("the batch could not be made")
    error.__cause__ = cause
    return error


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 10.11 GiB is "
    "free. Including non-PyTorch memory, this process has 68.98 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (of_numpy(), "1.00 EiB more could not be had"),
        (of_torch(), "1073741824.0 GiB more could not be had"),
        (torch.OutOfMemoryError(CUDA), "20.00 GiB more could not be had"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory"),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "cuBLAS error: CUBLAS_STATUS_ALLOC"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("could not create a primitive"), "could not create a primitive"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (ImportError("x.so: failed to map segment: Cannot allocate memory"), "x.so: failed to map segment"),
        (raised_from(MemoryError("of the cause")), "the batch could not be made"),
    ],
)
def test_every_way_to_say_it_is_understood(error: Exception, said: str) -> None:
    assert is_shortage(error)
    told = describe_shortage(error, "cpu")
    assert told.startswith(said)
    assert "; the process held " in told
    assert "\n" not in told
    assert len(told) < 300


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a shape is out of memory of mine"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        DivergedError("epoch 1: the training loss became nan"),
        ImportError("libgomp.so: cannot allocate memory in static TLS block"),
        KeyError("memory"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        ImportError("x.so: failed to map segment from shared object: Operation not permitted"),
    ],
)
def test_what_is_another_failure_is_none(error: Exception) -> None:
    assert not is_shortage(error)


def test_an_error_without_a_text_and_a_long_one() -> None:
    assert describe_shortage(MemoryError(), "cpu").startswith("MemoryError; the process held ")
    assert len(describe_shortage(RuntimeError("out of memory " * 500), "cuda")) < 300


SQUEEZED = """
import os, resource, torch
from tunelab.capacity import held_mib
from tunelab.training.shortage import describe_shortage, has_room, is_shortage, release
torch.set_num_threads(1)
torch.ones(4, 4) @ torch.ones(4, 4)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20, resource.RLIM_INFINITY))
def train():
    kept = []
    while True:
        kept.append(torch.ones(2**22))
before = held_mib(os.getpid())
told = ""
try:
    train()
except Exception as error:
    told = describe_shortage(error, "cpu") if is_shortage(error) else "no: " + str(error)
print(told)
release()
print(held_mib(os.getpid()) - before < 50)
torch.ones(2**24)
print("has room again", has_room())
held = []
try:
    while True:
        held.append(bytes(2**20))
except MemoryError:
    pass
print(has_room())
"""


def test_a_real_limit_is_met_and_the_memory_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SQUEEZED], capture_output=True, text=True, timeout=300, check=True)
    told, given_back, after, full = done.stdout.splitlines()
    assert told.startswith("16 MiB more could not be had; the process held "), done.stdout
    assert (given_back, after, full) == ("True", "has room again True", "False")


def test_to_release_without_anything_held_is_no_error() -> None:
    release()
