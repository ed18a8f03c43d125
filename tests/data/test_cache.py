from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from tunelab import files
from tunelab.config import DataConfig
from tunelab.data import storage
from tunelab.data.batches import load_split
from tunelab.data.cache import decoded_images, prepare
from tunelab.errors import InputError, TunelabError

CPU = torch.device("cpu")


def archive(tmp_path: Path, seed: int = 0, **parts: int) -> str:
    """An npz with 4 classes and this many images per split; returns the data set's name."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (parts or {"train": 120}).items():
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    path = tmp_path / f"data{seed}.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "data").iterdir() if path.is_dir()]


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    head = "import os, sys, signal\nfrom tunelab.config import DataConfig\nfrom tunelab.data.cache import prepare\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, text=True
    )


def test_info_is_plain_json_and_kept(tmp_path: Path) -> None:
    config = DataConfig(name=archive(tmp_path))
    info = prepare(config)
    assert json.loads(json.dumps(info.to_json())) == info.to_json()
    assert info.to_json()["image_size"] == [6, 6]
    assert info.counts == {"train": 87, "val": 15, "test": 18}
    train = load_split(config, "train", CPU).images.double() / 255
    assert np.allclose(info.mean, train.mean((0, 2, 3)))
    assert np.allclose(info.std, train.std((0, 2, 3), correction=0))
    assert prepare(config) == info


def test_decoded_images_are_read_and_never_made(tmp_path: Path, cache: Path) -> None:
    config = DataConfig(name=archive(tmp_path))
    assert decoded_images(config, "test") is None
    assert not (cache / "data").exists()
    prepare(config)
    images = decoded_images(config, "test")
    assert images is not None
    assert np.array_equal(images, load_split(config, "test", CPU).images.permute(0, 2, 3, 1).numpy())
    assert decoded_images(config, "val") is None  # cut off the training images: it has no file
    next(folders(cache)[0].glob("test_images*")).unlink()
    assert decoded_images(config, "test") is None
    with pytest.raises(InputError, match="nowhere"):
        decoded_images(DataConfig(name="npz:nowhere.npz"), "test")


def test_several_processes_build_once(tmp_path: Path, cache: Path) -> None:
    code = """
        import tunelab.data.cache as cache
        real = cache.build
        def counted(*arguments):
            print("built", flush=True)
            return real(*arguments)
        cache.build = counted
        print("ready", flush=True)
        sys.stdin.read()
        print(prepare(DataConfig(name=sys.argv[1])).fingerprint)
    """
    name = archive(tmp_path, train=4000)
    head = "import os, sys, signal\nfrom tunelab.config import DataConfig\nfrom tunelab.data.cache import prepare\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), name]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in several:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in several:  # all wait at the same line; closing their input lets them go
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    lines = [line for process in several for line in process.communicate()[0].split()]
    assert [process.returncode for process in several] == [0] * 4
    assert lines.count("built") == 1
    assert len(set(lines)) == 2
    assert lines.count(prepare(DataConfig(name=name)).fingerprint) == 4
    assert len(folders(cache)) == 1


def test_killed_while_building_leaves_nothing_usable(tmp_path: Path, cache: Path) -> None:
    name = archive(tmp_path, train=4000)
    process = run(
        """
        def report(done, total):
            if done > total // 3:
                os.kill(os.getpid(), signal.SIGKILL)
        prepare(DataConfig(name=sys.argv[1]), report)
        """,
        name,
    )
    process.communicate()
    assert process.returncode == -9
    (half,) = folders(cache)
    assert half.name.startswith(".")
    assert (half / "train_images.npy").exists()
    with pytest.raises(ValueError):  # the header is written last
        np.load(half / "train_images.npy")
    info = prepare(DataConfig(name=name))
    assert sum(info.counts.values()) == 4000
    assert [path.name[0] == "." for path in folders(cache)] == [False]


def test_failed_build_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    name = archive(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(DataConfig(name=name), fail)
    assert folders(cache) == []
    assert sum(prepare(DataConfig(name=name)).counts.values()) == 120


@pytest.mark.parametrize("parts", [{"train": 120}, {"train": 120, "val": 40, "test": 40}])
def test_the_search_opens_no_test_file(parts: dict[str, int], tmp_path: Path, cache: Path) -> None:
    config = DataConfig(name=archive(tmp_path, **parts))
    info = prepare(config)
    (folder,) = folders(cache)
    for path in folder.glob("test_*"):
        path.unlink()
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert prepare(config) == info
    assert len(load_split(config, "train", CPU).labels) == info.counts["train"]
    assert len(load_split(config, "val", CPU).labels) == info.counts["val"]
    assert len(load_split(DataConfig(name=config.name, train_on="train+val"), "train", CPU).labels) > 120 * 0.8
    assert before.items() <= {path.name: path.stat().st_ino for path in folder.iterdir()}.items()
    assert len(load_split(config, "test", CPU).labels) == info.counts["test"]  # made again, as the source is there


def test_a_search_never_asks_the_system_for_a_test_file(tmp_path: Path) -> None:
    code = """
        import torch
        from tunelab.data.batches import load_split
        seen = []
        sys.addaudithook(lambda event, arguments: event == "open" and seen.append(os.path.basename(str(arguments[0]))))
        config = DataConfig(name=sys.argv[1])
        prepare(config)
        for split in ("train", "val"):
            load_split(config, split, torch.device("cpu"))
        assert any(name == "train_images.npy" for name in seen)
        sys.exit(any(name.startswith("test_") for name in seen))
    """
    name = archive(tmp_path, train=120, test=40)
    prepare(DataConfig(name=name))
    process = run(code, name)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "description", "split", "labels"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path, cache: Path) -> None:
    config = DataConfig(name=archive(tmp_path))
    info = prepare(config)
    before = load_split(config, "train", CPU).images.clone()
    (folder,) = folders(cache)
    file = {"cut": "train_images.npy", "gone": "train_images.npy", "labels": "train_labels.npy",
            "description": "decoded.json", "split": next(folder.glob("split-*")).name}[damage]  # fmt: skip
    if damage == "gone":
        (folder / file).unlink()
    else:
        os.truncate(folder / file, 100)
    assert prepare(config) == info
    assert torch.equal(load_split(config, "train", CPU).images, before)
    assert folders(cache) == [folder]


def test_load_split_alone_prepares(tmp_path: Path) -> None:
    assert len(load_split(DataConfig(name=archive(tmp_path)), "train", CPU).labels) == 87


def test_what_decides_the_contents_decides_the_folder(tmp_path: Path, cache: Path) -> None:
    name = archive(tmp_path)
    whole = archive(tmp_path, 1, train=80, val=40, test=40)
    base = prepare(DataConfig(name=name))
    for changes in ({"val_fraction": 0.3}, {"limit_train": 20}, {"split_seed": 4}, {"train_on": "train+val"}):
        assert prepare(DataConfig(name=name, **changes)).fingerprint == base.fingerprint  # type: ignore[arg-type]
    assert len(folders(cache)) == 1
    assert prepare(DataConfig(name=name, test_fraction=0.3)).fingerprint != base.fingerprint
    assert prepare(DataConfig(name=name, image_size=4)).fingerprint != base.fingerprint
    assert len(folders(cache)) == 3
    prints = {prepare(DataConfig(name=whole, test_fraction=part)).fingerprint for part in (0.1, 0.3)}
    assert len(prints) == 1
    assert len(folders(cache)) == 4


def test_no_seed_brings_a_test_image_into_training(tmp_path: Path) -> None:
    name = archive(tmp_path)
    test = {image.numpy().tobytes() for image in load_split(DataConfig(name=name), "test", CPU).images}
    for seed in range(5):
        config = DataConfig(name=name, split_seed=seed, train_on="train+val")
        assert not test & {image.numpy().tobytes() for image in load_split(config, "train", CPU).images}


def test_the_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    first = archive(tmp_path, train=120, test=40)
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(first[4:]).read_bytes())
    assert prepare(DataConfig(name=f"npz:{moved}")).fingerprint == prepare(DataConfig(name=first)).fingerprint
    with np.load(moved) as arrays:
        changed = {**arrays}
    changed["test_images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "changed.npz", **changed)
    assert (
        prepare(DataConfig(name=f"npz:{tmp_path / 'changed.npz'}")).fingerprint
        != prepare(DataConfig(name=first)).fingerprint
    )


def test_train_and_val_together(tmp_path: Path) -> None:
    for parts in ({"train": 120}, {"train": 80, "val": 40, "test": 20}):
        apart = DataConfig(name=archive(tmp_path, **parts))
        both = DataConfig(name=apart.name, train_on="train+val")
        counts = prepare(apart).counts
        assert prepare(both).counts == {"train": counts["train"] + counts["val"], "val": 0, "test": counts["test"]}
        assert (prepare(both).mean, prepare(both).std) == (prepare(apart).mean, prepare(apart).std)
        wanted = [
            (image.numpy().tobytes(), int(label))
            for loaded in [load_split(apart, split, CPU) for split in ("train", "val")]
            for image, label in zip(loaded.images, loaded.labels, strict=True)
        ]
        together = load_split(both, "train", CPU)
        found = zip(together.images, together.labels, strict=True)
        assert sorted((image.numpy().tobytes(), int(label)) for image, label in found) == sorted(wanted)
        with pytest.raises(InputError, match="no val images are held out"):
            load_split(both, "val", CPU)


def test_limit_train_with_its_own_val(tmp_path: Path) -> None:
    config = DataConfig(name=archive(tmp_path, train=80, val=40, test=20), limit_train=10)
    assert prepare(config).counts == {"train": 10, "val": 40, "test": 20}


def test_whole_splits_are_not_copied_and_cannot_change_the_file(tmp_path: Path, cache: Path) -> None:
    config = DataConfig(name=archive(tmp_path, train=80, val=40, test=20))
    prepare(config)
    (folder,) = folders(cache)
    before = (folder / "train_images.npy").read_bytes()
    split = load_split(config, "train", CPU)
    with Path("/proc/self/maps").open() as maps:
        assert str(folder / "train_images.npy") in maps.read()
    split.images.zero_()
    assert (folder / "train_images.npy").read_bytes() == before
    assert int(load_split(config, "train", CPU).images.max()) > 0


def test_no_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = archive(tmp_path)
    full = type("Usage", (), {"free": 1_234_567})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(InputError, match=rf"need 16,\d+,\d+ bytes and {cache}.* has 1,234,567 free.*TUNELAB_CACHE"):
        prepare(DataConfig(name=name))
    assert folders(cache) == []


def test_a_disk_that_fills_while_building(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: storage.NpyWriter, rows: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.NpyWriter, "append", full)
    with pytest.raises(InputError, match=f"no room left in {cache}"):
        prepare(DataConfig(name=archive(tmp_path)))
    assert folders(cache) == []


def test_the_cache_moves_where_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = archive(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "file" / "cache"))
    notes = prepare(DataConfig(name=name)).notes
    private = tmp_path / "tmp" / f"tunelab-cache-{os.getuid()}"
    assert notes == (f"{tmp_path}/file/cache cannot be written, so the decoded images are in {private}",)
    assert private.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(TunelabError, match="TUNELAB_CACHE"):
        prepare(DataConfig(name=name))


def test_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELAB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.cache_root() == (tmp_path / ".cache" / "tunelab", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == (tmp_path / "xdg" / "tunelab", "")


def test_npy_files_are_numpys(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.int64).reshape(10, 3, 2)
    with storage.NpyWriter(tmp_path / "a.npy", (3, 2), np.dtype(np.int64)) as writer:
        writer.append(rows[:7])
        writer.append(rows[7:])
    assert np.array_equal(np.load(tmp_path / "a.npy"), rows)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
