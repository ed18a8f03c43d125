from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError

from tunelab.tuning.losses import Loss
from tunelab.tuning.ray_errors import Shortages


def fail(shortages: Shortages, error: Exception) -> tuple[Exception, Loss | None]:
    """What Ray Tune makes of an error in place of a result, and what the witness says then."""
    heard: list[tuple[Exception, Loss | None]] = []

    def hear(_actor: object, exception: Exception) -> None:
        heard.append((exception, shortages.testify(0)))

    actor = SimpleNamespace(actor_id=1, _on_error=None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=hear)
    manager: Any = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)  # type: ignore[arg-type]
    assert shortages.testify(0) is None, "of no other trial"
    return heard[0]


def test_what_would_end_the_search_ends_a_trial() -> None:
    shortages = Shortages()
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail(shortages, OutOfMemoryError("low on memory"))
    with shortages.contained():
        told, loss = fail(shortages, OutOfMemoryError("low on memory"))
        assert isinstance(told, RayActorError)
        assert "OutOfMemoryError: low on memory" in str(told)
        assert loss == Loss("memory", "Ray ended its process: its node had almost no memory left")
        told, loss = fail(shortages, NodeDiedError("gone"))
        assert isinstance(told, RayActorError)
        assert loss is None
        died = ActorDiedError()
        assert fail(shortages, died) == (died, None)
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail(shortages, OutOfMemoryError("low on memory"))
