from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunelab.doctor.images import find_data
from tunelab.doctor.traces import cache_folders, leaving_no_folders


def test_folders_that_were_made_go_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with leaving_no_folders(tmp_path / "old/data", tmp_path / "a/b", tmp_path / "c/d"):
        (tmp_path / "old/data").mkdir()
        (tmp_path / "a/b/deeper").mkdir(parents=True)
        (tmp_path / "c/d").mkdir(parents=True)
        (tmp_path / "c/d/file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "old"]
    assert (tmp_path / "c/d/file").exists()
    assert list((tmp_path / "old").iterdir()) == []


@pytest.mark.parametrize("variable", ["TUNELAB_CACHE", "XDG_CACHE_HOME", "HOME", "NUMBA_CACHE_DIR"])
def test_the_folders_of_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("TUNELAB_CACHE", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "new"))
    assert any(path.is_relative_to(tmp_path / "new") for path in cache_folders(os.environ))
    with leaving_no_folders(*cache_folders(os.environ)):
        if variable != "NUMBA_CACHE_DIR":
            find_data("digits")
            assert (tmp_path / "new").exists()
    assert not (tmp_path / "new").exists()
