from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunelab.config import (
    ArchSpec,
    BlockSpec,
    DataConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    config_id,
    derive_seed,
    to_json,
)
from tunelab.errors import InputError, RefusedError
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace, Suggest
from tunelab.tuning.searcher import SAMPLERS, OptunaSource
from tunelab.tuning.sources import FixedSource, Proposal

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))
BASELINE: dict[str, Any] = {"x": 0.125, "kind": "sgd"}
ENDS = (TrialStatus.COMPLETED, TrialStatus.STOPPED, TrialStatus.DIVERGED, TrialStatus.FAILED)


def draw(suggest: Suggest) -> TrialConfig:
    """A space with a parameter that is only there sometimes."""
    x = suggest.suggest_float("x", 0.001, 1.0)
    kind = suggest.suggest_categorical("kind", ("sgd", "adam", "adamw"))
    batch = 8 * suggest.suggest_int("batch", 1, 9) if kind == "adam" else 32
    return TrialConfig(ARCH, TrainConfig(lr=x, optimizer=kind, batch_size=batch))


def draw_few(suggest: Suggest) -> TrialConfig:
    """A space of four configurations."""
    return TrialConfig(ARCH, TrainConfig(batch_size=suggest.suggest_int("batch", 1, 4)))


def make_space(
    draw: Callable[[Suggest], Any] = draw, baselines: tuple[Mapping[str, Any], ...] = (BASELINE,)
) -> SearchSpace:
    return SearchSpace("test", "test.py", 1, "a test", draw, baselines)


def accept(_config: TrialConfig) -> Mapping[str, Any]:
    return {"params": 10}


def make_source(
    space: SearchSpace | None = None,
    storage: Path | None = None,
    *,
    seed: int = 1,
    sampler: str = "tpe",
    check: Callable[[TrialConfig], Mapping[str, Any]] = accept,
    known: list[Trial] | None = None,
) -> OptunaSource:
    def complete(config: TrialConfig, number: int) -> TrialConfig:
        return dataclasses.replace(
            config,
            data=DataConfig(limit_train=100),
            train=dataclasses.replace(config.train, epochs=4),
            seed=derive_seed(seed, "trial", number),
        )

    source = OptunaSource(space or make_space(), seed, sampler, complete, check, storage)
    source.restore(known or [])
    return source


class Run:
    """A search without Ray and without training: what an engine does with a source, kept as trials."""

    def __init__(self, source: OptunaSource) -> None:
        self.source = source
        self.trials: list[Trial] = []

    def propose(self) -> Trial:
        proposal = self.source.propose(len(self.trials), numbered(self.trials))
        trial = Trial(len(self.trials), to_json(proposal.config), dict(proposal.params), stats=dict(proposal.stats))
        trial.origin = proposal.origin
        self.trials.append(trial)
        return trial

    def report(self, trial: Trial, *scores: float) -> None:
        for score in scores:
            metrics = EpochMetrics(len(trial.epochs) + 1, 1.0, 0.5, 1.0, score, 0.1, 1.0, 1.0, 1.0)
            trial.epochs.append(metrics)
            self.source.observe(trial.number, metrics.epoch, score)

    def end(self, trial: Trial, status: TrialStatus) -> None:
        trial.status = status
        self.source.end(trial.number, status, trial.score)

    def add(self, status: TrialStatus, *scores: float) -> Trial:
        trial = self.propose()
        self.report(trial, *scores)
        if status.ended:
            self.end(trial, status)
        return trial


def numbered(trials: list[Trial]) -> dict[int, Trial]:
    return {trial.number: trial for trial in trials}


# What a proposal depends on.


def simulate(source: OptunaSource, trials: int, concurrent: int, seed: int, watch: Callable[[Run], None]) -> Run:
    """A search whose trials run at once and end in any order; many of their scores are equal."""
    generator = random.Random(seed)
    run = Run(source)
    running: list[Trial] = []
    while len(run.trials) < trials or running:
        if len(running) < concurrent and len(run.trials) < trials:
            watch(run)
            running.append(run.propose())
        else:
            trial = running.pop(generator.randrange(len(running)))
            status = generator.choices(ENDS, (5, 8, 4, 2))[0]
            epochs = {TrialStatus.COMPLETED: 4, TrialStatus.STOPPED: generator.choice((1, 3))}
            count = epochs.get(status, generator.randrange(3))
            run.report(trial, *[generator.randrange(10) / 10 for _ in range(count)])
            run.end(trial, status)
    return run


@pytest.mark.parametrize(("sampler", "concurrent"), [("tpe", 1), ("tpe", 4), ("random", 4)])
def test_a_restored_source_proposes_what_the_unbroken_one_does(sampler: str, concurrent: int) -> None:
    expected: dict[int, Proposal] = {}

    def watch(run: Run) -> None:
        number = len(run.trials)
        if number in (0, 1, 5, 12, 20) or number > 40:
            expected[number] = make_source(sampler=sampler, known=run.trials).propose(number, numbered(run.trials))

    run = simulate(make_source(sampler=sampler), 60, concurrent, 3, watch)
    assert len(expected) == 24
    for number, proposal in expected.items():
        assert to_json(proposal.config) == run.trials[number].config, number
        assert proposal.params == run.trials[number].params


def test_equal_searches_propose_the_same_and_others_do_not() -> None:
    def configs(seed: int, ends: int) -> list[str]:
        run = simulate(make_source(seed=seed), 25, 1, ends, lambda run: None)
        return [str(sorted(trial.params.items())) for trial in run.trials]

    assert configs(1, 1) == configs(1, 1)
    assert configs(2, 1)[1:] != configs(1, 1)[1:]
    assert configs(1, 2)[:10] == configs(1, 1)[:10], "the first trials are drawn at random"
    assert configs(1, 2) != configs(1, 1), "later ones learn"


def test_refused_draws_are_forgotten_after_a_proposal() -> None:
    """They are not in the record, so a restored source does not know of them."""

    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.lr > 0.4:
            raise RefusedError("too fast")
        return {"params": 10}

    def watch(run: Run) -> None:
        if len(run.trials) >= 12:
            restored = make_source(check=check, known=run.trials)
            expected.append((len(run.trials), to_json(restored.propose(len(run.trials), numbered(run.trials)).config)))

    expected: list[tuple[int, Any]] = []
    source = make_source(check=check)
    run = simulate(source, 30, 2, 3, watch)
    assert source.refused["too fast"] >= 10
    assert sum(source.refused.values()) < 30 * 40, "TPE learns within a proposal what is refused"
    assert all(trial.config["train"]["lr"] <= 0.4 for trial in run.trials)
    assert expected
    assert all(run.trials[number].config == config for number, config in expected)


def test_the_seeds_of_the_trials_differ() -> None:
    run = Run(make_source(sampler="random"))
    assert len({run.add(TrialStatus.FAILED).config["seed"] for _ in range(20)}) == 20


# What is proposed.


@pytest.mark.parametrize("sampler", [*sorted(SAMPLERS), "random"])
def test_no_configuration_is_proposed_twice(sampler: str) -> None:
    source = make_source(make_space(draw_few, ()), sampler=sampler)
    run = Run(source)
    for _ in range(4):
        run.add(TrialStatus.STOPPED, 0.5)
    assert sorted(trial.params["batch"] for trial in run.trials) == [1, 2, 3, 4]
    assert source.refused["the same configuration has been proposed before"] >= 1
    with pytest.raises(InputError, match=r"no configuration left: 500 of 500 draws .*were tried before"):
        run.propose()
    with pytest.raises(InputError, match="no configuration left"):
        make_source(make_space(draw_few, ()), sampler=sampler, known=run.trials).propose(4, numbered(run.trials))


def test_the_baseline_is_not_drawn_again() -> None:
    run = Run(make_source(make_space(draw_few, ({"batch": 2},))))
    for _ in range(4):
        run.add(TrialStatus.STOPPED, 0.5)
    assert run.trials[0].params == {"batch": 2}
    assert sorted(trial.params["batch"] for trial in run.trials) == [1, 2, 3, 4]


def test_what_is_refused_is_counted_and_never_proposed(tmp_path: Path) -> None:
    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.optimizer != "sgd":
            raise RefusedError(f"{config.train.optimizer} is not wanted")
        return {"params": 10}

    source = make_source(check=check, storage=tmp_path / "optuna.journal")
    run = Run(source)
    for _ in range(25):
        run.add(TrialStatus.COMPLETED, 0.5)
    assert {trial.config["train"]["optimizer"] for trial in run.trials} == {"sgd"}
    assert set(source.refused) == {"adam is not wanted", "adamw is not wanted"}
    assert sum(source.refused.values()) >= 10
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    seen = optuna.load_study(study_name=None, storage=storage).trials
    assert [one.params for one in seen] == [trial.params for trial in run.trials]


def test_a_space_that_never_fits_is_refused() -> None:
    def check(_config: TrialConfig) -> Mapping[str, Any]:
        raise RefusedError("12 million parameters, --max-params allows 1000")

    with pytest.raises(InputError, match=r"none of 500 draws from the space 'test' .*--max-params allows 1000"):
        make_source(check=check).propose(0, {})


def test_a_space_that_raises_is_named() -> None:
    def raising(_suggest: Suggest) -> TrialConfig:
        raise KeyError("width")

    with pytest.raises(InputError, match="the space 'test' raised KeyError: 'width'"):
        make_source(make_space(raising, ())).propose(0, {})
    with pytest.raises(InputError, match="the space 'test' raised KeyError: 'width'"):
        make_source(make_space(raising)).propose(0, {})


def test_a_space_that_raises_later_is_named() -> None:
    def raising(suggest: Suggest) -> TrialConfig:
        if suggest.suggest_float("x", 0.0, 1.0) > 0.5:
            raise ZeroDivisionError("division by zero")
        return TrialConfig(ARCH)

    source = make_source(make_space(raising, ()))
    with pytest.raises(InputError, match="raised ZeroDivisionError"):
        _ = [source.propose(number, {}) for number in range(50)]


def changing_choices(suggest: Suggest, many: bool) -> None:
    suggest.suggest_categorical("batch", (1, 2, 3) if many else (4, 5))


def changing_kind(suggest: Suggest, many: bool) -> None:
    _ = suggest.suggest_categorical("batch", (1, 2, 3)) if many else suggest.suggest_int("batch", 4, 5)


def changing_scale(suggest: Suggest, many: bool) -> None:
    suggest.suggest_int("batch", 1, 5, log=many)


def changing_type(suggest: Suggest, many: bool) -> None:
    _ = suggest.suggest_int("batch", 1, 5) if many else suggest.suggest_float("batch", 1.0, 5.0)


@pytest.mark.parametrize("sampler", [*sorted(SAMPLERS), "random", "model"])
@pytest.mark.parametrize("change", [changing_choices, changing_kind, changing_scale, changing_type])
def test_a_space_that_changes_what_a_name_means_is_named(sampler: str, change: Callable[[Suggest, bool], None]) -> None:
    def changing(suggest: Suggest) -> TrialConfig:
        change(suggest, suggest.suggest_categorical("many", (False, True)))
        return TrialConfig(ARCH, TrainConfig(lr=suggest.suggest_float("lr", 0.01, 0.1)))

    run = Run(make_source(make_space(changing, ()), sampler=sampler))
    with pytest.raises(InputError, match=r"the space 'test' raised ValueError: |the space gives 'batch' "):
        _ = [run.add(TrialStatus.COMPLETED, 0.5) for _ in range(20)]


@pytest.mark.parametrize("sampler", ["random", "model"])
def test_a_name_with_two_meanings_in_one_configuration_is_named(sampler: str) -> None:
    def twice(suggest: Suggest) -> TrialConfig:
        lower = suggest.suggest_float("lr", 0.01, 0.02)
        return TrialConfig(ARCH, TrainConfig(lr=max(lower, suggest.suggest_float("lr", 0.1, 0.2))))

    with pytest.raises(
        InputError, match=r"^the space asks for 'lr' twice, and its value 0.01\d* is not in both ranges"
    ):
        make_source(make_space(twice, ()), sampler=sampler).propose(0, {})


@pytest.mark.parametrize("wrong", [None, {"lr": 0.1}, ARCH, "config"])
def test_a_space_that_returns_something_else_is_named(wrong: object) -> None:
    with pytest.raises(InputError, match=f"the space 'test' returned {type(wrong).__name__}, not a TrialConfig"):
        make_source(make_space(lambda suggest: wrong, ())).propose(0, {})


# The baseline.


def test_the_baseline_is_trial_0() -> None:
    run = Run(make_source())
    assert run.propose().params == BASELINE
    assert run.trials[0].config["train"]["lr"] == 0.125
    assert run.trials[0].config["train"]["epochs"] == 4
    assert run.propose().params != BASELINE


def test_the_first_baseline_that_fits_is_taken() -> None:
    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.lr > 0.4:
            raise RefusedError("too fast")
        return {"params": int(1000 * config.train.lr)}

    few = tuple({"x": x, "kind": "adam", "batch": 2} for x in (0.9, 0.5, 0.4, 0.3))
    source = make_source(make_space(draw, few), check=check)
    assert source.has_baseline
    found = source.propose(0, {})
    assert found.params == few[2]
    assert found.stats == {"params": 400}
    none = make_source(make_space(draw, few[:2]), check=check)
    assert not none.has_baseline
    assert none.propose(0, {}).config.train.lr <= 0.4


def test_starters_follow_the_baseline() -> None:
    """Of each family the first that fits, none twice; what does not fit leaves its place to the next."""

    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.lr > 0.4:
            raise RefusedError("too fast")
        return {"params": 10}

    def sgd(*rates: float) -> tuple[dict[str, Any], ...]:
        return tuple({"x": rate, "kind": "sgd"} for rate in rates)

    families = (sgd(0.9, 0.3), sgd(0.8), sgd(0.5, 0.1), sgd(0.2), sgd(0.125, 0.25))
    space = dataclasses.replace(make_space(draw, sgd(0.125)), starters=families)
    run = Run(make_source(space, check=check))
    opening = [run.add(TrialStatus.STOPPED, 0.5).params["x"] for _ in range(5)]
    assert opening[:4] == [0.125, 0.3, 0.1, 0.2]
    assert opening[4] not in (0.125, 0.25)
    for number in range(5):
        proposal = make_source(space, check=check, known=run.trials[:number]).propose(
            number, numbered(run.trials[:number])
        )
        assert proposal.params["x"] == opening[number]


def test_a_starter_is_no_baseline() -> None:
    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.optimizer == "sgd":
            raise RefusedError("no sgd")
        return {"params": 10}

    space = dataclasses.replace(make_space(), starters=(({"x": 0.2, "kind": "adamw"},),))
    source = make_source(space, check=check)
    assert not source.has_baseline
    assert source.propose(0, {}).params == {"x": 0.2, "kind": "adamw"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "baseline",
    [
        {"x": 5.0, "kind": "sgd"},
        {"x": 0.1, "kind": "rmsprop"},
        {"x": 0.1, "kind": "adam", "batch": 2.5},
        {"x": 0.1},
        {"x": 0.1, "kind": "sgd", "batch": 2},
        {"x": "fast", "kind": "sgd"},
        {},
    ],
)
def test_a_baseline_that_is_no_draw_of_the_space_is_refused(baseline: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the space 'test'"):
        make_source(make_space(draw, (baseline,))).propose(0, {})


def test_a_space_that_has_changed_since_the_record_is_refused() -> None:
    """Without a new VERSION, which resume would have noticed."""

    def changed(suggest: Suggest) -> TrialConfig:
        return TrialConfig(ARCH, TrainConfig(lr=suggest.suggest_float("x", 0.5, 1.0)))

    run = Run(make_source())
    run.add(TrialStatus.COMPLETED, 0.5)
    with pytest.raises(InputError, match="the space 'test'"):
        make_source(make_space(changed), known=run.trials)


# What is learnt.


def share_above(source: OptunaSource, status: TrialStatus) -> float:
    """How often the later half of 60 proposals has x > 0.5, if such trials end with this status."""
    run = Run(source)
    for _ in range(60):
        trial = run.propose()
        if trial.params["x"] > 0.5:
            run.report(trial, *([0.9] if status is TrialStatus.DIVERGED else []))
            run.end(trial, status)
        else:
            run.report(trial, 0.3, 0.4, 0.5, 0.5)
            run.end(trial, TrialStatus.COMPLETED)
    return sum(trial.params["x"] > 0.5 for trial in run.trials[30:]) / 30


@pytest.mark.parametrize("status", [TrialStatus.DIVERGED, TrialStatus.FAILED])
def test_where_trials_diverge_or_fail_fewer_are_proposed(status: TrialStatus) -> None:
    shares = [share_above(make_source(seed=seed), status) for seed in range(4)]
    assert sum(shares) / 4 < 0.2


def test_good_regions_are_proposed_more_often() -> None:
    def mean_of_x(sampler: str) -> float:
        run = Run(make_source(sampler=sampler, seed=3))
        for _ in range(60):
            trial = run.propose()
            run.report(trial, trial.params["x"])
            run.end(trial, TrialStatus.COMPLETED)
        return sum(trial.params["x"] for trial in run.trials[30:]) / 30

    assert mean_of_x("tpe") > 0.7
    assert 0.35 < mean_of_x("random") < 0.65


# A fixed list.


def test_a_list_is_proposed_in_order() -> None:
    configs = [TrialConfig(ARCH, seed=seed) for seed in range(3)]
    source = FixedSource(configs, accept)
    source.restore([])
    proposals = [source.propose(number, {}) for number in (2, 0, 1)]
    assert [proposal.config.seed for proposal in proposals] == [2, 0, 1]
    assert proposals[0] == Proposal(configs[2], {}, {"params": 10}, "given")
    source.observe(0, 1, 0.5)
    source.end(0, TrialStatus.COMPLETED, 0.5, {})


def test_a_list_is_checked_too() -> None:
    def check(_config: TrialConfig) -> Mapping[str, Any]:
        raise RefusedError("too large")

    with pytest.raises(RefusedError, match="too large"):
        FixedSource([TrialConfig(ARCH)], check).propose(0, {})


def test_config_ids_of_equal_draws_are_equal() -> None:
    """What duplicates are known by: the seed, which is another for each trial, does not count."""
    one = make_source().propose(0, {}).config
    assert config_id(dataclasses.replace(one, seed=5)) == config_id(one)


STARTERS: tuple[tuple[Mapping[str, Any], ...], ...] = (
    ({"x": 0.9, "kind": "sgd"}, {"x": 0.25, "kind": "sgd"}),
    (BASELINE,),
    ({"x": 0.5, "kind": "adam", "batch": 2},),
)


def test_of_each_family_of_starters_the_first_that_fits_comes_after_the_baseline() -> None:
    def check(config: TrialConfig) -> Mapping[str, Any]:
        if config.train.lr > 0.8:
            raise RefusedError("too fast")
        return {"params": 10}

    space = dataclasses.replace(make_space(), starters=STARTERS)
    run = Run(make_source(space, check=check))
    opening = [run.add(TrialStatus.STOPPED, 0.5).params for _ in range(3)]
    assert opening == [BASELINE, STARTERS[0][1], STARTERS[2][0]], "a starter that is the baseline is not tried twice"
    assert run.add(TrialStatus.STOPPED, 0.5).params not in opening
    resumed = make_source(space, check=check, known=run.trials[:2])
    assert resumed.propose(2, numbered(run.trials[:2])).params == STARTERS[2][0]


def test_a_rehearsal_draws_beyond_the_baseline_and_asks_for_no_more_than_there_is() -> None:
    def raises_when_drawn(suggest: Suggest) -> TrialConfig:
        config = draw(suggest)
        if suggest.suggest_float("x", 0.001, 1.0) != BASELINE["x"]:
            raise RuntimeError("only the baseline works")
        return config

    make_source(make_space(draw_few, ())).rehearse(50)
    make_source().rehearse(4)
    with pytest.raises(InputError, match="only the baseline works"):
        make_source(make_space(raises_when_drawn)).rehearse(4)

    def refuse(config: TrialConfig) -> Mapping[str, Any]:
        raise RefusedError("too large")

    with pytest.raises(InputError, match=r"none of 500 draws .*too large"):
        make_source(check=refuse).rehearse(1)


# Repeats: trials that a source did not propose.


def test_where_a_configuration_came_from_is_told() -> None:
    space = dataclasses.replace(make_space(), starters=STARTERS)
    run = Run(make_source(space, sampler="random"))
    opening = [run.add(TrialStatus.STOPPED, 0.5).origin for _ in range(4)]
    assert opening == ["baseline", "starter", "starter", "random"]


def make_repeat(number: int, of: Trial) -> Trial:
    return Trial(number, {**of.config, "seed": 5}, of.params, stats=of.stats, origin="repeat", repeat_of=of.number)


def test_a_repeat_takes_no_starters_place() -> None:
    space = dataclasses.replace(make_space(), starters=STARTERS[2:])
    source = make_source(space)
    run = Run(source)
    run.add(TrialStatus.COMPLETED, 0.5)
    run.trials.append(make_repeat(1, run.trials[0]))
    source.adopt(run.trials[1])
    resumed = make_source(space, known=run.trials)
    for asked in (source, resumed):
        assert asked.propose(2, numbered(run.trials)).params == STARTERS[2][0]


@pytest.mark.parametrize("sampler", [*sorted(SAMPLERS), "random"])
def test_the_sampler_learns_nothing_of_a_repeat(sampler: str) -> None:
    """It is no configuration of its own, and its number is not missed."""
    plain, with_repeat = make_source(sampler=sampler), make_source(sampler=sampler)
    trials, _ = (numbered(simulate(source, 25, 1, 3, lambda run: None).trials) for source in (plain, with_repeat))
    repeated = make_repeat(1000, trials[0])
    with_repeat.adopt(repeated)
    for epoch in (1, 2, 3, 4):
        with_repeat.observe(1000, epoch, 0.99)
    with_repeat.end(1000, TrialStatus.COMPLETED, 0.99)
    for number in (30, 31, 32):
        one, other = plain.propose(number, trials), with_repeat.propose(number, {**trials, 1000: repeated})
        assert one.params == other.params != BASELINE
        for source in (plain, with_repeat):
            source.end(number, TrialStatus.FAILED, None)
