"""Every plot keeps to one contract, whatever the study went through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tunelab.analysis.gallery import PLOTS, collect, draw, table

from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.analysis.conftest import MakeRetraining, MakeSearch
    from tests.conftest import MakeStudy

OF_RETRAINING = {"full_curve", "confusion", "classes", "mistakes"}
OF_LONG_TRIALS = {"sawteeth"}
OTHER_NAMES = {"lr_sgd": "学习率", "dropout": "выпадение", "schedule": "$x$ <b>", "flip": "score"}


@pytest.fixture
def studies(make_search: MakeSearch, make_study: MakeStudy) -> dict[str, Study]:
    """Studies of all kinds."""
    return {
        "none": make_search(0, name="none"),
        "one": make_search(1, name="one"),
        "three": make_search(3, name="three"),
        "sixty": make_search(60, name="sixty", repeats=4),
        "running": make_search(12, name="running", running=True),
        "other names": make_search(24, name="имя 猫", params=OTHER_NAMES),
        "objectives": make_search(24, name="goals", info={"options": {"trials": 24, "epochs": 9, "objective": GOALS}}),
        "no times": make_study([("COMPLETED", [0.1, 0.2]), ("PAUSED", [0.1]), ("RUNNING", [])]),
    }


GOALS = ["val_accuracy", "params", "seconds"]


def assert_picture(path: Path) -> None:
    """A PNG file of a sane size that is not empty."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 400 <= picture.width <= 2400
        assert 150 <= picture.height <= 2400
        colours = picture.convert("RGB").getcolors(maxcolors=1_000_000) or []
    assert len(colours) > 20
    assert max(count for count, _ in colours) < 0.995 * sum(count for count, _ in colours)


def test_data_is_plain_and_what_is_missing_has_a_reason(studies: dict[str, Study]) -> None:
    drawn = {}
    for kind, study in studies.items():
        found, left_out = collect(study, study.list_trials())
        assert {*found, *left_out} == set(PLOTS), kind
        drawn[kind] = set(found)
        for name, rows in found.items():
            plain = table(rows)
            assert plain, (kind, name)
            assert json.loads(json.dumps(plain, allow_nan=False)) == plain, (kind, name)
            assert all(list(row) == list(plain[0]) for row in plain), (kind, name)
            words = PLOTS[name][3](rows)
            assert words.endswith("."), (kind, name)
            assert any(char.isdigit() for char in words), (kind, name)
        assert all(reason and "\n" not in reason for reason in left_out.values()), kind
        assert set(left_out) >= OF_RETRAINING, kind
    assert drawn["none"] == set()
    assert drawn["sixty"] == drawn["other names"] == drawn["objectives"] == set(PLOTS) - OF_RETRAINING - OF_LONG_TRIALS
    assert drawn["one"] >= {"history", "curves", "networks", "hours", "effort", "sizes"}
    assert drawn["one"] & {"parallel", "slices", "schedules"} == set()


@pytest.mark.parametrize("kind", ["one", "running", "other names", "objectives"])
def test_what_has_data_becomes_a_picture(kind: str, studies: dict[str, Study], tmp_path: Path) -> None:
    study = studies[kind]
    found, _ = collect(study, study.list_trials())
    for name, rows in found.items():
        draw(name, rows, tmp_path / f"{name}.png", f"{study.name}: {PLOTS[name][2]}")
        assert_picture(tmp_path / f"{name}.png")


def test_a_retraining_is_drawn_too(make_search: MakeSearch, make_retraining: MakeRetraining, tmp_path: Path) -> None:
    study = make_search(8)
    info = prepare(DataConfig())
    folder = make_retraining(study, images=info.counts["test"])
    found, left_out = collect(study, study.list_trials())
    assert left_out.keys() & OF_RETRAINING == set()
    for name in OF_RETRAINING:
        draw(name, found[name], tmp_path / f"{name}.png", "a title")
        assert_picture(tmp_path / f"{name}.png")
    assert max(row["epoch"] for row in found["full_curve"]) == 9
    assert {row["run"] for row in found["full_curve"]} == {0, 1}
    assert sum(row["images"] for row in found["confusion"]) == 2 * info.counts["test"]
    worst = found["classes"][0]
    assert worst["class"] == "<script>alert(1)</script>"
    assert worst["low"] < worst["accuracy"] < worst["high"] < 0.3
    assert [row["probability"] for row in found["mistakes"]] == sorted(
        (row["probability"] for row in found["mistakes"]), reverse=True
    )
    assert all(row["true"] != row["predicted"] for row in found["mistakes"])
    (folder / "test_predictions.npz").write_bytes(b"PK half a file")
    again, reasons = collect(study, study.list_trials())
    assert "test_predictions.npz cannot be read" in reasons["mistakes"]
    assert again["confusion"] == found["confusion"]
    (folder / "metrics.json").write_text('{"test_acc')
    assert "has not been trained in full" in collect(study, study.list_trials())[1]["confusion"]


def test_mistakes_without_their_images_are_left_out(make_search: MakeSearch, make_retraining: MakeRetraining) -> None:
    study = make_search(3)
    make_retraining(study, images=61)  # not as many as the data has
    _, left_out = collect(study, study.list_trials())
    assert left_out["mistakes"] == "the test images are not decoded on this machine"


def test_data_is_bounded_and_keeps_the_best(make_search: MakeSearch) -> None:
    study = make_search(700)
    trials = study.list_trials()
    found, _ = collect(study, trials)
    assert len({row["trial"] for row in found["curves"]}) <= 90
    assert len({row["trial"] for row in found["parallel"]}) <= 250
    best = max((one for one in trials if one.status.value == "COMPLETED"), key=lambda one: one.score or 0)
    for name in ("history", "curves", "parallel", "effort"):
        assert best.number in {row["trial"] for row in found[name]}
    assert found["history"][-1]["best"] == best.score
