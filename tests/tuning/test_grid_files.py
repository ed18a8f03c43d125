from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tunelab.config import ArchSpec, TrialConfig
from tunelab.errors import InputError, RefusedError
from tunelab.space import SearchSpace, load_space
from tunelab.tuning.grid import complete
from tunelab.tuning.grid_files import find_grid

NAMED = {"rates": ({"lr": 0.1, "bias": True}, {"lr": 1e-5, "bias": None}), "other": ({"norm": "none"},)}


def make_file(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_what_an_alias_repeats_is_made_once(tmp_path: Path) -> None:
    """Thirty lists of two, each of the one before, stand for a billion values."""
    lists = ["- &l0 [a, a]", *(f"- &l{place} [*l{place - 1}, *l{place - 1}]" for place in range(1, 31))]
    with pytest.raises(InputError, match="means some again and again"):
        find_grid(make_file(tmp_path, "\n".join(lists)), load_space("arch"))
    with pytest.raises(InputError) as refused:
        find_grid(make_file(tmp_path, "- lists:\n" + "\n".join(f"    {line}" for line in lists)), load_space("arch"))
    assert len(str(refused.value)) < 1000
    (one, other) = find_grid(make_file(tmp_path, "- &a {norm: batch}\n- *a"), load_space("arch")).entries
    assert one == other == {"norm": "batch"}


@pytest.fixture
def spaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchSpace:
    """A space called arch with grids, and the folder for files."""
    monkeypatch.chdir(tmp_path)
    return dataclasses.replace(load_space("arch"), grids=NAMED)


@pytest.mark.parametrize("asked", ["rates", "arch/rates", Path("rates")])
def test_a_grid_of_the_space_is_found_by_its_name(spaced: SearchSpace, asked: str | Path) -> None:
    found = find_grid(asked, spaced)
    assert (found.name, found.is_product) == ("arch/rates", False)
    assert found.entries == ({"lr": "0.1", "bias": "true"}, {"lr": "1e-05", "bias": "null"})


def test_a_file_has_precedence_if_its_name_says_that_it_is_one(spaced: SearchSpace, tmp_path: Path) -> None:
    for file in ("rates", "rates.yaml", "arch/rates", "words"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("- {lr: 0.3}\n")
    assert find_grid("rates", spaced).name == "arch/rates"
    assert len(find_grid("rates", spaced).entries) == 2
    for file in ("rates.yaml", "arch/rates", str(tmp_path / "rates"), "./rates", "words"):
        assert find_grid(file, spaced).entries == ({"lr": "0.3"},), file


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("rate", "the space 'arch' has no grid 'rate' (it has rates, other), and there is no such file"),
        ("arch/rate", "the space 'arch' has no grid 'arch/rate' (it has rates, other), and there is no such file"),
        ("mlp/rates", "the space 'arch' has no grid 'mlp/rates' (it has rates, other), and there is no such file"),
        ("rates.yaml", "rates.yaml cannot be read: No such file or directory"),
        (".", ". cannot be read: Is a directory"),
    ],
)
def test_what_there_is_not_is_named(spaced: SearchSpace, asked: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        find_grid(asked, spaced)
    assert str(refused.value) == said


def test_a_space_without_grids_says_so() -> None:
    with pytest.raises(InputError, match=r"the space 'arch' has no grid 'rates' \(it has none\)"):
        find_grid("rates", load_space("arch"))


def test_what_a_grid_of_the_space_leaves_out_is_that_of_the_first_baseline_that_suits_all(spaced: SearchSpace) -> None:
    def narrow(config: TrialConfig) -> None:
        if isinstance(config.arch, ArchSpec) and config.arch.stem.width > 16:
            raise RefusedError("too wide")

    space = dataclasses.replace(spaced, grids={"two": ({"optimizer": "adam", "lr_adam": 0.001}, {"flip": True})})
    adam, flipped = complete(find_grid("two", space), space, narrow, 0)
    baseline = next(one for one in space.baselines if one["stem_width"] == 16)
    assert flipped == {**baseline, "flip": True}
    recipe = ("optimizer", "lr_adam", "weight_decay_adam")
    assert {name: value for name, value in adam.items() if name not in recipe} == {
        name: value for name, value in baseline.items() if name in adam and name not in recipe
    }
