"""The data sets that there are, and how a name is turned into one of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tunelab.config import DataConfig
from tunelab.data import archives, folders, vision
from tunelab.data.raw import Found, Meter, Raw, raw_from_arrays
from tunelab.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """One line about a data set, and the function that finds it."""

    summary: str
    find: Callable[[DataConfig], Found]


@dataclass(frozen=True)
class PathDataset:
    """One line about a kind of data named `KIND:PATH`, and the function that finds it at a path."""

    summary: str
    find: Callable[[DataConfig, str], Found]


def find_digits(config: DataConfig) -> Found:
    """scikit-learn's digits: 1,797 grey images 8x8 of ten digits (Alpaydin & Kaynak, UCI, 1998); no test split."""

    def read(meter: Meter) -> Raw:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        classes = tuple(str(name) for name in digits.target_names)
        return raw_from_arrays(classes, {"train": (pixels, digits.target.astype(np.int64))}, config.image_size, meter)

    return Found({"version": importlib.metadata.version("scikit-learn")}, ("train",), read)


DATASETS: dict[str, Dataset] = {
    "digits": Dataset("1,797 grey 8x8 digits, comes with scikit-learn", find_digits),
    "mnist": Dataset("70,000 grey 28x28 digits", partial(vision.find, "mnist")),
    "fashion-mnist": Dataset("70,000 grey 28x28 pieces of clothing", partial(vision.find, "fashion-mnist")),
    "cifar10": Dataset("60,000 colour 32x32 images of 10 classes", partial(vision.find, "cifar10")),
    "cifar100": Dataset("60,000 colour 32x32 images of 100 classes", partial(vision.find, "cifar100")),
    "svhn": Dataset("99,289 colour 32x32 house numbers", partial(vision.find, "svhn")),
}

PATH_DATASETS: dict[str, PathDataset] = {
    "folder": PathDataset("a folder of images, one sub-folder per class, with or without train/val/test", folders.find),
    "npz": PathDataset("a numpy archive with images and labels", archives.find),
}


def find_dataset(config: DataConfig) -> Found:
    """The data set that `config.name` names.

    Raises:
        InputError: there is none of that name, or it is not where it should be.
    """
    kind, colon, path = config.name.partition(":")
    if colon and kind in PATH_DATASETS:
        if not path:
            raise InputError(f"the data set {config.name!r} lacks its path; give {kind}:PATH")
        return PATH_DATASETS[kind].find(config, path)
    if config.name not in DATASETS:
        names = ", ".join([*DATASETS, *(f"{kind}:PATH" for kind in PATH_DATASETS)])
        raise InputError(f"there is no data set {config.name!r}; there are {names}")
    return DATASETS[config.name].find(config)
