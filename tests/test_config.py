from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunelab.config import (
    ArchSpec,
    AugmentConfig,
    AveragingConfig,
    BlockSpec,
    CustomSpec,
    DataConfig,
    LeNetSpec,
    MLPSpec,
    ScheduleConfig,
    StageSpec,
    StemSpec,
    TrainConfig,
    TrialConfig,
    arch_id,
    config_id,
    derive_seed,
    from_json,
    to_json,
)
from tunelab.errors import InputError, RefusedError, TunelabError

BLOCKS = st.builds(
    BlockSpec,
    kind=st.sampled_from(["basic", "bottleneck", "inception"]),
    width=st.integers(1, 8192),
    stride=st.sampled_from([1, 2]),
    convs=st.integers(1, 5),
)
UNIT = st.floats(0.0, 0.999)
LENETS = st.builds(
    LeNetSpec,
    activation=st.sampled_from(["sigmoid", "tanh", "relu"]),
    pooling=st.sampled_from(["average", "max"]),
    init=st.sampled_from(["torch", "lecun", "xavier", "he"]),
)
CONFIGS = st.builds(
    TrialConfig,
    arch=LENETS
    | st.builds(
        ArchSpec,
        stem=st.builds(StemSpec, width=st.integers(1, 8192), kernel=st.sampled_from([3, 5, 7]), pool=st.booleans()),
        branches=st.lists(st.lists(BLOCKS, max_size=4).map(tuple), min_size=1, max_size=3).map(tuple),
        norm=st.sampled_from(["batch", "group", "layer", "none"]),
        activation=st.sampled_from(["relu", "leaky_relu", "gelu", "silu"]),
        bias=st.booleans(),
        dropout=UNIT,
    ),
    train=st.builds(
        TrainConfig,
        epochs=st.integers(1, 1_000_000),
        lr=st.floats(1e-12, 1000.0),
        schedule=st.builds(
            ScheduleConfig,
            warmup=UNIT,
            factor=st.floats(0.001, 0.999),
            cycles=st.integers(1, 100),
            by_norm=st.booleans(),
        ),
        augment=st.builds(AugmentConfig, crop=st.floats(0.0, 0.5), flip=st.booleans(), mixup=st.floats(0.0, 8.0)),
        stages=st.just(())
        | st.builds(
            StageSpec,
            begin=st.floats(0.001, 0.999),
            optimizer=st.text(),
            lr=st.floats(1e-12, 1000.0),
            momentum=st.none() | UNIT,
            weight_decay=st.none() | st.floats(0.0, 10.0),
        ).map(lambda stage: (stage,)),
        averaging=st.none() | st.builds(AveragingConfig, kind=st.sampled_from(["ema", "swa"]), start=UNIT),
        patience=st.none() | st.floats(0.001, 1.0),
    ),
    data=st.builds(
        DataConfig,
        name=st.text(),
        image_size=st.none() | st.integers(4, 1024),
        limit_train=st.none() | st.integers(2),
        skip_unreadable=st.booleans(),
        normalise=st.booleans(),
    ),
    seed=st.integers(0),
)


def config(**train: Any) -> TrialConfig:
    arch = ArchSpec(stem=StemSpec(8), branches=((BlockSpec("basic", 8), BlockSpec("bottleneck", 16, 2)),))
    return TrialConfig(arch=arch, train=TrainConfig(**train), seed=3)


@given(CONFIGS)
def test_json_gives_back_the_configuration(made: TrialConfig) -> None:
    text = json.dumps(to_json(made), allow_nan=False)
    back = from_json(TrialConfig, json.loads(text))
    assert back == made
    assert config_id(back) == config_id(made)
    assert to_json(back) == json.loads(text)


def test_what_is_left_out_has_its_default() -> None:
    plain = {"arch": {"stem": {}, "branches": [[{"kind": "basic", "width": 8}]]}}
    made = from_json(TrialConfig, plain)
    assert made == TrialConfig(arch=ArchSpec(stem=StemSpec(), branches=((BlockSpec("basic", 8),),)))
    assert (made.train.epochs, made.data.name, made.seed) == (30, "digits", 0)


def test_a_configuration_cannot_be_changed() -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.train.lr = 1.0  # type: ignore[misc]
    assert hash(made) == hash(config())


def test_a_network_of_ones_own_is_plain_json() -> None:
    spec = CustomSpec("net.py:build", {"widths": (8, 16), "norm": None, "rate": 0.5})
    made = from_json(TrialConfig, json.loads(json.dumps(to_json(TrialConfig(spec)))))
    assert made.arch == spec == CustomSpec("net.py:build", {"widths": [8, 16], "norm": None, "rate": 0.5})
    assert arch_id(spec) != arch_id(CustomSpec("net.py:build", {"widths": [8, 17], "norm": None, "rate": 0.5}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"factory": "net.py"}, "arch.factory: string should match pattern"),
        ({"factory": "net.py:not one"}, "arch.factory"),
        ({"factory": "a\nb.py:build"}, "arch.factory"),
        ({"sha256": "abc"}, "arch.sha256"),
        ({"arguments": [1]}, "arch.arguments: value error, must be a dictionary"),
        ({"arguments": {"channels": 3}}, "'channels' cannot be an argument's name"),
        ({"arguments": {"a b": 3}}, "'a b' cannot be an argument's name"),
        ({"arguments": {"x": float("nan")}}, "must be plain JSON values"),
        ({"arguments": {"x": {1, 2}}}, "must be plain JSON values"),
    ],
)
def test_what_is_no_network_of_ones_own_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        from_json(TrialConfig, {"arch": {"factory": "net.py:build", "arguments": {}, **change}})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"learning_rate": 0.1}}, "train.learning_rate"),
        ({"train": {"lr": 0.0}}, "train.lr: input should be greater than 0 (got 0.0)"),
        ({"train": {"lr": -1}}, "(got -1)"),
        ({"train": {"lr": float("nan")}}, "train.lr: input should be a finite number (got nan)"),
        ({"train": {"lr": float("inf")}}, "finite"),
        ({"train": {"lr": "fast"}}, "(got 'fast')"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": 2.5}}, "train.epochs"),
        ({"train": {"momentum": 1.0}}, "train.momentum"),
        ({"train": {"precision": "float16"}}, "'float32'"),
        (
            {"train": {"averaging": {"kind": "mean"}}},
            "train.averaging.kind: input should be 'ema' or 'swa' (got 'mean')",
        ),
        ({"train": {"averaging": {"kind": "ema", "decay": 1.0}}}, "train.averaging.decay"),
        ({"train": {"averaging": {"kind": "swa", "start": 1.0}}}, "train.averaging.start"),
        ({"train": {"stages": [{"begin": 0.5, "lr": 0.1}]}}, "train.stages.0.optimizer: field required"),
        ({"train": {"stages": [{"begin": 0.0, "optimizer": "sgd", "lr": 0.1}]}}, "train.stages.0.begin"),
        ({"train": {"stages": [{"begin": 0.5, "optimizer": "sgd", "lr": 0.1}] * 2}}, "must begin later than the one"),
        ({"train": {"schedule": {"warmup": 1.0}}}, "train.schedule.warmup"),
        ({"train": {"augment": {"crop": 0.6}}}, "train.augment.crop"),
        ({"data": {"train_on": "test"}}, "data.train_on: input should be 'train' or 'train+val' (got 'test')"),
        ({"data": {"image_size": 3}}, "data.image_size"),
        ({"data": {"val_fraction": 1.0}}, "data.val_fraction"),
        ({"data": None}, "data"),
        ({"seed": -1}, "seed"),
        ({"arch": {"stem": {"kernel": 4}, "branches": [[]]}}, "arch.stem.kernel: input should be 3, 5 or 7 (got 4)"),
        ({"arch": {"stem": {}, "branches": []}}, "arch.branches"),
        ({"arch": {"stem": {}, "branches": [[], [], [], []]}}, "arch.branches"),
        ({"arch": {"stem": {}, "branches": [[{"kind": "basic", "width": 0}]]}}, "arch.branches.0.0.width"),
        ({"arch": {"stem": {}, "branches": [[{"kind": "basic", "width": 8, "stride": 3}]]}}, "stride"),
        ({"arch": {"stem": {}, "branches": [[{"width": 8}]]}}, "arch.branches.0.0.kind: field required"),
        ({"arch": {}}, "arch.stem: field required"),
        ({"arch": None}, "arch: input should be a dictionary, ArchSpec or LeNetSpec"),
        ({"arch": {"activation": "gelu", "pooling": "max"}}, "'sigmoid', 'tanh' or 'relu' (got 'gelu')"),
        (
            {"arch": {"init": "xavier", "pooling": "sum"}},
            "arch.pooling: input should be 'average' or 'max' (got 'sum')",
        ),
        ({"arch": {"init": "he", "pooling": "max", "norm": "batch"}}, "arch.norm: unexpected keyword"),
        ({"arch": {**to_json(LeNetSpec()), "stem": {}}}, "arch.stem: unexpected keyword"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        from_json(TrialConfig, {**to_json(config()), **change})
    message = str(refused.value)
    assert message.startswith("TrialConfig: ")
    assert said in message
    assert "\n" not in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as refused:
        from_json(TrainConfig, {"lr": -1, "epochs": 0, "unknown": 1})
    assert all(name in str(refused.value) for name in ("lr: ", "epochs: ", "unknown: "))


def test_a_configuration_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="lr"):
        TrainConfig(lr=0.0)
    with pytest.raises(ValueError, match="unknown"):
        TrainConfig(unknown=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("arch", [StemSpec(), None, "lenet"])
def test_what_is_no_network_is_refused_in_python_too(arch: Any) -> None:
    with pytest.raises(ValueError, match="Input should be a dictionary, ArchSpec or LeNetSpec or MLPSpec"):
        TrialConfig(arch)


def test_families_are_told_apart_by_what_they_have() -> None:
    """A value that both could have, and a field that only one knows, with or without the others."""
    lenet = LeNetSpec(activation="relu", pooling="max", init="he")
    plain = to_json(TrialConfig(lenet))
    assert plain["arch"] == {"activation": "relu", "pooling": "max", "init": "he"}
    assert from_json(TrialConfig, plain).arch == lenet
    assert from_json(TrialConfig, {"arch": {"pooling": "max"}}).arch == LeNetSpec(pooling="max")
    assert isinstance(from_json(TrialConfig, to_json(config())).arch, ArchSpec)
    mlp = MLPSpec((20, 30), "sparse", "tanh", 0.5)
    assert from_json(TrialConfig, to_json(TrialConfig(mlp))).arch == mlp
    assert from_json(TrialConfig, {"arch": {"hidden": [9], "dropout": 0.1}}).arch == MLPSpec((9,), dropout=0.1)
    assert from_json(TrialConfig, {"arch": {"stem": {}, "branches": [[]], "dropout": 0.1}}).arch.dropout == 0.1
    assert len({arch_id(LeNetSpec(init=init)) for init in ("torch", "lecun", "xavier", "he")}) == 4


def test_an_arch_id_is_of_the_architecture_alone() -> None:
    one = config()
    assert len(arch_id(one.arch)) == 8
    assert int(arch_id(one.arch), 16) >= 0
    assert arch_id(config(lr=0.2).arch) == arch_id(one.arch)
    for change in (
        {"norm": "none"},
        {"dropout": 0.1},
        {"stem": StemSpec(9)},
        {"branches": one.arch.branches * 2},
        {"branches": (tuple(reversed(one.arch.branches[0])),)},
    ):
        assert arch_id(dataclasses.replace(one.arch, **change)) != arch_id(one.arch)


def test_a_config_id_is_of_all_but_the_seed() -> None:
    one = config()
    assert config_id(dataclasses.replace(one, seed=9)) == config_id(one)
    assert config_id(config(lr=0.2)) != config_id(one)
    assert config_id(dataclasses.replace(one, data=DataConfig(limit_train=9))) != config_id(one)


def test_ids_and_seeds_stay_what_they_were() -> None:
    """They name folders and decide results on people's disks."""
    assert arch_id(config().arch) == "54a46974"
    assert config_id(config()) == "3da02be383f6bf33"
    assert list(to_json(config().arch)) == ["stem", "branches", "norm", "activation", "bias", "dropout"]
    branches = ((BlockSpec("inception", 24, 2),), (BlockSpec("basic", 24, 2, 5),))
    other = TrialConfig(
        ArchSpec(StemSpec(12, 7, pool=True), branches, "none", "gelu", bias=True, dropout=0.25),
        TrainConfig(
            epochs=9,
            optimizer="adamw",
            lr=0.002,
            schedule=ScheduleConfig("step", 0.1, 0.4, 0.2),
            augment=AugmentConfig(crop=0.125, flip=True, mixup=0.4),
        ),
        DataConfig("npz:/data/images.npz", image_size=32, limit_train=500),
        seed=11,
    )
    assert arch_id(other.arch) == "a929ad0c"
    assert config_id(other) == "48fa7e3aad1dbda0"
    assert arch_id(LeNetSpec()) == "ecd0ac6c"
    assert derive_seed(0, "trial", 0) == 721423983
    assert derive_seed(7, "propose", 3, 1) == 31544065


def test_what_came_later_is_in_no_id_where_it_is_not_used() -> None:
    """Configurations from before there were stages and averages are equal to those of today."""
    plain = to_json(config())
    assert list(plain["train"]) == [
        "epochs", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "nesterov", "label_smoothing",
        "schedule", "augment", "precision",
    ]  # fmt: skip
    assert list(plain["train"]["schedule"]) == ["name", "warmup", "period", "factor", "cycles"]
    assert from_json(TrialConfig, plain) == config()
    divided = config(schedule=ScheduleConfig(by_norm=True))
    assert to_json(divided)["train"]["schedule"] == {**plain["train"]["schedule"], "by_norm": True}
    assert from_json(TrialConfig, to_json(divided)) == divided
    assert config_id(divided) != config_id(config())
    staged = config(stages=(StageSpec(0.5, "adam", 0.001),))
    averaged = config(averaging=AveragingConfig("swa"))
    assert to_json(staged)["train"]["stages"] == [
        {"begin": 0.5, "optimizer": "adam", "lr": 0.001, "weight_decay": None, "momentum": None}
    ]
    assert to_json(averaged)["train"]["averaging"] == {"kind": "swa", "start": 0.75, "decay": 0.999}
    raw = dataclasses.replace(config(), data=DataConfig(normalise=False))
    assert "normalise" not in plain["data"]
    assert to_json(raw)["data"]["normalise"] is False
    assert from_json(TrialConfig, to_json(raw)) == raw
    patient = config(patience=0.25)
    assert to_json(patient)["train"]["patience"] == 0.25
    assert len({config_id(one) for one in (config(), staged, averaged, raw, patient)}) == 5
    assert to_json(config().train) == plain["train"]


@given(st.lists(st.integers() | st.text(), min_size=1))
def test_a_derived_seed_is_one_that_torch_and_numpy_take(parts: list[int | str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**31
    assert derive_seed(*parts) == derive_seed(*parts)


def test_derived_seeds_differ() -> None:
    seeds = {
        derive_seed(seed, what, number) for seed in range(20) for what in ("init", "order") for number in range(20)
    }
    assert len(seeds) == 800
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(1) != derive_seed("1")


def test_ids_and_seeds_are_the_same_in_every_process() -> None:
    code = "from tunelab.config import *; print(derive_seed(1, 'x'), arch_id(ArchSpec(StemSpec(), ((),))))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{derive_seed(1, 'x')} {arch_id(ArchSpec(StemSpec(), ((),)))}\n"}


def test_errors_say_how_a_command_ends() -> None:
    assert (TunelabError.exit_status, InputError.exit_status, RefusedError.exit_status) == (1, 2, 2)
    assert issubclass(InputError, ValueError)


def test_ctrl_c_while_a_configuration_is_written_stays_ctrl_c() -> None:
    def interrupt(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "_as_before":
            raise KeyboardInterrupt

    config = TrainConfig()
    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            to_json(config)
    finally:
        sys.setprofile(before)
