"""The networks that are timed, what is made of the figures, and the script on a few images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tunelab.config import LeNetSpec, arch_id
from tunelab.models.check import check
from tunelab.tuning.options import LIMITS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("training_speed")


def test_the_networks_are_the_same_in_each_run(script: ModuleType) -> None:
    networks = script.pick_networks()
    assert networks == script.pick_networks()
    assert list(networks) == list(script.IMAGES) == list(script.ACCURACY)
    for name, network in networks.items():
        size = {"image_size": (28, 28), "channels": 1} if name == "lenet" else {"image_size": (32, 32), "channels": 3}
        cost = check(network.config.arch, **size, classes=10)
        assert (cost.mflops, cost.params) == (network.mflops, network.params)
        assert cost.params <= LIMITS["cpu"][0]
        assert cost.mflops <= LIMITS["cpu"][1]
    small, median, large = (networks[name].mflops for name in ("small", "median", "large"))
    assert 1.5 * small < median < large / 1.5
    assert networks["lenet"].config.arch == LeNetSpec("relu", "max", "torch")
    assert networks["resnet18"].config.arch.stem.width == 16
    assert len({arch_id(network.config.arch) for network in networks.values()}) == 5


def test_ratios_are_of_one_round_each_and_to_the_loader_that_ran_in_all(script: ModuleType) -> None:
    speeds = {"plain": [100.0, 120.0, 90.0], "plain-worker": [90.0], "fit": [200.0, 240.0, 270.0]}
    found = script.ratios({**speeds, "fit-float32": [100.0, 60.0, 90.0]})
    assert found == {
        "peer": "plain",
        "fit": {"median": 2.0, "low": 2.0, "high": 3.0},
        "fit-float32": {"median": 1.0, "low": 0.5, "high": 1.0},
    }
    one_round = {"plain": [80.0], "plain-worker": [90.0], "fit": [180.0], "fit-float32": [90.0]}
    assert script.ratios(one_round)["peer"] == "plain-worker"


@pytest.mark.parametrize(
    ("plain", "fit", "differ"),
    [
        ([0.90, 0.91, 0.92], [0.91, 0.92, 0.90], False),
        ([0.90, 0.91, 0.92], [0.93, 0.92, 0.915], False),
        ([0.90, 0.91, 0.92], [0.96, 0.97, 0.98], True),
        ([0.96, 0.97, 0.98], [0.90, 0.91, 0.92], True),
        ([0.5, 0.5], [0.5, 0.5], False),
        ([0.5, 0.5], [0.6, 0.6], True),
    ],
)
def test_accuracies_differ_where_chance_does_not_explain_it(
    script: ModuleType, plain: list[float], fit: list[float], differ: bool
) -> None:
    found = script.compare(plain, fit)
    assert found["differ"] is differ
    assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
    assert found["difference"]["mean"] == pytest.approx(np.mean(fit) - np.mean(plain))
    table = script.accuracy_table({"lenet": {"images": 9, "epochs": 2, **found}})
    assert ("they differ" in table) is differ


def write_mnist(folder: Path, train: int, test: int) -> str:
    """Files like MNIST's, of images that are bright above or below by their class."""
    (folder / "MNIST" / "raw").mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 6 + 2 * label] += 150
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (folder / "MNIST" / "raw" / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return str(folder)


def run(*words: str) -> tuple[dict[str, Any], str]:
    """What the script finds, and what it says meanwhile."""
    command = [sys.executable, str(FOLDER / "training_speed.py"), "--json", "--threads", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_speeds_of_all_contenders(script: ModuleType, tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path, 400, 100)
    length = ["--images", "128", "--epochs", "2", "--repeats", "2"]
    found, said = run("--network", "small", "--network", "lenet", "--mnist", mnist, *length)
    assert found["skipped"] == {}
    assert found["mnist_first_opened"] > 0
    (one,) = found["speed"]
    assert one["threads"] == 1
    assert list(one["networks"]) == ["small", "lenet"]
    for figure in one["networks"].values():
        runs = {name: len(speeds) for name, speeds in figure["images_per_second"].items()}
        peer = figure["ratios"]["peer"]
        slower = next(name for name in script.PEERS if name != peer)
        assert runs == {**dict.fromkeys(script.CONTENDERS, 2), slower: 1}
        assert all(speed > 0 for speeds in figure["images_per_second"].values() for speed in speeds)
    assert set(one["lenet_task"]["seconds"]) == {one["networks"]["lenet"]["ratios"]["peer"], "fit"}
    assert one["lenet_task"]["epochs"] == 5
    assert said.count("images/s") == 14
    networks = script.pick_networks()
    table = script.tables(found, {name: networks[name] for name in one["networks"]})
    assert all(words in table for words in ("small: 3.3 million", "peer", "the LeNet task, 5 epochs: plain loop"))


@pytest.mark.slow
def test_accuracies_of_both_sides(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path, 3000, 100)
    length = ["--images", "1500", "--epochs", "2", "--seeds", "2"]
    found, said = run("--accuracy", "--mnist", mnist, *length)
    assert list(found["skipped"]) == ["small"]
    assert "small is left out: accuracy needs real images; give --data" in said
    lenet = found["accuracy"]["lenet"]
    for side in ("plain", "fit"):
        assert len(lenet[side]["accuracies"]) == 2
        assert lenet[side]["mean"] > 0.6


def test_nothing_to_measure_is_said(script: ModuleType) -> None:
    done = CliRunner().invoke(script.main, ["--network", "lenet"])
    assert done.exit_code == 2
    assert "lenet is left out: it needs --mnist FOLDER" in done.output
    assert "nothing is left to measure" in done.output
