"""A few seconds of measuring before a search: how many trials at once are fastest and fit, and how fast each will be.

For every way to divide the machine (`Slots`), as many processes as there would be trials train the baseline, a small
and a large draw at the same time. The way with the most images per second in total that fits into memory is taken; on
it further draws are measured, each process another one, as many as the time allows.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunelab.config import from_json
from tunelab.errors import TunelabError
from tunelab.tuning.footprint import CONTEXT_MIB, Footprint, Peaks
from tunelab.tuning.probes import PATIENCE, ProbeError, Probes, TooSlowError
from tunelab.tuning.quota import PROCESS_MIB, RAY_MIB, WORKER_MIB, in_words, share_memory
from tunelab.tuning.slots import Slots
from tunelab.tuning.speed import Load, Point, guess_step, load_of

_LAYOUT_SECONDS = 1.5  # for timing all layouts together; our choice
_DRAW_SECONDS = 2.5  # for measuring further draws, the building of networks included; our choice
_WINDOW = (0.1, 0.25)  # seconds in which one configuration is timed, at least and at most; our choice
_LONGEST_STEP = 0.3  # usual seconds of a step; larger batches are measured in part; our choice
_FAR_SLOWER = 0.6  # of the best layout's images per second on the baseline; our choice
_FAR_SLOWER_STEPS = 8  # a layout is given up when its first steps take as long as so many of the one before; our choice
_DISTURBED = 2.0  # times as slow as others let expect, twice the usual spread: a draw is measured again; our choice


@dataclass(frozen=True)
class Sample:
    """A configuration that may be measured, as plain JSON, and its load."""

    config: Mapping[str, Any]
    load: Load

    @classmethod
    def of(cls, config: Mapping[str, Any], stats: Mapping[str, Any]) -> Sample:
        """The sample of a configuration with the stats of its network."""
        return cls(config, load_of(config, stats))


@dataclass(frozen=True)
class Layout:
    """A way to divide the machine, and what was measured of it: images per second of all trials together.

    `memory` is what the largest trial needs, in MiB; `failed` says why there is no measurement.
    """

    slots: Slots
    images: float = 0.0
    memory: float = 0.0
    failed: str = ""


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what was made of it.

    `start` is how many seconds a process took until it could train, `trial` what a trial takes beside its steps;
    `limit` is the memory in MiB that there is for trials. `reason` says in words why `slots` were chosen. `footprint`
    says what memory a trial takes, None in older records.
    """

    slots: Slots
    layouts: tuple[Layout, ...]
    points: tuple[Point, ...]
    start: float
    trial: float
    limit: float
    reason: str
    footprint: Footprint | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Calibration:
        """What `to_json` wrote.

        Raises:
            InputError: something else did.
        """
        return from_json(cls, plain)


def calibrate(
    samples: Sequence[Sample],
    candidates: Sequence[Slots],
    probes: Probes,
    limit: float,
    gpus: int = 0,
    memory: int | None = None,
) -> Calibration:
    """Measures the candidates, and more of the samples on the one that is chosen.

    Args:
        samples: configurations as the search will train them, the baseline first.
        candidates: ways to divide the machine, the most promising first.
        probes: running processes, as many as `processes_for` says.
        limit: free memory of the machine in MiB, as far as it may be used (`capped`).
        gpus: how many GPUs share the trials of a candidate; the trials of one of them are measured.
        memory: bytes that all trials may take. The data is streamed then, so that what is measured holds none of it,
            and what Ray holds in each trial is counted.

    Raises:
        InputError: not one trial fits into `memory`.
        TunelabError: nothing could be measured; the cause is named.
    """
    smaller = [shrink(sample, candidates[0].device) for sample in samples]
    start = _started(probes)
    three = _three(smaller)
    work = _Work(probes, max(gpus, 1), _clip(_LAYOUT_SECONDS / len(three) / len(candidates)), memory)
    layouts = work.measure_layouts(candidates, three, samples)
    if not any(layout.images for layout in layouts):
        raise TunelabError(f"no trial could be measured: {layouts[0].failed}")
    limit = work.gpu_limit if gpus else max(0.0, limit - RAY_MIB)
    chosen = choose(layouts, limit, max(gpus, 1))
    slots = share_memory(chosen, memory, 0.0 if gpus else most_needed(layouts))
    points = work.points.get(chosen, []) + work.measure_draws(chosen, [one for one in smaller if one not in three])
    return Calibration(
        slots=slots,
        layouts=tuple(layouts),
        points=tuple(points),
        start=start,
        trial=statistics.median(work.overheads),
        limit=limit,
        reason=explain(chosen, layouts, limit, max(gpus, 1)) + in_words(slots),
        footprint=work.memory.footprint(work.beside),
    )


def startable(candidates: Sequence[Slots], limit: float, gpus: int = 0) -> list[Slots]:
    """Those whose processes can be started in `limit` MiB of free memory; if none can, the smallest made smaller."""
    each = PROCESS_MIB[candidates[0].device]
    most = max(1, int((limit - RAY_MIB) // each))
    found = [slots for slots in candidates if _at_once(slots, max(gpus, 1)) <= most]
    if found:
        return found
    least = min(candidates, key=lambda slots: slots.concurrent)
    return [dataclasses.replace(least, concurrent=min(least.concurrent, most * max(gpus, 1)))]


def processes_for(candidates: Sequence[Slots], gpus: int) -> int:
    """How many processes measure these ways to divide the machine: the trials at once, of one GPU if there are any."""
    return max(_at_once(slots, max(gpus, 1)) for slots in candidates)


def choose(layouts: Sequence[Layout], limit: float, gpus: int = 1) -> Slots:
    """The layout with the most images per second among those that fit into `limit` MiB (of each of `gpus` GPUs).

    If none fits, the one that needs least is made smaller until it does, down to one trial at a time.
    """
    measured = [layout for layout in layouts if layout.images]
    fitting = [layout for layout in measured if _needs(layout, gpus) <= limit]
    if fitting:
        return max(fitting, key=lambda layout: layout.images).slots
    least = min(measured, key=lambda layout: _needs(layout, gpus))
    fits = max(1, int(limit // least.memory)) if least.memory else 1
    return dataclasses.replace(least.slots, concurrent=min(least.slots.concurrent, fits * gpus))


def most_needed(layouts: Sequence[Layout]) -> float:
    """What a trial needs, in MiB: the most that was measured in any layout; 0 if nothing was."""
    return max((layout.memory for layout in layouts if layout.images), default=0.0)


def within(slots: Slots, measured: Calibration, free: float, gpus: int = 0) -> Slots:
    """The slots with only so many trials at once as `free` MiB of the machine carry; on GPUs as they are."""
    needed = most_needed(measured.layouts)
    if gpus or not needed:
        return slots
    fits = max(1, int((free - RAY_MIB) // needed))
    return dataclasses.replace(slots, concurrent=min(slots.concurrent, fits))


def explain(chosen: Slots, layouts: Sequence[Layout], limit: float, gpus: int = 1) -> str:
    """The choice in words, with its numbers."""
    measured = next((layout for layout in layouts if layout.slots == chosen), None)
    others = [layout for layout in layouts if layout.slots != chosen]
    said = f"{_words(chosen)}"
    if measured is not None:
        said += f": {measured.images:.0f} images/s"
        slower = [f"{other.images:.0f} with {_short(other.slots)}" for other in others if other.images]
        said += f" against {' and '.join(slower)}" if slower else ""
    memory = measured.memory if measured is not None else min(layout.memory for layout in layouts if layout.images)
    said += f"; {memory:.0f} MiB each of {limit / 1024:.1f} GiB"
    too_large = [_short(other.slots) for other in others if other.images and _needs(other, gpus) > limit]
    said += f"; not enough memory for {' and '.join(too_large)}" if too_large else ""
    for layout in others:
        said += f"; {_short(layout.slots)}: {layout.failed}" if layout.failed else ""
    return said


class _Work:
    """The measuring itself, and what came of it."""

    def __init__(self, probes: Probes, gpus: int, window: float, memory: int | None) -> None:
        self._images = None if memory is None else 0  # bytes that a probe may hold of the data
        self.beside = 0.0 if memory is None else WORKER_MIB
        self._probes = probes
        self._gpus = gpus
        self._window = window
        self.points: dict[Slots, list[Point]] = {}
        self.overheads: list[float] = []
        self.gpu_limit = 0.0
        self._rates: dict[Slots, list[float]] = {}  # images per second on one GPU or all processors, per sample
        self._failed: dict[Slots, str] = {}

    def measure_layouts(
        self, candidates: Sequence[Slots], three: Sequence[Sample], samples: Sequence[Sample]
    ) -> list[Layout]:
        """Times three configurations, each in all processes of each layout at once.

        A layout that is far slower on the first of them is not measured on the others. A configuration that fails with
        every layout is left out: the fault is its own.
        """
        live = sorted(candidates, key=lambda slots: -self._at_once(slots))
        memory = self.memory = Peaks(candidates[0].device)
        causes: dict[Slots, str] = {}
        for sample in three:
            before = {slots: list(rates) for slots, rates in self._rates.items()}
            self._measure_on_all(sample, live, memory)
            if not any(slots in self._rates for slots in live):
                causes = {slots: self._failed.pop(slots) for slots in live}
                self._rates = before
                continue
            rates = {slots: self._rates[slots][0] for slots in live if slots in self._rates}
            live = [slots for slots in live if slots in rates and rates[slots] > _FAR_SLOWER * max(rates.values())]
        known = [slots for slots in live if slots in self._rates]
        whole = {slots: self._gpus / statistics.fmean(1 / rate for rate in self._rates[slots]) for slots in known}
        best = max(known, key=lambda slots: whole[slots], default=None)
        found = []
        for slots in candidates:
            if slots in self._failed or best is None:
                found.append(Layout(slots, failed=self._failed.get(slots, causes.get(slots, ""))))
                continue
            images = whole.get(slots, whole[best] * self._rates[slots][0] / self._rates[best][0])
            found.append(
                Layout(
                    slots,
                    images,
                    memory.most(sample.load for sample in samples) + (self.beside if slots.device == "cpu" else 0.0),
                )
            )
        return found

    def _measure_on_all(self, sample: Sample, live: Sequence[Slots], memory: Peaks) -> None:
        built, patience = 0, PATIENCE
        for slots in live:
            count = self._at_once(slots)
            try:
                if built < count:
                    built = 0
                    self._build([sample] * count, slots)
                    built = count
                found = self._probes.measure(count, slots.cpus, self._window, patience)
            except ProbeError as error:
                slow = isinstance(error, TooSlowError) and patience < PATIENCE
                self._failed[slots], built = f"far slower ({error})" if slow else str(error), 0
                self._rates.pop(slots, None)
                continue
            patience = 1.0 + self._window + _FAR_SLOWER_STEPS * max(one["step"] for one in found)
            self._rates.setdefault(slots, []).append(sum(one["images"] / one["step"] for one in found))
            self.points.setdefault(slots, []).extend(_point(sample, one) for one in found)
            self.overheads += [one["build"] + one["warm_up"] for one in found]
            memory.learn(sample.load, found)
            if found[0]["free"] is not None:
                held = sum(one["memory"] + CONTEXT_MIB for one in found)
                self.gpu_limit = max(self.gpu_limit, min(one["free"] for one in found) + held)

    def measure_draws(self, slots: Slots, samples: Sequence[Sample]) -> list[Point]:
        """Measures as many of the samples as the time allows, one in each process; one that fails is left out."""
        end = time.monotonic() + _DRAW_SECONDS
        count = self._at_once(slots)
        points: list[Point] = []
        for first in range(0, len(samples), count):
            part = samples[first : first + count]
            if time.monotonic() > end:
                break
            points += self._try([*part, *samples[: count - len(part)]], slots)[: len(part)]  # all are kept busy
        return points

    def _try(self, samples: Sequence[Sample], slots: Slots) -> list[Point]:
        try:
            self._build(samples, slots)
            found = self._probes.measure(len(samples), slots.cpus, self._window)
            if self._is_disturbed(samples, found, slots):
                found = self._measure_again(found, slots)
        except ProbeError:  # an odd draw is no reason not to search
            return []
        self.overheads += [one["build"] + one["warm_up"] for one in found]
        return [_point(sample, one) for sample, one in zip(samples, found, strict=True)]

    def _measure_again(self, found: list[dict[str, Any]], slots: Slots) -> list[dict[str, Any]]:
        """The faster one of what was found and of a second measurement, if that can be had."""
        try:
            again = self._probes.measure(len(found), slots.cpus, self._window)
        except ProbeError:
            return found
        return [min(both, key=lambda one: float(one["step"])) for both in zip(found, again, strict=True)]

    def _is_disturbed(self, samples: Sequence[Sample], found: Sequence[Mapping[str, Any]], slots: Slots) -> bool:
        """True if any is so slow, beside what was measured before, that something else kept the machine busy."""
        offs = [math.log(one.step / guess_step(one.load, slots.device)) for one in self.points.get(slots, ())]
        usual = math.exp(statistics.fmean(offs)) if offs else math.inf
        return any(
            one["step"] > _DISTURBED * usual * guess_step(sample.load, slots.device)
            for sample, one in zip(samples, found, strict=True)
        )

    def _build(self, samples: Sequence[Sample], slots: Slots) -> None:
        settings = {
            "device": slots.device,
            "threads": slots.cpus,
            "memory": self._images,
            "compute": slots.compute,
        }
        self._probes.build([{"config": dict(sample.config), **settings} for sample in samples])

    def _at_once(self, slots: Slots) -> int:
        return _at_once(slots, self._gpus)


def _started(probes: Probes) -> float:
    try:
        return probes.wait()
    except ProbeError as error:
        raise TunelabError(f"no trial could be measured: {error}") from error


def _three(samples: Sequence[Sample]) -> list[Sample]:
    """The baseline, the smallest and the largest of the others by multiply-adds."""
    others = sorted(samples[1:], key=lambda sample: sample.load.mflops)
    return [samples[0], *others[:1], *others[1:][-1:]]


def shrink(sample: Sample, device: str) -> Sample:
    """The sample with a batch that a step of which does not take long."""
    load, size = sample.load, sample.load.batch_size
    while size > 8 and guess_step(dataclasses.replace(load, batch_size=size), device) > _LONGEST_STEP:
        size //= 2
    if size == load.batch_size:
        return sample
    train = {**sample.config["train"], "batch_size": size}
    return Sample({**sample.config, "train": train}, dataclasses.replace(load, batch_size=size))


def _point(sample: Sample, found: Mapping[str, Any]) -> Point:
    load = dataclasses.replace(sample.load, batch_size=int(found["images"]))
    return Point(load, found["step"], found["val_image"])


def _at_once(slots: Slots, gpus: int) -> int:
    return max(1, slots.concurrent // gpus)


def _needs(layout: Layout, gpus: int) -> float:
    return layout.memory * _at_once(layout.slots, gpus)


def _clip(seconds: float) -> float:
    return min(_WINDOW[1], max(_WINDOW[0], seconds))


def _words(slots: Slots) -> str:
    trials = f"{slots.concurrent} trials at once" if slots.concurrent > 1 else "1 trial at a time"
    what = f"{slots.cpus} thread{'' if slots.cpus == 1 else 's'}"
    if slots.gpus:
        what = f"{slots.gpus:g} GPU{'s' if slots.gpus > 1 else ''}"
    return f"{trials} with {what}{' each' if slots.concurrent > 1 else ''}"


def _short(slots: Slots) -> str:
    what = f"{slots.gpus:g} GPU" if slots.gpus else f"{slots.cpus} thread{'' if slots.cpus == 1 else 's'}"
    return f"{slots.concurrent} x {what}"
