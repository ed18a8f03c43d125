from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig
from tunelab.data.cache import prepare
from tunelab.errors import InputError, RefusedError
from tunelab.space import Suggest, load_space
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.preflight import absolute_paths, make_check, make_source, new_path

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))


@pytest.mark.parametrize(("batch_size", "fits"), [(16, True), (128, True), (256, False)])
def test_a_batch_of_more_than_all_images_is_refused(batch_size: int, fits: bool) -> None:
    """A rate that was drawn for 1,024 images would train batches of a hundred."""
    check = make_check(SearchOptions(), prepare(DataConfig(limit_train=100)))
    config = TrialConfig(ARCH, TrainConfig(batch_size=batch_size))
    if fits:
        assert check(config)["params"] > 0
    else:
        with pytest.raises(RefusedError, match="a batch of 256 is more than the 128 training images"):
            check(config)


def test_networks_beyond_the_limits_are_refused() -> None:
    info = prepare(DataConfig(limit_train=100))
    for limits in (SearchOptions(max_params=10), SearchOptions(max_mflops=0.001)):
        with pytest.raises(InputError, match="--max-"):
            make_check(limits, info)(TrialConfig(ARCH))


def test_paths_are_made_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_paths(DataConfig(name="digits")).name == "digits"
    assert absolute_paths(DataConfig(name="folder:x")).name == f"folder:{tmp_path}/x"
    moved = absolute_paths(dataclasses.replace(DataConfig(), data_dir="y"))
    assert moved.data_dir == f"{tmp_path}/y"


def test_a_new_study_never_takes_the_folder_of_another(tmp_path: Path) -> None:
    first = new_path(tmp_path, "arch")
    first.mkdir()
    second = new_path(tmp_path, "arch")
    assert second != first
    assert second.name.startswith("arch-")


def test_a_space_may_have_pixels_as_they_are(space: Path) -> None:
    """It says that of the data that is asked for, and nothing else of it."""
    loaded = load_space(str(space))

    def draw(suggest: Suggest) -> TrialConfig:
        config = loaded.draw(suggest)
        return dataclasses.replace(config, data=DataConfig("elsewhere", normalise=False))

    options = SearchOptions(data=DataConfig(limit_train=100))
    info = prepare(options.data)
    for each, expected in (loaded, True), (dataclasses.replace(loaded, draw=draw), False):
        config = make_source(each, options, info, 0, None).propose(0, {}).config
        assert config.data == DataConfig(limit_train=100, normalise=expected)
