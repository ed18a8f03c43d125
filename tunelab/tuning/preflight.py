"""What is refused before a study is made: a space that fails, changed data, networks beyond the limits, no room."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.capacity import describe_size
from tunelab.config import DataConfig, TrialConfig, derive_seed
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError, RefusedError
from tunelab.files import existing, free_bytes
from tunelab.models.check import check
from tunelab.space import SearchSpace
from tunelab.study import Study
from tunelab.tuning.model_sampler import Earlier
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.ray_home import find_parent
from tunelab.tuning.room import Needed
from tunelab.tuning.searcher import OptunaSource
from tunelab.tuning.sources import Check

_TRIAL_DRAWS = 4
_USUAL_BATCH = 128  # allowed whatever the data: all the images are one batch then


def make_check(options: SearchOptions, info: DataInfo) -> Check:
    """A check of networks against the images of `info` and the limits of `options`."""
    most = max(_USUAL_BATCH, info.counts["train"])

    def check_config(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.batch_size > most:
            raise RefusedError(f"a batch of {config.train.batch_size} is more than the {most} training images")
        stats = check(
            config.arch,
            image_size=info.image_size,
            channels=info.channels,
            classes=len(info.classes),
            max_params=options.max_params,
            max_mflops=options.max_mflops,
        )
        return dataclasses.asdict(stats)

    return check_config


def data_of(asked: DataConfig, config: TrialConfig) -> DataConfig:
    """The data that is asked for, its pixels as they are where a configuration of the space has them so."""
    return dataclasses.replace(asked, normalise=asked.normalise and config.data.normalise)


def make_source(
    space: SearchSpace,
    options: SearchOptions,
    info: DataInfo,
    seed: int,
    storage: Path | None,
    *,
    first: Sequence[tuple[str, Mapping[str, Any]]] = (),
    history: Collection[int] = (),
    earlier: Sequence[Earlier] = (),
) -> OptunaSource:
    """Draws from `space`, with data, length and seed as `options` say; the rest as `OptunaSource` takes it."""

    def complete(config: TrialConfig, number: int) -> TrialConfig:
        return dataclasses.replace(
            config,
            data=data_of(options.data, config),
            train=dataclasses.replace(config.train, epochs=options.epochs),
            seed=derive_seed(options.seed, "trial", number),
        )

    return OptunaSource(
        space,
        seed,
        options.sampler,
        complete,
        make_check(options, info),
        storage,
        first,
        history,
        epochs=options.epochs,
        earlier=earlier,
        objectives=options.objective,
    )


def try_space(space: SearchSpace, options: SearchOptions, info: DataInfo) -> None:
    """Draws a few configurations, so that a space that raises or never fits is refused before anything is made."""
    make_source(space, options, info, derive_seed(options.seed, "trial draws"), None).rehearse(_TRIAL_DRAWS)


def check_room(path: Path, needed: Needed) -> None:
    """Raises InputError if the disk has no room for what a search needs, or there is no place for Ray's files.

    Nor is there any where a folder of `path` is a file.
    """
    parent = existing(path)
    if not parent.is_dir():
        raise InputError(f"the study {path} cannot be made: {parent} is a file")
    free = free_bytes(parent)
    if free < needed.study:
        raise InputError(
            f"there is no room for the study: it needs about {describe_size(needed.study)}, {parent} has "
            f"{describe_size(free)} free; --study or --runs-dir names another place, --keep-weights and "
            "--telemetry say what is kept"
        )
    find_parent(path)


def absolute_paths(data: DataConfig) -> DataConfig:
    """The same data, found from any folder."""
    kind, colon, path = data.name.partition(":")
    name = f"{kind}:{Path(path).expanduser().resolve()}" if colon and path else data.name
    folder = None if data.data_dir is None else str(Path(data.data_dir).expanduser().resolve())
    return dataclasses.replace(data, name=name, data_dir=folder)


def new_path(folder: Path, name: str) -> Path:
    """A folder that does not exist yet, named after the space and the minute."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    path = folder / f"{name}-{stamp}"
    following = 2
    while path.exists():
        path = folder / f"{name}-{stamp}-{following}"
        following += 1
    return path


def require_same_data(study: Study, info: DataInfo) -> None:
    """Raises InputError if the images are not those that the study was begun with."""
    before = study.info["data"]["fingerprint"]
    if info.fingerprint != before:
        raise InputError(
            f"the data {info.name!r} has changed since {study.path} was begun (fingerprint {before}, "
            f"now {info.fingerprint}); results on it would not be comparable"
        )
