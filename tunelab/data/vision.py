"""The data sets that torchvision reads, and torchvision itself, which is imported only when one has to be decoded."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunelab.config import DataConfig
from tunelab.data.raw import Found, Meter, Pixels, Raw, Rows, raw_from_arrays
from tunelab.data.storage import exclusive
from tunelab.errors import InputError, TunelabError
from tunelab.files import cache_root

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = ("nms", "qnms")
_declared: list[Any] = []  # the library of schemas lives as long as the process


@dataclass(frozen=True)
class _VisionSet:
    """`factory` in torchvision.datasets, the files it reads below its root, and class names if not torchvision's."""

    factory: str
    files: tuple[str, ...]
    classes: tuple[str, ...] = ()


def _idx_files(folder: str) -> tuple[str, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{part}-ubyte" for part in parts)


_CIFAR10_PARTS = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_DIGITS = tuple("0123456789")
_SETS: dict[str, _VisionSet] = {
    "mnist": _VisionSet("MNIST", _idx_files("MNIST"), _DIGITS),
    "fashion-mnist": _VisionSet("FashionMNIST", _idx_files("FashionMNIST")),
    "cifar10": _VisionSet("CIFAR10", tuple(f"cifar-10-batches-py/{part}" for part in _CIFAR10_PARTS)),
    "cifar100": _VisionSet("CIFAR100", tuple(f"cifar-100-python/{part}" for part in ("train", "test", "meta"))),
    "svhn": _VisionSet("SVHN", ("train_32x32.mat", "test_32x32.mat"), _DIGITS),
}


def find(name: str, config: DataConfig) -> Found:
    """The torchvision data set `name` in `config.data_dir` (None: a folder in the cache), fetched if `config.download`.

    It brings "train" and "test"; SVHN's "extra" images are not used.

    Raises:
        InputError: a file of it is missing and `download` is False.
        TunelabError: the download failed.
    """
    entry = _SETS[name]
    root = Path(config.data_dir).expanduser().resolve() if config.data_dir else cache_root()[0] / "raw" / name
    missing = _first_missing(entry, root)
    if missing and not config.download:
        raise InputError(
            f"{name} is not in {root} ({missing} is missing); add --download to fetch it, "
            "or name the folder that has it with --data-dir"
        )
    if missing:
        _download(name, root)
    stats = [(file, (root / file).stat()) for file in entry.files]
    key = {"root": str(root), "files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]}
    return Found(key, ("train", "test"), lambda meter: _read(name, root, config, meter))


def _first_missing(entry: _VisionSet, root: Path) -> str | None:
    return next((file for file in entry.files if not (root / file).is_file()), None)


def _download(name: str, root: Path) -> None:
    entry = _SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root / f".{name}.lock"):
        if _first_missing(entry, root) is None:
            return  # another process has fetched it meanwhile
        try:
            with careful_extraction():
                for train in (True, False):
                    _open_split(entry, root, train, download=True)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise TunelabError(f"the download of {name} to {root} failed: {error}") from error
        missing = _first_missing(entry, root)
        if missing:
            raise TunelabError(f"the download of {name} to {root} brought no {missing}")


@contextlib.contextmanager
def careful_extraction() -> Iterator[None]:
    """Around torchvision's downloads: what is unpacked from a tar file stays in its folder, and is plain files.

    torchvision compares a download with its checksum, and then unpacks all of it without looking (PEP 706). A Python of
    before June 2023 has no such filter: the checksum must do there.
    """
    if not hasattr(tarfile, "data_filter"):
        yield
        return
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _open_split(entry: _VisionSet, root: Path, train: bool, download: bool = False) -> Any:
    factory = getattr(import_torchvision().datasets, entry.factory)
    if entry.factory == "SVHN":
        return factory(root, split="train" if train else "test", download=download)
    return factory(root, train=train, download=download)


def _read(name: str, root: Path, config: DataConfig, meter: Meter) -> Raw:
    entry = _SETS[name]
    try:
        train, test = _open_split(entry, root, True), _open_split(entry, root, False)
        arrays = {"train": _arrays(train), "test": _arrays(test)}
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError, KeyError) as error:
        raise InputError(f"{name} in {root} cannot be read: {type(error).__name__}: {error}") from error
    classes = entry.classes or tuple(train.classes)
    for split, (pixels, labels) in arrays.items():
        if len(pixels) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
            raise InputError(f"{name} in {root} is damaged: its {split} images and labels do not fit together")
    return raw_from_arrays(classes, arrays, config.image_size, meter)


def _arrays(dataset: Any) -> tuple[Pixels, Rows]:
    pixels = np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, dtype=np.int64)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.shape[1] == 3:  # SVHN is (N, C, H, W)
        pixels = pixels.transpose(0, 2, 3, 1)
    return pixels, labels


def import_torchvision() -> Any:
    """torchvision, also where its compiled operators cannot be loaded.

    PyPI's torchvision is built for a CUDA torch. Beside a CPU torch of the same release its operators cannot load, and
    the import fails because it describes two that nobody has declared; declaring them is enough for the data sets.

    Raises:
        InputError: torchvision is missing or made for another torch; with both versions and the pip command for it.
    """
    try:
        return _import()
    except (ImportError, OSError) as error:
        raise InputError(f"torchvision cannot be imported ({error}); {_advice()}") from error
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error) or not _versions_fit():
            raise InputError(f"torchvision does not fit this torch ({error}); {_advice()}") from error
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(f"{schema}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    return _import()


def _import() -> Any:
    importlib.import_module("torchvision.datasets")
    return sys.modules["torchvision"]


def _versions() -> tuple[str, str]:
    try:
        return importlib.metadata.version("torch"), importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("torch"), "none"


def _versions_fit() -> bool:
    """True if torchvision 0.(n + 15) stands beside torch 2.n, as all pairs since torch 2.0 do."""
    torch_version, vision_version = _versions()
    return vision_version.split(".")[:2] == _wanted(torch_version).split(".")


def _wanted(torch_version: str) -> str:
    return f"0.{int(torch_version.split('.')[1]) + 15}"


def _advice() -> str:
    torch_version, vision_version = _versions()
    wanted = f"torchvision=={_wanted(torch_version)}.*"
    return f"torch is {torch_version}, torchvision {vision_version}; `pip install '{wanted}'` mends it"
