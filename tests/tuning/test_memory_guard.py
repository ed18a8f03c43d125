from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunelab.tuning.memory_guard import EXIT_STATUS, FILE, Limits, MemoryGuard, Senses, Word, forget_word, read_word

LIMITS = Limits(each=100.0, roomy=150.0)


class Ended(Exception):
    """The process would be gone."""


class Pretended(Senses):
    """A process on a machine of 10,000 MiB, of which 5,000 are free."""

    def __init__(self, held: float = 10.0) -> None:
        self.now = held
        self.left = 5000.0
        self.others: dict[int, float] = {}

    def held(self) -> float:
        return self.now

    def look_around(self) -> None: ...

    def neighbours(self) -> dict[int, float]:
        return self.others

    def free(self) -> tuple[float, float]:
        return self.left, 10000.0

    def exit(self, status: int) -> None:  # type: ignore[override]
        assert status == EXIT_STATUS
        raise Ended


def watching(folder: Path, senses: Senses, limits: Limits | None = LIMITS, *, fewer: bool = False) -> MemoryGuard:
    guard = MemoryGuard(senses, start=lambda _guard: None)
    guard.watch(7, folder, limits, fewer=fewer)
    return guard


def look(guard: MemoryGuard, times: int = 20) -> None:
    for _ in range(times):
        guard.look()


def test_a_process_below_its_limit_is_left_alone(tmp_path: Path) -> None:
    senses = Pretended()
    senses.others = {1: 5000.0}
    look(watching(tmp_path, senses))
    assert list(tmp_path.iterdir()) == []


def test_one_above_it_ends_and_says_why(tmp_path: Path) -> None:
    senses = Pretended()
    guard = watching(tmp_path / "trial", senses)
    guard.look()
    senses.now = 101.0
    with pytest.raises(Ended):
        guard.look()
    why = "its process held 101 MiB and may hold 100 MiB"
    assert read_word(tmp_path / "trial") == Word(7, os.getpid(), 101.0, 100.0, True, why)


def test_with_fewer_beside_it_one_may_hold_more(tmp_path: Path) -> None:
    guard = watching(tmp_path, Pretended(140.0), fewer=True)
    look(guard)
    with pytest.raises(Ended):
        look(watching(tmp_path, Pretended(151.0), fewer=True))


def test_what_comes_close_is_written_and_taken_back(tmp_path: Path) -> None:
    senses = Pretended(85.0)
    guard = watching(tmp_path, senses)
    look(guard)
    word = read_word(tmp_path)
    assert word is not None
    assert (word.ended, word.held_mib, word.limit_mib, word.number) == (False, 85.0, 100.0, 7)
    senses.now = 10.0
    look(guard)
    assert read_word(tmp_path) is None
    senses.now = 85.0
    look(guard)
    guard.rest()
    assert read_word(tmp_path) is None
    senses.now = 500.0
    look(guard)
    assert list(tmp_path.iterdir()) == [], "nothing is trained any more"


@pytest.mark.parametrize(
    ("left", "held", "others", "ends"),
    [
        (200.0, 2000.0, {1: 1900.0}, True),  # 300 MiB are to be free
        (200.0, 2000.0, {}, True),
        (200.0, 2000.0, {1: 2100.0}, False),  # a larger one goes
        (200.0, 90.0, dict.fromkeys(range(30), 89.0), False),  # not enough comes of it
        (200.0, 1900.0, {}, False),  # less than a fifth of what is taken: others have taken the memory
        (400.0, 2000.0, {}, False),
    ],
)
def test_when_the_machine_has_almost_nothing_left_the_largest_goes(
    tmp_path: Path, left: float, held: float, others: dict[int, float], ends: bool
) -> None:
    senses = Pretended(held)
    senses.left, senses.others = left, others
    guard = watching(tmp_path, senses, Limits(9000.0, 9000.0))
    if not ends:
        look(guard)
        return
    with pytest.raises(Ended):
        look(guard)
    word = read_word(tmp_path)
    assert word is not None
    assert word.why == (
        "the machine or its control group had 200 MiB left of 9.8 GiB; its process was the largest with 2.0 GiB"
    )


def test_it_waits_a_moment_for_what_another_gives_back(tmp_path: Path) -> None:
    senses = Pretended(2000.0)
    senses.left, senses.others = 200.0, {1: 2400.0}
    guard = watching(tmp_path, senses, Limits(9000.0, 9000.0))
    look(guard)
    senses.others = {}
    look(guard, 3)
    senses.left = 600.0
    look(guard)
    senses.left = 200.0
    with pytest.raises(Ended):
        look(guard)


def test_a_bound_for_all_together(tmp_path: Path) -> None:
    senses = Pretended(300.0)
    senses.others = {1: 250.0, 2: 200.0}
    limits = Limits(1000.0, 1000.0, together=760.0)
    guard = watching(tmp_path, senses, limits)
    look(guard)
    senses.others = {1: 250.0, 2: 220.0}
    with pytest.raises(Ended):
        look(guard)
    word = read_word(tmp_path)
    assert word is not None
    assert word.why == "the trials held 770 MiB together and may hold 760 MiB; its process was the largest with 300 MiB"
    assert word.limit_mib == 760.0


def test_without_limits_nothing_is_looked_at(tmp_path: Path) -> None:
    look(watching(tmp_path, Pretended(1e9), None))
    assert list(tmp_path.iterdir()) == []


def test_the_word_of_an_earlier_attempt_is_forgotten(tmp_path: Path) -> None:
    Word(7, 1, 1.0, 1.0, True, "earlier").write(tmp_path)
    watching(tmp_path, Pretended())
    assert read_word(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"number": 1}', "null"])
def test_a_damaged_word_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_word(tmp_path) is None
    forget_word(tmp_path)
    assert read_word(tmp_path) is None


def test_a_word_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Word(7, 1, 1.0, 1.0, True, "why").write(tmp_path / "file" / "trial")
    assert read_word(tmp_path / "file" / "trial") is None


EATER = """
import sys, time
from pathlib import Path
from tunelab.capacity import held_mib
from tunelab.tuning.memory_guard import MemoryGuard, Limits
import os
mine = held_mib(os.getpid())
MemoryGuard().watch(3, Path(sys.argv[1]), Limits(mine + 100, mine + 100))
taken = []
for _ in range(400):
    taken.append(b"x" * 2**20)
    time.sleep(0.01)
print("ate 400 MiB")
"""


def test_a_real_process_that_eats_memory_is_ended(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EATER, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_STATUS, "", "")
    word = read_word(tmp_path)
    assert word is not None
    assert (word.number, word.ended) == (3, True)
    assert word.held_mib > word.limit_mib > 100


CHILD = """
import subprocess, sys, time
from tunelab.tuning.memory_guard import Senses
senses = Senses()
senses.look_around()
alone = senses.held()
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 2**27; print('has it', flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
senses.look_around()
print(senses.held() - alone)
child.communicate(b"\\n")
senses.look_around()
print(senses.held() - alone)
"""


def test_children_count_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300, check=True)
    beside, after = map(float, done.stdout.split())
    assert 128 < beside < 200
    assert abs(after) < 20
