"""What an ablation trains: the configuration, its variants, the seeds, and what there is of it already."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import (
    AnyArch,
    ArchSpec,
    CustomSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    arch_id,
    derive_seed,
    to_json,
)
from tunelab.errors import InputError, RefusedError
from tunelab.models.check import check
from tunelab.records import Trial
from tunelab.study import Study
from tunelab.variants import Ablation, Variant

from .changes import find_variants


def lay_out(
    study: Study,
    *,
    trial: int | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    components: Sequence[str] = (),
) -> Ablation:
    """What `ablate` would train, with the same arguments; nothing is trained or written.

    Raises:
        InputError: there is no such trial or component, or nothing to compare.
    """
    if study.info.get("kind") != "search":
        raise InputError(f"{study.path} is a {study.info.get('kind')}; the study of a search is needed")
    if seeds < 1 or (epochs is not None and epochs < 1):
        raise InputError(f"--epochs {epochs} and --seeds {seeds} must be at least 1")
    chosen = study.best() if trial is None else study.trial(trial)
    config = study.config(chosen)
    length = int(study.info["options"]["epochs"]) if epochs is None else epochs
    winner = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=length))
    if winner.data.train_on != "train":
        raise InputError(
            f"trial {chosen.number} was trained on {winner.data.train_on}: no images are left to compare by"
        )
    baseline, source = _baseline(study, winner)
    variants, same, left_out = find_variants(winner, baseline, components)
    built = []
    for variant in variants:
        reason = _refusal(variant.config, study.info["data"])
        if reason:
            left_out[variant.name] = reason
        else:
            built.append(variant)
    if not built:
        why = "; ".join([*(f"{name}: {reason}" for name, reason in left_out.items()), *_same_already(same)])
        raise InputError(f"there is nothing to compare trial {chosen.number} with ({why})")
    return Ablation(
        trial=chosen.number,
        winner=winner,
        baseline=source,
        variants=tuple(built),
        same=tuple(same),
        left_out=left_out,
        seeds=tuple(derive_seed(config.seed, "ablate", index) for index in range(seeds)),
        folder=study.path / f"ablate-{arch_id(winner.arch)}-trial{chosen.number:04d}-{length}epochs",
    )


def listing(study: Study, laid_out: Ablation) -> dict[str, Any]:
    """What would be trained, as plain JSON values; `trained` of the `trainings` have ended already.

    `seconds_each` is the time of one training of the unchanged configuration, from its epochs in the search.
    """
    ended = {as_key(one.config) for one in trials_in(laid_out.folder) if one.status.ended}
    epochs = study.trial(laid_out.trial).epochs
    each = statistics.fmean(one.seconds for one in epochs) * laid_out.winner.train.epochs if epochs else None
    return {
        **heading(study, laid_out),
        "variants": [described(variant) for variant in laid_out.variants],
        "trainings": laid_out.trainings,
        "trained": sum(training_key(config) in ended for config in configs_of(laid_out)),
        "seconds_each": each,
    }


def _baseline(study: Study, winner: TrialConfig) -> tuple[TrialConfig, str]:
    """What components are put back to, and where it comes from in words."""
    for trial in study.list_trials():
        first = trial.number == 0 and trial.origin == "" and study.info.get("baseline", True)  # a record of old
        if trial.repeat_of is None and (trial.origin == "baseline" or first):
            return study.config(trial), f"trial {trial.number}, the study's baseline"
    if isinstance(winner.arch, ArchSpec):
        arch: AnyArch = ArchSpec(StemSpec(winner.arch.stem.width), winner.arch.branches)
    elif isinstance(winner.arch, CustomSpec):
        arch = winner.arch  # only its factory knows its defaults
    else:
        arch = type(winner.arch)()
    return TrialConfig(arch, TrainConfig(), winner.data), "tunelab's defaults, as the study has no baseline"


def _refusal(config: TrialConfig, data: Mapping[str, Any]) -> str:
    """Why a network cannot be built for the study's images, "" if it can."""
    height, width = data["image_size"]
    try:
        check(config.arch, image_size=(height, width), channels=data["channels"], classes=len(data["classes"]))
    except RefusedError as error:
        return str(error)
    return ""


def _same_already(same: Sequence[str]) -> list[str]:
    return [f"the same already: {', '.join(same)}"] if same else []


def configs_of(laid_out: Ablation) -> list[TrialConfig]:
    """All trainings, seed by seed, so that what is trained first can be compared first."""
    of_all = [laid_out.winner, *(variant.config for variant in laid_out.variants)]
    return [dataclasses.replace(config, seed=seed) for seed in laid_out.seeds for config in of_all]


def trials_in(folder: Path) -> list[Trial]:
    """What there is of an ablation in its folder; nothing if it was not begun."""
    return Study.open(folder).list_trials() if (folder / "study.json").exists() else []


def as_key(plain: Mapping[str, Any]) -> str:
    """The JSON of a configuration as one text."""
    return json.dumps(plain, sort_keys=True)


def training_key(config: TrialConfig) -> str:
    """What tells two trainings apart, seed included."""
    return as_key(to_json(config))


def heading(study: Study, laid_out: Ablation) -> dict[str, Any]:
    """What an ablation is of, as plain JSON values."""
    return {
        "study": str(study.path),
        "trial": laid_out.trial,
        "arch_id": arch_id(laid_out.winner.arch),
        "epochs": laid_out.winner.train.epochs,
        "seeds": list(laid_out.seeds),
        "folder": str(laid_out.folder),
        "baseline": laid_out.baseline,
        "same": list(laid_out.same),
        "left_out": dict(laid_out.left_out),
    }


def described(variant: Variant) -> dict[str, Any]:
    """The names of a variant, as the beginning of a row."""
    return {"component": variant.component, "change_made": variant.change, "what": variant.what}
