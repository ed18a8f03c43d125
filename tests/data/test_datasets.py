from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from tunelab.config import DataConfig
from tunelab.data import datasets
from tunelab.data.batches import load_split
from tunelab.data.cache import prepare
from tunelab.data.vision import import_torchvision
from tunelab.errors import InputError

CPU = torch.device("cpu")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def labels_for(count: int, classes: int) -> np.ndarray:
    return (np.arange(count) % classes).astype(np.uint8)


def write_idx(root: Path, folder: str) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(random.integers(0, 256, (count, 28, 28)).astype(np.uint8)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels_for(count, 10)))


def write_cifar(root: Path, files: dict[str, int], label_key: str, names_key: str, classes: int, meta: str) -> None:
    random = np.random.default_rng(0)
    root.mkdir()
    for name, count in files.items():
        rows = random.integers(0, 256, (count, 3072)).astype(np.uint8)
        (root / name).write_bytes(pickle.dumps({"data": rows, label_key: labels_for(count, classes).tolist()}))
    (root / meta).write_bytes(pickle.dumps({names_key: [f"c{number}" for number in range(classes)]}))


def make_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    write_idx(root, "MNIST")


def make_fashion(root: Path, patch: pytest.MonkeyPatch) -> None:
    write_idx(root, "FashionMNIST")


def make_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    vision = import_torchvision().datasets
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    write_cifar(root / "cifar-10-batches-py", dict.fromkeys([*batches, "test_batch"], 20), "labels", "label_names", 10,
                "batches.meta")  # fmt: skip
    patch.setattr(vision.CIFAR10, "train_list", [[name, None] for name in batches])
    patch.setattr(vision.CIFAR10, "test_list", [["test_batch", None]])
    patch.setattr(vision.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})


def make_cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    vision = import_torchvision().datasets
    write_cifar(root / "cifar-100-python", {"train": 300, "test": 100}, "fine_labels", "fine_label_names", 100, "meta")
    patch.setattr(vision.CIFAR100, "train_list", [["train", None]])
    patch.setattr(vision.CIFAR100, "test_list", [["test", None]])
    patch.setattr(vision.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": None})


def make_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    vision = import_torchvision().datasets
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        labels = labels_for(count, 10)[:, None] + 1  # the file calls the digit 0 "10"
        pixels = random.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})
    lists = {part: ["", f"{part}_32x32.mat", None] for part in ("train", "test")}
    patch.setattr(vision.SVHN, "split_list", lists)


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "digits": lambda root, patch: None,
    "mnist": make_mnist,
    "fashion-mnist": make_fashion,
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "svhn": make_svhn,
}


def test_every_data_set_has_a_test_here() -> None:
    assert set(MAKERS) == set(datasets.DATASETS)


@pytest.mark.filterwarnings("ignore:dtype")  # numpy on the dtype inside torchvision's pickles
@pytest.mark.parametrize("name", list(datasets.DATASETS))
def test_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS[name](tmp_path, monkeypatch)
    config = DataConfig(name=name, data_dir=str(tmp_path))
    info = prepare(config)
    assert datasets.DATASETS[name].summary
    assert info.name == name
    assert len(info.fingerprint) == 16
    assert len(info.mean) == len(info.std) == info.channels
    assert set(info.counts) == {"train", "val", "test"}
    assert prepare(config) == info
    for split in ("train", "val", "test"):
        loaded = load_split(config, split, CPU)
        assert loaded.images.dtype == torch.uint8
        assert loaded.images.shape == (info.counts[split], info.channels, *info.image_size)
        assert loaded.labels.dtype == torch.int64
        assert set(loaded.labels.tolist()) == set(range(len(info.classes)))


def test_a_resized_data_set_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path, monkeypatch)
    info = prepare(DataConfig(name="mnist", data_dir=str(tmp_path), image_size=12))
    assert info.image_size == (12, 12)
    assert info.notes == ("images of 28x28 resized to 12x12",)


def test_digits_keep_their_grey_levels() -> None:
    images = torch.cat([load_split(DataConfig(), split, CPU).images for split in ("train", "val", "test")])
    assert len(images) == 1797
    assert len(images.unique()) == 17
    assert (int(images.min()), int(images.max())) == (0, 255)


def test_svhn_pixels_and_labels_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_svhn(tmp_path, monkeypatch)
    original = scipy.io.loadmat(tmp_path / "test_32x32.mat")
    loaded = load_split(DataConfig(name="svhn", data_dir=str(tmp_path)), "test", CPU)
    assert np.array_equal(loaded.images.numpy(), original["X"].transpose(3, 2, 0, 1))
    assert np.array_equal(loaded.labels.numpy(), original["y"].ravel() % 10)


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no data set 'imagenet'.*digits.*svhn.*folder:PATH, npz:PATH"):
        prepare(DataConfig(name="imagenet"))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_path_is_needed(kind: str) -> None:
    with pytest.raises(InputError, match=f"give {kind}:PATH"):
        prepare(DataConfig(name=f"{kind}:"))


@pytest.mark.parametrize("name", [name for name in datasets.DATASETS if name != "digits"])
def test_absent_data_names_the_options(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name} is not in {tmp_path}.*--download.*--data-dir"):
        prepare(DataConfig(name=name, data_dir=str(tmp_path)))


def test_without_data_dir_the_cache_is_searched(cache: Path) -> None:
    with pytest.raises(InputError, match=str(cache)):
        prepare(DataConfig(name="mnist"))


@pytest.mark.parametrize("content", [b"", b"nonsense", idx(np.zeros((60, 28, 28), np.uint8))[:-5]])
def test_damaged_idx_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path, monkeypatch)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=r"mnist in .* cannot be read"):
        prepare(DataConfig(name="mnist", data_dir=str(tmp_path)))


def test_images_without_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path, monkeypatch)
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(labels_for(50, 10)))
    with pytest.raises(InputError, match="damaged: its train images and labels"):
        prepare(DataConfig(name="mnist", data_dir=str(tmp_path)))
