"""How long a trained model takes for an answer on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunelab.training.model_files import Model
from tunelab.tuning.hardware import describe_hardware

BATCHES = (1, 64)
WARM_UP = 3
"""Answers before the first that is timed: libraries choose their ways of computing in them; our choice."""
SECONDS = 1.0
"""So long the answers to one batch size are timed, but at least LEAST and at most MOST of them; our choice."""
LEAST, MOST = 5, 200


def measure_latency(model: Model, batches: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    """The milliseconds from normalised images on the device to scores on the host, for each batch size.

    Each row has `batch`, `median_ms`, `low_ms` and `high_ms` (the 10% and 90% quantiles), `answers` (how many were
    timed), `device` and `threads` (None on a GPU). It is computed in float32, as `tunelab predict` does.
    """
    device = next(model.network.parameters()).device
    hardware = describe_hardware()
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else hardware["processor"]
    about = {"device": name, "threads": None if on_gpu else torch.get_num_threads()}
    return [{"batch": batch, **_summary(_time(model, batch, device)), **about} for batch in batches]


def _time(model: Model, batch: int, device: torch.device) -> list[float]:
    """The seconds of each answer that was timed."""
    images = torch.zeros((batch, model.info.channels, *model.info.image_size), device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(WARM_UP):
        _answer(model, images)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - began < SECONDS):
        before = time.perf_counter()
        _answer(model, images)
        times.append(time.perf_counter() - before)
    return times


def _answer(model: Model, images: Tensor) -> None:
    with torch.inference_mode():
        model.network(images).cpu()  # which waits for a GPU


def _summary(times: Sequence[float]) -> dict[str, float | int]:
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    low, high = tenths[0], tenths[-1]
    return {
        "median_ms": round(1000 * statistics.median(times), 4),
        "low_ms": round(1000 * low, 4),
        "high_ms": round(1000 * high, 4),
        "answers": len(times),
    }
