"""Errors of Ray that end a trial, in place of the whole search.

Ray Tune goes on from errors of actors and of tasks. Any other, such as that the memory monitor of a cluster's node has
ended a trial's process, ends the search (Ray 2.60, `RayActorManager._actor_task_failed`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tunelab.tuning.losses import Loss


class Shortages:
    """A witness of trials that Ray itself ended for want of memory, while `contained`."""

    def __init__(self) -> None:
        self._said = ""

    @contextlib.contextmanager
    def contained(self) -> Iterator[None]:
        """Each error that Ray gives in place of a trial's result is that of its process."""
        from ray.air.execution._internal.actor_manager import RayActorManager
        from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
        from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

        before = RayActorManager._actor_task_failed

        def fail(manager: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
            if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
                if isinstance(exception, OutOfMemoryError):
                    self._said = "Ray ended its process: its node had almost no memory left"
                exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
            try:
                before(manager, tracked_actor_task, exception)  # the witnesses are asked in it
            finally:
                self._said = ""

        RayActorManager._actor_task_failed = fail  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            RayActorManager._actor_task_failed = before  # type: ignore[method-assign]

    def testify(self, number: int) -> Loss | None:
        """That there was no memory; None if Ray has not said so of the trial whose error it tells of."""
        return Loss("memory", self._said) if self._said else None
