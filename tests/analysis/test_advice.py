"""Each recommendation comes where its evidence is, with its numbers, and not where it is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis import advice, readings
from tunelab.analysis.advice import ADVISERS, recommend
from tunelab.analysis.rank import summary

from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeRetraining, MakeSearch

NOTHING: dict[str, Any] = {"ranking": [], "tied": [], "noise": None, "running": False}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study without trials, with 200 validation images."""
    info = {"kind": "search", "options": {"trials": 20, "epochs": 8}, "data": {"counts": {"val": 200}}}
    return Study(tmp_path / "study", info)


def trial(
    number: int,
    scores: Sequence[float] = (0.1, 0.3, 0.4, 0.45, 0.47, 0.48, 0.48, 0.48),
    status: str = "COMPLETED",
    *,
    train: float = 0.5,
    **more: Any,
) -> Trial:
    """A trial by the scores of its epochs."""
    epochs = [EpochMetrics(at, 1.0, train, 1.0, score, 0.1, 1.0, 9.0, 9.0) for at, score in enumerate(scores, start=1)]
    return Trial(number, more.pop("config", {}), status=TrialStatus(status), epochs=epochs, **more)


def shown(best: int = 0, tied: Sequence[int] = (), **more: Any) -> dict[str, Any]:
    """What `tunelab best` tells, as far as advice is taken from it."""
    row = {
        "trial": best,
        "score": 0.5,
        "expected": 0.5,
        "low": 0.45,
        "high": 0.55,
        "epochs": 8,
        "runs": 1,
        "tied": True,
    }
    noise = {"sd": 0.03, "degrees": 10.0, "source": "repeats", "repeats": 8, "confidence": 0.95}
    return {"ranking": [row], "tied": list(tied), "noise": noise, "running": False, **more}


def spread(edge: Callable[[int], float], count: int = 24) -> list[Trial]:
    """Trials whose scores fall with their number, and their parameter by number."""
    return [trial(place, [0.9 - 0.01 * place], params={"lr": edge(place), "flip": True}) for place in range(count)]


def test_the_registry_holds_all_of_them() -> None:
    public = {
        name
        for name, value in vars(advice).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == advice.__name__
    }
    assert public - {"recommend"} == set(ADVISERS)


def test_nothing_is_said_of_nothing(study: Study) -> None:
    assert recommend(study, [], NOTHING) == []


def test_the_best_at_the_edge_of_a_range(study: Study) -> None:
    def inside(place: int) -> float:
        return 0.01 * 1.15**place

    high = spread(lambda place: 0.4 - 0.001 * place if place < 7 else inside(place))
    (found,) = advice.edge_of_range(study, high, NOTHING)
    text, numbers = found
    assert "lr" in text
    assert "0.4" in text
    assert (numbers["end"], numbers["high"]) == ("upper", 0.4)
    low = spread(lambda place: 0.001 + 0.00001 * place if place < 7 else inside(place))
    assert advice.edge_of_range(study, low, NOTHING)[0][1]["end"] == "lower"
    assert advice.edge_of_range(study, spread(lambda place: 0.1 + (place * 7 % 24) / 24), NOTHING) == []
    assert advice.edge_of_range(study, spread(lambda place: 0.1), NOTHING) == []
    assert advice.edge_of_range(study, high[:4], NOTHING) == []  # too few to tell


def test_scores_that_still_rise(study: Study) -> None:
    rising = [trial(number, [0.01 * number + 0.02 * epoch for epoch in range(9)]) for number in range(8)]
    ((text, numbers),) = advice.still_rising(study, rising, NOTHING)
    assert numbers["per_epoch"] == pytest.approx(0.02)
    assert "2.00 percentage points per epoch" in text
    assert "--epochs 27" in text
    early = [trial(number, [one.score for one in rising[number].epochs]) for number in range(8)]
    for one in early:  # which early stopping ended by the loss: more is asked for than the study has
        one.config = {"train": {"epochs": 30, "patience": 0.2}}
    assert "--epochs 90" in advice.still_rising(study, early, NOTHING)[0][0]
    assert advice.still_rising(study, [trial(number) for number in range(3)], NOTHING) == []
    luck = random.Random(0)
    flat = [trial(number, [luck.gauss(0.5, 0.02) for _ in range(9)]) for number in range(40)]
    assert advice.still_rising(study, flat, NOTHING) == []


def test_ties_with_the_best(study: Study) -> None:
    ((text, numbers),) = advice.cannot_be_told_apart(study, [], shown(tied=[0, 3, 5]))
    assert numbers["tied"] == 3
    assert numbers["apart"] == pytest.approx(0.03 * 2**0.5 * 2.228, rel=1e-3)
    assert "200 validation images" in text
    many = Study(study.path, {"data": {"counts": {"val": 1_000_000}}})
    assert "validation images" not in advice.cannot_be_told_apart(many, [], shown(tied=[0, 3]))[0][0]
    assert advice.cannot_be_told_apart(study, [], shown()) == []


def test_trials_that_failed(study: Study) -> None:
    lost = [trial(place, [], "FAILED", reason=f"out of memory: {place} MiB") for place in range(3)]
    odd = trial(3, [], "FAILED", reason="OSError: the disk is gone")
    found = advice.failures(study, [*lost, odd, trial(4)], NOTHING)
    assert [numbers["trials"] for _, numbers in found] == [[0, 1, 2], [3]]
    assert "3 of 5 trials failed, out of memory" in found[0][0]
    assert "OSError" in found[1][0]
    assert advice.failures(study, [trial(0)], NOTHING) == []


def test_trials_that_diverged(study: Study) -> None:
    def recipe(lr: float) -> dict[str, Any]:
        return {"train": {"optimizer": "sgd", "lr": lr}}

    good = [trial(place, config=recipe(0.1)) for place in range(6)]
    lost = [trial(6 + place, [], "DIVERGED", config=recipe(0.8)) for place in range(4)]
    ((text, numbers),) = advice.divergence(study, [*good, *lost], NOTHING)
    assert "4 of 10 trials diverged" in text
    assert numbers["lr_ratios"] == {"sgd": pytest.approx(8.0)}
    same = [trial(6 + place, [], "DIVERGED", config=recipe(0.1)) for place in range(4)]
    assert "lr_ratios" not in advice.divergence(study, [*good, *same], NOTHING)[0][1]
    assert advice.divergence(study, [*good, lost[0]], NOTHING) == []


def test_training_images_known_by_heart(study: Study) -> None:
    ((text, numbers),) = advice.over_fitting(study, [trial(number, train=0.99) for number in range(6)], NOTHING)
    assert (numbers["train"], numbers["val"]) == (pytest.approx(0.99), pytest.approx(0.48))
    assert "99.0%" in text
    assert "48.0%" in text
    assert advice.over_fitting(study, [trial(number) for number in range(6)], NOTHING) == []


def test_a_winner_that_was_nearly_stopped(study: Study) -> None:
    decision = {"epoch": 1, "stop": False}
    rivals = [trial(place, [0.3 + 0.001 * place, 0.4], decisions=[decision]) for place in range(1, 16)]
    late, early = (trial(0, [first, 0.9], decisions=[decision]) for first in (0.31, 0.9))
    ((text, numbers),) = advice.close_at_the_rung(study, [late, *rivals], shown())
    assert (numbers["place"], numbers["trials"]) == (6, 16)
    assert "place 6 of 16" in text
    assert advice.close_at_the_rung(study, [early, *rivals], shown()) == []
    assert advice.close_at_the_rung(study, [late, *rivals[:4]], shown()) == []


def test_a_baseline_that_nothing_beats(study: Study) -> None:
    trials = [trial(0, origin="baseline"), *(trial(place) for place in range(1, 20))]
    assert "is the best" in advice.no_better_than_the_baseline(study, trials, shown(0))[0][0]
    assert "cannot be told apart" in advice.no_better_than_the_baseline(study, trials, shown(3, [0, 3]))[0][0]
    assert advice.no_better_than_the_baseline(study, trials, shown(3, [3, 4])) == []
    assert advice.no_better_than_the_baseline(study, trials[:9], shown(0)) == []


def test_what_the_test_images_say(make_search: MakeSearch, make_retraining: MakeRetraining) -> None:
    study = make_search(8)
    assert advice.test_images_read(study, [], shown()) == []
    assert advice.less_on_test_images(study, [], shown()) == []
    assert advice.weakest_class(study, [], shown()) == []
    make_retraining(study, accuracy=0.6)
    assert advice.test_images_read(study, [], shown()) == []
    assert advice.less_on_test_images(study, [], shown()) == []
    ((text, numbers),) = advice.weakest_class(study, [], shown())
    assert numbers["class"] == "<script>alert(1)</script>"
    assert numbers["taken_for"] == "кошка"
    assert "10.0%" in text
    make_retraining(study, name="retrain-y", accuracy=0.3)
    assert advice.test_images_read(study, [], shown())[0][1] == {"readings": 2, "trainings": 4}
    readings.record(study, study.path / "retrain-gone", 3, 1)
    assert advice.test_images_read(study, [], shown())[0][1] == {"readings": 3, "trainings": 5}
    assert "30.0% on test images" in advice.less_on_test_images(study, [], shown())[0][0]


def test_new_images_may_have_less_than_the_validation_images_by_chance(
    make_search: MakeSearch, make_retraining: MakeRetraining
) -> None:
    study = make_search(8)
    make_retraining(study, accuracy=0.44)  # 200 validation images: 0.5 is between 0.42 and 0.58
    study.info["data"]["counts"]["val"] = 200
    assert advice.less_on_test_images(study, [], shown()) == []
    study.info["data"]["counts"]["val"] = 20_000  # then it is the few test images that leave the chance
    assert advice.less_on_test_images(study, [], shown()) == []
    make_retraining(study, name="retrain-y", accuracy=0.25)
    ((text, numbers),) = advice.less_on_test_images(study, [], shown())
    assert "on new data (45.0% to 55.0%)" in text
    assert 0.4 < numbers["low"] < 0.45 < 0.55 < numbers["high"]


def test_classes_that_are_alike_are_not_named(make_search: MakeSearch, make_retraining: MakeRetraining) -> None:
    study = make_search(3)
    folder = make_retraining(study)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["seeds"] = [{"test": {"confusion": [[9, 1, 0], [0, 9, 1], [1, 0, 9]]}}]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert advice.weakest_class(study, [], shown()) == []


def test_the_next_step(study: Study, make_search: MakeSearch, make_retraining: MakeRetraining) -> None:
    paused = advice.next_step(study, [trial(0), trial(1, [0.1], "PAUSED")], shown())
    assert "`tunelab resume study`" in paused[0][0]
    assert "--retrain" in advice.next_step(study, [trial(0)], shown())[0][0]
    assert advice.next_step(study, [trial(0)], shown(running=True)) == []
    assert advice.next_step(study, [trial(0)], NOTHING) == []
    done = make_search(3)
    make_retraining(done)
    assert advice.next_step(done, [trial(0)], shown()) == []


def test_all_of_a_search_come_as_sentences_with_numbers(make_search: MakeSearch) -> None:
    study = make_search(40)
    found = recommend(study, study.list_trials(), summary(study, 10))
    assert {"failures", "divergence"} <= {row["name"] for row in found}
    for row in found:
        assert not row["text"][0].islower()
        assert row["text"].endswith(".")
        assert row["numbers"]
    assert json.loads(json.dumps(found)) == found
