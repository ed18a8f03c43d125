from __future__ import annotations

import threading
import time

import pytest

from tunelab.data.ahead import in_order


def test_results_come_in_the_order_of_the_tasks() -> None:
    def work(task: int) -> int:
        time.sleep(0.001 * (task % 3))
        return task**2

    for workers, ahead in ((1, 0), (1, 3), (4, 5)):
        assert list(in_order(work, range(20), workers, ahead)) == [task**2 for task in range(20)]


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_no_more_is_begun_than_may_be_ahead(ahead: int) -> None:
    begun: list[int] = []
    results = in_order(begun.append, range(20), 1, ahead)
    for taken in range(1, 10):
        next(results)
        while len(begun) < taken + ahead:
            time.sleep(0.001)
        assert len(begun) == taken + ahead
    results.close()


def test_what_work_raises_is_raised_in_its_turn() -> None:
    def work(task: int) -> int:
        if task == 3:
            raise OSError("the disk is gone")
        return task

    results = in_order(work, range(20), 1, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)
    assert list(results) == []


def test_closing_ends_the_threads() -> None:
    begun: list[int] = []
    inside = threading.Event()

    def work(task: int) -> int:
        begun.append(task)
        if task == 2:
            inside.set()
            time.sleep(0.05)
        return task

    before = threading.active_count()
    results = in_order(work, range(20), 1, 5)
    assert next(results) == 0
    inside.wait()
    results.close()
    assert threading.active_count() == before
    assert begun == [0, 1, 2], "what is begun is ended, and nothing else is begun"
    abandoned = in_order(work, range(20), 2, 5)
    next(abandoned)
    del abandoned
    assert threading.active_count() == before
