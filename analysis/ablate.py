"""What each component of a configuration is worth: trained again without it, several times, and judged by the noise."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import TrialConfig, from_json
from tunelab.errors import TunelabError
from tunelab.files import write_atomically
from tunelab.noise import CONFIDENCE, DIVERGED, Noise, full_length, noise_at
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, load, write_csv
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.hardware import describe_hardware
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.site import Site
from tunelab.variants import Ablation

from .ablate_plan import as_key, configs_of, described, heading, lay_out, training_key, trials_in
from .ablate_plot import draw_effects, effects
from .judging import judge


def ablate(
    study: Study | str | Path,
    *,
    trial: int | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    components: Sequence[str] = (),
    address: str | None = None,
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
        address: the Ray cluster to train on, as for `search`; by default this machine alone.
        progress: shows the progress on standard error.

    Raises:
        InputError: there is no such trial or component, nothing to compare, or the data has changed.
        PausedError: a signal stopped it; the same call goes on.
        TunelabError: every training of the configuration itself failed.
    """
    opened = study if isinstance(study, Study) else load(study)
    laid_out = lay_out(opened, trial=trial, epochs=epochs, seeds=seeds, components=components)
    wanted = configs_of(laid_out)
    begun = _begun(laid_out.folder)
    known = {training_key(config) for config in begun}
    configs = [*begun, *(config for config in wanted if training_key(config) not in known)]
    name = f"trial {laid_out.trial} of {opened.name}"
    runs = run_configs(
        laid_out.folder,
        configs,
        from_json(
            SearchOptions,
            {
                **opened.info["options"],
                **_sharing(opened, len(configs), here=address is None),
                "epochs": laid_out.winner.train.epochs,
                "health": False,  # a comparison has all its trainings in full
            },
        ),
        like=opened,
        kind="ablate",
        title=f"{name} and {len(laid_out.variants)} variants, seeds: {seeds} -> {laid_out.folder}",
        about={"study": str(opened.path), "trial": laid_out.trial},
        show_progress=progress,
        site=Site(address),
    )
    found = _compare(opened, laid_out, runs)
    _write(laid_out.folder, found, name)
    return found


def _sharing(study: Study, trainings: int, *, here: bool) -> dict[str, Any]:
    """How the trainings share the machine: as was measured for the search, on another machine as is usual there."""
    if not here or "cluster" in study.info:
        return dict.fromkeys(("concurrent", "cpus_per_trial", "gpus_per_trial"))
    slots, then, now = study.info.get("slots"), study.info.get("hardware", {}), describe_hardware()
    if slots is None or any(then.get(name) != now[name] for name in ("processor", "cpus", "gpus")):
        return dict.fromkeys(("concurrent", "cpus_per_trial", "gpus_per_trial"))
    return {
        "concurrent": min(int(slots["concurrent"]), trainings),
        "cpus_per_trial": slots["cpus"],
        "gpus_per_trial": slots["gpus"] or None,
    }


def _begun(folder: Path) -> list[TrialConfig]:
    """What an earlier call has begun, in its order; entry n is trial n."""
    return [from_json(TrialConfig, trial.config) for trial in trials_in(folder)]


def _compare(study: Study, laid_out: Ablation, runs: Study) -> dict[str, Any]:
    """What `ablation.json` holds: losses are in nats, accuracies lie in [0, 1]; the largest loss comes first.

    Means are over the runs that did not fail. A run that diverged has an accuracy of 0 and no loss.
    """
    trials = {as_key(trial.config): trial for trial in runs.list_trials()}

    def runs_of(config: TrialConfig) -> list[Trial]:
        return [trials[training_key(dataclasses.replace(config, seed=seed))] for seed in laid_out.seeds]

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
        {**described(variant), **_measured(group), **row}
        for variant, group, row in zip(laid_out.variants, others, judged, strict=True)
    ]
    return {
        **heading(study, laid_out),
        "winner": _measured(own),
        "variants": sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0.0)),
        "noise": dataclasses.asdict(noise),
        "confidence": CONFIDENCE,
        "by_chance": (1 - CONFIDENCE) * sum(row["change"] is not None for row in rows),
        "val_images": study.val_images,
    }


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
