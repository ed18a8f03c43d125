from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunelab.config import ArchSpec, BlockSpec, ComputeConfig, DataConfig, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.data.cache import prepare
from tunelab.space import SearchSpace
from tunelab.tuning import compute as module
from tunelab.tuning.calibrate import Sample
from tunelab.tuning.compute import FILE, Choice, apply, choices, describe, fastest, recall, remember
from tunelab.tuning.hardware import precisions
from tunelab.tuning.probes import ProbeError, Probes
from tunelab.tuning.slots import Slots

SLOTS = Slots(2, 1, 0.0, "cpu")
BOTH = choices(("bfloat16", "float32"))


def samples(count: int = 2) -> list[Sample]:
    found = []
    for number in range(count):
        arch = ArchSpec(StemSpec(4 + number), ((BlockSpec("basic", 8),),))
        config = to_json(TrialConfig(arch, TrainConfig(batch_size=16, epochs=1), DataConfig(limit_train=100)))
        found.append(Sample.of(config, {"mflops": number + 1, "activations": 500, "convs": 3}))
    return found


class Pretended(Probes):
    """Processes that train as fast as they are told, by the way they compute; a rate of 0 fails."""

    later: Mapping[str, float] = {}
    """The rates after six measurements, if others."""

    def __init__(self, *rates: Mapping[str, float]) -> None:
        self.rates = rates
        self.asked: list[tuple[int, str]] = []

    def build(self, requests: Sequence[Mapping[str, Any]]) -> None:
        sample = requests[0]["config"]["arch"]["stem"]["width"] - 4
        way = describe(ComputeConfig(**requests[0]["compute"]))
        assert all(request == requests[0] for request in requests)
        self.asked.append((sample, way))
        rates = self.rates[min(sample, len(self.rates) - 1)]
        self.rate = (self.later if self.later and len(self.asked) > 6 else rates)[way]
        if not self.rate:
            raise ProbeError("it cannot be done")

    def measure(self, count: int, threads: int, seconds: float, patience: float = 0.0) -> list[dict[str, Any]]:
        return [{"images": 16, "step": 16 / self.rate}] * count


def choose(*rates: Mapping[str, float]) -> tuple[str, Pretended]:
    probes = Pretended(*rates)
    return describe(fastest(samples(), SLOTS, 2, BOTH, probes).compute), probes


RATES = {"bfloat16 channels_last": 100.0, "float32 channels_last": 80.0}
SLOW = {"bfloat16 contiguous": 50.0, "float32 contiguous": 60.0}


def test_the_usual_choice_comes_first_and_stays_unless_another_is_clearly_faster() -> None:
    assert describe(BOTH[0]) == "bfloat16 channels_last"
    assert choose({**RATES, **SLOW})[0] == "bfloat16 channels_last"
    assert choose({**RATES, **SLOW, "float32 channels_last": 108.0})[0] == "bfloat16 channels_last"
    assert choose({**RATES, **SLOW, "float32 channels_last": 112.0})[0] == "float32 channels_last"
    assert choose({**RATES, **SLOW, "float32 contiguous": 300.0})[0] == "float32 contiguous"


def test_both_configurations_count_and_what_is_far_slower_is_not_measured_again() -> None:
    found, probes = choose({**RATES, **SLOW, "float32 channels_last": 120.0}, {**RATES, **SLOW})
    assert found == "bfloat16 channels_last", "1.2 x on one and 0.8 x on the other"
    assert probes.asked[4:] == [(1, "bfloat16 channels_last"), (1, "float32 channels_last")]


def test_what_is_far_slower_is_told_all_the_same() -> None:
    """By the baseline alone, as many times slower as there."""
    half = {name: rate / 2 for name, rate in RATES.items()}
    choice = fastest(samples(), SLOTS, 2, BOTH, Pretended({**RATES, **SLOW}, half))
    assert set(choice.images) == {describe(one) for one in BOTH}
    assert choice.reason.startswith("bfloat16 channels_last: ")
    assert "2.00 x bfloat16 contiguous" in choice.reason
    assert "1.25 x float32 channels_last" in choice.reason


def test_another_than_the_usual_choice_must_be_faster_twice() -> None:
    """The first time something else may have kept the machine busy."""
    probes = Pretended({**RATES, **SLOW, "float32 channels_last": 200.0})
    probes.later = {"bfloat16 channels_last": 190.0, "float32 channels_last": 200.0}
    choice = fastest(samples(), SLOTS, 2, BOTH, probes)
    assert describe(choice.compute) == "bfloat16 channels_last"
    assert choice.images["bfloat16 channels_last"] == pytest.approx(2 * 190.0), "of both processes"
    probes.later = {"bfloat16 channels_last": 150.0, "float32 channels_last": 200.0}
    probes.asked.clear()
    assert describe(fastest(samples(), SLOTS, 2, BOTH, probes).compute) == "float32 channels_last"


def test_what_fails_is_left_out() -> None:
    assert choose({**RATES, **SLOW, "bfloat16 channels_last": 0.0})[0] == "float32 channels_last"
    nothing = fastest(samples(), SLOTS, 2, BOTH, Pretended(dict.fromkeys([*RATES, *SLOW], 0.0)))
    assert nothing == Choice(BOTH[0], {})
    assert nothing.reason == "bfloat16 channels_last"


def test_the_reason_has_the_numbers() -> None:
    choice = Choice(BOTH[0], {"bfloat16 channels_last": 100.0, "float32 channels_last": 80.0})
    assert choice.reason == "bfloat16 channels_last: 1.25 x float32 channels_last"
    assert apply(choice, SLOTS) == Slots(2, 1, 0.0, "cpu", precision="bfloat16")
    assert apply(choice, SLOTS).compute == to_json(BOTH[0])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FILE


def test_what_was_measured_is_kept_per_machine(cache: Path) -> None:
    assert recall("this") is None
    one, other = Choice(BOTH[1], {"float32 channels_last": 2.0}), Choice(BOTH[2], {})
    remember("this", one)
    remember("that", other)
    assert (recall("this"), recall("that"), recall("none")) == (one, other, None)
    remember("this", other)
    assert (recall("this"), recall("that")) == (other, other)


@pytest.mark.parametrize(
    "content",
    [
        '{"this": {"compute": {}, "images": {"a": 0}}}',
        '{"this": {"compute": {}, "images": {"a": NaN}}}',
        "",
        "[]",
        "null",
        '{"this": 1}',
        '{"this": {"compute": {"precision": "int4"}, "images": {}}}',
        "\x00",
    ],
)
def test_a_damaged_file_is_as_none_and_is_replaced(cache: Path, content: str) -> None:
    recall("this")  # makes the folder
    cache.write_text(content)
    assert recall("this") is None
    remember("this", Choice(BOTH[0], {}))
    assert recall("this") == Choice(BOTH[0], {})
    assert "measured" in json.loads(cache.read_text())["this"]


def test_a_folder_that_cannot_be_written_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(module, "write_atomically", refuse)
    remember("this", Choice(BOTH[0], {}))
    assert recall("this") is None


@pytest.mark.usefixtures("cache")
def test_a_space_is_measured_once_and_only_where_it_leaves_the_precision_open() -> None:
    space = SearchSpace("plain", "plain.py", 1, "a space", lambda suggest: pytest.fail("nothing is drawn"), ())
    info = prepare(DataConfig(limit_train=100))

    def chosen(space: SearchSpace, given: Sequence[Sample]) -> int:
        probes = Pretended(dict.fromkeys([describe(one) for one in BOTH], 10.0))
        module.choose(space, info, given, SLOTS, probes, 0, streamed=False)
        return len(probes.asked)

    assert chosen(space, samples()) > 0
    assert chosen(space, samples()) == 0
    assert chosen(dataclasses.replace(space, source="other.py"), samples()) > 0
    stated = [
        Sample({**one.config, "train": {**one.config["train"], "precision": "float32"}}, one.load) for one in samples()
    ]
    assert chosen(dataclasses.replace(space, version=2), stated) == 0


def test_real_processes_are_measured_each_way() -> None:
    given = choices(("float32",))
    with Probes(1) as probes:
        choice = fastest(samples(1), Slots(1, 1, 0.0, "cpu"), 1, given, probes)
    assert choice.compute in given
    assert all(rate > 0 for rate in choice.images.values())
    assert "float32 channels_last" in choice.images or choice.compute == given[1]


def test_the_precisions_of_a_processor() -> None:
    assert precisions("cpu")[-1] == "float32"
    assert set(precisions("cpu")) <= {"bfloat16", "float32"}
