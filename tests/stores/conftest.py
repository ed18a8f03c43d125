"""A store in a folder of the test, whose objects can be looked at and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunelab.stores.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that is empty."""
    return Store.open(f"file://{tmp_path}/store")
