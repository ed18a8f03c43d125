from __future__ import annotations

import mmap
import subprocess
import sys

import psutil
import pytest
import torch

from tunelab.errors import InputError
from tunelab.training import device
from tunelab.training.device import (
    autocast_dtype,
    peak_memory_mib,
    pick_device,
    reset_peak_memory,
    return_freed_memory,
    set_up_threads,
)

CPU = torch.device("cpu")


def test_cpu_and_auto():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(InputError, match=f"device '{name}'"):
        pick_device(name)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu sse avx512f avx512_bf16 avx512vl", torch.bfloat16),
        ("flags\t\t: fpu amx_tile amx_bf16", torch.bfloat16),
        ("flags\t\t: fpu sse avx2 avx512f", None),
        ("Features\t: fp asimd", None),
    ],
)
def test_auto_precision_follows_the_processor(tmp_path, monkeypatch, flags, expected):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\n{flags}\nmodel name\t: X\n")
    monkeypatch.setattr(device, "_CPU_INFO", info)
    device._cpu_computes_bfloat16.cache_clear()
    try:
        assert autocast_dtype("auto", CPU) is expected
    finally:
        device._cpu_computes_bfloat16.cache_clear()


def test_a_stated_precision_is_kept():
    assert autocast_dtype("float32", CPU) is None
    assert autocast_dtype("bfloat16", CPU) is torch.bfloat16


def test_threads():
    set_up_threads(2)
    assert torch.get_num_threads() == 2
    set_up_threads(None)
    assert torch.get_num_threads() == 2
    with pytest.raises(InputError, match=r"threads must be at least 1 \(got 0\)"):
        set_up_threads(0)


def test_peak_memory_sees_what_was_held_for_a_while_and_starts_anew():
    reset_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    held = mmap.mmap(-1, 100 * 2**20)  # pages of its own: an array might take what glibc has kept, and add nothing
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    assert peak_memory_mib(CPU) - before > 90
    held.close()
    assert peak_memory_mib(CPU) - before > 90
    if device._CLEAR_REFS.exists():
        reset_peak_memory(CPU)
        assert peak_memory_mib(CPU) - before < 50


PAGES = """
import resource, sys
import torch
from tunelab.training.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    tensors = [torch.ones(2**20) for _ in range(10)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del tensors
    tensors = [torch.ones(2**20) for _ in range(10)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(device._glibc() is None, reason="only glibc returns memory so eagerly")
def test_kept_memory_is_not_fetched_from_the_kernel_again():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", PAGES, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "plain")
    }
    assert faults["keep"] < 1000 < faults["plain"]


@pytest.mark.skipif(device._glibc() is None, reason="only glibc can be told")
def test_unused_memory_is_given_back():
    device.keep_freed_memory()
    tensors = [torch.ones(2**20) for _ in range(50)]  # 200 MiB
    del tensors
    process = psutil.Process()
    before = process.memory_info().rss
    return_freed_memory(CPU)
    assert before - process.memory_info().rss > 100 * 2**20
