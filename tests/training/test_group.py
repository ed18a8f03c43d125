"""Two processes that train one network together, through gloo, against one that trains it alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tunelab.config import (
    ArchSpec,
    AugmentConfig,
    AveragingConfig,
    BlockSpec,
    DataConfig,
    ScheduleConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    to_json,
)
from tunelab.data.share import Share
from tunelab.errors import InputError
from tunelab.training.checkpoint import load
from tunelab.training.group import ALONE, is_parting
from tunelab.training.loop import Trainer
from tunelab.training.shared_norms import share_norms

MEMBER = """
import json, sys
from pathlib import Path
import torch
from tunelab.config import TrialConfig, from_json
from tunelab.data.share import Share
from tunelab.training.group import together
from tunelab.training.loop import Trainer

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)

class Looks:
    steps = 0
    def begin(self, scene): pass
    def wants(self, epoch, step, steps): return step == 1
    def before(self, model, batch): Looks.steps += 1
    def after(self, look): pass
    def epoch_ended(self, metrics, evaluation, model): pass

with together(Share(rank, 2), torch.device("cpu"), folder / "meeting") as group:
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        config = from_json(TrialConfig, job["config"])
        for stop in job["stops"]:
            trainer = Trainer(
                config, folder=folder / name / str(rank), device="cpu", telemetry="scalars", split=job["split"],
                observers=[Looks()], group=group,
            )
            trainer.resume()
            while len(trainer.history) < stop:
                trainer.run_epoch()
            trainer.close()
        told = {"epochs": [one.to_json() for one in trainer.history], "notes": trainer.notes, "looks": Looks.steps}
        (folder / name / f"{rank}.json").parent.mkdir(exist_ok=True)
        (folder / name / f"{rank}.json").write_text(json.dumps(told))
        Looks.steps = 0
"""


def made(arch: Mapping[str, Any] | None = None, **train: Any) -> TrialConfig:
    """A network that is smooth, for where ReLU is at its corner rounding decides; in float32, for it rounds less."""
    blocks = (BlockSpec("basic", 8, 1, 1), BlockSpec("basic", 16, 2, 2))
    return TrialConfig(
        arch=ArchSpec(**{"stem": StemSpec(8), "branches": (blocks,), "activation": "silu", **(arch or {})}),
        train=TrainConfig(**{"epochs": 3, "batch_size": 64, "lr": 0.05, "precision": "float32", **train}),
        data=DataConfig(limit_train=400),
        seed=1,
    )


AUGMENT = AugmentConfig(crop=0.125, flip=True, cutout=0.25, mixup=0.4, mixup_until=0.7)
JOBS: dict[str, dict[str, Any]] = {
    "norms and ema": {
        "config": made(augment=AUGMENT, label_smoothing=0.1, averaging=AveragingConfig("ema", start=0.3)),
        "stops": [1, 3],  # begun, and gone on with
        "split": 1,
    },
    "uneven and swa": {
        "config": made(batch_size=33, optimizer="adamw", lr=0.002, averaging=AveragingConfig("swa", start=0.5)),
        "stops": [3],
        "split": 1,
    },
    "without norms, in parts": {
        "config": made({"norm": "none"}, augment=AUGMENT, schedule=ScheduleConfig("plateau")),
        "stops": [3],
        "split": 3,
    },
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder in which two processes have done all jobs, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("pair")
    jobs = {name: {**job, "config": to_json(job["config"])} for name, job in JOBS.items()}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with subprocess.Popen([sys.executable, "-c", MEMBER, "1", str(folder)]) as other:
        try:
            subprocess.run([sys.executable, "-c", MEMBER, "0", str(folder)], check=True, timeout=300)
        except BaseException:
            other.kill()
            raise
    assert other.returncode == 0
    return folder


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one_does_within_rounding(name: str, pair: Path, tmp_path: Path) -> None:
    job = JOBS[name]
    trainer = Trainer(job["config"], folder=tmp_path, device="cpu", threads=1, telemetry="off", split=job["split"])
    while not trainer.finished:
        trainer.run_epoch()
    trainer.close()

    told = json.loads((pair / name / "0.json").read_text())
    for own, other in zip(trainer.history, told["epochs"], strict=True):
        for field in ("train_loss", "val_loss", "lr", "weight_norm", "grad_norm"):
            assert other[field] == pytest.approx(getattr(own, field), rel=2e-3), f"{field} of epoch {own.epoch}"
        for field in ("train_accuracy", "val_accuracy"):
            assert other[field] == pytest.approx(getattr(own, field), abs=0.011), f"{field} of epoch {own.epoch}"
    alone, shared = (load(folder / "checkpoint" / "last.pt") for folder in (tmp_path, pair / name / "0"))
    for which in ("model", "averaged"):
        own, other = (getattr(one, which) for one in (alone, shared))
        own, other = own.get("network", own), other.get("network", other)
        assert own.keys() == other.keys()
        for key, value in own.items():
            torch.testing.assert_close(
                other[key], value, rtol=2e-2, atol=2e-3, msg=lambda text, key=key: f"{key} {text}"
            )


@pytest.mark.parametrize("name", JOBS)
def test_the_first_process_alone_writes_and_looks_and_all_measure_the_same(name: str, pair: Path) -> None:
    first, second = (json.loads((pair / name / f"{rank}.json").read_text()) for rank in (0, 1))

    assert first["epochs"] == second["epochs"]  # seconds too
    assert len(first["epochs"]) == 3
    assert any("trained by 2 processes" in note for note in first["notes"])
    assert first["looks"] > 0
    assert second["looks"] == 0
    assert (pair / name / "0" / "checkpoint" / "last.pt").exists()
    assert not (pair / name / "1").exists()


def test_shares_are_parts_of_the_whole_and_their_weights_make_its_mean() -> None:
    for images, size in ((64, 2), (33, 2), (7, 4), (4, 4)):
        shares = [Share(rank, size) for rank in range(size)]
        places = [list(range(images))[share.of(images)] for share in shares]
        assert [place for part in places for place in part] == list(range(images))
        assert max(map(len, places)) - min(map(len, places)) <= 1
        mean = sum(share.weight(images) * sum(part) / len(part) for share, part in zip(shares, places, strict=True))
        assert mean / size == pytest.approx((images - 1) / 2)


def test_with_the_image_before_a_share_has_what_its_first_is_mixed_with() -> None:
    assert Share(0, 2).places(2, 5, before=True).tolist() == [4, 0, 1, 2, 9, 5, 6, 7]
    assert Share(1, 2).places(2, 5, before=True).tolist() == [2, 3, 4, 7, 8, 9]


def test_a_batch_of_fewer_images_than_processes_is_refused() -> None:
    class Four(type(ALONE)):  # type: ignore[misc]
        share = Share(0, 4)

    config = made()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=3))
    with pytest.raises(InputError, match="a batch of 3 images cannot be shared by 4 processes"):
        Trainer(config, device="cpu", group=Four())


def test_a_norm_of_an_unknown_kind_is_refused_by_name() -> None:
    class OwnNorm(torch.nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match="the norm '1' is a OwnNorm"):
        share_norms(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), OwnNorm(2)))


def test_errors_of_the_group_are_told_from_others() -> None:
    assert is_parting(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"))
    assert is_parting(torch.distributed.DistBackendError("NCCL error"))
    assert not is_parting(ValueError("a loss is not finite"))
