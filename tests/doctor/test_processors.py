from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunelab.doctor.processors import Moment, find_count, find_load, find_quota, find_threads, moment


def grouped(root: Path, line: str, files: dict[str, str]) -> Path:
    """A machine whose processes are in one control group."""
    for name, text in {"proc/self/cgroup": line, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("line", "files", "quota"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "50000 100000", "sys/fs/cgroup/a/b/cpu.max": "200000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/c\n",
            {"sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "4:cpu:/c\n",
            {"sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "1"},
            None,
        ),
        ("0::/a\n", {"sys/fs/cgroup/a/cpu.max": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, line: str, files: dict[str, str], quota: float | None) -> None:
    assert find_quota(grouped(tmp_path, line, files)) == quota


def test_more_trials_than_the_quota_carries_are_warned_of(tmp_path: Path) -> None:
    root = grouped(tmp_path, "0::/a\n", {"sys/fs/cgroup/a/cpu.max": "250000 100000"})
    (found,) = find_count(8, root)
    assert found.verdict == "warning"
    assert "quota 2.5" in found.measured
    assert "--concurrent 2" in found.mend
    assert [one.verdict for one in find_count(2, root)] == ["ok"]


def test_a_cpuset_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    (found,) = find_count(3, tmp_path)
    assert (found.verdict, found.measured) == ("ok", "3 usable of 64, 3 allowed (affinity or cpuset)")


@pytest.mark.parametrize(
    ("usable", "environ", "verdict", "said"),
    [
        (4, {}, "ok", ""),
        (4, {"OMP_NUM_THREADS": "1"}, "ok", ""),
        (1, {"OMP_NUM_THREADS": "1"}, "ok", ""),
        (4, {"OMP_NUM_THREADS": "4"}, "warning", "up to 16 threads on 4 processors"),
        (1, {"MKL_NUM_THREADS": "2"}, "warning", "MKL_NUM_THREADS=2"),
        (4, {"OMP_NUM_THREADS": "3,2"}, "warning", "up to 12 threads"),
        (4, {"OMP_NUM_THREADS": "many"}, "warning", "OMP_NUM_THREADS=many is no number"),
        (4, {"OPENBLAS_NUM_THREADS": "0"}, "warning", "is no number"),
    ],
)
def test_variables_that_ask_for_too_many_threads(usable: int, environ: dict[str, str], verdict: str, said: str) -> None:
    (found,) = find_threads(usable, environ)
    assert found.verdict == verdict
    assert said in found.measured
    assert (verdict == "ok") == (found.mend == "")


def test_other_programs_are_named_and_ours_left_out() -> None:
    before = Moment(0.0, {1: ("idle", 5.0), 2: ("train", 10.0), 3: ("doctor", 1.0)}, 0.0, 100.0)
    after = Moment(2.0, {1: ("idle", 5.0), 2: ("train", 13.0), 3: ("doctor", 3.0), 4: ("new", 9.0)}, 0.0, 108.0)
    (found,) = find_load(before, after, 4, frozenset([3]))
    assert found.verdict == "warning"
    assert found.measured == "other programs take 1.5 of 4 processors: train 2 (1.5)"
    assert "--concurrent 3" in found.mend
    assert [one.verdict for one in find_load(before, after, 16, frozenset([3]))] == ["ok"]


def test_an_id_that_another_program_has_now_does_not_count() -> None:
    before, after = Moment(0.0, {7: ("a", 1.0)}, 0.0, 1.0), Moment(1.0, {7: ("b", 90.0)}, 0.0, 2.0)
    assert [one.verdict for one in find_load(before, after, 2)] == ["ok"]


def test_time_that_the_host_keeps_is_told() -> None:
    names = [one.name for one in find_load(Moment(0.0, {}, 0.0, 0.0), Moment(1.0, {}, 0.5, 2.0), 2)]
    assert names == ["load", "stolen time"]


def test_a_moment_knows_this_process() -> None:
    assert os.getpid() in moment().programs
