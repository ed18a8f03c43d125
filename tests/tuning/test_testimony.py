from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunelab.records import Trial
from tunelab.tuning.losses import Loss
from tunelab.tuning.memory_guard import FILE, Word
from tunelab.tuning.testimony import Kills, MemoryWitness


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a control group of version 2 whose processes the kernel has killed once."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
    kill(tmp_path, 1)
    return tmp_path


def kill(root: Path, times: int) -> None:
    (root / "sys/fs/cgroup/box/memory.events").write_text(f"low 0\noom 5\noom_kill {times}\n")


def witness_of(root: Path, *running: int) -> MemoryWitness:
    witness = MemoryWitness(lambda number: root / "trials" / str(number), Kills(root))
    for number in running:
        witness.started(Trial(number, {}))
    return witness


def test_it_knows_nothing_of_a_process_that_just_died(root: Path) -> None:
    assert witness_of(root, 1).testify(1) is None
    assert witness_of(root).testify(5) is None


def test_the_last_word_of_a_process_is_believed_once(root: Path) -> None:
    witness = witness_of(root, 1)
    Word(1, 99, 500.0, 400.0, True, "its process held 500 MiB and may hold 400 MiB").write(root / "trials/1")
    assert witness.testify(1) == Loss("memory", "its process held 500 MiB and may hold 400 MiB")
    assert not (root / "trials/1" / FILE).exists()
    assert witness.testify(1) is None


def test_a_word_about_another_trial_is_not(root: Path) -> None:
    Word(2, 99, 500.0, 400.0, True, "why").write(root / "trials/1")
    assert witness_of(root, 1).testify(1) is None


def test_the_last_word_may_be_on_another_machine(root: Path) -> None:
    words = [Word(1, 99, 500.0, 400.0, True, "its process held 500 MiB and may hold 400 MiB")]
    asked: list[int] = []

    def take(number: int) -> Word | None:
        asked.append(number)
        return words.pop() if words else None

    witness = MemoryWitness(lambda number: root / "trials" / str(number), Kills(root), take)
    assert witness.testify(1) == Loss("memory", "its process held 500 MiB and may hold 400 MiB")
    assert witness.testify(1) is None
    assert asked == [1, 1]
    Word(1, 99, 500.0, 400.0, True, "seen here").write(root / "trials/1")
    assert witness.testify(1) == Loss("memory", "seen here")
    assert asked == [1, 1], "here it was told"


def test_the_kernel_says_that_it_killed_one(root: Path) -> None:
    witness = witness_of(root, 1, 2, 3)
    kill(root, 2)
    lost = witness.testify(1)
    assert lost is not None
    assert (lost.cause, lost.why.startswith("the kernel killed its process")) == ("memory", True)
    assert witness.testify(2) is None, "it killed only one"
    kill(root, 3)
    assert witness.testify(3) is not None


def test_what_it_killed_before_a_trial_was_last_heard_of_does_not_count(root: Path) -> None:
    witness = witness_of(root, 1)
    kill(root, 2)
    witness.reported(Trial(1, {}))
    assert witness.testify(1) is None
    witness.ended(Trial(1, {}))
    witness.retried(Trial(2, {}), "why")
    kill(root, 3)
    assert witness.testify(1) is None, "it does not run"


def test_one_that_was_close_to_its_limit_was_killed_for_it(root: Path) -> None:
    why = "it held 390 MiB when it was last looked at"
    Word(1, 99, 390.0, 400.0, False, why).write(root / "trials/1")
    assert witness_of(root, 1).testify(1) == Loss(
        "memory", "its process was killed; it held 390 MiB when it was last looked at, of 400 MiB that it may hold"
    )


def test_without_a_group_the_machine_is_asked(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 4\n")
    witness = witness_of(tmp_path, 1)
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 5\n")
    assert witness.testify(1) is not None


def test_a_real_machine_says_nothing_of_a_process_that_lives(tmp_path: Path) -> None:
    witness = MemoryWitness(lambda number: tmp_path)
    witness.started(Trial(os.getpid(), {}))
    assert witness.testify(os.getpid()) is None
