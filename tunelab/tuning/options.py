"""What a search is asked for: the options of `tunelab search`, checked."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tunelab.config import DataConfig
from tunelab.errors import InputError

LIMITS: Mapping[str, tuple[int, float]] = {"cpu": (1_000_000, 40.0), "cuda": (12_000_000, 1200.0)}
"""The largest networks that a night of one machine can search, as (max_params, max_mflops); our choice.

On a CPU that is the plain ResNet18 of width 16 on images of 32x32; on a GPU that of width 64 (11.2 million weights,
557 million multiply-adds), with room for twice its cost.
"""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SearchOptions:
    """What a search is asked for; its names are those of the command line.

    `max_params` counts weights, `max_mflops` millions of multiply-adds per image; None is LIMITS for the device.
    `concurrent` None is as many trials as the processors or GPUs carry. `cpus_per_trial` is the number of threads of
    a trial.
    """

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    data: DataConfig = Field(default_factory=DataConfig)
    seed: Annotated[int, Field(ge=0)] = 0
    concurrent: Annotated[int, Field(ge=1)] | None = None
    cpus_per_trial: Annotated[int, Field(ge=1)] | None = None
    gpus_per_trial: Annotated[float, Field(gt=0.0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sampler: Literal["tpe", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    max_params: Annotated[int, Field(ge=1)] | None = None
    max_mflops: Annotated[float, Field(gt=0.0)] | None = None
    telemetry: Literal["off", "scalars"] = "scalars"


def seconds_until(deadline: str, now: datetime.datetime) -> float:
    """Seconds from `now` to a deadline: a length such as `8h`, `90m` or `45s`, or a time of day such as `07:30`.

    A time of day that has passed today means tomorrow.

    Raises:
        InputError: it is neither.
    """
    length = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hms])", deadline.strip())
    if length and float(length[1]) > 0:
        return float(length[1]) * {"h": 3600, "m": 60, "s": 1}[length[2]]
    try:
        if not re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", deadline.strip()):  # fromisoformat takes "10" for 10:00
            raise ValueError(deadline)
        of_day = datetime.time.fromisoformat(deadline.strip().rjust(5, "0"))
    except ValueError:
        raise InputError(
            f"--deadline {deadline!r} is neither a length such as 8h, 90m or 45s nor a time of day such as 07:30"
        ) from None
    at = datetime.datetime.combine(now.date(), of_day, now.tzinfo)
    if at <= now:
        at += datetime.timedelta(days=1)
    return (at - now).total_seconds()
