from __future__ import annotations

import numpy as np
import pytest
import torch

from tunelab.training.pictures import (
    MOST_LABELLED,
    MOST_TILES,
    confusion_matrix,
    examples,
    feature_maps,
    first_filters,
    grid,
    tiles,
)

RED, GREEN = (200, 0, 0), (0, 128, 0)


def has_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Text is blended with the paper: the strongest point of a letter comes near its colour."""
    return bool((np.abs(pixels.astype(int) - colour).sum(2) < 60).any())


def test_each_tile_goes_from_its_own_black_to_its_own_white():
    pictures = torch.stack([torch.linspace(-1, 1, 16).reshape(1, 4, 4), torch.linspace(5, 5.1, 16).reshape(1, 4, 4)])
    pixels = tiles(pictures)
    middle = pixels.shape[1] // 2
    for half in (pixels[2:-2, 2 : middle - 2], pixels[2:-2, middle + 2 : -2]):
        assert half.min() == 0
        assert half.max() == 255
    assert pixels.dtype == np.uint8
    assert tuple(pixels[5, 5]) == (0, 0, 0)


def test_constant_and_endless_values_make_a_tile_too():
    assert tiles(torch.zeros(1, 1, 3, 3)).shape[2] == 3
    assert tiles(torch.tensor([[[[float("nan"), float("inf")], [0.0, 1.0]]]])).max() == 255


def test_a_grid_has_all_pictures_in_their_order_and_large_enough():
    pictures = [np.full((3, 3, 3), shade, np.uint8) for shade in (10, 20, 30, 40, 50)]
    whole = grid(pictures)
    cell = whole.shape[1] // 3
    assert cell >= 48
    centres = [
        int(whole[row * cell + cell // 2, column * cell + cell // 2, 0]) for row in (0, 1) for column in range(3)
    ]
    assert centres == [10, 20, 30, 40, 50, 255]


@pytest.mark.parametrize("shape", [(70, 3, 5, 5), (8, 1, 3, 3), (4, 7, 1, 1), (12, 2 * 8 * 8), (200, 2 * 8 * 8)])
def test_filters_of_convolutions_and_of_pixels_are_pictures(shape):
    weight = torch.randn(shape)
    pixels = first_filters(weight, (2, 8, 8))
    assert pixels is not None
    side = round(len(weight[:MOST_TILES]) ** 0.5 + 0.49)
    assert pixels.shape[1] % side in (2, 2 % side)
    assert pixels.ndim == 3


def test_filters_of_other_layers_are_none():
    assert first_filters(torch.randn(4, 5), (2, 8, 8)) is None
    assert first_filters(torch.randn(4, 5, 3), (2, 8, 8)) is None


def test_maps_of_a_layer_are_grey():
    pixels = feature_maps(torch.randn(9, 6, 4))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_an_example_is_green_where_the_answer_is_right_and_red_where_not():
    images = torch.randint(0, 256, (2, 8, 8, 1), dtype=torch.uint8)
    scores = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    right = examples(images[:1], [0], scores[:1], ["cat", "dog"])
    wrong = examples(images[:1], [1], scores[:1], ["cat", "dog"])
    assert has_colour(right, GREEN)
    assert not has_colour(right, RED)
    assert has_colour(wrong, RED)
    assert not has_colour(wrong, GREEN)
    both = examples(images, [0, 1], scores, ["cat", "dog"])
    assert both.shape[1] > right.shape[1]


def test_examples_take_colour_long_names_and_any_letters():
    images = torch.randint(0, 256, (1, 40, 60, 3), dtype=torch.uint8)
    pixels = examples(images, [1], torch.tensor([[1.0, 0.0]]), ["kočka 猫 " * 9, "日本"])
    assert (pixels[..., 0] != pixels[..., 2]).any()


def test_the_darkest_square_of_a_confusion_matrix_is_where_the_images_are():
    counts = [[0, 8], [4, 4]]
    pixels = confusion_matrix(counts, ["a", "b"]).astype(int)
    cell, side, top = 36, 14, 28

    def shade(row: int, column: int) -> int:
        return int(np.median(pixels[top + row * cell + 1 : top + (row + 1) * cell, side + column * cell + 1 :][:, :34]))

    assert shade(0, 1) < shade(1, 0) == shade(1, 1) < shade(0, 0) == 255


@pytest.mark.parametrize("classes", [1, 2, 10, MOST_LABELLED, MOST_LABELLED + 1, 100, 1000])
def test_a_confusion_matrix_of_any_number_of_classes_stays_small(classes):
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes)).tolist()
    pixels = confusion_matrix(counts, [f"class {number}" for number in range(classes)])
    assert 100 < max(pixels.shape) < 1100
    assert confusion_matrix([[0] * classes] * classes, ["猫"] * classes).shape[2] == 3
