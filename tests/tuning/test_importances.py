from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tunelab.tuning.importances import FEWEST, MOST, importances, recorded_ranges
from tunelab.tuning.ledger import Ledger, journal_storage

RANGES = {
    "kind": CategoricalDistribution(("a", "b")),
    "rate": FloatDistribution(1e-3, 1.0, log=True),
    "depth": IntDistribution(1, 9),
    "momentum": FloatDistribution(0.0, 1.0),
}


def draw(count: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[float]]:
    """Configurations in which the kind decides, with the momentum where it is "a", and scores."""
    rng = random.Random(seed)
    params, scores = [], []
    for _ in range(count):
        one: dict[str, Any] = {"kind": rng.choice("ab"), "rate": 10 ** rng.uniform(-3, 0), "depth": rng.randint(1, 9)}
        score = 0.5 + rng.gauss(0, 0.02)
        if one["kind"] == "a":
            one["momentum"] = rng.random()
            score += 0.1 + 0.2 * one["momentum"]
        params.append(one)
        scores.append(score)
    return params, scores


@pytest.mark.parametrize("ranges", [RANGES, {}])
def test_what_decides_is_found_conditional_or_not(ranges: dict[str, Any]) -> None:
    params, scores = draw(100)
    found = {one.name: one for one in importances(params, scores, ranges)}
    assert {name for name, one in found.items() if one.clear} == {"kind", "momentum"}
    assert sum(one.share or 0.0 for one in found.values()) == pytest.approx(1.0)
    assert found["momentum"].trials == sum(one["kind"] == "a" for one in params)
    assert min(found["kind"].above or 0, found["momentum"].above or 0) > 2


def test_where_nothing_decides_chance_alone_is_not_exceeded_too_often() -> None:
    rng = random.Random(1)
    clear = judged = 0
    for seed in range(6):
        params, _ = draw(40, seed)
        found = importances(params, [rng.random() for _ in params], RANGES)
        judged += sum(one.share is not None for one in found)
        clear += sum(one.clear for one in found)
    assert judged >= 18
    assert clear <= 4


def test_of_few_trials_nothing_is_said() -> None:
    params, scores = draw(FEWEST - 1)
    for one in importances(params, scores, RANGES):
        assert (one.share, one.above, one.clear) == (None, None, False)
        assert one.trials <= FEWEST - 1
    assert importances([], [], {}) == []


def test_a_parameter_of_one_value_decides_nothing() -> None:
    params, scores = draw(30)
    for one in params:
        one["fixed"] = 3
    found = {one.name: one for one in importances(params, scores, {})}
    assert (found["fixed"].share, found["fixed"].clear) == (0.0, False)


def test_values_outside_of_a_recorded_range_are_taken_as_they_are() -> None:
    """A range that was changed, or that another version of the space had."""
    params, scores = draw(40)
    narrow = {"rate": FloatDistribution(1e-3, 2e-3), "kind": CategoricalDistribution(("b", "c"))}
    assert {one.name for one in importances(params, scores, narrow)} == set(RANGES)


def test_of_many_configurations_some_are_enough_and_the_same_each_time() -> None:
    params, scores = draw(MOST + 50)
    found = importances(params, scores, RANGES)
    assert found == importances(params, scores, RANGES)
    assert max(one.trials for one in found) == MOST


def test_nothing_is_said_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    verbosity = optuna.logging.get_verbosity()
    params, scores = draw(25)
    importances(params, scores, RANGES)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == verbosity


def test_ranges_are_those_of_the_journal_and_a_damaged_one_gives_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "optuna.journal"
    assert recorded_ranges(file) == {}
    ledger = Ledger(journal_storage(file), "study")
    params, _ = draw(6)
    for number, one in enumerate(params):
        ledger.start(number, one, {name: RANGES[name] for name in one})
    assert recorded_ranges(file) == RANGES
    with file.open("a") as stream:
        stream.write('{"op_code": 4, "distribu')
    assert recorded_ranges(file) == RANGES
    file.write_text(json.dumps({"distributions": {"rate": "no JSON"}}) + "\n")
    assert recorded_ranges(file) == {}
    file.write_text("[3]\n")
    assert recorded_ranges(file) == {}
