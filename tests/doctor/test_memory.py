from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunelab.doctor import memory
from tunelab.doctor.memory import (
    find_address_space,
    find_free,
    find_kills,
    find_limit,
    find_shared_memory,
    find_swap,
)

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files of /proc and /sys."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def limited(root: Path, limit: int, used: int, version: int = 2) -> Path:
    """A machine whose processes may take `limit` bytes."""
    if version == 2:
        folder, line = "sys/fs/cgroup/box", "0::/box\n"
        files = {"memory.max": str(limit), "memory.current": str(used), "memory.stat": "inactive_file 0\n"}
    else:
        folder, line = "sys/fs/cgroup/memory/box", "3:memory:/box\n"
        files = {
            "memory.limit_in_bytes": str(limit),
            "memory.usage_in_bytes": str(used),
            "memory.stat": "total_inactive_file 0\n",
        }
    return machine(root, {"proc/self/cgroup": line, **{f"{folder}/{name}": text for name, text in files.items()}})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("left", "verdict", "said"),
    [(GIB // 4, "error", "docker run --memory"), (int(2.1 * GIB), "warning", "--concurrent 2"), (6 * GIB, "ok", "")],
)
def test_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, left: int, verdict: str, said: str
) -> None:
    monkeypatch.setattr(memory, "free_memory_mib", lambda root: left / 2**20)
    root = limited(tmp_path, 8 * GIB, 8 * GIB - left, version)
    (found,) = find_free(4, root)
    assert (found.verdict, "limit 8.0 GiB" in found.measured) == (verdict, True)
    assert said in found.mend


def test_the_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    (found,) = find_free(1, limited(tmp_path, 100 * 2**20, 40 * 2**20))
    assert (found.verdict, found.measured) == ("error", "60 MiB free, limit 100 MiB (control group)")


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert (
        find_limit(machine(tmp_path / "a", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})) is None
    )
    assert find_limit(limited(tmp_path / "b", 9223372036854771712, 0, version=1)) is None
    assert find_limit(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("line", "file", "text"),
    [
        ("0::/box\n", "sys/fs/cgroup/box/memory.events", "low 0\noom 3\noom_kill {}\n"),
        ("3:memory:/box\n", "sys/fs/cgroup/memory/box/memory.oom_control", "oom_kill_disable 0\noom_kill {}\n"),
    ],
)
def test_processes_that_were_killed_for_memory(tmp_path: Path, line: str, file: str, text: str) -> None:
    for killed, verdict in (("0", "ok"), ("2", "warning")):
        root = machine(tmp_path, {"proc/self/cgroup": line, file: text.format(killed)})
        (found,) = find_kills(root)
        assert found.verdict == verdict
    assert "2 processes" in found.measured


def test_swap_in_use_and_pressure(tmp_path: Path) -> None:
    sizes = "MemTotal: 100 kB\nSwapTotal: {} kB\nSwapFree: {} kB\n"
    pressed = "some avg10=0.00 avg60={} avg300=0.00 total=0\nfull avg10=0.00 avg60=99.00 avg300=0.00 total=0\n"

    def verdict(total: int, free: int, avg: str) -> str:
        files = {"proc/meminfo": sizes.format(total, free), "proc/pressure/memory": pressed.format(avg)}
        return find_swap(machine(tmp_path, files))[0].verdict

    assert verdict(0, 0, "0.00") == "ok"
    assert verdict(1000, 900, "0.00") == "ok"
    assert verdict(1000, 400, "0.00") == "warning"
    assert verdict(0, 0, "25.10") == "warning"
    assert find_swap(tmp_path / "nothing")[0].verdict == "ok"


def test_a_kernel_that_promises_nothing_more(tmp_path: Path) -> None:
    sizes = "CommitLimit: 2000000 kB\nCommitted_AS: 1500000 kB\n"
    files = {"proc/meminfo": sizes, "proc/sys/vm/overcommit_memory": "2\n"}
    found = find_swap(machine(tmp_path, files))[1]
    assert (found.name, found.verdict) == ("promised memory", "warning")
    assert len(find_swap(machine(tmp_path, {"proc/sys/vm/overcommit_memory": "0\n"}))) == 1


@pytest.mark.parametrize(("limit", "verdict"), [(3, "error"), (8, "warning")])
def test_a_limited_address_space(limit: int, verdict: str) -> None:
    code = (
        "import resource, json; from tunelab.doctor.memory import find_address_space;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit} * 2**30, {limit} * 2**30));"
        "print(json.dumps([one.to_json() for one in find_address_space()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    (found,) = json.loads(done.stdout)
    assert (found["name"], found["verdict"]) == ("address space", verdict)
    assert (found["measured"], found["mend"]) == (f"limited to {limit}.0 GiB (ulimit -v)", "ulimit -v unlimited")


def test_no_limit_of_the_address_space_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (memory.resource.RLIM_INFINITY, memory.resource.RLIM_INFINITY)
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _which: unlimited)
    assert find_address_space() == []


@pytest.mark.parametrize(("free", "verdict"), [(64 * 2**20, "warning"), (81 * 2**20, "ok")])
def test_shared_memory_against_what_ray_wants(tmp_path: Path, free: int, verdict: str) -> None:
    size = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=free // 4096)
    (found,) = find_shared_memory(tmp_path, lambda _path: size)  # type: ignore[arg-type,return-value]
    assert found.verdict == verdict
    assert ("--shm-size" in found.mend) == (verdict == "warning")


def test_no_shared_memory_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.verdict for one in find_shared_memory(tmp_path / "missing")] == ["error"]
    monkeypatch.setattr(os, "access", lambda *_asked: False)
    (found,) = find_shared_memory(tmp_path)
    assert (found.verdict, found.mend) == ("error", f"chmod 1777 {tmp_path}")
