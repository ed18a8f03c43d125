"""`torch.compile` where it pays: in a long training, if its own steps are measured to be faster so.

Compiling takes half a minute, for a deep network some minutes, and gains little or nothing on some networks. So it is
tried on a copy, once, and only where a tenth of the time that is left is more than that. The compiled code takes the
weights as its input: what was compiled for the copy serves the network that is trained.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tunelab.config import TrainConfig
from tunelab.data.batches import Batch, TrainBatches
from tunelab.training.device import reset_peak_memory, return_freed_memory
from tunelab.training.optim import build_optimizer
from tunelab.training.step import EAGER_STEPS, Forward, Steps

LEAST_SECONDS = 600.0
"""With less than this left nothing is tried: a minute of compiling would be more than a usual gain; our choice."""

LEAST_STEPS = 500
"""The same, in steps: up to some hundreds are timed of each; our choice."""

LONG_EPOCH = 60.0
"""Seconds of an epoch in which what the first one does more, such as starting libraries, is nothing; our choice."""

_LAYER_SECONDS = 4.0  # for each layer with a matrix or a kernel; 2.0 to 5.0 were measured on one and two cores
_SHARE = 0.1  # of the time left, the most that compiling may be expected to take; our choice
_WORTH = 1.05  # times as fast as before it must be: less is within the noise; our choice
_ROUNDS = 7  # in each of which both are timed, one after the other; our choice
_ROUND_SECONDS = 0.5  # of a round of plain steps, within the numbers of the next line; our choice
_MOST_STEPS = 50
_WARM_UP = EAGER_STEPS + 2  # a graph is recorded in the last but one; on a processor two would do
_LONGEST_REASON = 200  # characters; torch says pages

MakeSteps = Callable[[Forward, torch.optim.Optimizer], Steps]


@dataclass(frozen=True)
class Found:
    """What trying came to, in a line for people, and the form to go on with, None where that is the network itself."""

    note: str
    form: Forward | None = None


def seconds_left(epochs: Sequence[float], to_come: int) -> float:
    """How long `to_come` epochs train, from the seconds of those that this process has trained; 0 if these do not say.

    The fastest counts. The first says nothing by itself unless it is long: it also starts libraries and fills caches.
    """
    if not epochs or (len(epochs) == 1 and epochs[0] < LONG_EPOCH):
        return 0.0
    return min(epochs) * to_come


def worth_trying(model: nn.Module, seconds: float, steps: int) -> bool:
    """True if so much is left of the training of `model` that finding out costs little of it, whatever it comes to.

    Args:
        model: what would be compiled.
        seconds: how long it still trains.
        steps: in how many steps.
    """
    layers = sum(parameter.ndim >= 2 for parameter in model.parameters())
    return steps >= LEAST_STEPS and seconds >= max(LEAST_SECONDS, layers * _LAYER_SECONDS / _SHARE)


def compiled_form(model: nn.Module) -> Forward:
    """Compiles the forward and backward pass of `model` when it is first called; `model` itself stays as it is.

    The names of its weights do not change, and called directly it computes as before.
    """
    form: Forward = torch.compile(model, dynamic=False)
    return form


def judge(plain: Sequence[float], compiled: Sequence[float]) -> tuple[float, bool]:
    """How many times as fast compiled steps were, the median of the rounds, and whether that is a clear gain.

    It is, if it is at least 1.05 and at most one round says the opposite. Where both are equally fast, chance makes at
    most one of 7 rounds do so in one of 16 trainings.

    Args:
        plain: the seconds of a step, in each round.
        compiled: the same of compiled steps, in the same rounds.
    """
    ratios = [one / other for one, other in zip(plain, compiled, strict=True)]
    times = statistics.median(ratios)
    return times, times >= _WORTH and sum(ratio <= 1.0 for ratio in ratios) <= 1


def try_out(
    model: nn.Module, make_steps: MakeSteps, train: TrainConfig, batches: TrainBatches, lr: float, device: torch.device
) -> Found:
    """Trains two copies of `model`, one of them compiled, on the batches of the first epoch, and compares their speed.

    Making the batches is timed too: what counts is the whole of a training. `model` is not changed; torch's random
    state is. Where something goes wrong (no compiler, no Triton, too little memory) that is the answer, and no error.

    Args:
        model: in the middle of its training.
        make_steps: gives the steps of a network, or of its compiled form, and an optimizer.
        train: the recipe.
        batches: what both are trained on.
        lr: the rate that both are trained at.
        device: where all of this is.
    """

    def build(form: Callable[[nn.Module], Forward]) -> _Timed:
        own = copy.deepcopy(model).train()
        return _Timed(make_steps(form(own), build_optimizer(own, train)), batches, lr, device)

    began = time.perf_counter()
    try:
        with _compiling():
            times, clear = judge(*_race(build))
    except Exception as error:  # torch's have no common class, and no training is to end of one
        found = Found(f"not compiled: {_reason(error)}")
    else:
        why = "" if clear or times < 1.0 else ", no clear gain"
        took = f"finding that out took {time.perf_counter() - began:.0f} s"
        note = f"{'' if clear else 'not '}compiled: {times:.2f} x as fast{why}; {took}"
        found = Found(note, compiled_form(model) if clear else None)
    if found.form is None:
        torch._dynamo.reset()
    return_freed_memory(device)
    reset_peak_memory(device)
    return found


class _Timed:
    """Steps that are taken to be timed, on the batches of the first epoch over and over."""

    def __init__(self, steps: Steps, batches: TrainBatches, lr: float, device: torch.device) -> None:
        self._steps, self._lr, self._device = steps, lr, device
        self._batches = _endless(batches)

    def seconds(self, number: int) -> float:
        """Takes `number` steps; the seconds of each."""
        began = time.perf_counter()
        for batch in itertools.islice(self._batches, number):
            self._steps.train(batch, self._lr)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return (time.perf_counter() - began) / number

    def close(self) -> None:
        self._batches.close()
        self._steps.close()


def _race(build: Callable[[Callable[[nn.Module], Forward]], _Timed]) -> tuple[list[float], list[float]]:
    """The seconds of a step in each round: as the network is, and compiled."""
    with contextlib.closing(build(lambda model: model)) as plain, contextlib.closing(build(compiled_form)) as compiled:
        compiled.seconds(_WARM_UP)  # first, for most of what can fail fails here
        plain.seconds(_WARM_UP)
        number = min(_MOST_STEPS, max(1, math.ceil(_ROUND_SECONDS / plain.seconds(1))))
        rounds: tuple[list[float], list[float]] = [], []
        for one in range(_ROUNDS):
            turns = [(plain, rounds[0]), (compiled, rounds[1])]
            for timed, found in turns if one % 2 else reversed(turns):  # a machine that gets slower favours neither
                found.append(timed.seconds(number))
        return rounds


def _endless(batches: TrainBatches) -> Generator[Batch, None, None]:
    while True:
        yield from batches.epoch(1)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """With no more processes at once than the training has threads, and without what torch warns of meanwhile.

    What was compiled before is forgotten: torch gives up a function that was compiled for 8 networks.
    """
    import torch._inductor.config as settings  # with what it imports takes seconds, and is needed here alone

    torch._dynamo.reset()
    threads = min(settings.compile_threads or 1, torch.get_num_threads())
    with warnings.catch_warnings(), settings.patch(compile_threads=threads):
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of what torch wraps in an error of its own, the inner one."""
    inner = getattr(error, "inner_exception", error)
    lines = str(inner).strip().splitlines()
    return f"{type(inner).__name__}: {lines[0] if lines else ''}"[:_LONGEST_REASON]
