"""How fast one configuration trains here: some of its steps and a part of its validation are timed.

It is asked in lines of JSON. The first answer is `{"hello": true}`. At `{"config": ..., "device": ..., "threads": ...,
"memory": ...}`, with `"compute": ...` where a way to compute was chosen, it builds the trial, trains it some steps, and
says `{"ready": true}`. At each `{"go": true, "threads": ..., "seconds": ...}` it measures, and says `{"measured": ...}`
with the fields of `Measured`; with `"full_validation": true` the validation is of a whole batch. What cannot be done is
answered with `{"error": ...}`. Nothing is written anywhere.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import psutil
import torch

from tunelab.config import ComputeConfig, TrainConfig, TrialConfig, from_json
from tunelab.errors import InputError
from tunelab.training.device import peak_memory_mib, return_freed_memory, set_up_threads
from tunelab.training.evaluate import BATCH_PIXELS
from tunelab.training.loop import Trainer
from tunelab.training.optim import build_optimizer
from tunelab.training.step import EAGER_STEPS

WARM_UP = 2
"""Steps before the timed ones: the first compiles the kernels of its shapes, the second fills caches; our choice."""

_GPU_CHUNK = 10  # steps between two waits for a GPU: waiting for each one would be timed too


@dataclass(frozen=True)
class Measured:
    """What was measured of one configuration. Times are in seconds, memory in MiB.

    `step`: the median training step, of `images` images. `val_image`: validation of one image, None where nothing is
    held out. `build`: making the network and its optimizer. `warm_up`: what the first steps took more than later ones.
    `memory`: the peak of the process's resident memory, or of torch's allocations on a GPU; `idle`: the same before
    the network was built; `host_memory`: the peak of the resident memory on either. `steps`: how many were timed.
    `free`: free memory of the GPU, None without one.
    """

    step: float
    images: int
    val_image: float | None
    build: float
    warm_up: float
    memory: float
    idle: float
    host_memory: float
    steps: int
    free: float | None = None


class Rehearsal:
    """A trial that is trained to be timed, and for nothing else. `close` it.

    Args:
        config: what to train.
        device: as `Trainer` takes it.
        threads: the number of processors to compute with.
        memory: as `Trainer` takes it.
        compute: as `Trainer` takes it.

    Raises:
        InputError: something in the configuration, the device or the data cannot be used.
    """

    def __init__(
        self,
        config: TrialConfig,
        device: str,
        threads: int,
        memory: int | None = None,
        compute: ComputeConfig | None = None,
    ) -> None:
        return_freed_memory(torch.device("cpu"))
        resident = psutil.Process().memory_info().rss / 2**20
        began = time.perf_counter()
        self._trainer = Trainer(config, device=device, threads=threads, telemetry="off", memory=memory, compute=compute)
        self._device = self._trainer.device
        self._steps = self._trainer.practise()
        self._threads = threads
        self._idle = 0.0 if self._device.type == "cuda" else resident
        self._wait()
        self._build = time.perf_counter() - began
        warm_up = WARM_UP + (EAGER_STEPS if self._device.type == "cuda" else 0)  # a graph is recorded among them
        self._first = sum(self._train(1)[0] for _ in range(warm_up))
        self._warm_up = warm_up
        self._trainer.practise_validation(1)

    def measure(self, threads: int, seconds: float, full_validation: bool = False) -> Measured:
        """Trains for `seconds`, at least one step, then validates for about a quarter of that time.

        With `full_validation` it validates as many images at once as a training does, however long that takes: then
        the memory is that of a training too.

        Where a step takes longer than `seconds`, that is all that is learnt: threads that wait for busy processors can
        be hundreds of times slower than one.
        """
        took: list[float] = []
        images = 0
        if threads != self._threads:
            set_up_threads(threads)
            self._threads = threads
            first, images = self._train(1)  # starts the threads
            took += [first] if first > seconds else []
        gave_up = bool(took)
        end = time.perf_counter() + (0.0 if gave_up else seconds)
        while not took or time.perf_counter() < end:
            each, images = self._train(_GPU_CHUNK if self._device.type == "cuda" else 1)
            took.append(each)
        step = statistics.median(took)
        val_images = math.inf if full_validation else seconds / 4 / (step / images)
        return Measured(
            step=step,
            images=images,
            val_image=None if gave_up else self._validate(val_images),
            build=self._build,
            warm_up=max(0.0, self._first - self._warm_up * step),
            memory=peak_memory_mib(self._device),
            idle=self._idle,
            host_memory=peak_memory_mib(torch.device("cpu")),
            steps=len(took),
            free=torch.cuda.mem_get_info(self._device)[0] / 2**20 if self._device.type == "cuda" else None,
        )

    def close(self) -> None:
        """Lets go of everything."""
        self._trainer.close()

    def _train(self, steps: int) -> tuple[float, int]:
        """Seconds per step of so many steps, and the images of a step."""
        began = time.perf_counter()
        images = sum(next(self._steps) for _ in range(steps))
        self._wait()
        return (time.perf_counter() - began) / steps, images // steps

    def _validate(self, images: float) -> float | None:
        """Seconds per image of a validation of so many images, within the size of a batch."""
        height, width = self._trainer.info.image_size
        asked = int(min(1000, max(1, BATCH_PIXELS // (height * width)), max(16, images)))
        done, took = 0, 0.0
        for _ in range(2):  # the first compiles the kernels of its shapes
            began = time.perf_counter()
            done = self._trainer.practise_validation(asked)
            self._wait()
            took = time.perf_counter() - began
        return took / done if done else None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def serve(requests: Iterable[Mapping[str, Any]], answers: TextIO) -> None:
    """Answers requests until there are no more; what goes wrong in one is its answer."""

    def say(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    rehearsal: Rehearsal | None = None
    say({"hello": True})
    for request in requests:
        try:
            if "go" not in request:
                if rehearsal is not None:
                    rehearsal.close()
                    rehearsal = None
                config = from_json(TrialConfig, request["config"])
                compute = from_json(ComputeConfig, request.get("compute", {}))
                memory = request.get("memory")
                rehearsal = Rehearsal(config, request["device"], request["threads"], memory, compute)
                answer: dict[str, Any] = {"ready": True}
            elif rehearsal is None:
                raise InputError("there is nothing to measure: a configuration comes first")
            else:
                full = bool(request.get("full_validation"))
                answer = {"measured": asdict(rehearsal.measure(request["threads"], request["seconds"], full))}
        except Exception as error:  # whatever it is, the driver says it
            text = " ".join(str(error).split())[:300]
            answer = {"error": f"{type(error).__name__}: {text}"}
        say(answer)


def prepare() -> None:
    """Imports what the first trial would: torch imports half of itself for its first optimizer."""
    build_optimizer(torch.nn.Linear(1, 1), TrainConfig())
