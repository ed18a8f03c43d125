"""`tunelab predict` and `tunelab export`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tunelab.analysis import export as exporting
from tunelab.analysis.predict import predict

from tunelab.cli import run

if TYPE_CHECKING:
    from tests.conftest import MakeModel


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine grey images in two folders."""
    random = np.random.default_rng(2)
    for number in range(9):
        file = tmp_path / "photos" / ("a" if number < 5 else "b") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 8), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def asked(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    capfd.readouterr()
    status = run([str(word) for word in words])
    return status, *capfd.readouterr()


def test_a_model_is_found_by_its_name_in_the_folder_of_studies(
    make_model: MakeModel, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "studies"
    shutil.copytree(make_model(), folder / "birds")
    status, out, _ = asked(capfd, "predict", "birds", photos, "--runs-dir", folder)
    assert (status, len(out.splitlines())) == (0, 10)
    status, _, err = asked(capfd, "predict", "fish", photos, "--runs-dir", folder)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "there is no model fish" in err


def test_the_answer_is_a_table(make_model: MakeModel, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    status, out, err = asked(capfd, "predict", model, photos)
    assert (status, err) == (0, "")
    lines = list(csv.reader(io.StringIO(out)))
    assert lines[0] == ["file", "class", "probability"]
    assert [line[0] for line in lines[1:]] == [str(file) for file in sorted(photos.rglob("*.png"))]
    assert [[line[0], line[1], float(line[2])] for line in lines[1:]] == [
        list(row.values()) for row in predict(model, photos)
    ]
    status, out, err = asked(
        capfd, "predict", model, photos / "b", photos / "a" / "1.png", "--top-k", 2, "--batch-size", 2
    )
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    assert [Path(row["file"]).name for row in rows] == ["5.png", "6.png", "7.png", "8.png", "1.png"]
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)


def test_json_is_the_same_for_programs(make_model: MakeModel, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    status, out, err = asked(capfd, "predict", model, photos, "--json", "--top-k", 3)
    assert (status, err) == (0, "")
    assert json.loads(out) == predict(model, photos, top_k=3)


def test_a_file_is_written_whole_or_not_at_all(
    make_model: MakeModel, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, file = make_model(), tmp_path / "answers.csv"
    assert asked(capfd, "predict", model, photos, "--out", file) == (0, "", "")
    whole = file.read_text()
    assert len(whole.splitlines()) == 10
    (tmp_path / "usual").touch()
    assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode, "for those who may read other new files"
    cut = photos / "cut.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:500])
    status, out, err = asked(capfd, "predict", model, photos, "--out", file)
    assert (status, out) == (2, "")
    assert err.startswith(f"tunelab: {cut} is not an image that can be read")
    assert len(err.splitlines()) == 1
    assert file.read_text() == whole
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    status, out, err = asked(capfd, "predict", model, photos, "--out", file, "--skip-unreadable")
    assert (status, out, err) == (0, "", f"note: 1 unreadable file skipped, the first is {cut}\n")
    assert file.read_text() == whole


def test_a_name_that_is_no_text_is_written_all_the_same(
    make_model: MakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"k\xe4se, comma.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name)
    status, out, _ = asked(capfd, "predict", make_model(), tmp_path / name)
    assert status == 0
    ((file, *_rest),) = list(csv.reader(io.StringIO(out)))[1:]
    assert file == f"{tmp_path}/k\\xe4se, comma.png"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict {model} {photos} --top-k 4", "--top-k 4 must be from 1 to 3"),
        ("predict {model} {photos}/a nowhere.png", "there is no image nowhere.png"),
        ("predict {model} {model}", "config.json is not an image that can be read"),
        ("predict {photos} {photos}", "is not a model (there is no model.safetensors in it)"),
        ("predict {photos}/a/1.png {photos}", "is not a model (there is no config.json in it)"),
        ("export {photos}", "is not a model"),
        ("export {model} --out {model}", "it is a folder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: str, said: str, make_model: MakeModel, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    status, out, err = asked(capfd, *words.format(model=model, photos=photos).split())
    assert (status, out) == (2, "")
    assert err.startswith("tunelab: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_is_exported_in_words_and_in_json(
    make_model: MakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = tmp_path / "other.onnx", make_model()
    status, out, err = asked(capfd, "export", model, "--format", "onnx", "--out", file, "--json")
    assert (status, err) == (0, "")
    content = json.loads(out)
    assert (content["file"], content["bytes"], content["classes"]) == (str(file), file.stat().st_size, 3)
    assert content["largest_difference"] <= content["tolerance"] == 1e-4
    monkeypatch.setattr(exporting, "export", lambda *_given: content)
    status, out, err = asked(capfd, "export", model)
    assert (status, out, err) == (0, exporting.describe(content) + "\n", "")
