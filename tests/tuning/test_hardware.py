from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import tunelab
from tunelab.errors import InputError
from tunelab.tuning import hardware
from tunelab.tuning.hardware import (
    count_gpus,
    describe_hardware,
    describe_versions,
    find_layouts,
    find_slots,
    find_team,
    usable_cpus,
)
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.slots import Slots


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the number of processors and GPUs that are found."""

    def find(cpus: int, gpus: int = 0) -> None:
        monkeypatch.setattr(hardware, "usable_cpus", lambda: cpus)
        monkeypatch.setattr(hardware, "count_gpus", lambda: gpus)

    return find


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "expected"),
    [
        (2, 0, {}, Slots(2, 1, 0.0, "cpu")),
        (8, 0, {"cpus_per_trial": 3}, Slots(2, 3, 0.0, "cpu")),
        (8, 0, {"concurrent": 3}, Slots(3, 1, 0.0, "cpu")),
        (1, 0, {"concurrent": 3}, Slots(3, 1, 0.0, "cpu")),
        (8, 0, {"cpus_per_trial": 8}, Slots(1, 8, 0.0, "cpu")),
        (8, 0, {"trials": 1}, Slots(1, 8, 0.0, "cpu")),
        (8, 0, {"trials": 3}, Slots(3, 2, 0.0, "cpu")),
        (8, 0, {"trials": 3, "cpus_per_trial": 1}, Slots(3, 1, 0.0, "cpu")),
        (8, 4, {"device": "cpu"}, Slots(8, 1, 0.0, "cpu")),
        (8, 1, {}, Slots(1, 8, 1.0, "cuda")),
        (8, 4, {}, Slots(4, 2, 1.0, "cuda")),
        (2, 4, {}, Slots(4, 1, 1.0, "cuda")),
        (8, 1, {"gpus_per_trial": 0.25}, Slots(4, 2, 0.25, "cuda")),
        (8, 4, {"gpus_per_trial": 2.0}, Slots(2, 4, 2.0, "cuda")),
        (8, 4, {"concurrent": 2, "cpus_per_trial": 1}, Slots(2, 1, 1.0, "cuda")),
        (8, 1, {"gpus_per_trial": 0.1}, Slots(10, 1, 0.1, "cuda")),
        (8, 3, {"gpus_per_trial": 1 / 3}, Slots(9, 1, 1 / 3, "cuda")),
        (8, 2, {"gpus_per_trial": 0.4}, Slots(4, 2, 0.4, "cuda")),
        (8, 2, {"gpus_per_trial": 0.4, "concurrent": 3}, Slots(3, 2, 0.4, "cuda")),
    ],
)
def test_how_many_trials_run_at_once(
    machine: Any, cpus: int, gpus: int, options: dict[str, Any], expected: Slots
) -> None:
    machine(cpus, gpus)
    assert find_slots(SearchOptions(**options)) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "said"),
    [
        (2, 0, {"device": "cuda"}, "--device cuda: torch finds no CUDA device"),
        (2, 0, {"gpus_per_trial": 0.5}, "--gpus-per-trial 0.5: there is no GPU to share"),
        (2, 1, {"gpus_per_trial": 0.5, "device": "cpu"}, "--gpus-per-trial 0.5: there is no GPU to share"),
        (2, 0, {"cpus_per_trial": 3}, "--cpus-per-trial 3 is more than the 2 processors"),
        (2, 1, {"gpus_per_trial": 2.0}, "--gpus-per-trial 2 must be at most 1, or a whole number up to 1"),
        (2, 4, {"gpus_per_trial": 1.5}, "--gpus-per-trial 1.5 must be"),
        (2, 1, {"concurrent": 2}, r"--concurrent 2: with --gpus-per-trial 1 the GPUs of this machine \(1\) carry 1 at"),
        (2, 1, {"concurrent": 5, "gpus_per_trial": 0.25}, "--concurrent 5"),
        (2, 2, {"concurrent": 5, "gpus_per_trial": 0.4}, r"--concurrent 5: with .* 0.4 the GPUs .*\(2\) carry 4"),
    ],
)
def test_what_the_machine_lacks_is_refused(
    machine: Any, cpus: int, gpus: int, options: dict[str, Any], said: str
) -> None:
    machine(cpus, gpus)
    with pytest.raises(InputError, match=said):
        find_slots(SearchOptions(**options))


def test_this_machine() -> None:
    assert usable_cpus() >= 1
    assert count_gpus() >= 0
    found = describe_hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["memory_gib"] > 0
    assert len(found["gpus"]) == count_gpus()


def test_a_limit_on_processors_is_kept() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from tunelab.tuning.hardware import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "1\n", done.stderr


def test_the_versions() -> None:
    found = describe_versions()
    assert found["tunelab"] == tunelab.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"ray", "torch", "torchvision", "optuna", "numpy"} < set(found)
    assert json.loads(json.dumps(found)) == found
    if "tunelab_commit" in found:
        assert len(found["tunelab_commit"]) == 40


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "tunelab_commit" not in describe_versions()


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "expected"),
    [
        (2, 0, {}, [(2, 1), (1, 2)]),
        (16, 0, {}, [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]),
        (6, 0, {}, [(6, 1), (3, 2), (1, 6)]),
        (1, 0, {}, [(1, 1)]),
        (8, 0, {"trials": 3}, [(3, 2), (2, 4), (1, 8)]),
        (8, 0, {"trials": 1}, [(1, 8)]),
        (8, 0, {"concurrent": 2}, [(2, 1), (2, 4), (2, 2)]),
        (2, 0, {"concurrent": 2}, [(2, 1)]),
        (2, 0, {"concurrent": 5}, [(5, 1)]),
        (8, 0, {"cpus_per_trial": 2}, [(4, 2)]),
        (8, 0, {"concurrent": 2, "cpus_per_trial": 3}, [(2, 3)]),
        (8, 2, {}, [(2, 4), (4, 2), (8, 1)]),
        (8, 2, {"trials": 5}, [(2, 4), (4, 2)]),
        (8, 2, {"cpus_per_trial": 1}, [(2, 1), (4, 1), (8, 1)]),
        (8, 2, {"gpus_per_trial": 0.5}, [(4, 2)]),
        (8, 2, {"concurrent": 1}, [(1, 8)]),
    ],
)
def test_the_ways_to_divide_a_machine(
    machine: Any, cpus: int, gpus: int, options: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    machine(cpus, gpus)
    found = find_layouts(SearchOptions(**options))
    assert [(slots.concurrent, slots.cpus) for slots in found] == expected
    assert found[0] == find_slots(SearchOptions(**options))
    for slots in found:
        if gpus and "concurrent" not in options:
            assert slots.concurrent * slots.gpus == pytest.approx(gpus)
    with pytest.raises(InputError):
        find_layouts(SearchOptions(device="cuda" if gpus == 0 else "auto", gpus_per_trial=99.5))


def test_a_team_has_a_gpu_or_a_share_of_the_processors_for_each_process(machine: Any) -> None:
    machine(cpus=8, gpus=4)
    assert find_team(SearchOptions(), gpus=4, processes=None) == Slots(1, 2, 1.0, "cuda", processes=4)
    assert find_team(SearchOptions(device="cpu"), None, 3) == Slots(1, 2, 0.0, "cpu", processes=3)
    machine(cpus=8)
    assert find_team(SearchOptions(), None, 2) == Slots(1, 4, 0.0, "cpu", processes=2)
    assert find_team(SearchOptions(), None, 1) is find_team(SearchOptions(), None, None) is None


@pytest.mark.parametrize(
    ("has", "options", "asked", "words"),
    [
        (1, {}, (4, None), "--gpus 4: torch finds 1 here"),
        (0, {}, (2, None), "--gpus 2: torch finds 0 here"),
        (4, {"device": "cpu"}, (2, None), r"--gpus 2: the study trains on processors \(--device cpu\)"),
        (4, {}, (0, None), "--gpus 0"),
        (1, {}, (None, 2), "--processes 2: the study trains on a GPU"),
        (0, {}, (None, 5), "--processes 5 must be 1 to 4"),
        (4, {}, (2, 2), "--gpus 2 and --processes 2 exclude each other"),
    ],
)
def test_a_team_that_cannot_be_is_refused(
    machine: Any, has: int, options: dict[str, Any], asked: tuple[int | None, int | None], words: str
) -> None:
    machine(cpus=4, gpus=has)
    with pytest.raises(InputError, match=words):
        find_team(SearchOptions(**options), *asked)
