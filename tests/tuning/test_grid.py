from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from tunelab.config import TrialConfig
from tunelab.errors import InputError, RefusedError
from tunelab.records import Trial, TrialStatus
from tunelab.space import SearchSpace, load_space
from tunelab.tuning.extend import extend
from tunelab.tuning.grid import complete
from tunelab.tuning.grid_files import MOST, find_grid
from tunelab.tuning.runner import PausedError, resume, search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

SMALL: dict[str, Any] = {"epochs": 9, "limit_train": 100, "progress": False, "sampler": "tpe"}


def accept(_config: TrialConfig) -> None:
    """Everything fits."""


def make_file(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def completed(tmp_path: Path, content: Any, space: str = "arch", check: Any = accept) -> list[dict[str, Any]]:
    return complete(find_grid(make_file(tmp_path, content), loaded := load_space(space)), loaded, check, 0)


# The file.


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    entries = [{"optimizer": "sgd", "lr_sgd": 0.1, "nesterov": True}, {"norm": "none"}]
    yaml = "- {optimizer: sgd, lr_sgd: 1e-1, nesterov: yes}\n- norm: none\n"
    from_json, from_yaml = completed(tmp_path, entries), completed(tmp_path, yaml)
    assert from_json == from_yaml
    assert {name: from_json[0][name] for name in entries[0]} == entries[0]
    assert from_json[1]["norm"] == "none"


def test_a_mapping_stands_for_all_combinations(tmp_path: Path) -> None:
    found = completed(tmp_path, {"optimizer": ["sgd"], "lr_sgd": [0.1, 0.2], "norm": ["batch", "group", "none"]})
    assert [(one["lr_sgd"], one["norm"]) for one in found] == [
        (rate, norm) for rate in (0.1, 0.2) for norm in ("batch", "group", "none")
    ]
    others = [{name: value for name, value in one.items() if name not in ("lr_sgd", "norm")} for one in found]
    assert all(other == others[0] for other in others), "what is left out is drawn once for all"


def test_a_combination_that_has_no_use_for_a_name_goes_without_it(tmp_path: Path) -> None:
    found = completed(tmp_path, {"optimizer": ["sgd", "adam"], "lr_sgd": [0.1, 0.2]})
    assert [(one["optimizer"], one.get("lr_sgd")) for one in found] == [("sgd", 0.1), ("sgd", 0.2), ("adam", None)]


def test_a_name_that_is_asked_for_only_sometimes_decides_the_rest(tmp_path: Path) -> None:
    (found,) = completed(tmp_path, [{"lr_rmsprop": 0.001}])
    assert found["optimizer"] == "rmsprop"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must hold a list of mappings"),
        ("[]", "must hold a list of mappings"),
        ("lr", "must hold a list of mappings"),
        ("- lr", "must hold a list of mappings"),
        ("{", "neither YAML nor JSON"),
        ("- {lr_sgd: 0.1, lr_sgd: 0.2}", "line 1: 'lr_sgd' is given twice"),
        ("- norm: batch\n- {[norm]: batch}", "line 2: a name must be one word, not a list or a mapping"),
        ("? {norm: batch}\n: [1, 2]", "line 1: a name must be one word, not a list or a mapping"),
        ("&a [*a]", "line 1: a list or a mapping contains itself"),
        ("- norm: &a\n    norm: *a", "a list or a mapping contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 300 + "]" * 300, "must hold a list of mappings"),
        ([{"lr_sgd": [0.1, 0.2]}], "entry 1: lr_sgd has ['0.1', '0.2']; it must be one value"),
        ({"lr_sgd": []}, "lr_sgd must have a list of values"),
        ({"lr_sgd": [{"a": 1}]}, "lr_sgd must have a list of values"),
        ({name: list(range(101)) for name in ("a", "b")}, f"more than {MOST} combinations"),
        ([{"norm": "batch"}, {"norm": "bach"}], "entry 2: norm is 'bach'; it must be one of batch, group, layer, none"),
        ([{"optimizer": "sgd", "lr_sgd": 7}], "entry 1: lr_sgd is '7'; it must be a number from 0.01 to 0.4"),
        ([{"optimizer": "sgd", "lr_sgd": "fast"}], "entry 1: lr_sgd is 'fast'; it must be a number from 0.01 to 0.4"),
        ([{"optimizer": "sgd", "lr_adam": 0.001}], "the space 'arch' does not ask for 'lr_adam' with these values"),
        ([{"rate": 0.1}], "entry 1: the space 'arch' does not ask for 'rate'; it asks for activation, batch_size,"),
        ({"rate": [0.1, 0.2]}, "the space 'arch' does not ask for 'rate'"),
        ([{"norm": "batch"}, {"norm": "none"}, {"norm": "batch"}], "entry 3 is the same configuration as entry 1"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        completed(tmp_path, content)
    assert said in str(refused.value)
    assert str(tmp_path / "grid.yaml") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_whole_number_in_steps(tmp_path: Path) -> None:
    def draw(suggest: Any) -> TrialConfig:
        width = suggest.suggest_int("width", 4, 16, step=4)
        suggest.suggest_categorical("bias", (True, False, None))
        return load_space("arch").draw(suggest) if width < 0 else plain

    (one,) = load_space("arch").baselines[:1]
    plain = load_space("arch").draw(optuna.trial.FixedTrial(dict(one)))
    space = SearchSpace("steps", "steps.py", 1, "", draw, ())
    for given, expected in ({"width": 8, "bias": "no"}, {"width": 8, "bias": False}), ({"bias": None}, {"bias": None}):
        (found,) = complete(find_grid(make_file(tmp_path, [given]), space), space, accept, 0)
        assert {name: found[name] for name in expected} == expected
    for wrong in (6, 20, 4.5):
        with pytest.raises(InputError, match="it must be a whole number from 4 to 16 in steps of 4"):
            complete(find_grid(make_file(tmp_path, [{"width": wrong}]), space), space, accept, 0)


def test_what_is_drawn_is_drawn_so_that_it_fits(tmp_path: Path) -> None:
    def narrow(config: TrialConfig) -> None:
        if config.arch.stem.width > 16:
            raise RefusedError("too wide")

    content = [{"norm": "batch"}, {"norm": "none"}]
    wide, fitting = completed(tmp_path, content), completed(tmp_path, content, check=narrow)
    assert all(one["stem_width"] <= 16 for one in fitting)
    assert fitting[0]["stem_width"] == fitting[1]["stem_width"]
    assert [one["norm"] for one in fitting] == [one["norm"] for one in wide]
    with pytest.raises(InputError, match="entry 1 is refused: too wide"):
        completed(tmp_path, [{"stem_width": 64}], check=narrow)


def dice(sides: int) -> SearchSpace:
    """It asks for `x_N` only if die N shows 0, and for one of two more names."""
    (one,) = load_space("arch").baselines[:1]
    plain = load_space("arch").draw(optuna.trial.FixedTrial(dict(one)))

    def draw(suggest: Any) -> TrialConfig:
        rate = suggest.suggest_float("rate", 0.1, 0.2)
        for place in range(3):
            if suggest.suggest_categorical(f"die_{place}", tuple(range(sides))) == 0:
                rate += suggest.suggest_float(f"x_{place}", 0.001, 0.5)
        kind = suggest.suggest_categorical("kind", ("a", "b"))
        rate += suggest.suggest_float(f"only_{kind}", 0.001, 0.5)
        return dataclasses.replace(plain, train=dataclasses.replace(plain.train, lr=rate))

    return SearchSpace("dice", "dice.py", 1, "", draw, ())


def test_one_draw_is_looked_for_long_enough(tmp_path: Path) -> None:
    """One of 216 draws suits them."""
    told: list[str] = []
    file = make_file(tmp_path, [{"x_0": 0.1}, {"x_1": 0.2}, {"x_2": 0.3}])
    for seed in range(5):
        found = complete(find_grid(file, dice(6)), dice(6), accept, seed, told.append)
        assert [one.pop(f"x_{place}") for place, one in enumerate(found)] == [0.1, 0.2, 0.3]
        others = [{name: value for name, value in one.items() if name[0] != "x"} for one in found]
        assert others[0] == others[1] == others[2]
    assert not told


def test_where_no_draw_suits_all_that_is_said(tmp_path: Path) -> None:
    told: list[str] = []
    file = make_file(tmp_path, [{"only_a": 0.1}, {"only_b": 0.2}])
    found = complete(find_grid(file, dice(2)), dice(2), accept, 0, told.append)
    assert [one["kind"] for one in found] == ["a", "b"]
    assert told == [f"no draw of what {file} leaves out suits all its entries; it differs between trials"]


def test_looking_for_one_draw_ends(tmp_path: Path) -> None:
    """After so many questions to the space, however many entries there are."""
    asked = []
    space = dice(2)

    def draw(suggest: Any) -> TrialConfig:
        asked.append(suggest)
        return space.draw(suggest)

    file = make_file(tmp_path, [{"only_a": rate / 100} for rate in range(1, 40)] + [{"only_b": 0.45}])
    complete(find_grid(file, space), dataclasses.replace(space, draw=draw), accept, 0)
    assert len(asked) < 3000


def test_a_name_that_is_asked_for_twice_has_one_value(tmp_path: Path) -> None:
    space = dice(2)

    def draw(suggest: Any) -> TrialConfig:
        config = space.draw(suggest)
        assert suggest.suggest_float("rate", 0.001, 0.5) == suggest.suggest_float("rate", 0.001, 0.5)
        return config

    assert complete(
        find_grid(make_file(tmp_path, [{"kind": "a"}]), dataclasses.replace(space, draw=draw)),
        dataclasses.replace(space, draw=draw),
        accept,
        0,
    )


# A search.


def trained(trials: list[Trial]) -> list[tuple[str, float, int | None]]:
    return [(trial.origin, trial.params["lr"], trial.repeat_of) for trial in trials]


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    return make_file(tmp_path, {"lr": [0.05, 0.2, 0.01], "width": [4]})


def test_a_search_of_a_grid_is_the_baseline_and_the_grid_in_full(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), grid=rates, **SMALL)
    assert trained(study.list_trials()) == [
        ("baseline", 0.1, None),
        ("grid", 0.05, None),
        ("grid", 0.2, None),
        ("grid", 0.01, None),
    ]
    assert {trial.status for trial in study.list_trials()} == {TrialStatus.COMPLETED}
    assert study.info["options"]["trials"] == 4
    assert study.best().params["lr"] == 0.2


def test_a_grid_of_the_space_is_searched_by_its_name(played: Played, space: Path) -> None:
    """Also where it goes on after an interrupt, and where it is added to a study."""
    rates = [{"lr": rate, "width": 4} for rate in (0.05, 0.2)]
    space.write_text(space.read_text() + f"\nGRIDS = {{'rates': {rates}, 'wide': ({{'lr': 0.1, 'width': 8}},)}}\n")
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 2 else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), grid="rates", repeat=2, **SMALL)
    played.halt = lambda trial, epoch: ""
    study = resume(paused.value.study, progress=False)
    by_hand = [trial for trial in study.list_trials() if trial.origin == "grid"]
    assert [trial.params for trial in by_hand] == rates
    assert sorted(trial.repeat_of or 0 for trial in study.list_trials()) == [0, 0, 0, 1, 2]
    added = extend(study, grid=f"{space.stem}/wide", progress=False).list_trials()[-2:]
    assert [(one.origin, one.params) for one in added] == [
        (kind, {"lr": 0.1, "width": 8}) for kind in ("grid", "repeat")
    ]
    with pytest.raises(InputError, match=r"has no grid 'narrow' \(it has rates, wide\)"):
        search(str(space), grid="narrow", **SMALL)


def test_more_trials_than_the_grid_are_sampled_and_stopped_early(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), grid=rates, trials=16, **SMALL)
    trials = study.list_trials()
    assert [trial.origin for trial in trials[:5]] == ["baseline", "grid", "grid", "grid", "tpe"]
    assert len(trials) == 16
    assert all(trial.status is TrialStatus.COMPLETED for trial in trials if trial.origin == "grid")
    why = [decision["why"] for trial in trials if trial.origin == "grid" for decision in trial.decisions]
    assert set(why) == {"a trial of the grid always runs its full length"}
    assert any(trial.status is TrialStatus.STOPPED for trial in trials)


def test_a_scheduler_that_is_asked_for_stops_them_too(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), grid=rates, scheduler="asha", **SMALL)
    assert [trial.status.value for trial in study.list_trials()] == ["COMPLETED", "COMPLETED", "COMPLETED", "STOPPED"]


def test_each_is_trained_several_times_and_an_interrupt_forgets_none(played: Played, space: Path, rates: Path) -> None:
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 6 else ""
    with pytest.raises(PausedError, match="repeats are left"):
        search(str(space), grid=rates, repeat=3, **SMALL)
    played.halt = lambda trial, epoch: ""
    (study_path,) = [file.parent for file in space.parent.glob("runs/*/study.json")]
    trials = resume(study_path, progress=False).list_trials()
    assert [trial.repeat_of for trial in trials] == [None, None, None, None, 1, 2, 3, 1, 2, 3]
    assert len({trial.config["seed"] for trial in trials}) == 10
    standing = {place.trial.number: place.standing.runs for place in resume(study_path, progress=False).standings()}
    assert standing == {0: 1, 1: 3, 2: 3, 3: 3}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"trials": 3}, "--trials 3 is less than the 4 of"),
        ({"grid": None, "repeat": 2}, "--repeat 2 can only be used with --grid"),
        ({"warm_start": ["old"]}, "--warm-start changes nothing with --grid alone, .*; give --trials"),
        ({"grid": "nowhere.yaml"}, "nowhere.yaml cannot be read: No such file"),
    ],
)
def test_bad_grids_make_nothing(
    played: Played, space: Path, rates: Path, runs_dir: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        search(str(space), **{"grid": rates, **SMALL, **asked})
    assert not runs_dir.exists()


# Added to a study.


def test_trials_by_hand_are_added_to_a_study(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), trials=3, race=0.0, **SMALL)
    study = extend(study, grid=rates, progress=False)
    trials = study.list_trials()
    assert trained(trials[3:]) == [("grid", 0.05, None), ("grid", 0.2, None), ("grid", 0.01, None)]
    assert all(trial.status is TrialStatus.COMPLETED for trial in trials[3:])
    assert study.info["options"]["trials"] == 6
    with pytest.raises(InputError, match="has every trial of"):
        extend(study, grid=rates, progress=False)
    with pytest.raises(InputError, match="--trials 6 is less than the 6 trials that the study has and the 1 of --grid"):
        extend(study, grid=make_file(rates.parent, [{"lr": 0.3}]), trials=6, progress=False)
    assert len(extend(study, trials=8, progress=False).list_trials()) == 8


def test_trials_by_hand_come_first_at_a_new_length(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), trials=3, race=0.0, **SMALL)
    study = extend(study, grid=rates, epochs=12, trials=6, progress=False)
    origins = [trial.origin for trial in study.list_trials()[3:]]
    assert origins[:4] == ["baseline", "grid", "grid", "grid"]
    assert origins[4].startswith("extended from trial")


def test_a_grid_goes_on_at_a_new_length(played: Played, space: Path, rates: Path) -> None:
    """With what it had not begun yet, as often as was asked for, and in full."""
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 3 else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), grid=rates, repeat=2, **SMALL)
    played.halt = lambda trial, epoch: ""
    study = extend(paused.value.study, epochs=27, progress=False)
    new = [trial for trial in study.list_trials() if trial.config["train"]["epochs"] == 27]
    assert trained([trial for trial in new if trial.repeat_of is None]) == [
        ("baseline", 0.1, None),
        ("grid", 0.2, None),
        ("grid", 0.05, None),
        ("grid", 0.01, None),
    ]
    again = [trial for trial in new if trial.repeat_of is not None]
    assert sorted(trial.params["lr"] for trial in again) == [0.01, 0.05, 0.2]
    assert {trial.status for trial in new} == {TrialStatus.COMPLETED}
    assert [one["origin"] for one in study.info["first"]] == ["grid"] * 3 + ["extended from trial 0"]


def test_a_longer_grid_has_room_for_another(played: Played, space: Path, rates: Path) -> None:
    study = search(str(space), grid=rates, **SMALL)
    more = make_file(rates.parent, [{"lr": 0.3, "width": 4}, {"lr": 0.2, "width": 4}])
    new = extend(study, epochs=12, grid=more, progress=False).list_trials()[4:]
    assert trained(new) == [
        ("baseline", 0.1, None),
        ("grid", 0.3, None),
        ("grid", 0.2, None),
        ("grid", 0.05, None),
        ("grid", 0.01, None),
    ]


def test_it_is_said_where_trials_differ_in_more(
    played: Played, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = space.read_text().replace(
        "    arch =", '    width = suggest.suggest_int(f"only_{width}", 4, 8) if width > 4 else width\n    arch ='
    )
    space.write_text(text)
    grid = make_file(tmp_path, [{"only_8": 5}, {"only_16": 5}])
    search(str(space), grid=grid, **{**SMALL, "progress": True})
    said = f"note: no draw of what {grid} leaves out suits all its entries; it differs between trials\n"
    assert capsys.readouterr().err.count(said) == 1
    study = search(str(space), trials=2, race=0.0, study=tmp_path / "other", **SMALL)
    extend(study, grid=grid, progress=True)
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- {", "neither YAML nor JSON"),
        ([{"rate": 0.1}], "does not ask for 'rate'"),
        ([{"lr": 0.1, "width": 4}], "has every trial of"),
    ],
)
def test_a_bad_grid_changes_nothing_though_the_space_has_changed(
    played: Played, space: Path, tmp_path: Path, content: Any, said: str
) -> None:
    study = search(str(space), trials=3, race=0.0, **SMALL)
    space.write_text(space.read_text().replace("VERSION = 1", "VERSION = 2"))
    before = {file.name: file.read_bytes() for file in study.path.iterdir() if file.is_file()}
    with pytest.raises(InputError, match=said):
        extend(study, grid=make_file(tmp_path, content), progress=False)
    assert {file.name: file.read_bytes() for file in study.path.iterdir() if file.is_file()} == before
    assert extend(study, trials=4, progress=False).info["space"]["version"] == 2


# Early stopping.


def test_a_trial_that_ends_early_is_complete_and_ranked(played: Played, space: Path) -> None:
    """Its loss makes no progress after the second epoch; whatever halts the search, it ends at the same one."""
    text = space.read_text().replace("batch_size=32", "batch_size=32, patience=0.3 if width == 4 else None")
    space.write_text(text)
    rising = played.measure
    played.measure = lambda trial, epoch: dataclasses.replace(rising(trial, epoch), val_loss=1.0 / min(epoch, 2))
    entries = [{"lr": 0.3, "width": 4}, {"lr": 0.2, "width": 8}]
    played.halt = lambda trial, epoch: "SIGTERM" if (trial.number, epoch) == (1, 4) else ""
    with pytest.raises(PausedError) as paused:
        search(str(space), grid=make_file(space.parent, entries), repeat=2, **SMALL)
    played.halt = lambda trial, epoch: ""
    study = resume(paused.value.study, progress=False)
    lengths = {trial.number: (trial.params["width"], len(trial.epochs)) for trial in study.list_trials()}
    assert set(lengths.values()) == {(4, 5), (8, 9)}
    ended = [trial for trial in study.list_trials() if trial.params["width"] == 4]
    assert len(ended) == 3, "the baseline, the entry and its repeat"
    assert {trial.status for trial in ended} == {TrialStatus.COMPLETED}
    assert {trial.reason for trial in ended} == {
        "early stopping: no progress of the loss since epoch 2, for 3 of 9 epochs"
    }
    best, second, third = study.standings()
    assert best.trial.params == entries[0]
    assert (best.epochs, second.epochs, third.epochs) == (9, 9, 9), "they are compared with those of full length"
    assert best.standing.runs == 2
