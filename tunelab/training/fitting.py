"""All of a training in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunelab.config import ComputeConfig, Telemetry, TrialConfig
from tunelab.records import EpochMetrics
from tunelab.training.loop import Trainer


def fit(
    config: TrialConfig,
    report: Callable[[EpochMetrics], bool | None] | None = None,
    *,
    folder: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    telemetry: Telemetry = "scalars",
    compute: ComputeConfig | None = None,
    memory: int | None = None,
) -> list[EpochMetrics]:
    """Train `config` to its full length, or until `report` returns False; the metrics of all epochs.

    A checkpoint of the same configuration in `folder` is gone on from; `report` hears of the new epochs only, and a
    second time of one whose checkpoint a killed process had not written yet. The rest is as `Trainer` takes it.

    Raises:
        DivergedError: the training left the finite numbers.
        InputError: something in the configuration, the device or the data cannot be used.
        OSError: a checkpoint could not be written.
    """
    trainer = Trainer(
        config, folder=folder, device=device, threads=threads, telemetry=telemetry, compute=compute, memory=memory
    )
    try:
        trainer.resume()
        while not trainer.finished:
            metrics = trainer.run_epoch()
            if report is not None and report(metrics) is False:
                break
    finally:
        trainer.close()
    return list(trainer.history)
