from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig

MakeConfig = Callable[..., TrialConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_config() -> MakeConfig:
    """A small network on 400 digits of 8x8; keywords change the recipe, `arch`, `data` and `seed` the rest."""

    def make(
        arch: dict[str, Any] | None = None, data: dict[str, Any] | None = None, seed: int = 1, **train: Any
    ) -> TrialConfig:
        blocks = (BlockSpec("basic", 8, 1, 1), BlockSpec("basic", 16, 2, 2))
        recipe = {"epochs": 2, "batch_size": 64, "lr": 0.05, **train}
        return TrialConfig(
            arch=ArchSpec(**{"stem": StemSpec(8), "branches": (blocks,), **(arch or {})}),
            train=TrainConfig(**recipe),
            data=DataConfig(**{"limit_train": 400, **(data or {})}),
            seed=seed,
        )

    return make
