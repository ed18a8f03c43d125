"""Work done by threads ahead of those who take its results."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """`work` over `tasks` in threads, the results in the order of the tasks, at most `ahead` beyond the one taken.

    What `work` raises is raised where its result is taken, and ends the threads. So does closing the generator: what is
    being worked on is waited for, the rest is not begun.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool, contextlib.ExitStack() as stack:
        stack.callback(lambda: [future.cancel() for future in pending])
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
