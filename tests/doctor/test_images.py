from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.doctor.images import find_data


def folder_of(root: Path, **counts: int) -> str:
    """A folder of grey images, one sub-folder per class, as the name of a data set."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(root / name / f"{number}.png")
    return f"folder:{root}"


def test_data_that_is_not_decoded_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    name = folder_of(tmp_path / "images", a=12, b=20)
    (found,) = find_data(name)
    assert found.verdict == "ok"
    assert found.measured.startswith("32 images (32 train) of 8x8 in 2 classes, not decoded yet (0.0 MiB)")
    assert not list((tmp_path / "cache").rglob("*.npy")), "nothing is decoded"


def test_data_that_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    name = folder_of(tmp_path / "images", a=12, b=20)
    prepare(DataConfig(name=name))
    (found,) = find_data(name)
    assert found.verdict == "ok"
    assert found.measured.startswith("32 images")
    assert f"decoded in {tmp_path / 'cache'}" in found.measured


def test_a_class_of_few_images(tmp_path: Path) -> None:
    (found,) = find_data(folder_of(tmp_path / "images", a=3, b=20))
    assert (found.verdict, "smallest class has 3" in found.measured) == ("warning", True)


def test_no_room_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunelab.doctor import images

    class Full:
        free = 100

    monkeypatch.setattr(images.shutil, "disk_usage", lambda _folder: Full())
    (found,) = find_data(folder_of(tmp_path / "images", a=12, b=20))
    assert (found.verdict, "TUNELAB_CACHE" in found.mend) == ("error", True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nope", "there is no data set 'nope'"), ("folder:/missing", "/missing"), ("folder:", "lacks its path")],
)
def test_data_that_does_not_open(name: str, said: str) -> None:
    (found,) = find_data(name)
    assert (found.verdict, found.name) == ("error", f"data {name}")
    assert said in found.measured
    assert found.mend


def test_data_that_would_have_to_be_downloaded(tmp_path: Path) -> None:
    (found,) = find_data("mnist", str(tmp_path))
    assert (found.verdict, "--download" in found.mend) == ("error", True)
    assert list(tmp_path.iterdir()) == []
