from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunelab.config import AugmentConfig, DataConfig
from tunelab.data import batches as module
from tunelab.data.batches import AHEAD, Batch, Split, TrainBatches, eval_batches, load_split
from tunelab.data.cache import DataInfo, prepare
from tunelab.data.storage import NpyReader
from tunelab.errors import TunelabError

PLAIN = AugmentConfig()
ALL = AugmentConfig(crop=0.2, flip=True, cutout=0.3, mixup=0.4)
CPU = torch.device("cpu")


def info(channels: int = 1) -> DataInfo:
    return DataInfo("x", (6, 6), channels, ("a", "b"), {}, "", (0.5,) * channels, (0.25,) * channels, ())


def numbered(count: int, channels: int = 1) -> Split:
    """Image k is filled with the value k, its label is k."""
    return Split(
        torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 6, 6, channels), torch.arange(count)
    )


def batches(
    augment: AugmentConfig = PLAIN, count: int = 50, size: int = 16, seed: int = 1, total: int = 10
) -> TrainBatches:
    return TrainBatches(numbered(count), info(), augment, size, seed, total)


def value(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist()


def flat(epoch: list[Batch]) -> list[int]:
    return [label for batch in epoch for label in batch.labels.tolist()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_have_their_form(channels: int, dtype: torch.dtype) -> None:
    made = TrainBatches(numbered(40, channels), info(channels), ALL, 16, 0, 10, dtype)
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


@pytest.mark.parametrize("at_once", [1, 3, 5, 50])
def test_batches_are_the_same_however_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    alone = batches(ALL, count=83, size=8)
    assert alone.steps_per_epoch == 10
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 0)
    expected = list(alone.epoch(2))
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", at_once * 8 * 36)
    found = list(alone.epoch(2))
    assert len(found) == len(expected) == 10
    for one, other in zip(found, expected, strict=True):
        assert one.images.equal(other.images)
        assert one.labels.equal(other.labels)
        assert one.mixed_labels is not None
        assert one.mixed_labels.equal(other.mixed_labels)
        assert one.mix == other.mix


def test_making_batches_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    list(batches(ALL).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_changes_from_epoch_to_epoch_and_image_to_image() -> None:
    made = TrainBatches(Split(torch.full((32, 6, 6, 1), 200, dtype=torch.uint8), torch.zeros(32).long()),
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
    split = numbered(40)
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


def test_pixels_that_are_not_normalised_are_as_they_were() -> None:
    """To the last bit, for training and for evaluation, and in bfloat16 too, which has eight bits."""
    config = DataConfig(normalise=False)
    known = prepare(config)
    assert known.fingerprint == prepare(DataConfig()).fingerprint
    split = load_split(config, "val", CPU)
    for dtype in (torch.float32, torch.bfloat16):
        ((images, _),) = eval_batches(split, known, 10_000, dtype)
        assert images.equal(split.images.to(dtype))
        assert images.max() > 250
        (batch,) = TrainBatches(split, known, PLAIN, 10_000, 0, 1, dtype).epoch(1)
        assert batch.images.sum((1, 2, 3)).sort().values.equal(images.sum((1, 2, 3)).sort().values)


def stored(folder: Path, count: int = 50, channels: int = 3) -> torch.Tensor:
    """Random images in a file of `folder`."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 6, 6, channels)).astype(np.uint8)
    np.save(folder / f"{count}.npy", pixels)
    return torch.from_numpy(pixels)


def streamed_and_not(folder: Path, count: int, rows: torch.Tensor | None, budget: int | None) -> tuple[Split, Split]:
    """One split twice: streamed from a file, and as a plain tensor."""
    pixels = stored(folder, count)
    labels = torch.arange(count if rows is None else len(rows))
    streamed = Split(NpyReader([folder / f"{count}.npy"]), labels, rows, budget)
    return streamed, Split(pixels if rows is None else pixels[rows], labels)


@pytest.mark.parametrize("rows", [None, torch.arange(0, 100, 2), torch.randperm(100)[:70]], ids=["all", "even", "some"])
@pytest.mark.parametrize("budget", [None, 0, 10**9])
@pytest.mark.parametrize("augment", [PLAIN, ALL], ids=["plain", "all"])
def test_streamed_batches_are_those_of_a_tensor(
    tmp_path: Path, augment: AugmentConfig, budget: int | None, rows: torch.Tensor | None
) -> None:
    streamed, plain = streamed_and_not(tmp_path, 100, rows, budget)
    mapped = Split(torch.from_numpy(np.load(tmp_path / "100.npy", mmap_mode="c")), plain.labels, rows)
    assert [one.streamed for one in (streamed, plain, mapped)] == [True, False, False]
    assert streamed.image_shape == plain.image_shape == (6, 6, 3)
    for epoch in (1, 2):
        found = [TrainBatches(one, info(3), augment, 16, 3, 5).epoch(epoch) for one in (streamed, plain, mapped)]
        for several in zip(*found, strict=True):
            for one in several[1:]:
                assert torch.equal(several[0].images, one.images)
                assert torch.equal(several[0].labels, one.labels)
                assert several[0].mix == one.mix
    for size in (7, 1000):
        for (first, labels), *others in zip(
            *(eval_batches(one, info(3), size) for one in (streamed, plain, mapped)), strict=True
        ):
            for images, more in others:
                assert torch.equal(first, images)
                assert torch.equal(labels, more)


def test_the_first_images_of_a_split(tmp_path: Path) -> None:
    for rows in (None, torch.arange(99, -1, -3)):
        for split in streamed_and_not(tmp_path, 100, rows, None):
            assert torch.equal(split.first(10).images, split.images[:10])
            assert torch.equal(split.first(10).labels, split.labels[:10])
            assert len(split.first(1000).images) == len(split.labels)


@pytest.mark.parametrize(("budget", "ahead"), [(None, AHEAD), (0, 0), (1, 0), (2, 1), (3, 2), (100, AHEAD)])
def test_streamed_batches_keep_to_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int | None, ahead: int
) -> None:
    """`budget` is in batches here: those ahead and the one in use."""
    monkeypatch.setattr(module, "_LEAST", 0)
    read: list[int] = []
    real = NpyReader.read

    def counted(self: NpyReader, rows: np.ndarray, out: np.ndarray) -> None:
        real(self, rows, out)
        read.append(len(rows))

    monkeypatch.setattr(NpyReader, "read", counted)
    split, plain = streamed_and_not(tmp_path, 98, None, None if budget is None else budget * 10 * 108)
    places = set()
    for taken, batch in enumerate(split.batches(10)):
        while len(read) < min(10, taken + 1 + ahead):
            time.sleep(0.001)
        assert len(read) == min(10, taken + 1 + ahead)
        assert torch.equal(batch, plain.images.permute(0, 2, 3, 1)[10 * taken : 10 * taken + 10])
        places.add(batch.data_ptr())
    assert read == [10] * 9 + [8]
    assert len(places) == ahead + 1


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_epoch_that_is_abandoned_leaves_no_thread(tmp_path: Path, taken: int) -> None:
    split, _ = streamed_and_not(tmp_path, 100, None, None)
    before = threading.active_count()
    epoch = TrainBatches(split, info(3), ALL, 10, 0, 5).epoch(1)
    for _ in range(taken):
        next(epoch)
    del epoch
    assert threading.active_count() == before


def test_what_the_thread_meets_with_is_raised_in_the_epoch(tmp_path: Path) -> None:
    split, _ = streamed_and_not(tmp_path, 100, None, None)
    os.truncate(tmp_path / "100.npy", 128 + 50 * 108)
    before = threading.active_count()
    with pytest.raises(TunelabError, match="has become shorter"):
        list(TrainBatches(split, info(3), ALL, 10, 0, 5).epoch(1))
    assert threading.active_count() == before


def archive(folder: Path, **parts: int) -> DataConfig:
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (parts or {"train": 200}).items():
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(folder / "data.npz", **arrays)
    return DataConfig(name=f"npz:{folder / 'data.npz'}")


@pytest.mark.parametrize("parts", [{"train": 200}, {"train": 120, "val": 40, "test": 40}], ids=["cut", "own"])
@pytest.mark.parametrize("change", [{}, {"limit_train": 50}, {"train_on": "train+val"}], ids=str)
def test_a_small_budget_streams_the_same_images(tmp_path: Path, parts: dict[str, int], change: dict[str, Any]) -> None:
    config = dataclasses.replace(archive(tmp_path, **parts), **change)
    prepare(config)
    for split in ("train", "val", "test"):
        if split == "val" and config.train_on == "train+val":
            continue
        small, large = load_split(config, split, CPU, 100), load_split(config, split, CPU)  # type: ignore[arg-type]
        assert small.streamed
        assert large.streamed == (split == "train" and config.train_on == "train+val" and "val" in parts)
        assert torch.equal(small.images, large.images)
        assert torch.equal(small.labels, large.labels)


def test_what_fits_is_mapped_and_never_copied(tmp_path: Path) -> None:
    """Training and validation together must fit: they are parts of one file here."""
    config = archive(tmp_path)
    prepare(config)
    size = 170 * 108 + 128  # 30 of the 200 images are for the test
    for split in ("train", "val"):
        assert load_split(config, split, CPU, size - 1).streamed  # type: ignore[arg-type]
        found = load_split(config, split, CPU, size)  # type: ignore[arg-type]
        assert not found.streamed
        assert isinstance(found.pixels, torch.Tensor)
        assert found.pixels.shape == (170, 6, 6, 3)
        assert found.rows is not None
    assert not load_split(config, "test", CPU, 30 * 108 + 128).streamed
    own = archive(tmp_path, train=120, val=40, test=40)
    prepare(own)
    assert load_split(own, "val", CPU, 160 * 108 + 255).streamed
    assert not load_split(own, "val", CPU, 160 * 108 + 256).streamed


def test_nothing_fits_where_the_machine_has_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archive(tmp_path)
    monkeypatch.setattr(module, "free_memory_mib", lambda: 0.01)
    assert load_split(config, "train", CPU).streamed
    assert not load_split(config, "train", CPU, 10**6).streamed, "what is asked for counts"


def test_a_gpu_holds_what_takes_a_quarter_of_its_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decision and its copy, on the device "meta", which no image can be looked at on."""
    config = archive(tmp_path)
    needed = prepare(config).counts["train"] * 108
    cuda = torch.device("cuda")
    free = 4 * needed
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert module._room(cuda, None) == module._room(cuda, 5) == needed
    real = module._room
    monkeypatch.setattr(module, "_room", lambda device, memory: real(cuda, memory))
    resident = load_split(config, "train", torch.device("meta"))
    assert not resident.streamed
    assert isinstance(resident.pixels, torch.Tensor)
    assert resident.pixels.shape == (needed // 108, 6, 6, 3)
    assert resident.rows is None
    free -= 4
    assert load_split(config, "train", torch.device("meta")).streamed


@pytest.mark.parametrize("chunk", [1, 1000, 2**23])
def test_images_are_copied_to_a_device_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    pixels = stored(tmp_path, 50)
    rows = np.array([7, 3, 4, 5, 49, 0])
    assert torch.equal(module._copied(NpyReader([tmp_path / "50.npy"]), rows, CPU), pixels[rows])


def test_streaming_takes_no_memory_for_what_it_has_read(large_archive: Path) -> None:
    """The pages of a map count as memory of the process, those that were read do not."""
    code = """
        import psutil, sys, torch
        from tunelab.config import AugmentConfig, DataConfig
        from tunelab.data.batches import TrainBatches, eval_batches, load_split
        from tunelab.data.cache import prepare
        config, cpu = DataConfig(name=sys.argv[1]), torch.device("cpu")
        info = prepare(config)
        load_split(config, "val", cpu, 0).images
        for memory in (0, None):
            before = psutil.Process().memory_info().shared
            split = load_split(config, "train", cpu, memory)
            for _ in TrainBatches(split, info, AugmentConfig(), 100, 0, 1).epoch(1):
                pass
            for _ in eval_batches(split, info, 100):
                pass
            print(split.streamed, (psutil.Process().memory_info().shared - before) / 2**20)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), f"npz:{large_archive}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, read, second, mapped = done.stdout.split()
    assert (first, second) == ("True", "False")
    assert float(read) < 12, "code that was run for the first time"
    assert float(mapped) > 75
