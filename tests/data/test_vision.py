from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from tunelab.config import DataConfig
from tunelab.data import vision
from tunelab.data.cache import prepare
from tunelab.errors import InputError, TunelabError

NMS = "operator torchvision::nms does not exist"


def test_torchvision_imports_here() -> None:
    torchvision = vision.import_torchvision()
    assert torchvision.datasets.MNIST
    assert vision.import_torchvision() is torchvision


def failing(error: Exception) -> Any:
    def replacement(name: str) -> Any:
        raise error

    return replacement


@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), OSError("undefined symbol"),
                                   RuntimeError("compiled with CUDA 12.8, torch with 13.0")])  # fmt: skip
def test_any_other_failure_names_both_versions(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", failing(error))
    monkeypatch.setattr(vision, "_versions", lambda: ("2.13.0+cpu", "0.27.1"))
    with pytest.raises(
        InputError, match=r"torch is 2\.13\.0\+cpu, torchvision 0\.27\.1; `pip install 'torchvision==0\.28"
    ):
        vision.import_torchvision()


def test_missing_operator_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", failing(RuntimeError(NMS)))
    monkeypatch.setattr(vision, "_versions", lambda: ("2.13.0", "0.27.0"))
    with pytest.raises(InputError, match="does not fit this torch"):
        vision.import_torchvision()


def test_preparing_digits_imports_no_torch() -> None:
    code = (
        "import sys; from tunelab.config import DataConfig; from tunelab.data.cache import prepare; "
        "prepare(DataConfig()); sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Downloads:
    """A torchvision data set that fetches: it writes the files of `vision._SETS["svhn"]`, or fails."""

    error: Exception | None = None
    calls = 0

    def __init__(self, root: Path, split: str, download: bool) -> None:
        if download:
            type(self).calls += 1
            if self.error:
                raise self.error
            (root / f"{split}_32x32.mat").write_bytes(b"")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> type[Downloads]:
    monkeypatch.setattr(vision.import_torchvision().datasets, "SVHN", Downloads)
    monkeypatch.setattr(Downloads, "calls", 0)
    return Downloads


def test_download_only_what_is_missing(tmp_path: Path, downloads: type[Downloads]) -> None:
    config = DataConfig(name="svhn", data_dir=str(tmp_path / "new"), download=True)
    for _ in range(2):
        vision.find("svhn", config)
    assert downloads.calls == 2  # train and test, once
    assert (tmp_path / "new" / "test_32x32.mat").exists()


def test_failed_download_is_one_sentence(
    tmp_path: Path, downloads: type[Downloads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "error", urllib.error.URLError("no network"))
    with pytest.raises(TunelabError, match=r"the download of svhn .* failed: .*no network") as caught:
        prepare(DataConfig(name="svhn", data_dir=str(tmp_path), download=True))
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "hard link", "device"])
def test_a_download_is_unpacked_in_its_folder(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entry = tarfile.TarInfo({"above": "../x", "absolute": f"{tmp_path}/x"}.get(kind, "x"))
    entry.type = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(
        kind, entry.type
    )
    entry.linkname = "../secret" if "link" in kind else ""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(entry)
    (tmp_path / "into").mkdir()
    with (
        vision.careful_extraction(),
        tarfile.open(tmp_path / "x.tar") as archive,
        contextlib.suppress(tarfile.FilterError),
    ):
        archive.extractall(tmp_path / "into")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["into", "secret", "x.tar"]
    assert not any(path.is_symlink() for path in (tmp_path / "into").rglob("*"))
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_python_without_the_filter_downloads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    before = tarfile.TarFile.extraction_filter
    with vision.careful_extraction():
        assert tarfile.TarFile.extraction_filter is before
