"""What `study.json` must hold to be believed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.cli import run
from tunelab.errors import InputError
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.conftest import MakeStudy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": 3}, "kind: input should be a valid string .got 3"), ({"options": {}}, "options.trials"),
        ({"options": {"trials": "16", "epochs": 4}}, r"options.trials: input should be a valid integer .got '16'"),
        ({"data": []}, "data: input should be a valid dictionary"), ({"space": {"name": "arch"}}, "space.source"),
        ({"hardware": {"cpus": 1}}, "hardware.processor: field required"), ({"seed": -1}, "seed"),
        ({"slots": {"concurrent": 0, "cpus": 1, "device": "cpu"}}, "slots.concurrent: .* greater than or equal to 1"),
        ({"first": [{"origin": "grid"}]}, "first.0.params: field required"), ({"spaces": [3]}, "spaces.0"),
        ({"versions": {"torch": []}}, "versions.torch"), ({"calibration": None}, "calibration"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_its_place(change: dict[str, Any], said: str, make_study: MakeStudy) -> None:
    study = make_study()
    Study.open(study.path)
    content = {**study.info, **change}
    (study.path / "study.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"study.json: {said}"):
        Study.open(study.path)


def test_what_a_later_version_adds_is_passed_over(make_study: MakeStudy) -> None:
    study = make_study(info={"later": {"a": 1}, "slots": {"concurrent": 1, "cpus": 1, "device": "cpu", "later": 1}})
    assert Study.open(study.path).info["later"] == {"a": 1}


@pytest.mark.parametrize("change", [{"seed": 10**30}, {"options": {"trials": 1, "epochs": 4, "memory": 10**19}}])
def test_what_a_search_takes_however_large_is_read_again(change: dict[str, Any], make_study: MakeStudy) -> None:
    study = make_study(info=change)
    assert Study.open(study.path).info == study.info


@pytest.mark.parametrize("name", ["space", "options", "data", "hardware", "kind", "created"])
def test_what_every_search_has_is_missed(name: str, make_study: MakeStudy) -> None:
    study = make_study()
    (study.path / "study.json").write_text(json.dumps({key: study.info[key] for key in study.info if key != name}))
    with pytest.raises(InputError, match=f"study.json: {name}"):
        Study.open(study.path)


def test_another_format_is_refused_with_what_to_do(make_study: MakeStudy, capfd: pytest.CaptureFixture[str]) -> None:
    study = make_study()
    (study.path / "study.json").write_text(json.dumps({**study.info, "format": 2}))
    assert run(["resume", str(study.path)]) == 2
    assert "has format 2; this version of tunelab reads format 1; a later one wrote it" in capfd.readouterr().err
