from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.importance import answer, common_epochs, compared, importance, words
from tunelab.analysis.importance_text import notes, print_importance

from tunelab.cli import run
from tunelab.config import ArchSpec, BlockSpec, LeNetSpec, MLPSpec, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.errors import InputError
from tunelab.journal import Journal
from tunelab.noise import Noise
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

NOISE = Noise(0.001, 10, "known")


def trial(number: int, scores: Sequence[float], status: str = "COMPLETED", repeat_of: int | None = None) -> Trial:
    epochs = [EpochMetrics(n, 1.0, score, 1.0, score, 0.1, 1.0, 1.0, 1.0) for n, score in enumerate(scores, start=1)]
    config = {"train": {"epochs": 4}}
    return Trial(number, config, status=TrialStatus(status), epochs=epochs, repeat_of=repeat_of)


def config(optimizer: str, lr: float, kinds: Sequence[str] = ("basic", "basic"), branches: int = 1) -> TrialConfig:
    blocks = tuple(BlockSpec(kind, 8, 2 if at == 0 else 1) for at, kind in enumerate(kinds))
    train = TrainConfig(epochs=4, optimizer=optimizer, lr=lr)
    return TrialConfig(ArchSpec(StemSpec(8), (blocks,) * branches), train)


def add(study: Study, number: int, made: TrialConfig, params: Mapping[str, Any], score: float) -> None:
    """One more trial of full length."""
    journal = Journal.open(study.path)
    proposed = {"arch_id": "x", "config": to_json(made), "params": dict(params), "stats": {"params": 100 + number}}
    journal.append({"event": "proposed", "trial": number, **proposed})
    for epoch in range(1, 5):
        metrics = EpochMetrics(epoch, 1.0, score, 1.0, score * epoch / 4, 0.1, 1.0, 1.0, 1.0)
        journal.append({"event": "result", "trial": number, "metrics": metrics.to_json()})
    journal.append({"event": "ended", "trial": number, "status": "COMPLETED", "reason": ""})
    journal.close()


@pytest.fixture
def studied(make_study: MakeStudy) -> Study:
    """Forty trials of full length: sgd is better than adam by 10%, nothing else matters."""
    study = make_study(asked=40, info={"space": {"name": "mine", "source": "./mine.py", "version": 1}})
    rng = random.Random(0)
    for number in range(40):
        optimizer, lr, colour = rng.choice(("sgd", "adam")), rng.uniform(0.01, 0.1), rng.choice("rgb")
        score = (0.6 if optimizer == "sgd" else 0.5) + rng.gauss(0, 0.02)
        params = {"optimizer": optimizer, f"lr_{optimizer}": lr, "colour": colour}
        add(study, number, config(optimizer, lr), params, score)
    return study


# Which trials are compared, and when.


def test_trials_are_compared_after_the_most_epochs_that_half_of_them_have_had() -> None:
    trials = [trial(0, [0.1] * 4), trial(1, [0.1] * 2, "STOPPED"), trial(2, [0.1] * 3, "RUNNING"), trial(3, [])]
    assert common_epochs(trials) == 3
    assert common_epochs([*trials, trial(4, [0.1], "STOPPED"), trial(5, [0.1], "STOPPED")]) == 2
    assert common_epochs([trial(0, [0.1] * 4, "FAILED")]) == common_epochs([]) == 0


def test_a_repeat_is_no_configuration_of_its_own_and_a_diverged_run_counts_as_nothing() -> None:
    trials = [
        trial(0, [0.2, 0.4]),
        trial(1, [0.2, 0.6], repeat_of=0),
        trial(2, [0.9], "DIVERGED"),
        trial(3, [0.9, 0.9], "FAILED"),
        trial(4, [0.9], "STOPPED"),
        trial(5, [0.1, 0.3, 0.5], "RUNNING"),
    ]
    rows = [(row["trial"].number, row["score"], row["diverged"], row["full"]) for row in compared(trials, 2)]
    assert rows == [
        (0, pytest.approx(0.5), False, True),
        (2, 0.0, True, False),
        (5, pytest.approx(0.3), False, False),
    ]


# Answers.


def rows_of(**values: Sequence[float]) -> list[tuple[dict[str, Any], float, bool]]:
    return [({"norm": value}, score, True) for value, scores in values.items() for score in scores]


def test_a_clear_difference_is_told_with_its_numbers() -> None:
    (found,) = answer(rows_of(none=[0.4, 0.41, 0.42], batch=[0.6, 0.61, 0.62], group=[0.6, 0.61, 0.63]), NOISE)
    assert [(row["value"], row["trials"], row["full_length"]) for row in found["values"]] == [
        ("batch", 3, 3),
        ("group", 3, 3),
        ("none", 3, 3),
    ]
    assert (found["tells"], found["best"], found["worse"]) == (True, "group", ["none"])
    assert found["verdict"] == "group is better than none"
    batch = found["values"][0]
    assert batch["mean"] == pytest.approx(0.61)
    assert (batch["low"], batch["high"]) == pytest.approx((0.61 - 0.0248, 0.61 + 0.0248), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch": [0.5, 0.6, 0.7], "none": [0.45, 0.6, 0.65]}, "cannot tell: the spread explains the differences"),
        ({"batch": [0.9, 0.91, 0.92], "none": [0.1, 0.2]}, "too few trials: 3 of two values each are needed"),
    ],
)
def test_it_says_when_the_data_cannot_tell(values: dict[str, list[float]], said: str) -> None:
    (found,) = answer(rows_of(**values), NOISE)
    assert (found["tells"], found["best"], found["verdict"]) == (False, None, said)


def test_equal_scores_spread_by_the_noise_between_runs_at_least() -> None:
    values = {"batch": [0.6] * 3, "none": [0.59] * 3}
    assert answer(rows_of(**values), Noise(0.0001, 10, "known"))[0]["tells"]
    assert not answer(rows_of(**values), Noise(0.01, 10, "known"))[0]["tells"]


def test_equals_are_seldom_told_apart() -> None:
    """Seven groups of eight, of which any may come out best: an answer in about 5% of the cases."""
    rng = random.Random(0)
    told = 0
    for _ in range(300):
        values = {str(group): [rng.gauss(0.5, 0.05) for _ in range(8)] for group in range(7)}
        told += answer(rows_of(**values), NOISE)[0]["tells"]
    assert told / 300 <= 0.08


def test_many_numbers_are_answered_by_ranges() -> None:
    found = answer([({"lr": 0.001 * n, "batch": 2 ** (n % 7)}, 0.5, False) for n in range(1, 41)], NOISE)
    rates, batches = found
    assert [row["value"] for row in rates["values"]] == [
        "0.001 to 0.01",
        "0.011 to 0.02",
        "0.021 to 0.03",
        "0.031 to 0.04",
    ]
    assert [row["value"] for row in batches["values"]] == ["1", "2", "4", "8", "16", "32", "64"]
    mostly_zero = answer([({"crop": 0.01 * max(0, n - 20)}, 0.5, False) for n in range(32)], NOISE)[0]
    assert [(row["value"], row["trials"]) for row in mostly_zero["values"]] == [
        ("0", 21),
        ("0.01 to 0.03", 3),
        ("0.04 to 0.11", 8),
    ]
    weights = answer([({"weights": 150_000 * n}, 0.5, False) for n in range(1, 21)], NOISE)[0]
    assert weights["values"][0]["value"] == "150k to 750k"
    assert weights["values"][-1]["value"] == "2.4M to 3M"


def test_a_question_that_divides_nothing_or_as_another_did_is_not_asked() -> None:
    rows = rows_of(batch=[0.5, 0.6], none=[0.1, 0.2])
    assert answer([({"norm": "batch"}, 0.5, True)] * 3, NOISE) == []
    assert answer(rows, NOISE, but=answer(rows, NOISE)) == []


def test_numbered_parts_are_left_to_the_importance() -> None:
    rng = random.Random(0)
    few = [({f"layer_{n}": rng.choice("ab") for n in range(4)}, 0.01 * at, True) for at in range(20)]
    many = [({f"block_{n}": rng.choice("ab") for n in range(5)}, 0.01 * at, True) for at in range(20)]
    assert [one["question"] for one in answer(few, NOISE)] == ["layer_0", "layer_1", "layer_2", "layer_3"]
    assert answer(many, NOISE) == []


# Words.


def test_a_network_of_blocks_in_words() -> None:
    made = config("sgd", 0.1, ("basic", "basic", "inception"), branches=2)
    found = words(Trial(0, to_json(made), stats={"params": 123, "mflops": 4.5}))
    told = {"most blocks": "basic", "halvings": 1, "depth": 3, "branches": 2, "norm": "batch", "optimizer": "sgd"}
    assert told.items() <= found.items()
    assert found["learning rate of sgd"] == 0.1
    assert (found["weights"], found["Mflops"], found["cutout"], found["flip"]) == (123, 4.5, False, False)
    mixed = words(Trial(0, to_json(config("sgd", 0.1, ("basic", "inception")))))
    assert mixed["most blocks"] == "no one kind"


def test_a_lenet_in_words() -> None:
    found = words(Trial(0, to_json(TrialConfig(LeNetSpec("relu", "max", "he")))))
    assert {"activation": "relu", "pooling": "max", "init": "he", "schedule": "cosine"}.items() <= found.items()
    assert "halvings" not in found


def test_a_fully_connected_network_in_words() -> None:
    found = words(Trial(0, to_json(TrialConfig(MLPSpec((64, 256), "he", dropout=0.5)))))
    assert {"hidden layers": 2, "widest layer": 256, "init": "he", "dropout": 0.5}.items() <= found.items()
    assert "pooling" not in found


# The whole.


def test_what_mattered_in_a_study(studied: Study, capsys: pytest.CaptureFixture[str]) -> None:
    shown = importance(studied)
    assert (shown["epochs"], shown["full_length"], shown["compared"], shown["trials"]) == (4, 4, 40, 40)
    by_name = {row["parameter"]: row for row in shown["importance"]}
    assert by_name["optimizer"]["beyond_chance"]
    assert not by_name["colour"]["beyond_chance"]
    told = {one["question"]: one for one in shown["answers"]}
    assert told["optimizer"]["verdict"] == "sgd is better than adam"
    assert not told["learning rate of sgd"]["tells"]
    assert "depth" not in told, "all are as deep"
    assert [one["question"] for one in shown["parameters"]] == ["colour"]
    json.dumps(shown, allow_nan=False)
    print_importance(shown)
    said = capsys.readouterr().out
    assert "40 of 40 configurations compared after 4 of 4 epochs" in said
    assert "the data tell of: optimizer (sgd is better than adam)" in said
    assert "colour" in said


def test_epochs_that_are_compared_can_be_chosen(studied: Study) -> None:
    early = importance(studied, 1)
    assert early["epochs"] == 1
    assert early["answers"][0]["values"][0]["mean"] < 0.2
    assert any("after 1 of 4 epochs" in line for line in notes(early))
    with pytest.raises(InputError, match=r"--epochs 9: the longest trial of .* has been trained for 4"):
        importance(studied, 9)


def test_chosen_trials_are_called_chosen(studied: Study) -> None:
    assert not any("not drawn at random" in line for line in notes(importance(studied)))
    studied.update(lambda info: {"options": {**info["options"], "sampler": "model"}})
    assert any("sampler model), not drawn at random" in line for line in notes(importance(studied)))


def test_a_search_that_has_just_begun_is_no_error(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study()
    print_importance(importance(study))
    assert "no trial has been trained for an epoch yet" in capsys.readouterr().out
    with (study.path / "journal.jsonl").open("a") as journal:
        journal.write('{"crc":"0000')
    assert importance(study)["compared"] == 0


def test_of_a_few_trials_it_says_that_they_are_few(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("STOPPED", [0.3]), ("DIVERGED", [0.2])])
    shown = importance(study)
    assert (shown["compared"], shown["diverged"]) == (3, 1)
    print_importance(shown)
    said = capsys.readouterr().out
    assert "1 of them diverged and count as 0%" in said
    assert "importance: too few configurations to tell (3; 20 are needed)" in said


def test_the_command(studied: Study, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["importance", "study", "--json", "--epochs", "2"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["study"], shown["epochs"]) == (str(studied.path), 2)
    assert run(["importance"]) == 0
    out, err = capfd.readouterr()
    assert "the data tell of: optimizer" in out
    assert err == ""
    assert run(["importance", "--epochs", "5"]) == 2
