from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.config import DataConfig
from tunelab.data import splits
from tunelab.data.splits import STD_FLOOR, channel_stats, cut, divide, shares
from tunelab.data.storage import NpyReader
from tunelab.errors import InputError

COUNTS = st.lists(st.integers(2, 60), min_size=2, max_size=12)


def labels_of(counts: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def names(count: int) -> tuple[str, ...]:
    return tuple(f"c{number}" for number in range(count))


@given(COUNTS, st.floats(0, 1))
def test_shares_are_proportional(counts: list[int], place: float) -> None:
    array = np.array(counts)
    total = round(len(counts) + place * (array.sum() - len(counts)))
    parts = shares(array, total, array)
    assert parts.sum() == total
    assert (parts >= 1).all()
    assert (parts <= array).all()
    exact = array * total / array.sum()
    if (exact >= 1).all():
        assert (np.abs(parts - exact) < 1 + 1e-9).all()


@given(COUNTS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_cut_is_stratified(counts: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(counts)
    mask = cut(labels, fraction, seed)
    assert np.array_equal(mask, cut(labels, fraction, seed))
    inside, outside = (np.bincount(labels[part], minlength=len(counts)) for part in (mask, ~mask))
    assert inside.min() >= 1
    assert outside.min() >= 1
    if min(counts) * min(fraction, 1 - fraction) >= 2:
        assert (np.abs(inside - np.array(counts) * fraction) < 2).all()


@given(COUNTS, st.integers(12, 400), st.floats(0.05, 0.9), st.booleans())
def test_divide_never_shares_an_image(counts: list[int], limit: int, fraction: float, has_val: bool) -> None:
    labels = labels_of(counts)
    division = divide(labels, names(len(counts)), has_val, DataConfig(limit_train=limit, val_fraction=fraction))
    whole = divide(labels, names(len(counts)), has_val, DataConfig(val_fraction=fraction))
    assert len(division.train) == min(limit, len(whole.train))
    assert set(division.train) <= set(whole.train)
    assert set(labels[division.train]) == set(range(len(counts)))
    assert (division.val is None) is has_val
    if division.val is not None and whole.val is not None:
        assert not set(division.train) & set(division.val)
        assert np.array_equal(np.sort(np.concatenate([whole.train, whole.val])), np.arange(len(labels)))


def test_val_is_limited_with_train() -> None:
    labels = labels_of([5000] * 4)
    for limit, fraction, val in ((100, 0.5, 2000), (4000, 0.5, 4000), (100, 0.05, 1000), (8000, 0.2, 2000)):
        division = divide(labels, names(4), False, DataConfig(limit_train=limit, val_fraction=fraction))
        assert division.val is not None
        assert (len(division.train), len(division.val)) == (limit, val)
        assert np.ptp(np.bincount(labels[division.val])) <= 1
        assert np.ptp(np.bincount(labels[division.train])) <= 1


def test_split_seed_decides_the_division() -> None:
    labels = labels_of([50, 50])
    first, again, other = (divide(labels, names(2), False, DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)


def test_too_small() -> None:
    with pytest.raises(InputError, match="class 'c1' has 1 images in train, and needs at least 2"):
        divide(np.array([0, 0, 1]), names(2), False, DataConfig())
    with pytest.raises(InputError, match="limit_train 2 is too small: 3 classes"):
        divide(labels_of([9, 9, 9]), names(3), False, DataConfig(limit_train=2))


@pytest.mark.parametrize("chunk", [2**23, 1000])
def test_stats_are_those_of_numpy(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "CHUNK_BYTES", chunk)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 6, 7, 3)).astype(np.uint8)
    pixels[..., 2] = 77
    rows = np.arange(0, 50, 3)
    np.save(tmp_path / "pixels.npy", pixels)
    mean, std = channel_stats(NpyReader([tmp_path / "pixels.npy"]), rows)
    assert np.allclose(mean, (pixels[rows] / 255).mean((0, 1, 2)))
    assert np.allclose(std[:2], (pixels[rows] / 255).std((0, 1, 2))[:2])
    assert std[2] == STD_FLOOR
