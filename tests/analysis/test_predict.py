"""Predictions: of the very pixels that a search would train on, one batch at a time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tunelab.analysis import predict as predicting
from tunelab.analysis.predict import list_images, predict, predictions

from tunelab.config import ArchSpec, BlockSpec, DataConfig, LeNetSpec, StemSpec
from tunelab.data.augment import normalize, normalizer
from tunelab.data.cache import opened, prepare
from tunelab.errors import InputError
from tunelab.training.model_files import find_model, open_model

if TYPE_CHECKING:
    from tests.conftest import MakeModel

RANDOM = np.random.default_rng(7)


def pixels(*shape: int) -> Any:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def write_grey(folder: Path, count: int = 6) -> list[Path]:
    """Grey images of several sizes and kinds."""
    folder.mkdir(parents=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(pixels(8 + number % 3, 8)).save(file)
    Image.fromarray(pixels(9, 9).astype(np.uint16) * 257).save(files[0])
    Image.fromarray(pixels(40, 50)).save(folder / "large.jpg")
    Image.fromarray(pixels(9, 7) > 128).save(folder / "black-and-white.png")
    return sorted(folder.iterdir())


def write_colours(folder: Path) -> list[Path]:
    """Colour images of several kinds, and a grey one."""
    folder.mkdir(parents=True)
    Image.fromarray(pixels(12, 10, 3)).save(folder / "a.png")
    Image.fromarray(pixels(90, 70, 3)).save(folder / "b.jpg")
    Image.fromarray(pixels(12, 10, 4)).save(folder / "c.png")
    Image.fromarray(pixels(12, 10)).save(folder / "d.png")
    Image.fromarray(pixels(12, 10, 3)).quantize(16).save(folder / "e.gif")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels(20, 30, 3)).save(folder / "f.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("write", "channels"), [(write_grey, 1), (write_colours, 3)])
def test_files_are_decoded_as_for_the_training(
    write: Any, channels: int, make_model: MakeModel, tmp_path: Path
) -> None:
    """What the data cache holds of the same files gives the same answers to the last digit."""
    write(tmp_path / "data" / "train" / "a")
    write(tmp_path / "data" / "train" / "b")
    files = write(tmp_path / "data" / "test" / "a")
    write(tmp_path / "data" / "test" / "b")
    config = DataConfig(f"folder:{tmp_path / 'data'}", image_size=8)
    info = prepare(config)
    assert info.channels == channels
    cached = opened(config, "test").images("test")[: len(files)]
    model = make_model(channels=channels)
    found = predict(model, tmp_path / "data" / "test" / "a", top_k=3)
    assert [row.pop("file") for row in found] == [str(file) for file in files]
    wanted = predict(model, np.asarray(cached), top_k=3)
    assert [row.pop("image") for row in wanted] == list(range(len(files)))
    assert found == wanted
    assert len({row["probability"] for row in found}) > 1


def test_the_answers_are_those_of_the_network(make_model: MakeModel) -> None:
    folder, images = make_model(channels=3, image_size=(6, 9)), pixels(5, 6, 9, 3)
    model = open_model(find_model(folder))
    normal = normalize(
        torch.tensor(images), *normalizer(model.info.mean, model.info.std, 9, torch.device("cpu")), torch.float32
    )
    with torch.inference_mode():
        wanted = model.network(normal).softmax(1).numpy()
    for row, probabilities in zip(predict(folder, images, top_k=3), wanted, strict=True):
        order = np.argsort(-probabilities)
        assert [row["class"], row["class_2"], row["class_3"]] == [model.info.classes[place] for place in order]
        given = [row["probability"], row["probability_2"], row["probability_3"]]
        assert given == pytest.approx(probabilities[order], rel=1e-5)
        assert sum(given) == pytest.approx(1, abs=1e-5)


def test_the_batch_size_changes_no_answer(make_model: MakeModel, tmp_path: Path) -> None:
    folder, files = make_model(), write_grey(tmp_path / "images", 9)
    wanted = predict(folder, files)
    for size in (1, 4, 100):
        found = predict(folder, files, batch_size=size)
        assert [row["file"] for row in found] == [str(file) for file in files]
        assert [row["class"] for row in found] == [row["class"] for row in wanted]
        np.testing.assert_allclose([row["probability"] for row in found], [row["probability"] for row in wanted], 1e-4)


def test_arrays_of_other_sizes_and_colours_are_converted(make_model: MakeModel, tmp_path: Path) -> None:
    grey, colour = make_model(folder=tmp_path / "grey"), make_model(folder=tmp_path / "colour", channels=3)
    images = pixels(3, 8, 8)
    assert predict(grey, images) == predict(grey, images[..., None])
    assert predict(colour, images) == predict(colour, np.stack([images] * 3, axis=3))
    assert predict(grey, np.stack([images] * 3, axis=3)) == predict(grey, images)
    larger = pixels(2, 16, 16, 3)
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, image in zip(files, larger, strict=True):
        Image.fromarray(image).save(file)
    for model in (grey, colour):
        by_file = [{key: row[key] for key in ("class", "probability")} for row in predict(model, files)]
        assert [{key: row[key] for key in ("class", "probability")} for row in predict(model, larger)] == by_file


def test_an_array_that_cannot_be_written_to_is_read(make_model: MakeModel) -> None:
    images = pixels(2, 8, 8, 1)
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(predict(make_model(), images)) == 2


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 8, 8, 2), dtype=np.uint8), "the images have 2 channels, the model reads 3"),
        (np.zeros((2, 8, 8, 4), dtype=np.uint8), "the images have 4 channels, the model reads 3"),
        (np.zeros((2, 8, 8, 3), dtype=np.float32), "not float32"),
        (np.zeros((8, 8), dtype=np.uint8), r"not uint8 \(8, 8\)"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), r"not uint8 \(0, 8, 8, 3\)"),
        ([], "no images were given"),
        ("nowhere.png", "there is no image nowhere.png"),
    ],
)
def test_what_is_no_image_for_the_model_is_refused(images: Any, said: str, make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=said):
        predict(make_model(channels=3), images)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"top_k": 4}, "--top-k 4 must be from 1 to 3"), ({"batch_size": -1}, "-1"), ({"device": "tpu"}, "'tpu'")],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], said: str, make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=said):
        predict(make_model(), pixels(1, 8, 8), **given)


def test_a_model_of_other_channels_reads_arrays_and_no_files(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(channels=2)
    assert len(predict(folder, pixels(3, 8, 8, 2))) == 3
    Image.fromarray(pixels(8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"the model reads images of 2 channels; a file gives 1 \(grey\) or 3"):
        predict(folder, tmp_path / "a.png")


def test_lenet_and_several_branches_answer(make_model: MakeModel, tmp_path: Path) -> None:
    assert len(predict(make_model(LeNetSpec(), folder=tmp_path / "a", image_size=(28, 28)), pixels(2, 28, 28))) == 2
    arch = ArchSpec(StemSpec(8), ((BlockSpec("basic", 8),), (BlockSpec("inception", 8, 2),)), "group", "silu")
    assert len(predict(make_model(arch, folder=tmp_path / "b"), pixels(2, 8, 8))) == 2


def test_a_file_that_is_no_image_is_named_before_anything_is_decoded(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grey(tmp_path / "images")
    (tmp_path / "images" / "note.txt").write_text("no image")
    monkeypatch.setattr(predicting, "FileImages", None)
    with pytest.raises(InputError, match=r"note\.txt is not an image that can be read .* --skip-unreadable"):
        predictions(make_model(), tmp_path / "images")


def test_files_that_are_no_images_can_be_skipped(make_model: MakeModel, tmp_path: Path) -> None:
    files = write_grey(tmp_path / "images")
    (tmp_path / "images" / "note.txt").write_text("no image")
    cut = tmp_path / "images" / "cut.png"
    Image.fromarray(pixels(90, 90)).save(cut)
    cut.write_bytes(cut.read_bytes()[:500])
    Image.fromarray(RANDOM.random((8, 8)).astype(np.float32)).save(tmp_path / "images" / "floats.tiff")
    folder, skipped = make_model(), []
    found = list(predictions(folder, tmp_path / "images", skip_unreadable=True, skipped=skipped))
    assert [row["file"] for row in found] == [str(file) for file in files]
    assert {Path(name).name for name in skipped} == {"note.txt", "cut.png", "floats.tiff"}
    assert predict(folder, tmp_path / "images", skip_unreadable=True) == found
    with pytest.raises(InputError, match="none of the 1 files is an image"):
        predict(folder, tmp_path / "images" / "note.txt", skip_unreadable=True)
    with pytest.raises(InputError, match=r"cut\.png"):
        predict(folder, [*files, cut])


def test_folders_are_searched_in_order_and_clutter_is_passed_over(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a/deep/er/3.png", ".hidden/4.png", "b/.DS_Store", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    wanted = [str(tmp_path / name) for name in ("a/deep/er/3.png", "b/1.png", "b/2.png")]
    assert list_images(tmp_path) == wanted
    assert list_images([tmp_path / "b", str(tmp_path / "a" / "deep")]) == [*wanted[1:], wanted[0]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in the folder"):
        list_images(tmp_path / "empty")


def test_few_images_are_in_memory_at_a_time(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunelab.data.decode.chunk_length", lambda *_size: 4)
    monkeypatch.setattr("tunelab.data.decode.usable_cores", lambda: 1)
    files = write_grey(tmp_path / "images", 100)
    decoded: list[str] = []
    decode = predicting.FileImages._decode

    def counted(images: Any, path: str) -> Any:
        decoded.append(path)
        return decode(images, path)

    monkeypatch.setattr(predicting.FileImages, "_decode", counted)
    told: list[tuple[int, int]] = []
    rows = predictions(make_model(), files, batch_size=8, progress=lambda *numbers: told.append(numbers))
    assert next(rows)["file"] == str(files[0])
    assert len(decoded) <= 8 + 4 * 4
    assert len(list(rows)) == len(files) - 1
    assert (told[0], told[-1]) == ((8, len(files)), (len(files), len(files)))


def test_scores_that_are_no_numbers_are_an_error(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    monkeypatch.setattr(predicting, "_classify", lambda *_given: torch.full((2, 3), float("nan")))
    with pytest.raises(InputError, match="not finite"):
        predict(folder, pixels(2, 8, 8))


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0, 0.0), (1.0, 1.0), (0.123456789, 0.123457), (1.23456789e-9, 1.23457e-9)]
)
def test_probabilities_have_six_digits(value: float, rounded: float) -> None:
    assert predicting._rounded(value) == rounded
