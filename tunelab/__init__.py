"""tunelab: architecture and hyperparameter search on Ray Tune for PyTorch image classification.

The names below are the Python API. Each is imported when it is first asked for, so that `import tunelab` takes a
moment and loads neither torch nor Ray; opening a study needs neither, searching and training do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunelab.config import (
        ArchSpec,
        BlockSpec,
        CustomSpec,
        DataConfig,
        LeNetSpec,
        StemSpec,
        TrainConfig,
        TrialConfig,
    )
    from tunelab.errors import InputError, TunelabError
    from tunelab.records import EpochMetrics, Trial, TrialStatus
    from tunelab.study import Study, load
    from tunelab.tuning.extend import extend
    from tunelab.tuning.runner import search

    # Their modules need what tunelab must not import statically (tests/test_architecture.py): the types are told here.
    ablate: Callable[..., Any]
    predict: Callable[..., list[dict[str, Any]]]
    retrain: Callable[..., Any]

__version__ = "0.1.0"

__all__ = [
    "ArchSpec",
    "BlockSpec",
    "CustomSpec",
    "DataConfig",
    "EpochMetrics",
    "InputError",
    "LeNetSpec",
    "StemSpec",
    "Study",
    "TrainConfig",
    "Trial",
    "TrialConfig",
    "TrialStatus",
    "TunelabError",
    "ablate",
    "extend",
    "load",
    "predict",
    "retrain",
    "search",
]

_HOMES = {
    "ArchSpec": "tunelab.config",
    "BlockSpec": "tunelab.config",
    "CustomSpec": "tunelab.config",
    "DataConfig": "tunelab.config",
    "EpochMetrics": "tunelab.records",
    "InputError": "tunelab.errors",
    "LeNetSpec": "tunelab.config",
    "StemSpec": "tunelab.config",
    "Study": "tunelab.study",
    "TrainConfig": "tunelab.config",
    "Trial": "tunelab.records",
    "TrialConfig": "tunelab.config",
    "TrialStatus": "tunelab.records",
    "TunelabError": "tunelab.errors",
    "ablate": "tunelab.analysis.ablate",
    "extend": "tunelab.tuning.extend",
    "load": "tunelab.study",
    "predict": "tunelab.analysis.predict",
    "retrain": "tunelab.analysis.retrain",
    "search": "tunelab.tuning.runner",
}


def __getattr__(name: str) -> Any:
    """The public name, imported from its home and kept."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunelab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
