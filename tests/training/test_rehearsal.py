from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.config import DataConfig, TrialConfig, to_json
from tunelab.training.loop import Trainer
from tunelab.training.rehearsal import Measured, Rehearsal, serve

if TYPE_CHECKING:
    from tests.training.conftest import MakeConfig

GO = {"go": True, "threads": 1, "seconds": 0.05}


def request(config: TrialConfig) -> dict[str, Any]:
    return {"config": to_json(config), "device": "cpu", "threads": 1}


def answers(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `serve` says."""
    stream = io.StringIO()
    serve(requests, stream)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_trial_is_measured(make_config: MakeConfig) -> None:
    hello, ready, found = answers([request(make_config()), GO])
    assert hello == {"hello": True}
    assert ready == {"ready": True}
    measured = Measured(**found["measured"])
    assert measured.images == 64
    assert measured.steps >= 1
    assert 0 < measured.step < 10
    assert measured.val_image is not None
    assert 0 < measured.val_image < 1
    assert 0 < measured.build < 60
    assert measured.warm_up >= 0
    assert 10 < measured.idle <= measured.memory <= measured.host_memory
    assert measured.free is None


def test_one_trial_can_be_measured_several_times_and_others_after_it(make_config: MakeConfig) -> None:
    small, whole = make_config(batch_size=16), make_config(batch_size=1000)
    said = answers([request(small), GO, {**GO, "threads": 2}, request(whole), GO])
    assert [next(iter(one)) for one in said] == ["hello", "ready", "measured", "measured", "ready", "measured"]
    assert [one["measured"]["images"] for one in said if "measured" in one] == [16, 16, 400]


def test_nothing_held_out_is_not_validated(make_config: MakeConfig) -> None:
    found = answers([request(make_config(data={"train_on": "train+val"})), GO])[-1]
    assert found["measured"]["val_image"] is None


def test_a_full_validation_is_of_as_many_images_as_a_training_validates_at_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Trainer, "practise_validation", lambda trainer, images: asked.append(images) or images)
    answers([request(make_config()), {**GO, "seconds": 1e-9}, {**GO, "full_validation": True, "seconds": 1e-9}])
    assert asked == [1, 16, 16, 1000, 1000]


def test_what_goes_wrong_is_an_answer_and_no_end(make_config: MakeConfig) -> None:
    config = make_config()
    bad = {**request(config), "config": {**to_json(config), "colour": "red"}}
    gone = request(dataclasses.replace(config, data=DataConfig("npz:/nowhere.npz")))
    said = answers([GO, bad, GO, gone, {**request(config), "device": "tpu"}, request(config), GO])
    assert [next(iter(one)) for one in said] == ["hello", *["error"] * 5, "ready", "measured"]
    assert "a configuration comes first" in said[1]["error"]
    assert "colour" in said[2]["error"]
    assert "a configuration comes first" in said[3]["error"], "the one before is not measured in its place"
    assert "/nowhere.npz" in said[4]["error"]
    assert "'tpu'" in said[5]["error"]


def test_it_gives_up_where_a_single_step_takes_too_long(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal = Rehearsal(make_config(), "cpu", 1)
    monkeypatch.setattr(rehearsal, "_train", lambda steps: (90.0, 64))
    found = rehearsal.measure(2, 0.05)
    assert (found.step, found.steps, found.val_image) == (90.0, 1, None)
    rehearsal.close()


def test_measuring_writes_nothing(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers([request(make_config()), GO])
    assert list(tmp_path.rglob("*")) == []


def test_practice_steps_are_those_of_the_training(make_config: MakeConfig) -> None:
    """The same batches and the same first rate: after as many steps the weights are those of a real epoch."""
    config = make_config(schedule={"name": "constant"})
    real, practised = (Trainer(config, device="cpu", threads=1, telemetry="off") for _ in range(2))
    real.run_epoch()
    steps = practised.practise()
    assert [next(steps) for _ in range(400 // 64)] == [64] * (400 // 64)
    for mine, theirs in zip(practised.model.parameters(), real.model.parameters(), strict=True):
        assert mine.equal(theirs)
    assert practised.history == []
    assert practised.practise_validation(10) == 10
    assert practised.practise_validation(10_000) == practised.info.counts["val"]
