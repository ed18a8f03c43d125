"""What a retraining came to: each seed, their mean with its interval, what the search had expected, and an ensemble."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from tunelab.config import TrialConfig, to_json
from tunelab.records import Trial
from tunelab.standings import on_new_data
from tunelab.study import Study
from tunelab.training.evaluate import ensemble, judge

from .intervals import of_images, of_trainings


def outcome(
    study: Study,
    chosen: Trial,
    configs: Sequence[TrialConfig],
    trained: Sequence[Trial],
    scores: Sequence[torch.Tensor],
    labels: torch.Tensor,
) -> dict[str, Any]:
    """The numbers of `metrics.json`: accuracies lie in [0, 1], losses are in nats, `seconds` is training time.

    Args:
        study: the search.
        chosen: its trial that was trained in full.
        configs: what was trained, one for each seed.
        trained: the trainings.
        scores: what each network says of the test images, (N, classes) before the softmax.
        labels: of the test images, (N,).
    """
    results = [judge(one, labels) for one in scores]
    accuracies = [result.accuracy for result in results]
    several = len(results) > 1
    interval = of_trainings(accuracies) if several else of_images(results[0].correct, results[0].n)
    mean = statistics.fmean(accuracies)
    return {
        "study": study.place,
        "trial": chosen.number,
        "arch_id": chosen.arch_id,
        "epochs": configs[0].train.epochs,
        "recipe": to_json(configs[0].train),
        "trained_on": configs[0].data.train_on,
        **_searched(study, chosen, mean),
        "test_accuracy": mean,
        "test_accuracy_std": statistics.stdev(accuracies) if several else None,
        "test_interval": interval,
        "test_loss": statistics.fmean(result.loss for result in results),
        "test_images": results[0].n,
        "ensemble": _together(scores, labels) if several else None,
        "validation": _validated(study, trained),
        "params": chosen.stats.get("params"),
        "mflops": chosen.stats.get("mflops"),
        "seeds": [
            {
                "seed": config.seed,
                "weights": "model.safetensors" if place == 0 else f"model-{place}.safetensors",
                "test": {**result.to_json(), "interval": of_images(result.correct, result.n)},
                "last_epoch": run.epochs[-1].to_json(),
                "seconds": sum(metrics.seconds for metrics in run.epochs),
                "notes": run.notes,
            }
            for place, (config, run, result) in enumerate(zip(configs, trained, results, strict=True))
        ],
    }


def _searched(study: Study, chosen: Trial, test_accuracy: float) -> dict[str, Any]:
    """What the search had measured and expected; of a trial that did not run its full length, what it measured.

    `search_low` to `search_high` is the interval on new data, as `tunelab best` tells it: the test images are new.
    """
    place = next((one for one in study.standings() if chosen.number in one.runs), None)
    standing = None if place is None else place.standing
    low = high = None
    if standing is not None:
        low, high = on_new_data(standing, study.val_images) if study.val_images else (standing.low, standing.high)
    return {
        "search_val_accuracy": chosen.score if standing is None else standing.mean,
        "search_runs": 1 if standing is None else standing.runs,
        "search_epochs": len(chosen.epochs),
        "search_expected": None if standing is None else standing.expected,
        "search_low": low,
        "search_high": high,
        "search_interval_holds": None if low is None or high is None else low <= test_accuracy <= high,
    }


def _together(scores: Sequence[torch.Tensor], labels: torch.Tensor) -> dict[str, Any]:
    """The networks as one: the mean of their probabilities."""
    found = judge(ensemble(scores), labels)
    return {"models": len(scores), **found.to_json(), "interval": of_images(found.correct, found.n)}


def _validated(study: Study, trained: Sequence[Trial]) -> dict[str, Any] | None:
    """The validation accuracy of the last epochs; None if the validation images were trained on too."""
    accuracies = [run.epochs[-1].val_accuracy for run in trained]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) < len(accuracies):
        return None
    images = study.val_images
    several = len(known) > 1
    return {
        "accuracy": statistics.fmean(known),
        "std": statistics.stdev(known) if several else None,
        "interval": of_trainings(known) if several else of_images(round(known[0] * images), images),
        "images": images,
    }
