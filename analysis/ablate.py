"""What each component of a configuration is worth: trained again without it, several times, and judged by the noise."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import (
    ArchSpec,
    LeNetSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    arch_id,
    derive_seed,
    from_json,
    to_json,
)
from tunelab.errors import InputError, RefusedError, TunelabError
from tunelab.files import write_atomically
from tunelab.models.check import check
from tunelab.noise import CONFIDENCE, DIVERGED, Noise, full_length, noise_at
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, load, write_csv
from tunelab.tuning.hardware import describe_hardware
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import run_configs
from tunelab.variants import Ablation, Variant

from .ablate_plot import draw_effects, effects
from .changes import find_variants
from .judging import judge


def ablate(
    study: Study | str | Path,
    *,
    trial: int | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    components: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the best trial's configuration, and variants of it with one component changed, and compares them.

    Returns what `ablation.json` holds; that, `ablation.csv` and `ablation.png` go into `ablate-...` inside the study.
    An interrupted ablation goes on; what was trained before is not trained again, also when more seeds or components
    are asked for. Scores are of the validation images; the test images are never read.

    Args:
        study: the study, or its folder.
        trial: another trial than the best one.
        epochs: the full length; by default the study's.
        seeds: how many times each configuration is trained, all of them with the same seeds.
        components: what is changed, by names of `tunelab.analysis.components`; by default all.
        progress: shows the progress on standard error.

    Raises:
        InputError: there is no such trial or component, nothing to compare, or the data has changed.
        PausedError: a signal stopped it; the same call goes on.
        TunelabError: every training of the configuration itself failed.
    """
    opened = study if isinstance(study, Study) else load(study)
    laid_out = lay_out(opened, trial=trial, epochs=epochs, seeds=seeds, components=components)
    wanted = _configs(laid_out)
    begun = _begun(laid_out.folder)
    known = {_key(config) for config in begun}
    configs = [*begun, *(config for config in wanted if _key(config) not in known)]
    name = f"trial {laid_out.trial} of {opened.name}"
    runs = run_configs(
        laid_out.folder,
        configs,
        from_json(
            SearchOptions,
            {
                **opened.info["options"],
                **_sharing(opened, len(configs)),
                "epochs": laid_out.winner.train.epochs,
            },
        ),
        like=opened,
        kind="ablate",
        title=f"{name} and {len(laid_out.variants)} variants, seeds: {seeds} -> {laid_out.folder}",
        about={"study": str(opened.path), "trial": laid_out.trial},
        show_progress=progress,
    )
    found = _compare(opened, laid_out, runs)
    _write(laid_out.folder, found, name)
    return found


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
    ended = {_digest(one.config) for one in _trials(laid_out.folder) if one.status.ended}
    epochs = study.trial(laid_out.trial).epochs
    each = statistics.fmean(one.seconds for one in epochs) * laid_out.winner.train.epochs if epochs else None
    return {
        **_head(study, laid_out),
        "variants": [_said(variant) for variant in laid_out.variants],
        "trainings": laid_out.trainings,
        "trained": sum(_key(config) in ended for config in _configs(laid_out)),
        "seconds_each": each,
    }


def _baseline(study: Study, winner: TrialConfig) -> tuple[TrialConfig, str]:
    """What components are put back to, and where it comes from in words."""
    for trial in study.list_trials():
        first = trial.number == 0 and trial.origin == "" and study.info.get("baseline", True)  # a record of old
        if trial.repeat_of is None and (trial.origin == "baseline" or first):
            return study.config(trial), f"trial {trial.number}, the study's baseline"
    if isinstance(winner.arch, ArchSpec):
        arch: ArchSpec | LeNetSpec = ArchSpec(StemSpec(winner.arch.stem.width), winner.arch.branches)
    else:
        arch = LeNetSpec()
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


def _sharing(study: Study, trainings: int) -> dict[str, Any]:
    """How the trainings share the machine: as was measured for the search, on another machine as is usual there."""
    slots, then, now = study.info.get("slots"), study.info.get("hardware", {}), describe_hardware()
    if slots is None or any(then.get(name) != now[name] for name in ("processor", "cpus", "gpus")):
        return dict.fromkeys(("concurrent", "cpus_per_trial", "gpus_per_trial"))
    return {
        "concurrent": min(int(slots["concurrent"]), trainings),
        "cpus_per_trial": slots["cpus"],
        "gpus_per_trial": slots["gpus"] or None,
    }


def _configs(laid_out: Ablation) -> list[TrialConfig]:
    """All trainings, seed by seed, so that what is trained first can be compared first."""
    of_all = [laid_out.winner, *(variant.config for variant in laid_out.variants)]
    return [dataclasses.replace(config, seed=seed) for seed in laid_out.seeds for config in of_all]


def _trials(folder: Path) -> list[Trial]:
    return Study.open(folder).list_trials() if (folder / "study.json").exists() else []


def _begun(folder: Path) -> list[TrialConfig]:
    """What an earlier call has begun, in its order; entry n is trial n."""
    return [from_json(TrialConfig, trial.config) for trial in _trials(folder)]


def _digest(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True)


def _key(config: TrialConfig) -> str:
    """What tells two trainings apart, seed included."""
    return _digest(to_json(config))


def _compare(study: Study, laid_out: Ablation, runs: Study) -> dict[str, Any]:
    """What `ablation.json` holds: losses are in nats, accuracies lie in [0, 1]; the largest loss comes first.

    Means are over the runs that did not fail. A run that diverged has an accuracy of 0 and no loss.
    """
    trials = {_digest(trial.config): trial for trial in runs.list_trials()}

    def runs_of(config: TrialConfig) -> list[Trial]:
        return [trials[_key(dataclasses.replace(config, seed=seed))] for seed in laid_out.seeds]

    own = runs_of(laid_out.winner)
    others = [runs_of(variant.config) for variant in laid_out.variants]
    scores = [[_score(trial) for trial in group] for group in (own, *others)]
    if all(score is None for score in scores[0]):
        raise TunelabError(
            f"every training of trial {laid_out.trial} failed: {own[0].reason}; remove {runs.path} to try again"
        )
    epochs = laid_out.winner.train.epochs
    noise, judged = judge(
        scores[0], scores[1:], _guess(study, [*own, *(one for group in others for one in group)], epochs)
    )
    rows = [
        {**_said(variant), **_measured(group), **row}
        for variant, group, row in zip(laid_out.variants, others, judged, strict=True)
    ]
    return {
        **_head(study, laid_out),
        "winner": _measured(own),
        "variants": sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0.0)),
        "noise": dataclasses.asdict(noise),
        "confidence": CONFIDENCE,
        "by_chance": (1 - CONFIDENCE) * sum(row["change"] is not None for row in rows),
        "val_images": study.val_images,
    }


def _head(study: Study, laid_out: Ablation) -> dict[str, Any]:
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


def _said(variant: Variant) -> dict[str, Any]:
    return {"component": variant.component, "change_made": variant.change, "what": variant.what}


def _score(trial: Trial) -> float | None:
    if trial.status is TrialStatus.COMPLETED:
        return trial.score
    return DIVERGED if trial.status is TrialStatus.DIVERGED else None


def _guess(study: Study, runs: Sequence[Trial], epochs: int) -> Noise:
    """What the noise is taken for beside what these runs tell: the search's, if its repeats measured it at this length.

    Else as `tunelab.noise` guesses it, from the runs themselves.
    """
    alike = [trial for trial in study.list_trials() if full_length(trial) == epochs]
    searched = noise_at(alike, epochs, study.val_images)
    if searched.repeats:
        return searched
    return noise_at([run for run in runs if run.status is TrialStatus.COMPLETED], epochs, study.val_images)


def _measured(group: Sequence[Trial]) -> dict[str, Any]:
    """The means of one configuration's runs."""
    ended = [trial.epochs[-1] for trial in group if trial.status is TrialStatus.COMPLETED]
    scores = [score for score in map(_score, group) if score is not None]

    def mean(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return statistics.fmean(there) if there else None

    return {
        "runs": len(scores),
        "diverged": sum(trial.status is TrialStatus.DIVERGED for trial in group),
        "failed": sum(trial.status is TrialStatus.FAILED for trial in group),
        "train_loss": mean([metrics.train_loss for metrics in ended]),
        "train_accuracy": mean([metrics.train_accuracy for metrics in ended]),
        "val_loss": mean([metrics.val_loss for metrics in ended]),
        "val_accuracy": mean(scores),
        "scores": scores,
        "trials": [trial.number for trial in group],
        "params": group[0].stats.get("params"),
        "mflops": group[0].stats.get("mflops"),
        "seconds": mean([sum(metrics.seconds for metrics in trial.epochs) for trial in group]),
    }


def _write(folder: Path, found: Mapping[str, Any], name: str) -> None:
    first = {"component": "(none)", "change_made": "unchanged", "what": ""}
    rows = [{**first, **found["winner"]}, *found["variants"]]
    flat = [{column: value for column, value in row.items() if column not in ("scores", "trials")} for row in rows]
    write_csv(folder / "ablation.csv", flat)
    title = f"{name}, {found['epochs']} epochs, {len(found['seeds'])} seeds"
    draw_effects(effects(found["variants"]), folder / "ablation.png", title)
    write_atomically(folder / "ablation.json", json.dumps(found, indent=2) + "\n")
