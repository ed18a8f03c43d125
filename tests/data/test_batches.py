from __future__ import annotations

import pytest
import torch

from tunelab.config import AugmentConfig, DataConfig
from tunelab.data.batches import Batch, Split, TrainBatches, eval_batches, load_split
from tunelab.data.cache import DataInfo, prepare

PLAIN = AugmentConfig()
ALL = AugmentConfig(crop=0.2, flip=True, cutout=0.3, mixup=0.4)
CPU = torch.device("cpu")


def info(channels: int = 1) -> DataInfo:
    return DataInfo("x", (6, 6), channels, ("a", "b"), {}, "", (0.5,) * channels, (0.25,) * channels, ())


def numbered(count: int, channels: int = 1, channels_last: bool = False) -> Split:
    """Image k is filled with the value k, its label is k."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, channels, 6, 6)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Split(images, torch.arange(count))


def batches(
    augment: AugmentConfig = PLAIN, count: int = 50, size: int = 16, seed: int = 1, total: int = 10
) -> TrainBatches:
    return TrainBatches(numbered(count), info(), augment, size, seed, total)


def value(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist()


def flat(epoch: list[Batch]) -> list[int]:
    return [label for batch in epoch for label in batch.labels.tolist()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_have_their_form(channels_last: bool, channels: int, dtype: torch.dtype) -> None:
    split = numbered(40, channels, channels_last)
    made = TrainBatches(split, info(channels), ALL, 16, 0, 10, dtype)
    for batch in made.epoch(1):
        assert batch.images.shape == (16, channels, 6, 6)
        assert batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert batch.mixed_labels is not None
        assert 0 <= batch.mix <= 1


def test_images_go_with_their_labels() -> None:
    for batch in batches().epoch(1):
        assert value(batch.images) == batch.labels.tolist()
        assert batch.mixed_labels is None
        assert batch.mix == 1.0


def test_full_batches_and_another_remainder_each_epoch() -> None:
    made = batches()
    assert made.steps_per_epoch == 3
    left_out = set()
    for epoch in range(1, 6):
        seen = flat(list(made.epoch(epoch)))
        assert len(seen) == len(set(seen)) == 48
        left_out.add(frozenset(set(range(50)) - set(seen)))
    assert len(left_out) > 1


@pytest.mark.parametrize("count", [1, 5, 16])
def test_fewer_images_than_a_batch(count: int) -> None:
    made = batches(ALL, count=count)
    (batch,) = made.epoch(1)
    assert made.steps_per_epoch == 1
    assert sorted(batch.labels.tolist()) == list(range(count))


def test_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    straight, jumped = batches(ALL), batches(ALL)
    list(straight.epoch(1))
    torch.manual_seed(12345)
    for first, second in zip(straight.epoch(2), jumped.epoch(2), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
        assert first.mix == second.mix
    orders = {tuple(flat(list(made.epoch(epoch)))) for made in (batches(), batches(seed=2)) for epoch in (1, 2, 3)}
    assert len(orders) == 6


def test_making_batches_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    list(batches(ALL).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_changes_from_epoch_to_epoch_and_image_to_image() -> None:
    made = TrainBatches(Split(torch.full((32, 1, 6, 6), 200, dtype=torch.uint8), torch.zeros(32).long()),
                        info(), AugmentConfig(crop=0.3), 32, 0, 5)  # fmt: skip
    (first,), (second,) = made.epoch(1), made.epoch(2)
    assert not torch.equal(first.images, second.images)
    assert len(first.images.flatten(1).unique(dim=0)) > 5


def test_order_does_not_depend_on_augmentation() -> None:
    assert flat(list(batches(ALL).epoch(3))) == flat(list(batches(PLAIN).epoch(3)))


@pytest.mark.parametrize(("until", "on"), [(1.0, 10), (0.5, 5), (0.0, 0), (0.25, 3)])
def test_mixup_ends_where_it_should(until: float, on: int) -> None:
    made = batches(AugmentConfig(mixup=1.0, mixup_until=until))
    mixed = [all(batch.mixed_labels is not None for batch in made.epoch(epoch)) for epoch in range(1, 11)]
    assert mixed == [True] * on + [False] * (10 - on)


def test_mixup_tells_what_it_mixed() -> None:
    for batch in batches(AugmentConfig(mixup=1.0)).epoch(1):
        assert batch.mixed_labels is not None
        wanted = batch.mix * batch.labels + (1 - batch.mix) * batch.mixed_labels
        found = (batch.images[:, 0, 0, 0] * 0.25 + 0.5) * 255
        assert torch.allclose(found, wanted, atol=1e-2)
    weights = {batch.mix for epoch in (1, 2) for batch in batches(AugmentConfig(mixup=1.0)).epoch(epoch)}
    assert len(weights) == 6


def test_the_split_itself_is_not_changed() -> None:
    split = numbered(40, channels_last=True)
    before = split.images.clone()
    list(TrainBatches(split, info(), ALL, 16, 0, 5).epoch(1))
    list(eval_batches(split, info()))
    assert torch.equal(split.images, before)


def test_eval_batches_are_everything_once_in_order() -> None:
    sizes, seen = [], []
    for images, labels in eval_batches(numbered(50), info(), 16):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert value(images) == labels.tolist()
        sizes.append(len(labels))
        seen += labels.tolist()
    assert sizes == [16, 16, 16, 2]
    assert seen == list(range(50))
    assert next(iter(eval_batches(numbered(4), info(), dtype=torch.bfloat16)))[0].dtype == torch.bfloat16


def test_training_images_of_digits_are_normalised() -> None:
    config = DataConfig()
    known = prepare(config)
    split = load_split(config, "train", CPU)
    ((images, _),) = eval_batches(split, known, batch_size=10_000)
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    (batch,) = TrainBatches(split, known, PLAIN, 10_000, 0, 1).epoch(1)
    assert torch.allclose(batch.images.mean(), images.mean(), atol=1e-4)
