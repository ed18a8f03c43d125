from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tunelab.analysis.network_plots import draw_networks, networks, parts

from tunelab.config import AnyArch, ArchSpec, BlockSpec, LeNetSpec, MLPSpec, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.errors import NothingToDrawError

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeSearch
    from tests.conftest import MakeStudy

TWO_BRANCHES = ArchSpec(
    StemSpec(8, 5, pool=True),
    (
        (BlockSpec("basic", 8, convs=3), BlockSpec("bottleneck", 16, 2)),
        (BlockSpec("inception", 16, 2),),
    ),
)


def test_a_network_of_blocks_is_described_part_by_part() -> None:
    found = [
        (part["branch"], part["place"], part["kind"], part["width"], part["stride"], part["height"], part["wide"])
        for part in parts(to_json(TWO_BRANCHES), (33, 20), 7)
    ]
    assert found == [
        (0, 0, "stem 5x5", 8, 1, 33, 20),
        (0, 1, "max pool", 8, 2, 17, 10),
        (1, 2, "basic x3", 8, 1, 17, 10),
        (1, 3, "bottleneck", 16, 2, 9, 5),
        (2, 2, "inception", 16, 2, 9, 5),
        (0, 4, "classifier", 7, 1, None, None),
    ]


def test_lenet_is_described_with_its_maps() -> None:
    found = [(part["kind"], part["width"], part["height"]) for part in parts(to_json(LeNetSpec()), (28, 28), 10)]
    assert found == [
        ("conv 5x5", 6, 28), ("average pool", 6, 14), ("conv 5x5", 16, 10), ("average pool", 16, 5),
        ("dense", 120, None), ("dense", 84, None), ("classifier", 10, None),
    ]  # fmt: skip


def test_fully_connected_layers_are_described_with_their_widths() -> None:
    found = [(part["kind"], part["width"], part["height"]) for part in parts(to_json(MLPSpec((64, 32))), (28, 28), 10)]
    assert found == [("dense", 64, None), ("dense", 32, None), ("classifier", 10, None)]


@pytest.mark.parametrize("arch", [TWO_BRANCHES, LeNetSpec(), MLPSpec(), ArchSpec(StemSpec(4), ((),))])
def test_every_family_is_drawn(arch: AnyArch, make_study: MakeStudy, tmp_path: Path) -> None:
    config = TrialConfig(arch=arch, train=TrainConfig(epochs=2))
    study = make_study([("COMPLETED", [0.1, 0.2]), ("COMPLETED", [0.1, 0.3])], config=config)
    rows = networks(study, study.list_trials())
    assert {(row["rank"], row["trial"]) for row in rows} == {(1, 1)}  # both have this network
    draw_networks(rows, tmp_path / "networks.png", "a title")
    with Image.open(tmp_path / "networks.png") as picture:
        assert picture.height > 100


def test_before_the_first_full_length_the_highest_scores_are_drawn(make_study: MakeStudy) -> None:
    study = make_study([("STOPPED", [0.1]), ("PAUSED", [0.4])])
    assert {row["trial"] for row in networks(study, study.list_trials())} == {1}
    with pytest.raises(NothingToDrawError, match="no trial has ended an epoch yet"):
        networks(study, [])


def test_the_best_five_are_drawn(make_search: MakeSearch) -> None:
    study = make_search(60)
    rows = networks(study, study.list_trials())
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    assert len(ranks) == 5
    assert ranks == sorted(ranks)
    assert ranks[0] == 1


def test_an_unknown_family_is_left_out(make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1])])
    trials = study.list_trials()
    trials[0].config["arch"] = {"name": "of another time"}
    with pytest.raises(NothingToDrawError, match="no drawing"):
        networks(study, trials)
