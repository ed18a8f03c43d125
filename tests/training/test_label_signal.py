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


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_rare_class_that_can_be_told_is_enough(digits: tuple[Split, Split], shuffled: bool) -> None:
    """Who names the frequent class always is right in 19 of 20 images: no classifier need be right more often."""
    train, val = digits

    def rare(split: Split) -> Split:
        kept = torch.cat([(split.labels == 3).nonzero()[:, 0].repeat(15), (split.labels == 8).nonzero()[:, 0]])
        kept = kept[: int(15 * (split.labels == 3).sum()) + 5]
        labels = (split.labels[kept] == 8).long()
        if shuffled:
            labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
        rows = torch.arange(len(split.labels)) if split.rows is None else split.rows
        return dataclasses.replace(split, rows=rows[kept], labels=labels)

    found = signal(rare(train), rare(val), classes=2)
    assert found < 2.33 if shuffled else found > 5


def test_one_class_alone_has_nothing_to_tell(digits: tuple[Split, Split]) -> None:
    alike = [dataclasses.replace(one, labels=torch.zeros_like(one.labels)) for one in digits]
    assert signal(alike[0], alike[1], classes=1) == 0.0
