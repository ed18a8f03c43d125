from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache per test."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TUNELAB_CACHE", str(root))
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _write_images(
    folder: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "RGB", suffix: str = "png"
) -> Path:
    """`counts[c]` random images of `size` (width, height) in folder/c; each pixel value tells its class apart."""
    generator = np.random.default_rng(len(str(folder)) + sum(counts.values()))
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            pixels = generator.integers(20 * number, 20 * number + 20, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:04}.{suffix}")
    return folder


@pytest.fixture
def write_images() -> Callable[..., Path]:
    return _write_images


@pytest.fixture
def large_archive(tmp_path: Path) -> Path:
    """An archive of 2,400 images of 128x128 in colour, of 4 classes: 112 MiB."""
    path = tmp_path / "large.npz"
    images = np.random.default_rng(0).integers(0, 256, (2400, 128, 128, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(2400) % 4)
    return path
