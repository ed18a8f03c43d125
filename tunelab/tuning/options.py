"""What a search is asked for: the options of `tunelab search`, checked."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from tunelab.capacity import parse_size
from tunelab.config import DataConfig, Telemetry, TrialConfig
from tunelab.errors import InputError

LIMITS: Mapping[str, tuple[int, float]] = {"cpu": (1_000_000, 40.0), "cuda": (12_000_000, 1200.0)}
"""The largest networks that a night of one machine can search, as (max_params, max_mflops); our choice.

On a CPU that is the plain ResNet18 of width 16 on images of 32x32; on a GPU that of width 64 (11.2 million weights,
557 million multiply-adds), with room for twice its cost.
"""


_LENGTH = r"(\d{1,9}(?:\.\d+)?)\s*([hms])"
_UNITS = {"h": 3600, "m": 60, "s": 1}
_FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_FORBID)
class Base:
    """The trial of another study that a search begins with, whole, so that the study itself is not needed any more.

    `params` and `mflops` are what its network has and costs there.
    """

    study: str
    trial: int
    config: TrialConfig
    params: Annotated[int, Field(ge=0)] = 0
    mflops: Annotated[float, Field(ge=0.0)] = 0.0


@dataclass(frozen=True, config=_FORBID)
class SearchOptions:
    """What a search is asked for; its names are those of the command line.

    `max_params` counts weights, `max_mflops` millions of multiply-adds per image; None is LIMITS for the device.
    `race` is the share of the time in which the finalists are trained again with other seeds.
    `objective` is what is to be good: the validation accuracy first, then costs of which less is better (`seconds` are
    those of a whole training). `repeat` is how often each configuration of a grid is trained.
    `concurrent` None is as many trials as the processors or GPUs carry. `cpus_per_trial` is the number of threads of
    a trial. `memory` is the most bytes of the machine's memory that all trials together may take; None is what is free.
    `base` is what `--from` names. `trial_timeout` is the most seconds that a trial may take from when its process
    begins or goes on with it; None is 20 times as long as forecast, and at least an hour.
    `keep_weights` is of how many ended trials the checkpoints are kept, the best ones; None is of all, which is what a
    study keeps that was begun when there was no such option.
    With `health` a trial of which nothing can come any more ends as DIVERGED, not before the end of epoch
    `health_grace`; three epochs let a warm-up begin and the statistics of norms settle (our choice).
    """

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    data: DataConfig = Field(default_factory=DataConfig)
    seed: Annotated[int, Field(ge=0)] = 0
    concurrent: Annotated[int, Field(ge=1)] | None = None
    cpus_per_trial: Annotated[int, Field(ge=1)] | None = None
    gpus_per_trial: Annotated[float, Field(gt=0.0)] | None = None
    memory: Annotated[int, Field(ge=1)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sampler: Literal["model", "tpe", "gp", "random"] = "model"
    scheduler: Literal["asha", "promote", "none"] = "asha"
    race: Annotated[float, Field(ge=0.0, le=0.9)] = 0.2
    max_params: Annotated[int, Field(ge=1)] | None = None
    max_mflops: Annotated[float, Field(gt=0.0)] | None = None
    warm_start: tuple[str, ...] = ()
    objective: tuple[Literal["val_accuracy", "params", "mflops", "seconds"], ...] = ("val_accuracy",)
    repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    telemetry: Telemetry = "scalars"
    trial_timeout: Annotated[float, Field(gt=0.0)] | None = None
    health: bool = True
    health_grace: Annotated[int, Field(ge=1)] = 3
    keep_weights: Annotated[int, Field(ge=0)] | None = None
    base: Base | None = None

    @property
    def base_config(self) -> TrialConfig | None:
        """The configuration that the search begins with."""
        return None if self.base is None else self.base.config

    @field_validator("objective")
    @classmethod
    def _accuracy_first(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names[:1] != ("val_accuracy",) or len(set(names)) != len(names):
            raise ValueError("the first must be val_accuracy, by which trials are stopped early, and none may be twice")
        return names


def limits(options: SearchOptions, device: str) -> tuple[int, float]:
    """The largest networks that are searched, as (max_params, max_mflops): what is asked for, else LIMITS.

    A network to begin with is never beyond them: twice what it costs is within (our choice).
    """
    params, mflops = LIMITS[device]
    if options.base is not None:
        params, mflops = max(params, 2 * options.base.params), max(mflops, 2 * options.base.mflops)
    return options.max_params or params, options.max_mflops or mflops


@dataclass(frozen=True)
class GridRequest:
    """Trials given by hand: a file, or a grid of the space's own, `NAME` or `SPACE/NAME`.

    `alone`: there are to be no other trials but the baseline. `in_full`: they are not stopped early.
    """

    source: str | Path
    alone: bool
    in_full: bool


def fill_in(asked: Mapping[str, Any], grid: str | Path | None) -> tuple[dict[str, Any], GridRequest | None]:
    """Puts in what `trials`, `scheduler` and `race` are where they are None, which depends on whether there is a grid.

    A grid is a comparison: no other trials, all of them in full, and repeats only as many as are asked for. `memory`
    may be a text such as `8GiB`, and becomes bytes.

    Raises:
        InputError: two options contradict each other, or the text is no amount of memory.
    """
    values = dict(asked)
    if isinstance(values.get("memory"), str):
        values["memory"] = parse_size(values["memory"], "--memory")
    request = None
    if grid is not None:
        request = GridRequest(grid, values["trials"] is None, values["scheduler"] is None)
        if request.alone and values.get("warm_start"):
            raise InputError("--warm-start changes nothing with --grid alone, which has no other trials; give --trials")
        values["race"] = 0.0 if values["race"] is None else values["race"]
        values["trials"] = 1 if request.alone else values["trials"]  # as many as the grid has, once it is read
    elif values["repeat"] != 1:
        raise InputError(f"--repeat {values['repeat']} can only be used with --grid")
    for name in ("trials", "scheduler", "race"):
        if values[name] is None:
            del values[name]
    return values, request


def seconds_in(length: str, option: str) -> float:
    """Seconds of a length of time such as `2h`, `90m` or `45s`, given with `option`.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(_LENGTH, length.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{option} {length!r} is no length of time such as 2h, 90m or 45s")
    return float(found[1]) * _UNITS[found[2]]


def timeout_of(given: str | float | None) -> float | None:
    """Seconds that a trial may take: a number of them, or a text as `seconds_in` reads it.

    Raises:
        InputError: it is neither, or not above 0.
    """
    if isinstance(given, str):
        return seconds_in(given, "--trial-timeout")
    if given is not None and not 0 < given < math.inf:
        raise InputError(f"trial_timeout must be above 0 seconds (got {given})")
    return given


def seconds_until(deadline: str, now: datetime.datetime) -> float:
    """Seconds from `now` to a deadline: a length such as `8h`, `90m` or `45s`, or a time of day such as `07:30`.

    A time of day that has passed today means tomorrow. Without a time zone, `now` and the time of day are those of this
    machine's clock, also in a night in which it is put forward or back.

    Raises:
        InputError: it is neither.
    """
    length = re.fullmatch(_LENGTH, deadline.strip())
    if length and float(length[1]) > 0:
        return float(length[1]) * _UNITS[length[2]]
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
    return at.timestamp() - now.timestamp()
