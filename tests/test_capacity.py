from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunelab import capacity
from tunelab.capacity import (
    all_memory_mib,
    children_of,
    count_kills,
    describe_size,
    free_memory_mib,
    held_mib,
    parse_size,
)
from tunelab.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8g", 8 * 2**30),
        (" 8 G ", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("500m", 500 * 2**20),
        ("1.5gib", 3 * 2**29),
        ("0.5k", 512),
        ("2TB", 2 * 10**12),
        ("2t", 2 * 2**40),
    ],
)
def test_a_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "8", "GiB", "8 apples", "-1g", "1e3m", "0g", "0.0001k", "8gb/s", "inf g", "8,5g"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory .* is no amount of memory.*8GiB, 500MB or 8g") as refused:
        parse_size(text, "--memory")
    assert repr(text) in str(refused.value)


def test_sizes_in_words() -> None:
    sizes = (2**19, 10 * 2**20, 310.4 * 2**20, 2**30, 1.5 * 2**30)
    assert [describe_size(size) for size in sizes] == ["0.5 MiB", "10 MiB", "310 MiB", "1.0 GiB", "1.5 GiB"]


def make_group(folder: Path, limit: str, used: str, kept: str = "", names: str = "memory.max memory.current") -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip([*names.split(), "memory.stat"], (limit, used, kept), strict=True):
        (folder / name).write_text(text + "\n")


MIB = 2**20
OLD = "memory.limit_in_bytes memory.usage_in_bytes"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB free and no control groups."""
    memory = type("Memory", (), {"available": 8192 * MIB})
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: memory)
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def test_free_memory_without_limits(root: Path) -> None:
    assert free_memory_mib(root) == 8192
    (root / "proc/self/cgroup").write_text("0::/user.slice\n")
    assert free_memory_mib(root) == 8192
    make_group(root / "sys/fs/cgroup/user.slice", "max", "5")
    assert free_memory_mib(root) == 8192


def test_free_memory_in_a_group_of_version_2(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/pod/box\n")
    group = root / "sys/fs/cgroup/pod/box"
    make_group(group, str(1000 * MIB), str(700 * MIB), f"anon 5\ninactive_file {200 * MIB}")
    assert free_memory_mib(root) == 500, "pages of files are given up"
    kept = f"anon 5\ninactive_file {120 * MIB}\nactive_file {80 * MIB}"
    make_group(group, str(1000 * MIB), str(700 * MIB), kept)
    assert free_memory_mib(root) == 500, "those that are read again and again, as images are, too"
    make_group(root / "sys/fs/cgroup/pod", str(900 * MIB), str(800 * MIB))
    assert free_memory_mib(root) == 100, "a parent has a limit too"
    make_group(group, str(10 * MIB), str(70 * MIB))
    assert free_memory_mib(root) == 0
    make_group(group, "not a number", "70")
    assert free_memory_mib(root) == 100


def test_free_memory_in_a_group_of_version_1(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/box\n1:cpu:/elsewhere\n0::/\n")
    # In a container its own group lies at the top.
    make_group(root / "sys/fs/cgroup/memory", str(600 * MIB), str(100 * MIB), f"total_inactive_file {MIB}", OLD)
    assert free_memory_mib(root) == 501
    kept = f"inactive_file 1\nactive_file 2\ntotal_inactive_file {MIB}\ntotal_active_file {2 * MIB}"
    make_group(root / "sys/fs/cgroup/memory", str(600 * MIB), str(102 * MIB), kept, OLD)
    assert free_memory_mib(root) == 501
    make_group(root / "sys/fs/cgroup/memory/box", str(2**63 - 4096), str(100 * MIB), "", OLD)
    assert free_memory_mib(root) == 501, "the largest number means no limit"
    make_group(root / "sys/fs/cgroup/memory/box", str(300 * MIB), str(100 * MIB), "", OLD)
    assert free_memory_mib(root) == 200


def test_free_memory_of_this_machine() -> None:
    assert 10 < free_memory_mib() < 1e8


def test_all_memory_is_the_machines_or_the_groups(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 16384 * MIB}))
    assert all_memory_mib(root) == 16384
    (root / "proc/self/cgroup").write_text("0::/pod/box\n")
    make_group(root / "sys/fs/cgroup/pod", str(900 * MIB), str(800 * MIB))
    assert all_memory_mib(root) == 900


def test_what_a_process_holds_is_without_pages_of_files(root: Path) -> None:
    (root / "proc/5").mkdir()
    status = "VmRSS:\t 900000 kB\nRssAnon:\t 2048 kB\nRssFile:\t 880000 kB\nRssShmem:\t 1024 kB\nVmSwap:\t 512 kB\n"
    (root / "proc/5/status").write_text(status)
    assert held_mib(5, root) == 3.5
    assert held_mib(6, root) is None


def test_of_a_real_process() -> None:
    before = held_mib(os.getpid())
    taken = b"x" * (64 * MIB)
    after = held_mib(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > 60
    assert len(taken) == 64 * MIB
    assert held_mib(2**22 + 1) is None, "there is no such process"


def test_the_children_of_a_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in children_of(os.getpid())
    finally:
        child.communicate(b"\n")
    assert child.pid not in children_of(os.getpid())
    assert children_of(2**22 + 1) == []


@pytest.mark.parametrize(("version", "line"), [(1, "4:memory:/box\n"), (2, "0::/box\n")])
def test_the_kills_of_a_group(root: Path, version: int, line: str) -> None:
    assert count_kills(root) is None
    (root / "proc/vmstat").write_text("pgfault 9\noom_kill 7\n")
    assert count_kills(root) is None
    assert count_kills(root, anywhere=True) == 7
    (root / "proc/self/cgroup").write_text(line)
    folder = root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / "box"
    folder.mkdir(parents=True)
    file = folder / ("memory.oom_control" if version == 1 else "memory.events")
    file.write_text("under_oom 0\noom_kill 3\n")
    assert count_kills(root) == count_kills(root, anywhere=True) == 3
