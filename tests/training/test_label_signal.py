from __future__ import annotations

import dataclasses

import pytest
import torch

from tunelab.config import DataConfig
from tunelab.data.batches import Split, load_splits
from tunelab.training.label_signal import signal


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    train, val = load_splits(DataConfig(limit_train=600), ["train", "val"], torch.device("cpu"))
    return train, val


def test_digits_tell_their_labels(digits: tuple[Split, Split]) -> None:
    assert signal(*digits, classes=10) > 20
    assert signal(digits[0], None, classes=10) > 20


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_are_told_by_nothing(digits: tuple[Split, Split], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    train, val = (
        dataclasses.replace(one, labels=one.labels[torch.randperm(len(one.labels), generator=generator)])
        for one in digits
    )
    assert signal(train, val, classes=10) < 2.33


def test_the_global_random_state_is_left_alone_and_the_answer_is_the_same(digits: tuple[Split, Split]) -> None:
    before = torch.random.get_rng_state()
    assert signal(*digits, classes=10) == signal(*digits, classes=10)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_class_alone_has_nothing_to_tell(digits: tuple[Split, Split]) -> None:
    alike = [dataclasses.replace(one, labels=torch.zeros_like(one.labels)) for one in digits]
    assert signal(alike[0], alike[1], classes=1) == 0.0
