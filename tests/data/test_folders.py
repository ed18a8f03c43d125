from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tunelab.config import DataConfig
from tunelab.data.batches import load_split
from tunelab.data.cache import prepare
from tunelab.errors import InputError

CPU = torch.device("cpu")
Write = Callable[..., Path]
COUNTS = {"b": 8, "a": 8}


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(name=f"folder:{path}", **changes)  # type: ignore[arg-type]


def everything(data: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
    splits = [load_split(data, split, CPU) for split in ("train", "val", "test")]
    return torch.cat([part.images for part in splits]), torch.cat([part.labels for part in splits])


def test_classes_are_sorted_and_pixels_kept(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, COUNTS)
    info = prepare(config(tmp_path))
    assert (info.classes, info.channels, info.image_size) == (("a", "b"), 3, (8, 8))
    images, labels = everything(config(tmp_path))
    files = {np.asarray(Image.open(path)).tobytes(): path.parent.name for path in tmp_path.rglob("*.png")}
    found = {
        np.ascontiguousarray(image.permute(1, 2, 0)).tobytes(): info.classes[label]
        for image, label in zip(images, labels.tolist(), strict=True)
    }
    assert found == files


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_divided_folder(val: str, write_images: Write, tmp_path: Path) -> None:
    for split, count in (("train", 9), (val, 3), ("test", 4)):
        write_images(tmp_path / split, dict.fromkeys("abc", count))
    assert prepare(config(tmp_path)).counts == {"train": 27, "val": 9, "test": 12}


def test_train_folder_alone(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path / "train", dict.fromkeys("abc", 10))
    assert prepare(config(tmp_path)).classes == ("a", "b", "c")


@pytest.mark.parametrize(("modes", "channels"), [(("L", "L"), 1), (("L", "RGB"), 3)])
def test_grey_only_if_all_are(modes: tuple[str, str], channels: int, write_images: Write, tmp_path: Path) -> None:
    for name, mode in zip("ab", modes, strict=True):
        write_images(tmp_path, {name: 6}, mode=mode)
    assert prepare(config(tmp_path)).channels == channels


def test_many_kinds_of_image(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 257 * 200, np.uint16))
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([0, 0, 0, 10, 20, 30])
    kinds = {
        "bit.png": Image.new("1", (8, 8), 1),
        "deep.png": deep,
        "alpha.png": Image.new("RGBA", (8, 8), (1, 2, 3, 9)),
        "cmyk.jpg": Image.new("CMYK", (8, 8)),
        "palette.gif": clear,
        "b.bmp": Image.new("RGB", (8, 8)),
        "t.tiff": Image.new("L", (8, 8)),
        "w.webp": Image.new("RGB", (8, 8)),
    }
    for name in "ab":
        (tmp_path / name).mkdir()
        for file, image in kinds.items():
            image.save(tmp_path / name / file)
    assert sum(prepare(config(tmp_path)).counts.values()) == 16
    images, _ = everything(config(tmp_path))
    values = {tuple(image[:, 0, 0].tolist()) for image in images}
    assert {(200, 200, 200), (255, 255, 255), (1, 2, 3), (10, 20, 30)} <= values


def test_palette_with_transparency_makes_no_warning(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            image.save(tmp_path / name / f"{index}.png", transparency=b"\x00\x80")
    images, _ = everything(config(tmp_path))
    assert images[0, :, 0, 0].tolist() == [10, 20, 30]


def test_photographs_are_turned_upright(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, COUNTS, size=(4, 8))
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: left becomes top
    for name in "ab":
        for index in range(8):
            Image.fromarray(pixels).save(tmp_path / name / f"{index:04}.png", exif=exif)
    assert prepare(config(tmp_path)).image_size == (8, 4)
    images, _ = everything(config(tmp_path))
    assert bool((images[:, :, :4] == 250).all())
    assert bool((images[:, :, 4:] == 0).all())


def test_clutter_is_passed_over_and_deeper_folders_are_read(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, COUNTS)
    write_images(tmp_path / "a", {"deeper": 3})
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x.png"):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "README.txt").write_text("beside the classes")
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    info = prepare(config(tmp_path))
    assert info.classes == ("a", "b")
    assert sum(info.counts.values()) == 19
    assert info.notes == ()


def test_mixed_sizes_need_image_size(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, COUNTS, size=(8, 6))
    write_images(tmp_path, {"c": 7}, size=(10, 12))
    with pytest.raises(InputError, match=r"2 different sizes \(8x6, 10x12, the most common first\); give --image-size"):
        prepare(config(tmp_path))
    info = prepare(config(tmp_path, image_size=9))
    assert info.image_size == (9, 9)
    assert info.notes == ("images of 2 sizes resized to 9x9",)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_images_shrink_to_their_average(suffix: str, tmp_path: Path) -> None:
    board = np.kron(np.indices((100, 100)).sum(0) % 2, np.ones((2, 2))) * 200
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(board.astype(np.uint8)).save(tmp_path / name / f"{index}.{suffix}")
    images, _ = everything(config(tmp_path, image_size=10))
    assert images.shape == (6, 1, 10, 10)
    assert float((images.float() - 100).abs().max()) < 5  # without antialias it would be 0 and 200


BOMB = 20_000


def spoil(path: Path, how: str) -> Path:
    if how == "text":
        path = path.with_name("labels.csv")
        path.write_text("a,b\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    elif how == "link":
        path.unlink()
        path.symlink_to("nowhere.png")
    elif how == "bomb":
        Image.new("1", (BOMB, BOMB)).save(path)
    elif how == "float":
        path.unlink()
        path = path.with_suffix(".tiff")
        Image.new("F", (8, 8)).save(path)
    return path


@pytest.mark.parametrize("how", ["text", "empty", "cut", "link", "bomb", "float"])
def test_unreadable_files(how: str, write_images: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "bomb":
        monkeypatch.setattr(f"{__name__}.BOMB", 1100)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    write_images(tmp_path, COUNTS)
    spoiled = spoil(tmp_path / "a" / "0003.png", how)
    with pytest.raises(InputError, match=f"{spoiled} is not an image that can be read .*--skip-unreadable") as caught:
        prepare(config(tmp_path))
    assert "\n" not in str(caught.value)
    info = prepare(config(tmp_path, skip_unreadable=True))
    assert sum(info.counts.values()) == (16 if how == "text" else 15)
    assert info.notes == (f"1 unreadable file skipped, the first is {spoiled}",)
    images, labels = everything(config(tmp_path, skip_unreadable=True))
    assert ((images.float().mean((1, 2, 3)) < 20) == (labels == 1)).all()  # "b" was written first, as the dark class


def test_a_class_that_is_skipped_away(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, {**COUNTS, "c": 3})
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="class 'c' has 0 images"):
        prepare(config(tmp_path, skip_unreadable=True))
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 19 files is an image"):
        prepare(config(tmp_path, skip_unreadable=True))


def test_bad_folders(write_images: Write, tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            prepare(config(tmp_path / name))

    refused("none", "there is no folder .*none")
    (tmp_path / "empty").mkdir()
    refused("empty", "has no class folders")
    write_images(tmp_path / "flat", {".": 3})
    refused("flat", "has no class folders")
    write_images(tmp_path / "single", {"cats": 5})
    refused("single", r"single class folder \('cats'\)")
    for name in ("train", "test"):
        write_images(tmp_path / "one" / name, {"cats": 5})
    refused("one", "single class folder")
    for name in "ab":
        (tmp_path / "hollow" / name).mkdir(parents=True)
    refused("hollow", "not one image")
    write_images(tmp_path / "hole", COUNTS)
    (tmp_path / "hole" / "c").mkdir()
    refused("hole", "class folder .*hole/c has no images")
    write_images(tmp_path / "small", {**COUNTS, "rare": 2})
    refused("small", "class 'rare' has 2 images .* at least 3 .*train, val, test")


def test_bad_divided_folders(write_images: Write, tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            prepare(config(tmp_path / name))

    write_images(tmp_path / "more/train", COUNTS)
    write_images(tmp_path / "more/test", {**COUNTS, "zebra": 1})
    refused("more", "differ in their classes: only one has 'zebra'")
    for name in ("train", "val", "validation"):
        write_images(tmp_path / "two" / name, COUNTS)
    refused("two", "two folders for val")
    for name in ("train", "docs"):
        write_images(tmp_path / "odd" / name, COUNTS)
    refused("odd", "'docs' must be one of train")
    for name in ("val", "test"):
        write_images(tmp_path / "lost" / name, COUNTS)
    refused("lost", "no train folder")


def test_folders_called_train_and_test_can_be_classes(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, {"test": 5, "train": 5})
    assert prepare(config(tmp_path)).classes == ("test", "train")


def test_progress_counts_every_image_once(write_images: Write, tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 300, "b": 300}, size=(4, 4))
    seen: list[tuple[int, int]] = []
    prepare(config(tmp_path), lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (600, 600)
    assert len(seen) > 4
    prepare(config(tmp_path), lambda done, total: pytest.fail("it was decoded already"))


def test_pipes_and_links_to_themselves_are_named_and_not_waited_for(write_images: Write, tmp_path: Path) -> None:
    for kind in ("pipe", "loop"):
        root = tmp_path / kind
        write_images(root, {"a": 6, "b": 6})
        if kind == "pipe":
            os.mkfifo(root / "a" / "odd.png")
        else:
            (root / "a" / "odd.png").symlink_to("odd.png")
        with pytest.raises(InputError, match=r"odd.png is not an image that can be read"):
            prepare(DataConfig(f"folder:{root}"))
        assert prepare(DataConfig(f"folder:{root}", skip_unreadable=True)).notes[-1].startswith("1 unreadable file")
