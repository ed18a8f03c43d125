from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.compare import compare
from tunelab.analysis.compare_text import print_comparison

from tunelab.cli import run
from tunelab.config import LeNetSpec, TrainConfig, TrialConfig
from tunelab.errors import InputError
from tunelab.journal import Journal
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

DIGITS = {
    "name": "digits",
    "image_size": [8, 8],
    "channels": 1,
    "classes": [str(digit) for digit in range(10)],
    "counts": {"train": 100, "val": 10_000, "test": 270},
    "fingerprint": "0123456789abcdef",
}


def full(score: float) -> tuple[str, list[float]]:
    """A trial of full length whose curve rises without any jitter."""
    return "COMPLETED", [score * (1 - (1 - epoch / 4) ** 2) for epoch in range(1, 5)]


BETTER = [full(0.5), full(0.9), full(0.6)]
WORSE = [full(0.55), ("STOPPED", [0.1]), full(0.58)]


@pytest.fixture
def make(make_study: MakeStudy, tmp_path: Path) -> Any:
    """Makes a study of this name with 10,000 validation images."""

    def made(name: str, trials: Any, repeats: Any = None, **info: Any) -> Study:
        return make_study(trials, path=tmp_path / "runs" / name, repeats=repeats, info={"data": DIGITS, **info})

    return made


def test_scores_are_compared_at_equal_epochs_and_at_equal_time(make: Any) -> None:
    shown = compare([make("one", BETTER), make("two", WORSE)])
    assert shown["epochs"] == 4
    assert [(one["study"], one["epochs_trained"], one["seconds"]) for one in shown["studies"]] == [
        ("one", 12, 3.0),
        ("two", 9, 2.25),
    ]
    assert shown["by_epochs"] == [
        {"budget": budget, "scores": scores}
        for budget, scores in [
            *((budget, [None, None]) for budget in (1, 2, 3)),
            *((budget, [0.5, 0.55]) for budget in (4, 5, 6, 7)),
            (8, [0.9, 0.55]),
            (9, [0.9, 0.58]),
        ]
    ]
    assert shown["by_seconds"][-1] == {"budget": 2.25, "scores": [0.9, 0.58]}
    assert shown["by_seconds"][4] == {"budget": 1.125, "scores": [0.5, 0.55]}
    assert len(shown["by_seconds"]) == 10
    json.dumps(shown, allow_nan=False)


def test_the_better_winner_is_named_with_its_interval(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = compare([make("two", WORSE), make("one", BETTER)])
    assert [(row["study"], row["trial"], row["score"], row["tied"]) for row in shown["winners"]] == [
        ("one", 1, 0.9, True),
        ("two", 2, 0.58, False),
    ]
    assert all(row["low"] < row["expected"] < row["high"] for row in shown["winners"])
    assert shown["verdict"] == "the winner of one is better than every other at 95% confidence"
    print_comparison(shown)
    said = capsys.readouterr().out
    assert said.startswith(
        "compared on the same data (digits, fingerprint 0123456789abcdef) and validation images (10000), "
        "scores after 4 epochs\n"
    )
    assert "at equal epochs" in said
    assert "at equal time" in said
    assert "[basic, /2 basic]" in said
    assert "note:" not in said


def test_what_noise_explains_is_a_tie(make: Any) -> None:
    shown = compare([make("one", BETTER), make("near", [full(0.895)]), make("two", WORSE)])
    assert [row["tied"] for row in shown["winners"]] == [True, True, False]
    assert shown["verdict"] == "the winners of one and near cannot be told apart"


def test_a_second_run_is_another_try_of_luck_and_costs_time(make: Any) -> None:
    again = compare([make("one", [*BETTER, full(0.99)], repeats={3: 1}), make("two", WORSE)])
    assert again["studies"][0]["epochs_trained"] == 16
    assert again["studies"][0]["trials"] == 3
    assert again["by_epochs"][-1]["scores"][0] == 0.9
    assert (again["winners"][0]["runs"], again["winners"][0]["score"]) == (2, pytest.approx(0.945))


def test_scores_of_different_images_are_refused(make: Any) -> None:
    one = make("one", BETTER)
    for name, changed in (("data", {"fingerprint": "f" * 16}), ("val", {"counts": {"train": 100, "val": 99}})):
        other = make(name, WORSE, data={**DIGITS, **changed})
        with pytest.raises(InputError, match=rf"runs/one and .*runs/{name} cannot be compared, .* different images"):
            compare([one, other])
    split = {"options": {"trials": 3, "epochs": 4, "data": {"split_seed": 1}}}
    with pytest.raises(InputError, match="validation images 10000 and 10000, split 1"):
        compare([one, make("split", WORSE, **split)])


def test_one_study_is_compared_with_others_alone(make: Any) -> None:
    one = make("one", BETTER)
    with pytest.raises(InputError, match="two studies or more can be compared; given: 1"):
        compare([one])
    with pytest.raises(InputError, match="one is given twice"):
        compare([one, make("two", WORSE), Study.open(one.path)])


def test_other_lengths_images_and_machines_are_said(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer trials are compared after as many epochs as the shorter ones have."""
    differs = {
        "options": {"trials": 1, "epochs": 2},
        "data": {**DIGITS, "counts": {**DIGITS["counts"], "train": 50}},
        "hardware": {"processor": "another"},
    }
    shown = compare([make("one", BETTER), make("short", [("COMPLETED", [0.3, 0.7])], **differs)])
    assert shown["epochs"] == 2
    assert [(row["study"], row["score"]) for row in shown["winners"]] == [("short", 0.7), ("one", 0.675)]
    assert shown["by_epochs"][-1] == {"budget": 2, "scores": [0.375, 0.7]}
    assert [warning.split(" (")[0] for warning in shown["warnings"]] == [
        "the full lengths differ",
        "the trials were trained on different numbers of images",
        "the machines or their use differ",
    ]
    print_comparison(shown)
    assert capsys.readouterr().out.count("note: ") == 3


def test_a_study_without_a_result_has_no_winner(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = compare([make("one", BETTER), make("none", [])])
    assert (shown["by_epochs"], shown["by_seconds"]) == ([], [])
    assert [row["study"] for row in shown["winners"]] == ["one"]
    assert shown["verdict"].startswith("nothing to compare yet")
    print_comparison(shown)
    assert "nothing to compare yet" in capsys.readouterr().out


def test_it_works_during_a_search(make: Any) -> None:
    one, two = make("one", [*BETTER, ("RUNNING", [0.3])]), make("two", WORSE)
    with (one.path / "journal.jsonl").open("a") as stream:
        stream.write('{"crc":"00')
    assert not compare([one, two])["warnings"]
    journal = Journal.open(one.path)
    try:
        assert compare([one, two])["warnings"] == ["still running: one"]
    finally:
        journal.close()


def test_what_was_extended_is_compared_by_its_new_length_and_paid_in_full(make: Any) -> None:
    longer = {"options": {"trials": 2, "epochs": 4}, "extended": True}
    study = make("one", BETTER, **longer)
    shown = compare([study, make("two", WORSE)])
    assert shown["studies"][0]["trials"] == 3
    assert shown["studies"][0]["epochs_trained"] == 12


def test_the_command(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    make("one", BETTER)
    make("two", WORSE)
    assert run(["compare", "one", "two", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["winners"][0]["study"] == "one"
    assert run(["compare", "one", "two"]) == 0
    assert "is better than every other" in capfd.readouterr().out
    assert run(["compare", "one"]) == 2
    assert capfd.readouterr().err == "tunelab: two studies or more can be compared; given: 1\n"


def test_early_stopping_leaves_a_trial_its_last_score(make_study: MakeStudy, tmp_path: Path) -> None:
    """Also where the other study is shorter, so that it had not ended its full length by then in any case."""

    def made(name: str, epochs: int, trials: list[tuple[str, list[float]]]) -> Study:
        train = TrainConfig(epochs=epochs, patience=0.4)
        config = TrialConfig(LeNetSpec(), train)
        options = {"trials": len(trials), "epochs": epochs, "device": "cpu"}
        info = {"data": DIGITS, "options": options}
        return make_study(trials, path=tmp_path / "runs" / name, config=config, info=info)

    early = made("early", 5, [("COMPLETED", [0.5, 0.9, 0.8, 0.85]), full(0.4)])
    other = made("other", 5, [("COMPLETED", [0.1, 0.2, 0.3, 0.4, 0.45])])
    longer = made("longer", 10, [("COMPLETED", [0.2, 0.7, 0.6, 0.6, 0.6, 0.6]), ("STOPPED", [0.1] * 2)])
    shown = compare([early, other])
    assert shown["epochs"] == 5
    assert [one["scores"] for one in shown["by_epochs"]] == [[None, None]] * 3 + [[0.85, None], [0.85, 0.45]]
    assert [(one["study"], one["trial"], one["score"]) for one in shown["winners"]] == [
        ("early", 0, 0.85),
        ("other", 0, 0.45),
    ]
    shorter = made("shorter", 8, [("COMPLETED", [0.1, 0.2, 0.3, 0.4, 0.5, 0.51, 0.52, 0.53])])
    assert {one["study"]: one["score"] for one in compare([longer, shorter])["winners"]} == {
        "longer": 0.6,
        "shorter": 0.53,
    }
