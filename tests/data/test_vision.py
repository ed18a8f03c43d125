from __future__ import annotations

import importlib
import subprocess
import sys
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
