"""What looking at the health of a network costs: the share of each epoch's processor time that is spent on it.

    python benchmarks/health_cost.py --epochs 12

A small network and a median one of the space `arch` are trained on random images of 32x32, batches of 128, with one
thread. The time inside the observer and its hooks is measured directly, as processor time of the thread: a few
thousandths of an epoch are less than what a ratio of two trainings can tell. The first epoch, which has more looks, is
told apart from the others, of which the median and the range are shown. The numbers of all epochs must be the same as
without health, to the last bit.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training_networks import images_at_hand, lengthened, pick_networks

from tunelab.config import TrialConfig
from tunelab.training.health import Health
from tunelab.training.loop import Trainer
from tunelab.training.vital_signs import Sensors

OWN = (
    *((Health, name) for name in ("wants", "before", "after", "epoch_ended")),
    *((Sensors, name) for name in ("_see_units", "_see_saturation", "_see_dropout", "_see_scores")),
)
NUMBERS = "train_loss", "train_accuracy", "val_loss", "val_accuracy", "weight_norm", "grad_norm"


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    """Adds the processor time inside the methods of OWN to `spent`; none of them calls another."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*given, **named)
            finally:
                spent.append(time.thread_time() - began)

        return run

    with ExitStack() as stack:
        for owner, name in OWN:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield


def train(config: TrialConfig, watched: bool) -> tuple[list[float], list[tuple[Any, ...]]]:
    """The share of health in each epoch of a training, and what the epochs measured."""
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        spent: list[float] = []
        with timed(spent):
            trainer = Trainer(
                config, folder=Path(folder), device="cpu", threads=1, telemetry="off",
                observers=(Health(Path(folder)),) if watched else (),
            )  # fmt: skip
            while not trainer.finished:
                spent.clear()
                began = time.thread_time()
                trainer.run_epoch()
                shares.append(sum(spent) / (time.thread_time() - began))
            trainer.close()
    return shares, [tuple(getattr(metrics, name) for name in NUMBERS) for metrics in trainer.history]


def main() -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=2048, help="training images; 2048 are 16 steps")
    parser.add_argument("--networks", default="small,median", help="of small, median, large and resnet18")
    options = parser.parse_args()
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, {options.images} images")
    print(f"{'network':8} {'first epoch':>12} {'later epochs':>24}")
    with tempfile.TemporaryDirectory() as folder:
        data = images_at_hand(Path(folder), None, options.images, 256)
        for name in options.networks.split(","):
            config = lengthened(pick_networks()[name], data, options.epochs)
            plain = train(config, watched=False)[1]
            (first, *later), numbers = train(config, watched=True)
            if numbers != plain:
                raise SystemExit("health changes the numbers of a training")
            middle, low, high = (f"{100 * share:.2f}%" for share in (statistics.median(later), min(later), max(later)))
            print(f"{name:8} {100 * first:11.2f}% {f'{middle} ({low} to {high})':>24}")


if __name__ == "__main__":
    main()
