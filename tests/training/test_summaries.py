from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tunelab.training.summaries import BINS, MOST_VALUES, histogram, image


def test_a_histogram_counts_every_value_where_it_lies():
    values = torch.tensor([0.0, 0.05, 1.0, 1.0, 2.95, 3.0])
    found = histogram("weights/a", values)
    assert found is not None
    assert found.tag == "weights/a"
    shown = found.histo
    assert (shown.num, shown.min, shown.max) == (6, 0.0, 3.0)
    assert shown.sum == pytest.approx(8.0)
    assert shown.sum_squares == pytest.approx(float(values.double().square().sum()))
    assert len(shown.bucket) == len(shown.bucket_limit) == BINS
    for edge in (0.1, 1.1, 3.0):
        below = sum(
            count for limit, count in zip(shown.bucket_limit, shown.bucket, strict=True) if limit <= edge + 1e-6
        )
        assert below == int((values <= edge).sum())


def test_a_histogram_of_one_value_has_one_bar():
    found = histogram("a", torch.full((2, 3), -0.5))
    assert found is not None
    assert list(found.histo.bucket_limit) == [-0.5]
    assert list(found.histo.bucket) == [6]


def test_what_is_not_finite_is_left_out_and_of_nothing_there_is_no_histogram():
    found = histogram("a", torch.tensor([float("nan"), float("inf"), 1.0, 2.0]))
    assert found is not None
    assert (found.histo.num, found.histo.max) == (2, 2.0)
    assert histogram("a", torch.tensor([float("nan")])) is None
    assert histogram("a", torch.empty(0)) is None


def test_of_many_values_evenly_picked_ones_are_counted():
    values = torch.arange(3 * MOST_VALUES + 5.0)
    found = histogram("a", values)
    assert found is not None
    assert MOST_VALUES // 2 < found.histo.num <= MOST_VALUES
    assert found.histo.sum / found.histo.num == pytest.approx(float(values.mean()), rel=0.01)
    assert histogram("a", torch.ones(3, dtype=torch.bfloat16, requires_grad=True)) is not None


def test_an_image_is_read_back_as_it_was():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = image("filters/stem", pixels)
    assert (found.image.height, found.image.width, found.image.colorspace) == (5, 7, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.image.encoded_image_string))), pixels)
