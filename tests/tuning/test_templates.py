from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tunelab.errors import InputError
from tunelab.study import Study
from tunelab.tuning.grid_files import options_of_templates
from tunelab.tuning.runner import search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

SMALL: dict[str, Any] = {"epochs": 9, "limit_train": 100, "progress": False, "sampler": "tpe"}


@pytest.fixture
def written(played: Played, space: Path) -> Study:
    """A study of three trials, the baseline and two of a grid, each with its template."""
    grid = space.with_name("grid.yaml")
    grid.write_text("- {lr: 0.3, width: 8}\n- {lr: 1.5e-3, width: 16}\n")
    return search(str(space), grid=grid, **SMALL)


def template(study: Study, number: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study.trial_folder(number) / "experiment_template.json").read_text())
    return content


def again(space: Path, content: Any, name: str = "again.json") -> list[dict[str, Any]]:
    """The parameters of the trials that a file brings beside the baseline."""
    file = space.with_name(name)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    trials = search(str(space), grid=file, **SMALL).list_trials()
    return [trial.params for trial in trials if trial.origin == "grid"]


def test_a_template_says_all_of_its_trial(written: Study) -> None:
    made, trial = template(written, 2), written.trial(2)
    assert made["params"] == trial.params == {"lr": 0.0015, "width": 16}
    assert made["config"] == trial.config
    assert made["space"] == written.info["space"]
    assert made["options"]["epochs"] == 9
    assert made["options"]["data"] == trial.config["data"]


def test_a_template_runs_its_trial_again(written: Study, space: Path) -> None:
    file = written.trial_folder(1) / "experiment_template.json"
    found = search(str(space), grid=file, **SMALL).list_trials()
    assert [trial.params for trial in found if trial.origin == "grid"] == [{"lr": 0.3, "width": 8}]
    ours, theirs = (dict(one.config) for one in (found[1], written.trial(1)))
    assert ours == theirs, "of the same number the seed is the same too"


def test_a_list_of_templates_does_too_edited_or_not(written: Study, space: Path) -> None:
    both = [template(written, 1), template(written, 2)]
    assert again(space, both) == [one["params"] for one in both]
    both[1]["params"]["lr"] = 0.02
    assert again(space, both) == [{"lr": 0.3, "width": 8}, {"lr": 0.02, "width": 16}]
    assert again(space, yaml.safe_dump(both), "again.yaml") == [{"lr": 0.3, "width": 8}, {"lr": 0.02, "width": 16}]
    assert again(space, [both[1], {"lr": 0.4, "width": 4}]) == [both[1]["params"], {"lr": 0.4, "width": 4}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": {"lr": 0.3, "width": 8, "depth": 2}}, "does not ask for 'depth' with these values; it asks for lr"),
        ({"params": {"lr": 0.3, "width": 9}}, "entry 1: width is '9'; it must be one of 4, 8, 16"),
        ({"params": {}}, "entry 1: params must be a mapping from names to one value each"),
        ({"params": {"lr": [0.3]}}, "entry 1: params must be a mapping from names to one value each"),
        ({"params": None}, "entry 1: a template has format 1, a space and params"),
        ({"format": 2}, "entry 1: a template has format 1, a space and params"),
        ({"parms": {"lr": 0.3}}, "entry 1: 'parms' is no part of a template, which has format, space, params,"),
        ({"space": {"name": "arch", "version": 1}}, "entry 1 is of version 1 of the space 'arch', not of version 1 of"),
        ({"space": {"name": "plain", "version": 7}}, "entry 1 is of version 7 of the space 'plain', not of version 1"),
        ({"config": {"train": {"lr": 7}}}, "entry 1: config was edited, which only tells what the space makes of"),
    ],
)
def test_what_cannot_be_used_is_named_in_a_line(written: Study, space: Path, change: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        again(space, {**template(written, 1), **change})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(space.with_name("again.json")) in str(refused.value)


def taken(file: Path, *given: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    values = {"epochs": 30, "max_params": None, "trials": 5}
    return options_of_templates(file, values, {"name": "digits", "limit_train": None}, set(given))


def test_options_that_are_not_given_are_those_of_the_templates(written: Study, tmp_path: Path) -> None:
    file = written.trial_folder(1) / "experiment_template.json"
    values, data, told = taken(file)
    assert (values["epochs"], values["trials"]) == (9, 5)
    assert values["max_params"] == written.info["options"]["max_params"]
    assert (data["name"], data["limit_train"]) == ("digits", 100)
    assert "epochs 9" in told
    assert "limit_train 100" in told
    values, data, told = taken(file, "epochs", "limit_train")
    assert (values["epochs"], data["limit_train"]) == (30, None)
    assert not any(one.startswith(("epochs", "limit_train")) for one in told)


def test_other_grids_have_no_options(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("- {lr: 0.3}\n")
    for grid in (file, Path("strategies"), tmp_path / "none.yaml"):
        assert taken(grid) == (
            {"epochs": 30, "max_params": None, "trials": 5},
            {"name": "digits", "limit_train": None},
            [],
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": 3}, "'epoch' is no option of a template, which has epochs, max_params, max_mflops, data"),
        ({"epochs": "many"}, "epochs is 'many'; it must be a number"),
        ({"data": {"nam": "digits"}}, "DataConfig: nam: unexpected keyword argument"),
        ({"data": []}, "options must be a mapping of"),
    ],
)
def test_options_that_cannot_be_are_named(written: Study, tmp_path: Path, change: Any, said: str) -> None:
    content = template(written, 1)
    content["options"] = {**content["options"], **change}
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        taken(file)
    assert said in str(refused.value)
    assert str(file) in str(refused.value)


def test_templates_that_differ_in_an_option_need_it_said(written: Study, tmp_path: Path) -> None:
    one = template(written, 1)
    other = copy.deepcopy(one)
    other["options"]["epochs"] = 4
    file = tmp_path / "both.json"
    file.write_text(json.dumps([one, other]))
    with pytest.raises(InputError, match=r"the templates differ in epochs \(9 and others\); say which"):
        taken(file)
    assert taken(file, "epochs")[0]["epochs"] == 30


def test_what_a_template_leaves_out_is_as_the_others_have_it(written: Study, space: Path) -> None:
    one, other = template(written, 1), template(written, 2)
    file = space.with_name("some.json")
    for left, right in ((one, other), (other, one)):
        bare = {name: value for name, value in left.items() if name != "options"}
        for pair in ([bare, right], [right, bare], [{**left, "options": {"max_params": 1000}}, right]):
            file.write_text(json.dumps(pair))
            given = ["max_params"]
            options, data, _ = options_of_templates(file, {"epochs": 30}, {"limit_train": None}, given)
            assert (options["epochs"], data["limit_train"]) == (9, 100)


def test_a_template_may_have_any_character(written: Study, space: Path) -> None:
    """JSON writes characters beyond 16 bits as two halves."""
    content = template(written, 1)
    content["options"]["data"]["name"] = "folder:/data/\U0001f426 \u00e9"
    content["config"]["data"]["name"] = content["options"]["data"]["name"]
    file = space.with_name("birds.json")
    file.write_text(json.dumps(content))
    assert options_of_templates(file, {}, {}, ())[1]["name"] == "folder:/data/\U0001f426 \u00e9"


def test_a_search_writes_a_summary_at_a_pause_and_at_its_end(played: Played, space: Path) -> None:
    from tunelab.tuning.runner import PausedError, resume

    grid = space.with_name("grid.yaml")
    grid.write_text("- {lr: 0.3, width: 8}\n- {lr: 0.4, width: 8}\n")
    played.halt = lambda trial, epoch: "SIGTERM" if (trial.number, epoch) == (1, 3) else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), grid=grid, **SMALL)
    file = paused.value.study.path / "runs_summary.csv"
    with file.open(newline="") as stream:
        assert [(row["epochs_trained"], row["status"]) for row in csv.DictReader(stream)] == [
            ("9", "COMPLETED"),
            ("2", "PAUSED"),
        ]
    played.halt = lambda trial, epoch: ""
    resume(paused.value.study, progress=False)
    with file.open(newline="") as stream:
        assert [row["epochs_trained"] for row in csv.DictReader(stream)] == ["9", "9", "9"]
