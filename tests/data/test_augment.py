from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunelab.config import AugmentConfig
from tunelab.data.augment import crop_and_flip, cutout, draw, mixup, mixup_weights, normalize, normalizer, pixels_of

CPU = torch.device("cpu")
SHAPES = st.tuples(st.integers(1, 9), st.integers(4, 12), st.integers(4, 12), st.integers(1, 3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(shape: tuple[int, int, int, int]) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator())


@given(SHAPES, st.floats(0, 0.5), st.booleans(), st.integers(0, 99))
def test_crop_and_flip_equals_a_loop(shape: tuple[int, int, int, int], crop: float, flip: bool, seed: int) -> None:
    images, draws = images_of(shape), draw(shape[0], generator(seed))
    result = crop_and_flip(images, draws, crop, flip)
    _, height, width, _ = shape
    above, beside = pixels_of(crop, height), pixels_of(crop, width)
    for index, image in enumerate(images):
        padded = torch.zeros(height + 2 * above, width + 2 * beside, shape[3], dtype=torch.uint8)
        padded[above : above + height, beside : beside + width] = image
        top = int(draws.top[index] * (2 * above + 1))
        left = int(draws.left[index] * (2 * beside + 1))
        window = padded[top : top + height, left : left + width]
        if flip and draws.mirror[index] < 0.5:
            window = window.flip(1)
        assert torch.equal(result[index], window)


def test_every_offset_and_both_sides_occur_evenly() -> None:
    image = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    image[0, 4, 3] = 1
    many = crop_and_flip(image.expand(9000, 8, 8, 1), draw(9000, generator()), 0.125, True)
    rows, columns = many.sum((0, 2, 3)), many.sum((0, 1, 3))
    assert rows.tolist() == pytest.approx([0, 0, 0, 3000, 3000, 3000, 0, 0], abs=200)
    assert columns.tolist() == pytest.approx([0, 0, 1500, 3000, 3000, 1500, 0, 0], abs=200)


def test_nothing_is_done_without_crop_and_flip() -> None:
    images = images_of((3, 8, 8, 3))
    assert crop_and_flip(images, draw(3, generator()), 0.0, False) is images


def test_flip_alone_mirrors_half() -> None:
    images = images_of((400, 6, 5, 3))
    result = crop_and_flip(images, draw(400, generator()), 0.0, True)
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(2)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


@given(SHAPES, st.floats(0.01, 0.99), st.integers(0, 99))
def test_cutout_greys_one_square(shape: tuple[int, int, int, int], side: float, seed: int) -> None:
    batch, height, width, channels = shape
    images = torch.ones(batch, channels, height, width)
    result = cutout(images.clone(), draw(batch, generator(seed)), side)
    length = pixels_of(side, min(height, width))
    for image in result:
        assert all(torch.equal(image[0], plane) for plane in image)
        gone = image[0] == 0
        rows, columns = gone.any(1).nonzero().ravel(), gone.any(0).nonzero().ravel()
        assert 1 <= len(rows) <= length
        assert 1 <= len(columns) <= length
        assert int(gone.sum()) == len(rows) * len(columns)
        assert int(rows[-1] - rows[0]) == len(rows) - 1
        assert int(columns[-1] - columns[0]) == len(columns) - 1


def test_cutout_reaches_every_pixel_and_none_when_off() -> None:
    images = torch.ones(2000, 1, 8, 8)
    assert torch.equal(cutout(images.clone(), draw(2000, generator()), 0.0), images)
    share = 1 - cutout(images.clone(), draw(2000, generator()), 0.25).mean((0, 1))
    assert float(share.min()) > 0
    assert float(share[4, 4]) == pytest.approx((2 / 8) ** 2, abs=0.02)


def test_mixup_is_a_weighted_mean_of_two() -> None:
    images, labels = torch.randn(5, 3, 4, 4), torch.arange(5)
    mixed, others = mixup(images, labels, 0.7)
    for index in range(5):
        other = int(others[index])
        assert other != index
        assert torch.allclose(mixed[index], 0.7 * images[index] + 0.3 * images[other], atol=1e-6)
    assert torch.allclose(mixup(images, labels, 1.0)[0], images)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_keeps_the_memory_order(channels: int) -> None:
    images = torch.randn(5, 4, 4, channels).permute(0, 3, 1, 2)
    assert mixup(images, torch.arange(5), 0.7)[0].stride() == images.stride()


def test_mixup_weights_are_beta() -> None:
    weights = torch.tensor(mixup_weights(AugmentConfig(mixup=0.5), 20_000, 3), dtype=torch.float64)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.005)
    assert mixup_weights(AugmentConfig(mixup=0.5), 5, 3) == mixup_weights(AugmentConfig(mixup=0.5), 9, 3)[:5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize(dtype: torch.dtype) -> None:
    images = images_of((4, 5, 6, 3))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1 / 255)
    result = normalize(images, *normalizer(mean, std, 6, CPU), dtype)
    assert result.dtype == dtype
    assert result.shape == (4, 3, 5, 6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    wanted = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(result.float(), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_pixels_of() -> None:
    assert [pixels_of(fraction, 32) for fraction in (0.0, 0.001, 0.125, 0.5)] == [0, 1, 4, 16]
