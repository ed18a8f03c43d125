from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tunelab.analysis.plots import draw_learning_curve, learning_curve

from tunelab.records import EpochMetrics


def history(epochs: int, held_out: bool) -> list[EpochMetrics]:
    val = 0.5 if held_out else None
    return [
        EpochMetrics(epoch, 2 / epoch, 0.1 * epoch, val, val, 0.1, 1.0, 10.0, 20.0) for epoch in range(1, epochs + 1)
    ]


def test_the_data_has_a_row_per_run_and_epoch() -> None:
    rows = learning_curve([history(2, held_out=True), history(3, held_out=False)])
    assert [(row["run"], row["epoch"]) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert rows[0]["val_loss"] == 0.5
    assert rows[4]["val_accuracy"] is None
    assert rows[4]["train_loss"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("epochs", [1, 5])
def test_the_drawing_is_a_picture_with_a_line_for_what_was_measured(
    held_out: bool, epochs: int, tmp_path: Path
) -> None:
    path, empty = tmp_path / "curve.png", tmp_path / "empty.png"
    draw_learning_curve(learning_curve([history(epochs, held_out)]), path, "a title", 0.25)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1_000_000) or []}
    assert (31, 119, 180) in colours  # matplotlib's tab:blue, the training
    assert (44, 160, 44) in colours  # tab:green, the test accuracy
    assert ((255, 127, 14) in colours) is held_out  # tab:orange, the validation
    draw_learning_curve([], empty, "", None)
    assert empty.stat().st_size < path.stat().st_size
