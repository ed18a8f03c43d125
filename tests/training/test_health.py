"""The observer: it changes nothing, goes on after a restart, and calls nothing broken that is well."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from tunelab.config import AveragingConfig, TrialConfig
from tunelab.errors import DivergedError, RefusedError
from tunelab.models.check import check
from tunelab.records import REMARKS, EpochMetrics
from tunelab.space import load_space
from tunelab.training import health as health_module
from tunelab.training.health import FILE, Health, from_json, task_of, to_json
from tunelab.training.loop import Trainer
from tunelab.training.observe import Scene
from tunelab.training.vital_signs import LayerSigns, LayerStart, ScoreSigns, Signs

DRAWS = 30


def measured(history: list[EpochMetrics]) -> list[tuple[float | None, ...]]:
    return [
        (m.epoch, m.train_loss, m.train_accuracy, m.val_loss, m.val_accuracy, m.lr, m.weight_norm, m.grad_norm)
        for m in history
    ]


def train(config: TrialConfig, health: Health | None, folder: Path | None = None, epochs: int = 99) -> Trainer:
    trainer = Trainer(
        config, folder=folder, device="cpu", threads=1, telemetry="off", observers=() if health is None else (health,)
    )
    trainer.resume()
    while not trainer.finished and epochs > 0:
        trainer.run_epoch()
        epochs -= 1
    return trainer


RECIPES: dict[str, dict[str, Any]] = {
    "dropout and batch norm": {"arch": {"dropout": 0.3}},
    "no norm": {"arch": {"norm": "none", "activation": "gelu"}, "precision": "float32"},
    "an average": {"averaging": AveragingConfig("ema", 0.3)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_bits_with_and_without_also_after_a_restart(make_config, tmp_path: Path, recipe: str) -> None:
    config = make_config(epochs=4, **RECIPES[recipe])
    plain = train(config, None)
    watched = train(config, Health(tmp_path / "one"), tmp_path / "one")
    assert measured(watched.history) == measured(plain.history)
    train(config, Health(tmp_path / "two"), tmp_path / "two", epochs=2).close()
    again = train(config, Health(tmp_path / "two"), tmp_path / "two")
    assert measured(again.history) == measured(plain.history)
    for one, other in zip(plain.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    looks = [json.loads((tmp_path / name / FILE).read_text())["looks"] for name in ("one", "two")]
    assert looks[0] == looks[1], "what was seen before the restart is known after it"


def test_it_looks_at_few_steps(make_config) -> None:
    health = Health(None)
    config = make_config(epochs=2, batch_size=16)
    train(config, health).close()
    assert [(one.epoch, one.step) for one in health._signs] == [
        *((1, step) for step in (1, 2, 4, 16, 25)), (2, 25),
    ]  # fmt: skip
    assert health._signs[0].inputs == pytest.approx((0.0, 1.0), abs=0.2)
    assert all(layer.update > 0 for layer in health._signs[-1].layers)


def test_a_long_training_keeps_few_looks(make_config, tmp_path: Path) -> None:
    health = Health(tmp_path)
    train(make_config(epochs=12, data={"limit_train": 60}), health, tmp_path).close()
    content = json.loads((tmp_path / FILE).read_text())
    assert [look["epoch"] for look in content["looks"]] == [1, 2, 4, 8, 9, 10, 11, 12]


def test_a_finding_is_told_once_and_survives_a_restart(make_config, tmp_path: Path) -> None:
    config = make_config(arch={"dropout": 0.9}, epochs=4)
    health = Health(tmp_path)
    train(config, health, tmp_path, epochs=2).close()
    (first,) = health.findings
    assert (first.name, first.layer, first.epoch) == ("dropout too high", "dropout", 1)
    again = Health(tmp_path)
    train(config, again, tmp_path).close()
    assert [finding for finding in again.findings if not finding.is_remark] == [first]
    lost = Health(None)
    train(config, lost, tmp_path).close()
    assert lost.findings == [], "the training is over, and nothing is known of it"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"layers": [], "looks": [{}], "findings": []}'])
def test_a_damaged_file_is_no_harm(make_config, tmp_path: Path, content: str) -> None:
    config = make_config(epochs=3)
    train(config, Health(tmp_path), tmp_path, epochs=2).close()
    (tmp_path / FILE).write_text(content)
    again = Health(tmp_path)
    train(config, again, tmp_path).close()
    assert [finding for finding in again.findings if not finding.is_remark] == []
    assert [look["epoch"] for look in json.loads((tmp_path / FILE).read_text())["looks"]] == [3]


def test_numbers_that_leave_the_finite_end_with_their_cause(make_config, tmp_path: Path) -> None:
    health = Health(tmp_path)
    trainer = Trainer(
        make_config(arch={"norm": "none"}, lr=1000.0, batch_size=16, precision="float32"),
        device="cpu", threads=1, observers=(health,),
    )  # fmt: skip
    with pytest.raises(DivergedError) as raised:
        trainer.run_epoch()
    health.broke_off(str(raised.value))
    assert health.hopeless == str(raised.value)
    assert health.findings[0].name == "learning rate too high"
    assert health.findings[0].hopeless
    assert health.findings[-1].name == "not finite"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())
    told = json.loads((tmp_path / FILE).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert told["hopeless"] == health.hopeless
    trainer.close()


def test_what_there_is_to_learn(make_config) -> None:
    class Watch(Health):
        def begin(self, scene: Scene) -> None:
            super().begin(scene)
            self.scene = scene

    watch = Watch(None)
    config = make_config(label_smoothing=0.1, batch_size=64)
    trainer = train(config, watch, epochs=0)
    task = task_of(watch.scene)
    assert (task.classes, task.images, task.val_images, task.epochs) == (10, 384, len(watch.scene.val.labels), 2)
    assert 0.1 <= task.guess < 0.13
    assert task.entropy == pytest.approx(math.log(10), abs=0.01)
    uneven = dataclasses.replace(watch.scene.train, labels=torch.tensor([0] * 90 + [1] * 10))
    task = task_of(dataclasses.replace(watch.scene, train=uneven, val=None))
    assert task.guess == task.val_guess == pytest.approx(0.9)
    assert task.val_entropy == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert task.entropy > task.val_entropy, "smoothed labels are never certain"
    trainer.close()


def test_signs_become_json_and_come_back() -> None:
    layers = (LayerSigns("one", 1.0, None, 0.5, 0.25, None), LayerSigns("two", 2.0, 0.125, 0.0, None, 1.0))
    signs = Signs(1, 2, 9, 0.1, 2.5, layers, ScoreSigns("relu", 0.0, 2.0, 0.5, False), (0.0, 1.0), ("two",))
    start = (LayerStart("one", 8, 1.5, True, False, True),)
    plain = to_json([], start, [signs, dataclasses.replace(signs, scores=None, inputs=None)], "")
    again = from_json(json.loads(json.dumps(plain, allow_nan=False)))
    assert again == (start, [signs, dataclasses.replace(signs, scores=None, inputs=None)])
    broken = dataclasses.replace(layers[0], update=math.nan)
    (read,) = from_json(to_json([], (), [dataclasses.replace(signs, layers=(broken,), loss=math.inf)], ""))[1]
    assert math.isnan(read.layers[0].update)
    assert math.isnan(read.loss)


@pytest.mark.slow
def test_no_healthy_draw_is_called_broken_or_given_up(make_config) -> None:
    space = load_space("arch")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    data, watched = make_config(data={"limit_train": 700}).data, 0
    while watched < DRAWS:
        drawn = space.draw(study.ask())
        config = dataclasses.replace(drawn, data=data, seed=watched, train=dataclasses.replace(drawn.train, epochs=1))
        try:
            costs = check(config.arch, image_size=(8, 8), channels=1, classes=10)
        except RefusedError:
            continue
        if costs.mflops > 1 or sum(map(len, config.arch.branches)) > 10:  # it takes time
            continue
        watched += 1
        health = Health(None)
        train(config, health).close()
        assert [finding.what for finding in health.findings if finding.name not in REMARKS] == [], config
        assert health.hopeless == ""


@pytest.mark.parametrize("factor", [math.nan, 1e30])
def test_weights_that_are_drawn_beyond_all_numbers_are_written_down(make_config, tmp_path: Path, factor: float) -> None:
    health = Health(tmp_path)
    trainer = Trainer(make_config(arch={"norm": "none"}), device="cpu", threads=1, observers=(health,))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(factor)
    trainer._tell_observers()
    with pytest.raises(DivergedError) as error:
        trainer.run_epoch()
    trainer.close()
    health.broke_off(str(error.value))
    assert "not finite" in [finding.name for finding in health.findings]
    layers, _ = from_json(json.loads((tmp_path / FILE).read_text()))
    assert not all(math.isfinite(layer.gain) for layer in layers)


def test_a_full_disk_costs_the_file_and_not_the_training(tmp_path, monkeypatch):
    errors = iter([errno.ENOSPC, errno.EDQUOT, errno.EIO])

    def full(_path, *_given, **_more):
        error = next(errors)
        raise OSError(error, os.strerror(error))

    (tmp_path / "health.json").write_text("as it was")
    monkeypatch.setattr(Path, "replace", full)
    for _ in range(2):
        health_module._write(tmp_path / "health.json", {})
        assert [path.name for path in tmp_path.iterdir()] == ["health.json"]
    with pytest.raises(OSError, match="Input/output error"):
        health_module._write(tmp_path / "health.json", {})
    assert (tmp_path / "health.json").read_text() == "as it was"
