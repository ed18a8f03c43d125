from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from tunelab.data.storage import NpyReader, read_ahead
from tunelab.errors import TunelabError

RANDOM = np.random.default_rng(0)
FIRST = RANDOM.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
SECOND = RANDOM.integers(0, 256, (7, 6, 5, 3)).astype(np.uint8)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for name, pixels in (("first", FIRST), ("second", SECOND)):
        np.save(tmp_path / f"{name}.npy", pixels)
        found.append(tmp_path / f"{name}.npy")
    return found


@pytest.mark.parametrize(
    "rows",
    [[], [0], [46], [39, 40], list(range(47)), [5, 6, 7, 3, 3, 4, 46, 0], RANDOM.permutation(47).tolist()],
    ids=str,
)
def test_rows_are_read_in_the_order_asked_for(rows: list[int], paths: list[Path]) -> None:
    reader = NpyReader(paths)
    assert (len(reader), reader.row_shape, reader.row_bytes) == (47, (6, 5, 3), 90)
    wanted = np.array(rows, dtype=np.int64)
    found = np.zeros((len(rows), 6, 5, 3), dtype=np.uint8)
    reader.advise(wanted)
    reader.read(wanted, found)
    assert np.array_equal(found, np.concatenate([FIRST, SECOND])[wanted])


def test_reading_on_after_a_part(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: real(file, [parts[0][:100]], offset))
    found = np.zeros((40, 6, 5, 3), dtype=np.uint8)
    NpyReader(paths[:1]).read(np.arange(40), found)
    assert np.array_equal(found, FIRST)


def test_a_file_that_is_cut_meanwhile(paths: list[Path]) -> None:
    reader = NpyReader(paths)
    os.truncate(paths[1], paths[1].stat().st_size - 1)
    reader.read(np.array([45]), np.zeros((1, 6, 5, 3), dtype=np.uint8))
    with pytest.raises(TunelabError, match=r"second\.npy has become shorter"):
        reader.read(np.array([46]), np.zeros((1, 6, 5, 3), dtype=np.uint8))


def test_files_are_closed_with_the_reader(paths: list[Path]) -> None:
    def opened() -> int:
        return sum(file.resolve().suffix == ".npy" for file in Path("/proc/self/fd").iterdir())

    gc.collect()
    before = opened()
    reader = NpyReader(paths)
    assert opened() == before + 2
    del reader
    gc.collect()
    assert opened() == before


def test_without_advice_from_the_system(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "posix_fadvise")
    NpyReader(paths).advise(np.arange(3))
    read_ahead(paths[0])
