"""In which precision and memory order this machine computes fastest: measured once, and kept for the next search.

Results differ by less than between two seeds, speed by up to a factor. What is known lies in `machine.json` in the
cache folder, one entry per machine, torch, space and shape of images; remove the file, and it is measured again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunelab.config import ComputeConfig, from_json, to_json
from tunelab.data.cache import DataInfo
from tunelab.data.storage import exclusive
from tunelab.errors import InputError, TunelabError
from tunelab.files import cache_root, read_json, write_atomically
from tunelab.space import SearchSpace
from tunelab.tuning.calibrate import Sample, processes_for, shrink
from tunelab.tuning.hardware import describe_hardware, precisions, torch_version
from tunelab.tuning.probes import ProbeError, Probes
from tunelab.tuning.slots import Slots

FILE = "machine.json"
_WINDOW = 0.2  # seconds in which a configuration is timed; our choice
_WORTH = 1.1  # so many times as fast as the usual choice another must be: less is within the noise; our choice
_FAR_SLOWER = 0.7  # of the fastest on the first configuration: not measured on the second; our choice


@dataclass(frozen=True)
class Choice:
    """How to compute, and the images per second of all trials together that it was chosen by, by `describe`."""

    compute: ComputeConfig
    images: Mapping[str, float]

    @property
    def reason(self) -> str:
        """The choice in words, with how many times as fast as each of the others it was."""
        own = describe(self.compute)
        others = [f"{self.images[own] / images:.2f} x {name}" for name, images in self.images.items() if name != own]
        return f"{own}: {', '.join(others)}" if others and own in self.images else own

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"compute": to_json(self.compute), "images": dict(self.images)}


def describe(compute: ComputeConfig) -> str:
    """A way to compute in words."""
    order = "channels_last" if compute.channels_last else "contiguous"
    return f"{compute.precision} {order}"


def choices(precisions: Sequence[str]) -> list[ComputeConfig]:
    """What is worth measuring, the usual choice first: each of these precisions in both memory orders."""
    return [
        from_json(ComputeConfig, {"precision": precision, "channels_last": last})
        for last in (True, False)
        for precision in precisions
    ]


def choose(
    space: SearchSpace,
    info: DataInfo,
    samples: Sequence[Sample],
    slots: Slots,
    probes: Probes,
    gpus: int,
    *,
    streamed: bool,
) -> Choice:
    """What is known of this machine, else what is measured now, on the baseline and a configuration of middle size.

    Args:
        space: what is searched.
        info: its data.
        samples: configurations as the search will train them, the baseline first.
        slots: the most promising way to divide the machine.
        probes: running processes.
        gpus: how many GPUs share the trials.
        streamed: as `fastest` takes it.
    """
    samples = [sample for sample in samples if sample.config["train"]["precision"] == "auto"]
    if not samples:  # the space says which
        return Choice(ComputeConfig(), {})
    hardware = describe_hardware()
    named = [f"{hardware['processor']} x {hardware['cpus']}", *hardware["gpus"][:1], f"torch {torch_version()}"]
    shape = "x".join(str(size) for size in (info.channels, *info.image_size))
    what = f"{space.name} {space.version} of {space.source}"
    key = "; ".join([*named, slots.device, f"{slots.cpus} threads", what, shape])
    known = recall(key)
    if known is not None:
        return known
    by_size = sorted(samples[1:], key=lambda sample: sample.load.mflops)
    measured = [shrink(one, slots.device) for one in (samples[0], *by_size[len(by_size) // 2 :][:1])]
    given = choices(precisions(slots.device))
    count = processes_for([slots], gpus)
    choice = fastest(measured, slots, count, given, probes, streamed=streamed)
    if choice.images:
        remember(key, choice)
    return choice


def fastest(
    samples: Sequence[Sample],
    slots: Slots,
    count: int,
    given: Sequence[ComputeConfig],
    probes: Probes,
    *,
    streamed: bool = False,
) -> Choice:
    """Measures the ways to compute on the samples, in as many processes at once as there would be trials.

    The first of them is kept unless another is faster by a tenth, twice. One that is far slower than the best on
    the baseline is measured on that alone, and told as that many times slower. One that fails is left out; if all fail,
    which is then no fault of theirs, it is the first, unmeasured.

    Args:
        samples: configurations, the baseline first.
        slots: the device and the threads of a trial.
        count: how many processes, on GPUs those of one of them.
        given: ways to compute, the usual one first.
        probes: running processes.
        streamed: the processes are to hold none of the data, because their memory is measured afterwards.
    """
    where = {"device": slots.device, "threads": slots.cpus, "memory": 0 if streamed else None}
    rates: dict[str, list[float]] = {}

    def measure(compute: ComputeConfig, sample: Sample) -> float:
        return _rate({"config": dict(sample.config), **where, "compute": to_json(compute)}, slots.cpus, count, probes)

    live = list(given)
    for sample in samples:
        for compute in list(live):
            rate = measure(compute, sample)
            if rate:
                rates.setdefault(describe(compute), []).append(rate)
            else:
                live.remove(compute)
                rates.pop(describe(compute), None)
        best = max((found[0] for found in rates.values()), default=0.0)
        live = [one for one in live if one == given[0] or rates[describe(one)][0] > _FAR_SLOWER * best]
    if not live:
        return Choice(given[0], {})
    whole = {describe(compute): _mean(rates[describe(compute)]) for compute in live}
    fast = max(live, key=lambda compute: rates[describe(compute)][0])
    chosen = max(live, key=lambda compute: whole[describe(compute)])
    if chosen != given[0] and given[0] in live and whole[describe(chosen)] >= _WORTH * whole[describe(given[0])]:
        again = [(measure(given[0], sample), measure(chosen, sample)) for sample in samples]
        for place, compute in enumerate((given[0], chosen)):
            found = [pair[place] for pair in again if all(pair)]
            whole[describe(compute)] = _mean(found) if found else whole[describe(compute)]
    if given[0] in live and whole[describe(chosen)] < _WORTH * whole[describe(given[0])]:
        chosen = given[0]
    unit = whole[describe(fast)] / rates[describe(fast)][0]
    return Choice(chosen, {**{name: unit * found[0] for name, found in rates.items()}, **whole})


def recall(key: str) -> Choice | None:
    """What is known of this machine under `key`; None if nothing is, or the file is damaged."""
    try:
        found = read_json(cache_root()[0] / FILE)[key]
        images = {str(name): float(rate) for name, rate in found["images"].items()}
        choice = Choice(from_json(ComputeConfig, found["compute"]), images)
        return choice if all(0 < rate < math.inf for rate in images.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None


def remember(key: str, choice: Choice) -> None:
    """Keeps what was measured; a folder that cannot be written costs the next search two seconds, and is no error."""
    path = cache_root()[0] / FILE
    made = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError, TunelabError), exclusive(path.with_suffix(".lock")):
        try:
            known = read_json(path)
            known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            known = {}
        known[key] = {**choice.to_json(), "measured": made}
        write_atomically(path, json.dumps(known, indent=1) + "\n")


def apply(choice: Choice, slots: Slots) -> Slots:
    """The slots, computing so."""
    return dataclasses.replace(slots, **to_json(choice.compute))


def _rate(request: Mapping[str, Any], threads: int, count: int, probes: Probes) -> float:
    """Images per second of all processes together, 0 if one fails."""
    try:
        probes.build([request] * count)
        found = probes.measure(count, threads, _WINDOW)
    except ProbeError:
        return 0.0
    return float(sum(one["images"] / one["step"] for one in found))


def _mean(rates: Sequence[float]) -> float:
    """The geometric mean: no configuration counts more because it is smaller."""
    return math.exp(sum(math.log(rate) for rate in rates) / len(rates))
