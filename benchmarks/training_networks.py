"""What benchmarks/training_speed.py trains: networks of the space `arch` and LeNet-5, the same in each run; images."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunelab.config import ArchSpec, AugmentConfig, DataConfig, LeNetSpec, TrainConfig, TrialConfig
from tunelab.errors import RefusedError
from tunelab.models.check import check
from tunelab.space import load_space
from tunelab.tuning.draws import Draw
from tunelab.tuning.options import LIMITS

DRAWS = 200
QUANTILES = {"small": 0.1, "median": 0.5, "large": 0.9}


@dataclass(frozen=True)
class Network:
    """What is trained: without data, length and seed. `mflops` and `params` at 32x32 in colour, or 28x28 in grey."""

    config: TrialConfig
    mflops: float
    params: int


def pick_networks() -> dict[str, Network]:
    """The networks of the table, by name; the same in each run."""
    space = load_space("arch")
    plain = (checked(space.draw(Draw(random.Random(0), params)).arch) for params in space.baselines)
    resnet18 = next(network for network in plain if network is not None)
    generator = random.Random(0)
    drawn: list[Network] = []
    while len(drawn) < DRAWS:
        network = checked(space.draw(Draw(generator)).arch)
        drawn += [] if network is None else [network]
    drawn.sort(key=lambda network: network.mflops)
    chosen = {name: drawn[int(share * DRAWS)] for name, share in QUANTILES.items()}
    config = TrialConfig(LeNetSpec("relu", "max", "torch"), TrainConfig(batch_size=64, lr=0.02))
    cost = check(config.arch, image_size=(28, 28), channels=1, classes=10)
    return {**chosen, "resnet18": resnet18, "lenet": Network(config, cost.mflops, cost.params)}


def checked(arch: ArchSpec) -> Network | None:
    """The network with the recipe of all, None if it is beyond the limits of a search on a processor.

    The rate is low without norms, so that these train too.
    """
    params, mflops = LIMITS["cpu"]
    try:
        cost = check(arch, image_size=(32, 32), channels=3, classes=10, max_params=params, max_mflops=mflops)
    except RefusedError:
        return None
    augment = AugmentConfig(crop=0.125, flip=True)
    config = TrialConfig(arch, TrainConfig(lr=0.01 if arch.norm == "none" else 0.05, augment=augment))
    return Network(config, cost.mflops, cost.params)


def lengthened(network: Network, data: DataConfig, epochs: int, seed: int = 0) -> TrialConfig:
    """The configuration with its data, length and seed."""
    train = dataclasses.replace(network.config.train, epochs=epochs)
    return dataclasses.replace(network.config, train=train, data=data, seed=seed)


def images_at_hand(folder: Path, data: str | None, images: int, held_out: int = 100) -> DataConfig:
    """`images.npz` with so many training and validation images of 32x32: of `data`, or random ones of 10 classes."""
    from tunelab.data.batches import load_split
    from tunelab.data.cache import prepare

    draw = np.random.default_rng(0)
    arrays = {}
    counts = {"train": images, "val": held_out, "test": 100}
    if data is None:
        for split, count in counts.items():
            arrays[f"{split}_images"] = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count) % 10
    else:
        import torch

        source = DataConfig(name=data, image_size=32, limit_train=images)
        prepare(source)
        for split, count in counts.items():
            found = load_split(source, "val" if split == "test" else split, torch.device("cpu"))
            rows = draw.permutation(len(found.labels))[:count]
            arrays[f"{split}_images"] = found.images.permute(0, 2, 3, 1).numpy()[rows]
            arrays[f"{split}_labels"] = found.labels.numpy()[rows]
    np.savez(folder / "images.npz", **arrays)
    return DataConfig(name=f"npz:{folder / 'images.npz'}")


def data_of(network: str, at_hand: DataConfig, mnist: str | None, images: int | None) -> DataConfig:
    """The data of a network, so many training images of it."""
    source = DataConfig(name="mnist", data_dir=mnist) if network == "lenet" else at_hand
    return dataclasses.replace(source, limit_train=images)
