from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunelab.config import DataConfig
from tunelab.data import archives, raw
from tunelab.data.batches import load_split
from tunelab.data.cache import prepare
from tunelab.errors import InputError

CPU = torch.device("cpu")
GREY = np.random.default_rng(0).integers(0, 256, (40, 6, 5)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4


def write(tmp_path: Path, arrays: dict[str, Any]) -> DataConfig:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return DataConfig(name=f"npz:{path}")


@pytest.mark.parametrize("images", [GREY, COLOUR, COLOUR[..., :1], COLOUR[..., :2]], ids=["hw", "rgb", "hw1", "hw2"])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None].astype(np.uint8)], ids=["flat", "column"])
def test_images_and_labels(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    config = write(tmp_path, {"images": images, "labels": labels, "note": np.zeros(3)})
    info = prepare(config)
    assert info.image_size == (6, 5)
    assert info.channels == (1 if images.ndim == 3 else images.shape[3])
    assert info.classes == ("0", "1", "2", "3")
    assert sum(info.counts.values()) == 40
    seen = {}
    for split in ("train", "val", "test"):
        loaded = load_split(config, split, CPU)
        for image, label in zip(loaded.images, loaded.labels, strict=True):
            seen[np.ascontiguousarray(image.permute(1, 2, 0)).tobytes()] = int(label)
    assert seen == {image.tobytes(): int(label) for image, label in zip(images, LABELS, strict=True)}


@pytest.mark.parametrize("form", ["{}_images {}_labels", "x_{} y_{}"])
@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_divided_layouts(form: str, splits: tuple[str, ...], tmp_path: Path) -> None:
    arrays = {}
    for number, split in enumerate(splits):
        images, labels = (part.format(split) for part in form.split())
        arrays[images], arrays[labels] = np.roll(GREY, number, axis=0) + number, LABELS
    config = write(tmp_path, {**arrays, "classes": np.array(["ant", "bee", "cat", "dog"])})
    info = prepare(config)
    assert info.classes == ("ant", "bee", "cat", "dog")
    for split in ("val", "test"):
        if split in splits:
            assert info.counts[split] == 40
            assert np.array_equal(
                load_split(config, split, CPU).images.numpy()[:, 0], arrays[form.split()[0].format(split)]
            )
        else:
            assert 4 <= info.counts[split] < 20


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "wrong keys": ({"pictures": GREY, "labels": LABELS}, "it has none|images"),
    "no keys": ({}, "nothing"),
    "two layouts": ({"images": GREY, "labels": LABELS, "x_train": GREY, "y_train": LABELS}, "more than one"),
    "no labels": ({"images": GREY}, "has images but no labels"),
    "test without labels": ({"x_train": GREY, "y_train": LABELS, "x_test": GREY}, "has x_test but no y_test"),
    "float images": ({"images": GREY / 255, "labels": LABELS}, "images must be uint8.*float64"),
    "one image": ({"images": GREY[0], "labels": LABELS}, r"must be \(N, H, W\).*\(6, 5\)"),
    "channels first": ({"images": COLOUR.transpose(0, 3, 1, 2), "labels": LABELS}, "must be .*C from 1 to 4"),
    "no images": ({"images": GREY[:0], "labels": LABELS[:0]}, r"must be \(N, H, W\)"),
    "text labels": ({"images": GREY, "labels": np.array(["a", "b"] * 20)}, "labels must be integers from 0, not <U1"),
    "float labels": ({"images": GREY, "labels": LABELS / 1.0}, "labels must be integers"),
    "few labels": ({"images": GREY, "labels": LABELS[:39]}, r"labels must be \(40,\).*not \(39,\)"),
    "one-hot labels": ({"images": GREY, "labels": np.eye(4, dtype=int)[LABELS]}, r"labels must be \(40,\)"),
    "negative label": ({"images": GREY, "labels": LABELS - 1}, "it has -1"),
    "huge label": ({"images": GREY, "labels": LABELS + 10**9 * (LABELS == 3)}, "there is a 1000000003"),
    "labels from 1": ({"images": GREY, "labels": LABELS + 1}, "class '0' has 0 images"),
    "object labels": ({"images": GREY, "labels": np.array([{}] * 40, dtype=object)}, "labels cannot be read"),
    "few names": ({"images": GREY, "labels": LABELS, "classes": np.array(["a", "b", "c"])}, "a label is 3, but"),
    "names twice": ({"images": GREY, "labels": LABELS, "classes": np.array(["a", "b", "b", "c"])}, "a name twice"),
    "numbers as names": ({"images": GREY, "labels": LABELS, "classes": np.arange(4)}, "one row of names"),
    "one class": ({"images": GREY, "labels": LABELS * 0}, "single class"),
    "small class": ({"images": GREY[:14], "labels": np.array([0] * 6 + [1] * 6 + [2] * 2)}, "class '2' has 2 images"),
    "other size": ({"x_train": GREY, "y_train": LABELS, "x_test": GREY[:, :4], "y_test": LABELS}, "different shapes"),
    "class not in test": ({"x_train": GREY, "y_train": LABELS, "x_test": GREY[:3], "y_test": LABELS[:3]},
                          "class '3' has 0 images in the test split"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_archives(case: str, tmp_path: Path, cache: Path) -> None:
    arrays, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        prepare(write(tmp_path, arrays))
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.glob("data/*") if path.is_dir()]


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    with pytest.raises(InputError, match="images cannot be read"):
        prepare(write(tmp_path, {"images": np.array([Trap()], dtype=object), "labels": LABELS}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_not_an_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a numpy archive"):
        prepare(DataConfig(name=f"npz:{tmp_path / 'data.npz'}"))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_inside(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, images=GREY, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[300:500] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        prepare(DataConfig(name=f"npz:{path}"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        prepare(DataConfig(name=f"npz:{tmp_path}/none.npz"))


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    first = prepare(write(tmp_path, {"images": GREY, "labels": LABELS}))
    second = prepare(write(tmp_path, {"images": 255 - GREY, "labels": LABELS}))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [None, 4])
def test_images_come_in_chunks_and_are_those_of_the_array(
    compressed: bool, order: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Fortran's order there is nothing for it but to read the whole array."""
    for module in (archives, raw):
        monkeypatch.setattr(module, "CHUNK_BYTES", 700)
    config = write(tmp_path, {"images": COLOUR, "labels": LABELS})
    config = DataConfig(name=config.name, image_size=size)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "data.npz", images=np.asarray(COLOUR, order=order), labels=LABELS)  # type: ignore[call-overload]
    meter = raw.Meter(None)
    images = archives.find(config, str(tmp_path / "data.npz")).read(meter).splits["train"]
    assert isinstance(images, archives.ArchiveImages if order == "C" else raw.ArrayImages)
    wanted = raw.resize_all(COLOUR, (size or 6, size or 5))
    for rows in (np.arange(40), np.arange(3, 37, 5), np.array([39])):
        found = list(images.chunks(rows, meter))
        assert order == "F" or len(found) >= len(rows) / 7, "at most 7 images of 90 bytes are a chunk"
        assert np.array_equal(np.concatenate([some for _, some in found]), rows)
        assert np.array_equal(np.concatenate([pixels for pixels, _ in found]), wanted[rows])


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_in_the_images_is_found(compressed: bool, tmp_path: Path) -> None:
    """Also behind the last image that is asked for: the checksum is of the whole."""
    path = tmp_path / "data.npz"
    images = np.random.default_rng(0).integers(0, 256, (4000, 6, 6, 3)).astype(np.uint8)
    for place in (0.3, 0.9, 0.995):
        (np.savez_compressed if compressed else np.savez)(path, images=images, labels=np.arange(4000) % 4)
        content = bytearray(path.read_bytes())
        at = int(place * images.nbytes)
        content[at : at + 40] = bytes(40)
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            prepare(DataConfig(name=f"npz:{path}"))


def test_an_array_that_is_not_there_in_full(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array, cut in (("images", GREY, 5), ("labels", LABELS, 0)):
            with io.BytesIO() as stream:
                np.save(stream, array)
                archive.writestr(f"{name}.npy", stream.getvalue()[: len(stream.getvalue()) - cut])
    with pytest.raises(InputError, match=r"damaged .*images ends too early"):
        prepare(DataConfig(name=f"npz:{path}"))


def test_decoding_takes_little_memory(large_archive: Path) -> None:
    code = """
        import sys
        from tunelab.config import DataConfig
        from tunelab.data.cache import prepare
        from tunelab.data import batches  # all that is imported on the way
        import torch
        from tunelab.training.device import peak_memory_mib, reset_peak_memory
        reset_peak_memory(torch.device("cpu"))
        before = peak_memory_mib(torch.device("cpu"))
        prepare(DataConfig(name=sys.argv[1]))
        print(peak_memory_mib(torch.device("cpu")) - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), f"npz:{large_archive}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60
