from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis.rank import describe_config, ranking, rung_table, summary, tied

from tunelab.config import (
    ArchSpec,
    AveragingConfig,
    BlockSpec,
    CustomSpec,
    LeNetSpec,
    MLPSpec,
    StageSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    to_json,
)
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.standings import places

if TYPE_CHECKING:
    from tests.conftest import MakeStudy


def test_the_ranking_is_of_full_length_alone_and_by_the_last_epoch(make_study: MakeStudy) -> None:
    study = make_study(
        [
            ("COMPLETED", [0.1, 0.9, 0.3, 0.4]),
            ("COMPLETED", [0.1, 0.2, 0.3, 0.5]),
            ("STOPPED", [0.99]),
            ("FAILED", [0.1, 0.2, 0.3, 0.98]),
            ("RUNNING", [0.97]),
        ]
    )
    rows = ranking(places(study.list_trials()), top=5)
    assert [(row["rank"], row["trial"], row["score"]) for row in rows] == [(1, 1, 0.5), (2, 0, 0.4)]
    assert rows[0]["seconds"] == 1.0
    assert rows[0]["params"] == 1234
    assert len(ranking(places(study.list_trials()), top=1)) == 1


def test_rows_tell_means_runs_and_ties(make_study: MakeStudy) -> None:
    ends = [("COMPLETED", [0.2, 0.3, 0.4, score]) for score in (0.5, 0.505, 0.2, 0.49)]
    found = summary(make_study([*ends, ("FAILED", [0.1])], asked=3, repeats={3: 0, 4: 0}), top=5)
    assert found["tied"] == [1, 0]
    assert [(row["trial"], row["runs"], row["trials"], row["lost"], row["tied"]) for row in found["ranking"]] == [
        (1, 1, [1], [], True),
        (0, 2, [0, 3], [4], True),
        (2, 1, [2], [], False),
    ]
    best = found["ranking"][1]
    assert best["score"] == pytest.approx(0.495)
    assert best["low"] < best["expected"] < best["high"]
    assert (found["trials"], found["asked"], found["repeats"]) == (3, 3, 2)
    assert found["statuses"] == {"COMPLETED": 3}
    assert found["noise"]["repeats"] == 1
    assert found["noise"]["confidence"] == 0.95
    json.dumps(found, allow_nan=False)


def test_the_luck_of_the_best_is_taken_off_and_new_data_are_less_certain(make_study: MakeStudy) -> None:
    ends = [("COMPLETED", [0.2, 0.3, 0.4, 0.5 + 0.005 * number]) for number in range(20)]
    found = summary(make_study(ends, asked=20), top=5)
    told, first = found["new_data"], found["ranking"][0]
    assert (told["trial"], told["score"], told["configurations"], told["val_images"]) == (19, first["score"], 20, 269)
    assert told["optimism"] == pytest.approx(first["score"] - first["expected"])
    assert told["optimism"] > 0.01
    assert told["low"] < first["low"] < first["expected"] < first["high"] < told["high"]


def test_nothing_is_expected_of_new_data_where_no_images_were_held_out(make_study: MakeStudy, tmp_path: Path) -> None:
    assert summary(make_study([("STOPPED", [0.4])]), top=5)["new_data"] is None
    data = {"name": "digits", "counts": {"train": 100}, "fingerprint": "0"}
    study = make_study([("COMPLETED", [0.1] * 4)], path=tmp_path / "all", info={"data": data})
    assert summary(study, top=5)["new_data"] is None


def test_a_run_that_diverged_costs_the_first_place(make_study: MakeStudy) -> None:
    ends = [("COMPLETED", [0.2, 0.3, 0.4, score]) for score in (0.505, 0.5, 0.2)]
    found = summary(make_study([*ends, ("DIVERGED", [0.1])], asked=3, repeats={3: 0}), top=5)
    rows = [(row["trial"], row["runs"], row["lost"]) for row in found["ranking"]]
    assert rows == [(1, 1, []), (0, 1, [3]), (2, 1, [])]
    assert found["ranking"][1]["score"] == pytest.approx(0.2525)


def test_what_was_set_aside_does_not_tie_with_the_best(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.2, 0.3, 0.4, 0.5])] * 3)
    assert summary(study, top=3)["tied"] == [0, 1, 2]
    study.update(lambda info: {"spaces": [{"from": 1, "to": 2, "set_aside": [0]}]})
    assert summary(study, top=3)["tied"] == [1, 2]
    assert [row["trial"] for row in summary(study, top=3)["ranking"]] == [1, 2, 0]


def test_a_shorter_training_does_not_tie_with_the_best() -> None:
    def trial(number: int, epochs: int) -> Trial:
        metrics = [EpochMetrics(n, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0, 1.0) for n in range(1, epochs + 1)]
        return Trial(number, {}, status=TrialStatus.COMPLETED, epochs=metrics)

    assert tied(places([trial(0, 2), trial(1, 4)])) == []
    assert tied(places([trial(0, 2), trial(1, 4), trial(2, 4)])) == [1, 2]
    assert tied([]) == []


def decision(epoch: int, stop: bool, pause: bool = False) -> dict[str, Any]:
    return {"epoch": epoch, "stop": stop, "pause": pause}


def test_the_rungs_count_who_came_and_who_went_on() -> None:
    trials = [
        Trial(0, {}, decisions=[decision(2, False), decision(6, False)]),
        Trial(1, {}, decisions=[decision(2, False), decision(6, True)]),
        Trial(2, {}, decisions=[decision(2, True)]),
        Trial(3, {}, status=TrialStatus.FAILED),
    ]
    assert rung_table(trials) == [
        {"epoch": 2, "reached": 3, "kept": 2, "stopped": 1, "paused": 0},
        {"epoch": 6, "reached": 2, "kept": 1, "stopped": 1, "paused": 0},
    ]


def test_a_trial_that_waited_and_went_on_counts_once() -> None:
    waits = Trial(0, {}, decisions=[decision(2, False, pause=True)])
    went_on = Trial(1, {}, decisions=[decision(2, False, pause=True), decision(2, False)])
    assert rung_table([waits, went_on]) == [{"epoch": 2, "reached": 2, "kept": 1, "stopped": 0, "paused": 1}]


def test_the_summary_tells_how_all_trials_ended(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("DIVERGED", [0.1]), ("RUNNING", [0.2])], asked=9)
    found = summary(study, top=3)
    assert found["statuses"] == {"COMPLETED": 1, "PAUSED": 1, "DIVERGED": 1}
    assert (found["trials"], found["asked"], found["running"]) == (3, 9, False)


def test_a_configuration_in_words() -> None:
    first = (BlockSpec("basic", 8), BlockSpec("basic", 8), BlockSpec("bottleneck", 16, 2), BlockSpec("basic", 16))
    second = (BlockSpec("inception", 16, 2), BlockSpec("inception", 16))
    arch = ArchSpec(StemSpec(8, 5, pool=True), (first, second), norm="group", activation="gelu")
    words = describe_config(to_json(TrialConfig(arch, TrainConfig(optimizer="adamw", lr=0.00123, batch_size=64))))
    assert words == (
        "5x5-8 pool [basic x2, /2 bottleneck, basic + /2 inception, inception] norm group, gelu; "
        "adamw lr 0.0012, cosine, batch 64"
    )


def test_stages_and_averages_are_in_the_words() -> None:
    arch = ArchSpec(StemSpec(), ((BlockSpec("basic", 16),),))
    recipe = TrainConfig(stages=(StageSpec(0.4, "adam", 0.002),), averaging=AveragingConfig("swa"))
    words = describe_config(to_json(TrialConfig(arch, recipe)))
    assert words.endswith("sgd lr 0.1, cosine, batch 128, from 40% adam lr 0.002, swa from 75%")


def test_a_fully_connected_network_in_words() -> None:
    words = describe_config(to_json(TrialConfig(MLPSpec((256, 128), "sparse", "tanh", 0.25))))
    assert words == "MLP 256-128, init sparse, tanh, dropout 0.25; sgd lr 0.1, cosine, batch 128"
    assert describe_config(to_json(TrialConfig(MLPSpec((9,))))).startswith("MLP 9, init he, relu; sgd")


def test_a_lenet_in_words() -> None:
    words = describe_config(to_json(TrialConfig(LeNetSpec("relu", "max", "he"))))
    assert words == "LeNet-5 max pool, init he, relu; sgd lr 0.1, cosine, batch 128"
    words = describe_config(to_json(TrialConfig(CustomSpec("/a/net.py:build", {"width": 8, "norm": None}))))
    assert words == "net.py:build(width=8, norm=null); sgd lr 0.1, cosine, batch 128"
