"""The components as pure functions: each changes what it says, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from tunelab.analysis.changes import BOTH, difference, find_variants
from tunelab.analysis.components import READ_BY_SCHEDULE, components_of, effective
from tunelab.analysis.network_components import CONVS_READ_BY, LENET, MLP, NETWORK, WITHOUT_SHORTCUT
from tunelab.analysis.recipe_components import LR_GROWTH, READ_BY_OPTIMIZER, RECIPE
from tunelab.search_spaces import _recipes

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
    config_id,
    to_json,
)
from tunelab.errors import InputError
from tunelab.models.blocks import BLOCKS
from tunelab.models.check import check
from tunelab.training.optim import OPTIMIZERS
from tunelab.training.schedules import SCHEDULES, lr_factor
from tunelab.variants import BACK, REMOVED, Variant

BRANCH = (
    BlockSpec("basic", 16, 1, 3),
    BlockSpec("inception", 32, 2),
    BlockSpec("bottleneck", 32),
    BlockSpec("basic", 32, 1, 2),
    BlockSpec("bottleneck", 64, 2),
    BlockSpec("inception", 64),
)
OTHER = (BlockSpec("bottleneck", 32, 2), BlockSpec("basic", 64, 2, 5), BlockSpec("basic", 64, 1, 2))
WINNER = TrialConfig(
    ArchSpec(StemSpec(16, 5, True), (BRANCH, OTHER), norm="group", activation="gelu", bias=True, dropout=0.2),
    TrainConfig(
        epochs=7,
        batch_size=32,
        optimizer="sgd",
        lr=0.04,
        weight_decay=1e-3,
        momentum=0.95,
        nesterov=True,
        label_smoothing=0.1,
        schedule=ScheduleConfig("step", 0.1, 0.2, 0.3),
        augment=AugmentConfig(crop=0.2, flip=True, cutout=0.25, mixup=0.4, mixup_until=0.8),
    ),
    DataConfig(limit_train=500),
    seed=11,
)
BASELINE = TrialConfig(
    ArchSpec(StemSpec(8), ((BlockSpec("basic", 8), BlockSpec("basic", 16, 2)),)),
    TrainConfig(epochs=3, batch_size=128, lr=0.1, nesterov=False, augment=AugmentConfig(crop=0.125)),
    DataConfig(limit_train=100),
    seed=99,
)
STAGES = (StageSpec(0.5, "sgd", 0.01, weight_decay=2e-3, momentum=0.8), StageSpec(0.8, "adam", 1e-4))
STAGED = dataclasses.replace(
    WINNER, train=dataclasses.replace(WINNER.train, stages=STAGES, averaging=AveragingConfig("swa"), patience=0.5)
)
LENET_WINNER = TrialConfig(LeNetSpec("relu", "max", "he"), TrainConfig(optimizer="adam", lr=1e-3))
MLP_WINNER = TrialConfig(MLPSpec((64, 32, 1), "sparse", "tanh", 0.25), TrainConfig(optimizer="adam", lr=1e-3))

# What each component may change, as the paths of values.
TOUCHES = {
    "crop": {"train.augment.crop"},
    "flip": {"train.augment.flip"},
    "cutout": {"train.augment.cutout"},
    "mixup": {"train.augment.mixup", "train.augment.mixup_until"},
    "augmentation": {f"train.augment.{name}" for name in ("crop", "flip", "cutout", "mixup", "mixup_until")},
    "label_smoothing": {"train.label_smoothing"},
    "optimizer": {
        *(f"train.{name}" for name in ("optimizer", "lr", "momentum", "nesterov", "weight_decay")),
        "train.schedule.by_norm",
    },
    "lr": {"train.lr", "train.schedule.by_norm"},
    "batch_size": {"train.batch_size", "train.lr", "train.stages"},
    "momentum": {"train.momentum", "train.stages"},
    "nesterov": {"train.nesterov"},
    "weight_decay": {"train.weight_decay", "train.stages"},
    "schedule": {f"train.schedule.{name}" for name in ("name", "period", "factor", "cycles")},
    "warmup": {"train.schedule.warmup"},
    "stages": {"train.stages"},
    "averaging": {f"train.averaging.{name}" for name in ("kind", "start", "decay")},
    "patience": {"train.patience"},
    "dropout": {"arch.dropout"},
    "norm": {"arch.norm"},
    "activation": {"arch.activation"},
    "bias": {"arch.bias"},
    "stem": {"arch.stem.kernel", "arch.stem.pool"},
    "shortcuts": {"arch.branches"},
    "blocks": {"arch.branches"},
    "branches": {"arch.branches"},
    "depth": {"arch.branches"},
    "pooling": {"arch.pooling"},
    "init": {"arch.init"},
    "hidden": {"arch.hidden"},
}
# What no component changes: which training it is, and how it is computed.
LEFT_ALONE = {"train.epochs", "train.precision", "arch.stem.width"}


def leaves(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            found.update(leaves(value, f"{above}{name}."))
        else:
            found[above + name] = value
    return found


def changed(before: TrialConfig, after: TrialConfig) -> set[str]:
    old, new = leaves(to_json(before)), leaves(to_json(after))
    return {name for name in old | new if old.get(name) != new.get(name)}


def variants(config: TrialConfig, baseline: TrialConfig, *names: str) -> dict[str, TrialConfig]:
    return {variant.name: variant.config for variant in find_variants(config, baseline, names)[0]}


def recipe(**values: Any) -> TrialConfig:
    return dataclasses.replace(WINNER, train=dataclasses.replace(WINNER.train, **values))


# The registry.


@pytest.mark.parametrize("config", [WINNER, STAGED, LENET_WINNER, MLP_WINNER, BASELINE])
def test_every_component_changes_only_what_it_is(config: TrialConfig) -> None:
    for name, component in components_of(config.arch).items():
        for baseline in (BASELINE, LENET_WINNER, MLP_WINNER, WINNER, STAGED):
            for change, made in component(config, baseline).items():
                if isinstance(made, TrialConfig):
                    assert changed(config, made) <= TOUCHES[name], f"{name}, {change}"


def test_every_value_of_a_configuration_belongs_to_a_component_or_is_left_alone() -> None:
    for config in (WINNER, STAGED, LENET_WINNER, MLP_WINNER):
        touched = {path for name in components_of(config.arch) for path in TOUCHES[name]} | LEFT_ALONE
        own = {path for path in leaves(to_json(config)) if not path.startswith(("data.", "seed"))}
        assert own <= touched, "a new part of a configuration needs a component, or a place in LEFT_ALONE"


def test_every_component_has_a_variant_where_all_differs() -> None:
    there = {one.component for one in find_variants(STAGED, BASELINE)[0]}
    assert there | {"optimizer"} == {*RECIPE, *NETWORK}, "the optimizer is the same"
    assert {one.component for one in find_variants(WINNER, LENET_WINNER, ["optimizer"])[0]} == {"optimizer"}
    assert {one.component for one in find_variants(LENET_WINNER, BASELINE)[0]} >= set(LENET)
    assert {one.component for one in find_variants(MLP_WINNER, BASELINE)[0]} >= set(MLP)


def test_stages_and_averages_go_with_what_they_are_part_of() -> None:
    found = variants(STAGED, BASELINE, "stages", "averaging", "weight_decay", "momentum", "batch_size")
    assert found["stages, removed, as in the baseline"].train == dataclasses.replace(STAGED.train, stages=())
    assert found["averaging, removed, as in the baseline"].train.averaging is None
    assert [one.weight_decay for one in found["weight_decay, removed"].train.stages] == [None, None]
    assert [one.momentum for one in found["momentum, removed"].train.stages] == [None, None]
    assert [one.lr for one in found["batch_size, as in the baseline"].train.stages] == pytest.approx([0.04, 2e-4])
    said = {one.component: one.what for one in find_variants(STAGED, BASELINE)[0]}
    assert said["stages"] == "stages sgd from 50%, lr 0.01 then adam from 80%, lr 0.0001 -> none"
    assert said["averaging"] == "averaging swa from 75% -> none"


def test_a_number_that_only_a_later_stage_reads_is_a_component() -> None:
    adam = dataclasses.replace(STAGED, train=dataclasses.replace(STAGED.train, optimizer="adam", lr=1e-3))
    assert "momentum, removed" in variants(adam, BASELINE, "momentum")
    assert not variants(
        dataclasses.replace(adam, train=dataclasses.replace(adam.train, stages=())), BASELINE, "momentum"
    )


def test_the_variants_can_be_built_and_are_all_different() -> None:
    found, _, left_out = find_variants(WINNER, BASELINE)
    assert len({config_id(one.config) for one in found} | {config_id(WINNER)}) == len(found) + 1
    for one in found:
        check(one.config.arch, image_size=(32, 32), channels=3, classes=10)
        assert (one.config.seed, one.config.data, one.config.train.epochs) == (11, WINNER.data, 7)
        assert "->" in one.what
    assert left_out == {}


def test_the_tables_are_those_of_training_and_models() -> None:
    assert set(READ_BY_SCHEDULE) == set(SCHEDULES)
    assert {name for names in READ_BY_OPTIMIZER.values() for name in names} <= set(OPTIMIZERS)
    assert set(LR_GROWTH) == set(OPTIMIZERS)
    assert LR_GROWTH == _recipes.LR_GROWTH
    for kind, without in WITHOUT_SHORTCUT.items():
        assert BLOCKS[without].plan(8, 16, 2, 3) == BLOCKS[kind].plan(8, 16, 2, 3)._replace(side=())
    for kind, block in BLOCKS.items():
        assert (block.plan(16, 16, 1, 2) != block.plan(16, 16, 1, 3)) is (kind in CONVS_READ_BY)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reads_the_numbers_that_it_is_said_to_read(name: str) -> None:
    plain = ScheduleConfig(name, 0.1)
    losses = [(at / 20, 1.0 if at > 3 else 2.0 / at) for at in range(1, 21)]
    others = {"period": 0.11, "factor": 0.37, "cycles": 5}

    def curve(schedule: ScheduleConfig) -> list[float]:
        return [lr_factor(schedule, at / 20, losses[:at]) for at in range(21)]

    for number, value in others.items():
        other = dataclasses.replace(plain, **{number: value})
        assert (curve(plain) != curve(other)) is (number in READ_BY_SCHEDULE[name])


# One component at a time.


def test_augmentation_is_removed_and_put_back_whole_and_in_parts() -> None:
    found = variants(WINNER, BASELINE, "augmentation", "crop", "flip", "mixup")
    augments = {name: config.train.augment for name, config in found.items()}
    assert augments == {
        f"augmentation, {REMOVED}": AugmentConfig(),
        f"augmentation, {BACK}": AugmentConfig(crop=0.125),
        f"crop, {REMOVED}": dataclasses.replace(WINNER.train.augment, crop=0.0),
        f"crop, {BACK}": dataclasses.replace(WINNER.train.augment, crop=0.125),
        f"flip, {BOTH}": dataclasses.replace(WINNER.train.augment, flip=False),
        f"mixup, {BOTH}": dataclasses.replace(WINNER.train.augment, mixup=0.0, mixup_until=1.0),
    }


def test_of_two_variants_that_are_the_same_one_is_trained() -> None:
    config = recipe(augment=AugmentConfig(flip=True))
    found, same, left_out = find_variants(config, BASELINE, ["flip", "cutout", "augmentation"])
    assert [one.name for one in found] == [f"flip, {BOTH}", f"augmentation, {BACK}"]
    assert same == ["cutout"]
    assert left_out == {f"augmentation, {REMOVED}": f"the same as flip, {BOTH}"}


def test_a_rate_goes_with_its_batch_size() -> None:
    (back,) = variants(WINNER, BASELINE, "batch_size").values()
    assert (back.train.batch_size, back.train.lr) == (128, pytest.approx(0.16))
    (back,) = variants(WINNER, BASELINE, "lr").values()
    assert (back.train.batch_size, back.train.lr) == (32, pytest.approx(0.025))
    adam = recipe(optimizer="adam", lr=1e-3)
    (back,) = variants(adam, BASELINE, "batch_size").values()
    assert back.train.lr == pytest.approx(2e-3)
    assert variants(recipe(batch_size=65_536, lr=900.0), BASELINE, "lr")[f"lr, {BACK}"].train.lr < 1000


def test_another_optimizer_comes_with_its_numbers_and_lends_none() -> None:
    adam = recipe(optimizer="adamw", lr=1e-3, weight_decay=0.1)
    found, same, left_out = find_variants(adam, BASELINE, ["optimizer", "lr", "momentum", "nesterov", "weight_decay"])
    assert [one.name for one in found] == [f"optimizer, {BACK}", f"weight_decay, {REMOVED}"]
    back = found[0].config.train
    there = BASELINE.train
    assert (back.optimizer, back.lr, back.weight_decay) == ("sgd", pytest.approx(0.025), there.weight_decay)
    assert (back.momentum, back.nesterov, back.batch_size) == (there.momentum, False, 32)
    assert same == ["momentum", "nesterov"]
    assert set(left_out) == {f"lr, {BACK}", f"weight_decay, {BACK}"}
    assert left_out[f"lr, {BACK}"] == "the baseline's learning rate is for sgd, not for adamw; see optimizer"


def test_a_schedule_keeps_the_warm_up_and_a_warm_up_the_schedule() -> None:
    found = variants(WINNER, BASELINE, "schedule", "warmup")
    schedules = {name: effective(config).train.schedule for name, config in found.items()}
    assert schedules == {
        f"schedule, {REMOVED}": ScheduleConfig("constant", 0.1),
        f"schedule, {BACK}": ScheduleConfig("cosine", 0.1),
        f"warmup, {BOTH}": ScheduleConfig("step", 0.0, 0.2, 0.3),
    }


def test_a_rate_goes_with_its_division_by_the_norm() -> None:
    divided = recipe(optimizer="adam", lr=0.05, schedule=ScheduleConfig("step", 0.1, by_norm=True))
    assert effective(divided).train.schedule.by_norm
    found = variants(divided, BASELINE, "optimizer", "schedule", "warmup", "batch_size")
    by_norm = {name: config.train.schedule.by_norm for name, config in found.items()}
    assert by_norm.pop(f"optimizer, {BACK}") is False, "the baseline's rate is not divided"
    assert len(by_norm) == 4
    assert all(by_norm.values())
    (back,) = variants(recipe(schedule=divided.train.schedule), BASELINE, "lr").values()
    assert not back.train.schedule.by_norm
    (forth,) = variants(BASELINE, recipe(schedule=divided.train.schedule), "lr").values()
    assert forth.train.schedule.by_norm
    assert "by_norm off -> on" in find_variants(BASELINE, recipe(schedule=divided.train.schedule), ["lr"])[0][0].what


def test_shortcuts_are_removed_of_every_residual_block() -> None:
    (bare,) = variants(WINNER, BASELINE, "shortcuts").values()
    assert isinstance(bare.arch, ArchSpec)
    assert [block.kind for block in bare.arch.branches[0]] == [
        "plain", "inception", "plain_bottleneck", "plain", "plain_bottleneck", "inception",
    ]  # fmt: skip
    assert [(block.width, block.stride, block.convs) for block in bare.arch.branches[1]] == [
        (block.width, block.stride, block.convs) for block in OTHER
    ]
    assert variants(bare, BASELINE, "shortcuts") == {}


def test_blocks_become_the_one_kind_of_the_baseline() -> None:
    (back,) = variants(WINNER, BASELINE, "blocks").values()
    assert isinstance(back.arch, ArchSpec)
    assert {(block.kind, block.convs) for branch in back.arch.branches for block in branch} == {("basic", 2)}
    assert [block.width for block in back.arch.branches[0]] == [block.width for block in BRANCH]
    found, _, left_out = find_variants(BASELINE, WINNER, ["blocks"])
    assert (found, left_out) == ([], {f"blocks, {BACK}": "the baseline has not one kind of block"})


def test_one_branch_is_removed_at_a_time() -> None:
    found = variants(WINNER, BASELINE, "branches")
    assert list(found) == ["branches, branch 1 removed", "branches, branch 2 removed"]
    assert [config.arch.branches for config in found.values()] == [(OTHER,), (BRANCH,)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        ("abcdefgh", "bdfh"),
        ("abC", "bC"),
        ("ABC", "ABC"),
        ("aBcDef", "BDe"),
        ("a", "a"),
        ("ab", "b"),
        ("AbCdEfGh", "ACEG"),
    ],
)
def test_half_of_the_blocks_are_left_and_all_that_halve(kinds: str, kept: str) -> None:
    """A capital is a block with a stride; the number of convolutions tells blocks apart."""
    width, blocks = 8, []
    for at, letter in enumerate(kinds):
        width *= 2 if letter.isupper() else 1
        blocks.append(BlockSpec("basic", width, 2 if letter.isupper() else 1, at % 5 + 1))
    config = dataclasses.replace(WINNER, arch=ArchSpec(StemSpec(8), (tuple(blocks),)))
    found = variants(config, BASELINE, "depth")
    expected = tuple(block for block, letter in zip(blocks, kinds, strict=True) if letter in kept)
    if kinds == kept:
        assert found == {}
    else:
        (made,) = found.values()
        assert isinstance(made.arch, ArchSpec)
        assert (len(made.arch.branches[0]), made.arch.branches[0][-1].width) == (len(kept), width)
        assert [block.stride for block in made.arch.branches[0]].count(2) == sum(map(str.isupper, kinds))
        assert made.arch.branches == (expected,)


def test_a_lenet_is_put_back_to_a_lenet() -> None:
    for baseline in (BASELINE, TrialConfig(LeNetSpec())):
        found = variants(LENET_WINNER, baseline, "activation", "pooling", "init")
        assert {name: config.arch for name, config in found.items()} == {
            f"activation, {BACK}": LeNetSpec("tanh", "max", "he"),
            f"pooling, {BACK}": LeNetSpec("relu", "average", "he"),
            f"init, {BACK}": LeNetSpec("relu", "max", "lecun"),
        }


def test_a_fully_connected_network_loses_layers_one_at_a_time() -> None:
    found = variants(MLP_WINNER, TrialConfig(MLPSpec((9,), "zero")), *MLP)
    assert {name: config.arch for name, config in found.items()} == {
        f"hidden, {BACK}": MLPSpec((9,), "sparse", "tanh", 0.25),
        f"hidden, layer 1 {REMOVED}": MLPSpec((32, 1), "sparse", "tanh", 0.25),
        f"hidden, layer 2 {REMOVED}": MLPSpec((64, 1), "sparse", "tanh", 0.25),
        f"hidden, layer 3 {REMOVED}": MLPSpec((64, 32), "sparse", "tanh", 0.25),
        "hidden, halved": MLPSpec((32, 16, 1), "sparse", "tanh", 0.25),
        f"activation, {BACK}": MLPSpec((64, 32, 1), "sparse", "relu", 0.25),
        f"init, {BACK}": MLPSpec((64, 32, 1), "zero", "tanh", 0.25),
        f"dropout, {REMOVED}, {BACK}": MLPSpec((64, 32, 1), "sparse", "tanh"),
    }
    single = dataclasses.replace(MLP_WINNER, arch=MLPSpec((64,)))
    assert variants(single, BASELINE, "hidden")["hidden, halved"].arch == MLPSpec((32,))
    assert not any("layer" in name for name in variants(single, BASELINE, "hidden"))


def test_a_network_of_blocks_beside_a_lenet_is_put_back_to_defaults() -> None:
    found = variants(WINNER, LENET_WINNER, *NETWORK)
    arch = found[f"norm, {BACK}"].arch
    assert isinstance(arch, ArchSpec)
    assert (arch.norm, arch.branches) == ("batch", WINNER.arch.branches)  # type: ignore[union-attr]
    assert f"blocks, {BACK}" not in found


def test_the_baseline_itself_can_be_ablated() -> None:
    found, same, _ = find_variants(BASELINE, BASELINE)
    assert {one.change for one in found} <= {REMOVED, "halved"}
    assert {"lr", "batch_size", "optimizer", "activation", "flip", "branches"} <= set(same)


def test_numbers_that_are_not_read_make_no_variant() -> None:
    adam = recipe(optimizer="adam", momentum=0.5, nesterov=False, augment=AugmentConfig(mixup_until=0.3))
    there = dataclasses.replace(adam, train=TrainConfig(optimizer="adam"))
    _, same, left_out = find_variants(adam, there, ["momentum", "nesterov", "mixup"])
    assert (same, left_out) == (["momentum", "nesterov", "mixup"], {})


def test_effective_keeps_every_number_that_is_read() -> None:
    assert effective(WINNER) == WINNER
    assert effective(effective(LENET_WINNER)) == effective(LENET_WINNER)


def test_an_unknown_component_names_those_of_the_family() -> None:
    with pytest.raises(InputError, match=r"--components 'dropuot' is unknown; allowed are crop, .*dropout") as error:
        find_variants(WINNER, BASELINE, ["crop", "dropuot"])
    assert "pooling" not in str(error.value)
    with pytest.raises(InputError, match=r"'norm' is unknown; allowed are .*pooling"):
        find_variants(LENET_WINNER, BASELINE, ["norm"])


# In words.


@pytest.mark.parametrize(
    ("component", "what"),
    [
        ("mixup", "mixup 0.4 -> 0, mixup_until 0.8 -> 1"),
        ("flip", "flip on -> off"),
        ("stem", "stem kernel 5 -> 3, stem pool on -> off"),
        ("branches", "branches 2 -> 1"),
        ("depth", "blocks 9 -> 5"),
        ("batch_size", "batch_size 32 -> 128, lr 0.04 -> 0.16"),
        (
            "blocks",
            "basic(3), basic(5), bottleneck, inception -> basic(2)",
        ),
    ],
)
def test_a_difference_is_said_in_words(component: str, what: str) -> None:
    assert find_variants(WINNER, BASELINE, [component])[0][0].what == what


def test_the_numbers_of_two_schedules_are_not_compared() -> None:
    removed, back = find_variants(WINNER, BASELINE, ["schedule"])[0]
    assert (removed.what, back.what) == ("schedule step -> constant", "schedule step -> cosine")
    assert difference(WINNER, recipe(schedule=ScheduleConfig("step", 0.1, 0.5, 0.3))) == "period 0.2 -> 0.5"


def test_a_variant_has_a_name() -> None:
    assert Variant("mixup", REMOVED, "", WINNER).name == "mixup, removed"


def test_names_may_be_given_twice() -> None:
    assert len(find_variants(WINNER, BASELINE, ["crop", "crop"])[0]) == 2


def test_of_a_network_of_ones_own_the_arguments_go_back_as_a_whole() -> None:
    winner = TrialConfig(CustomSpec("/net.py:build", {"width": 8, "depth": 2}, "0" * 64), WINNER.train)
    there = dataclasses.replace(winner, arch=CustomSpec("/net.py:build", {"width": 4, "depth": 2}, "0" * 64))
    (variant,) = find_variants(winner, there, ("arguments",))[0]
    assert (variant.name, variant.what, variant.config) == (f"arguments, {BACK}", "width 8 -> 4", there)
    others = [BASELINE, dataclasses.replace(there, arch=dataclasses.replace(there.arch, sha256="1" * 64))]
    for other in others:
        assert find_variants(winner, other, ("arguments",)) == ([], ["arguments"], {})
    assert set(components_of(winner.arch)) == {*RECIPE, "arguments"}
