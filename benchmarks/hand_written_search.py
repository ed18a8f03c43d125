"""The search that a user writes by hand with Ray Tune: what benchmarks/search_throughput.py compares tunelab with.

    python benchmarks/hand_written_search.py IMAGES.npz RESULT.json TRIALS EPOCHS SEED

A function trainable, a DataLoader over PIL images with torchvision's transforms, float32, Ray's OptunaSearch and Ray's
ASHAScheduler with their defaults, a trial per processor. The configurations are those of the space `arch`: its draws,
its networks, its optimizers and schedules; its crops and flips, which is what torchvision has for them. A network
beyond the limits is drawn again, under other names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class Attempt:
    """An Optuna trial that asks under names of its own."""

    def __init__(self, trial: Any, number: int) -> None:
        self._trial = trial
        self._prefix = f"try {number}: " if number else ""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Optuna's."""
        return self._trial.suggest_categorical(self._prefix + name, list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Optuna's."""
        return int(self._trial.suggest_int(self._prefix + name, low, high, step=step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Optuna's."""
        return float(self._trial.suggest_float(self._prefix + name, low, high, step=step, log=log))


def draw(trial: Any) -> dict[str, Any]:
    """A configuration whose network is within the limits of a search on a processor."""
    from tunelab.config import to_json
    from tunelab.errors import RefusedError
    from tunelab.models.check import check
    from tunelab.space import load_space
    from tunelab.tuning.options import LIMITS

    space = load_space("arch")
    params, mflops = LIMITS["cpu"]
    number = 0
    while True:
        config = space.draw(Attempt(trial, number))
        number += 1
        try:
            check(config.arch, image_size=(32, 32), channels=3, classes=10, max_params=params, max_mflops=mflops)
        except RefusedError:
            continue
        return {"trial_config": to_json(config)}


def train(given: dict[str, Any], *, images: str, epochs: int) -> None:
    """Trains one configuration, and reports after each epoch."""
    import dataclasses

    import numpy as np
    import torch
    from PIL import Image
    from ray import tune
    from torch import nn

    from tunelab.config import TrialConfig, from_json
    from tunelab.data.vision import import_torchvision
    from tunelab.models.network import build_network
    from tunelab.training.optim import build_optimizer, set_lr
    from tunelab.training.schedules import lr_factor

    import_torchvision()
    from torchvision import transforms

    torch.set_num_threads(1)
    config = from_json(TrialConfig, given["trial_config"])
    recipe = dataclasses.replace(config.train, epochs=epochs)
    augment = recipe.augment
    arrays = np.load(images)
    steps: list[Any] = [transforms.ToTensor(), transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]
    plain = transforms.Compose(steps)
    if augment.flip:
        steps.insert(0, transforms.RandomHorizontalFlip())
    if augment.crop:
        steps.insert(0, transforms.RandomCrop(32, padding=round(augment.crop * 32)))
    changed = transforms.Compose(steps)

    class Images(torch.utils.data.Dataset[Any]):
        def __init__(self, split: str, transform: Any) -> None:
            self.pixels, self.labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            self.transform = transform

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])

    loader = torch.utils.data.DataLoader(Images("train", changed), recipe.batch_size, shuffle=True, drop_last=True)
    held_out = torch.utils.data.DataLoader(Images("val", plain), 256)
    model = build_network(config.arch, 3, 10, (32, 32)).to(memory_format=torch.contiguous_format)
    optimizer = build_optimizer(model, recipe)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    losses: list[tuple[float, float]] = []
    for epoch in range(epochs):
        model.train()
        for step, (inputs, targets) in enumerate(loader):
            progress = (epoch + (step + 0.5) / len(loader)) / epochs
            set_lr(optimizer, recipe.lr * lr_factor(recipe.schedule, progress, losses))
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        model.eval()
        right, total = 0, 0.0
        with torch.no_grad():
            for inputs, targets in held_out:
                scores = model(inputs)
                right += int((scores.argmax(1) == targets).sum())
                total += float(criterion(scores, targets)) * len(targets)
        count = len(arrays["val_labels"])
        losses.append(((epoch + 1) / epochs, total / count))
        tune.report({"accuracy": right / count})


def main() -> None:
    """Runs the search; what came of it goes to a file."""
    images, result, trials, epochs, seed = sys.argv[1:]
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", RAY_USAGE_STATS_ENABLED="0", RAY_CHDIR_TO_TRIAL_DIR="0")
    began = time.time()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    cpus = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="hw-", dir="/tmp") as folder:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, _temp_dir=folder + "/r")
        try:
            trainable = tune.with_parameters(train, images=str(Path(images).absolute()), epochs=int(epochs))
            tuner = tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    metric="accuracy",
                    mode="max",
                    num_samples=int(trials),
                    max_concurrent_trials=cpus,
                    search_alg=OptunaSearch(space=draw, metric="accuracy", mode="max", seed=int(seed)),
                    scheduler=ASHAScheduler(max_t=int(epochs)),
                ),
                run_config=tune.RunConfig(storage_path=folder + "/tune", verbose=0),
            )
            found = list(tuner.fit())
        finally:
            ray.shutdown()
    ended = [one for one in found if one.error is None]
    curves = [one.metrics_dataframe[["timestamp", "accuracy"]] for one in ended]
    reports = sorted((float(at) - began, float(score)) for curve in curves for at, score in curve.to_numpy())
    answer = {"seconds": time.time() - began, "trials": len(ended), "reports": reports}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
