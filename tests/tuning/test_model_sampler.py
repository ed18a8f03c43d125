from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig, config_id, derive_seed, to_json
from tunelab.errors import RefusedError
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace, Suggest
from tunelab.tuning.draws import Draw
from tunelab.tuning.model_sampler import (
    ANYWHERE,
    FIRST_RANDOM,
    NEAR_BEST,
    NEAR_EACH,
    Candidate,
    Earlier,
    ModelSampler,
    _Fitted,
)
from tunelab.tuning.outcomes import outcomes
from tunelab.tuning.searcher import OptunaSource
from tunelab.tuning.surrogate import MOST_TO_KNOW, CostModel, Hyperparameters, Seen

ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 4),),))
EPOCHS = 9  # rungs at 1 and 3


def draw(suggest: Suggest) -> TrialConfig:
    kind = suggest.suggest_categorical("kind", ("plain", "smooth"))
    rate = suggest.suggest_float("rate", 0.001, 1.0, log=True)
    smoothing = suggest.suggest_float("smoothing", 0.0, 0.5) if kind == "smooth" else 0.0
    return TrialConfig(ARCH, TrainConfig(epochs=EPOCHS, lr=rate, label_smoothing=smoothing))


def draw_within_moving_ends(suggest: Suggest) -> TrialConfig:
    total = 0.0
    for name in "abcd":
        low = suggest.suggest_categorical(f"low_{name}", (False, True))
        total += suggest.suggest_float(f"value_{name}", 0.01, 0.05 if low else 0.5)
    rate = suggest.suggest_float("rate", 0.001, 1.0, log=True)
    return TrialConfig(ARCH, TrainConfig(epochs=EPOCHS, lr=rate, label_smoothing=total / 4))


SPACE = SearchSpace("test", "test.py", 1, "a test", draw, ())
MOVING = SearchSpace("moving", "test.py", 1, "ranges whose ends depend on a choice", draw_within_moving_ends, ())


def quality(config: Mapping[str, Any]) -> float:
    """Best, 0.9, at a rate of 0.1 with a smoothing of 0.2."""
    train = config["train"]
    return float(0.9 - 0.2 * abs(np.log10(train["lr"]) + 1) - abs(train["label_smoothing"] - 0.2))


def check(config: TrialConfig) -> Mapping[str, Any]:
    if config.train.lr > 0.5:
        raise RefusedError("too fast")
    return {"params": 1000 if config.train.label_smoothing else 100, "mflops": 1.0}


def make_source(
    seed: int = 0, earlier: tuple[Earlier, ...] = (), space: SearchSpace = SPACE, history: Sequence[int] = ()
) -> OptunaSource:
    def complete(config: TrialConfig, number: int) -> TrialConfig:
        return dataclasses.replace(config, seed=derive_seed(seed, number))

    return OptunaSource(space, seed, "model", complete, check, history=history, epochs=EPOCHS, earlier=earlier)


class Search:
    """Proposes and trains one after another; a third of all go on at each rung, those with the best quality."""

    def __init__(self, source: OptunaSource, trials: dict[int, Trial] | None = None) -> None:
        self.source = source
        self.trials = trials or {}
        source.restore(self.trials.values())

    def run(self, until: int) -> list[Mapping[str, Any]]:
        for number in range(len(self.trials), until):
            made = self.source.propose(number, self.trials)
            config = to_json(made.config)
            trial = Trial(number, config, dict(made.params), stats=dict(made.stats), origin=made.origin)
            self.trials[number] = trial
            good = sorted(quality(other.config) for other in self.trials.values())
            goes_on = quality(config) >= good[-(len(good) // 3 + 1)]
            for epoch in range(1, EPOCHS + 1 if goes_on else 2):
                score = max(0.0, quality(config) * (1 - 0.5 / epoch))
                seconds = 2.0 if config["train"]["label_smoothing"] else 1.0
                trial.epochs.append(EpochMetrics(epoch, 1.0, 0.0, 1.0, score, 0.1, seconds, 1.0, 1.0))
            trial.status = TrialStatus.COMPLETED if goes_on else TrialStatus.STOPPED
        return [self.trials[number].params for number in range(until)]


def test_the_model_finds_what_random_draws_miss() -> None:
    searched = Search(make_source())
    searched.run(40)
    late = [quality(trial.config) for number, trial in searched.trials.items() if number >= 20]
    generator = random.Random(0)
    anywhere = [quality(to_json(draw(Draw(generator)))) for _ in range(400)]
    assert np.median(late) > np.quantile(anywhere, 0.9)
    assert max(late) > 0.86
    assert {trial.origin for trial in searched.trials.values()} == {"model", "random"}
    assert all(trial.origin == "random" for number, trial in searched.trials.items() if number < FIRST_RANDOM)


def test_the_model_is_given_the_trials_that_count_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine leaves out what is history; a copy at each proposal would have the model begin anew each time."""
    given: list[Mapping[int, Trial]] = []
    monkeypatch.setattr(ModelSampler, "candidates", lambda _self, _number, trials, _known: given.append(trials))
    searched = Search(make_source(history=[0, 1]))
    searched.run(3)
    assert all(trials is searched.trials for trials in given)
    assert len(given) == 3


def test_equal_searches_propose_the_same_and_others_do_not() -> None:
    one, two, other = Search(make_source(0)).run(14), Search(make_source(0)).run(14), Search(make_source(1)).run(14)
    assert one == two
    assert one != other


@pytest.mark.parametrize("space", [SPACE, MOVING])
@pytest.mark.parametrize("broken_at", [3, 6, 9, 13])
@pytest.mark.parametrize("warm", [False, True])
def test_a_resumed_search_proposes_what_the_unbroken_one_would_have(
    broken_at: int, warm: bool, space: SearchSpace
) -> None:
    """After a warm start too, when the model is asked from the first trial on."""
    before = Search(make_source(7, space=space))
    before.run(12)
    earlier = (Earlier("before", before.trials, EPOCHS),) if warm else ()
    for seed in (0, 1):
        whole = Search(make_source(seed, earlier, space))
        expected = whole.run(18)
        begun = {number: trial for number, trial in whole.trials.items() if number < broken_at}
        assert Search(make_source(seed, earlier, space), begun).run(18) == expected


def test_networks_of_one_size_tell_of_those_of_another() -> None:
    """In a space of recipes all networks have one size, and on other data another one: no reason to forget it all."""

    def sized(params: int) -> ModelSampler:
        def make(one: Draw) -> Candidate | None:
            config = draw(one)
            return Candidate(config, one.params, one.distributions, {"params": params})

        return ModelSampler(0, EPOCHS, make, (Earlier("before", before.trials, EPOCHS),))

    before = Search(make_source(7))
    before.run(30)
    for trial in before.trials.values():
        trial.stats = {"params": 1000}
    chosen = [sized(params).candidates(1, {}, {}) for params in (1000, 2000)]
    for found in chosen:
        assert np.median([quality(to_json(one.config)) for one in found or ()][:5]) > 0.75


def test_one_epoch_is_a_full_length_too() -> None:
    def make(one: Draw) -> Candidate | None:
        return Candidate(draw(one), one.params, one.distributions, {})

    done = {
        number: Trial(number, {"train": {"epochs": 1}}, {"rate": 0.1, "kind": "plain"}, TrialStatus.COMPLETED)
        for number in range(9)
    }
    for trial in done.values():
        trial.epochs.append(EpochMetrics(1, 1.0, 0.0, 1.0, 0.5 + trial.number / 100, 0.1, 1.0, 1.0, 1.0))
    assert any(ModelSampler(seed, 1, make).candidates(9, done, {}) for seed in range(3))


@pytest.mark.parametrize("cost", ["seconds", "params"])
def test_what_diverged_is_the_worst_however_little_it_cost(cost: str) -> None:
    trials = {}
    for number in range(6):
        trial = Trial(number, {}, {"rate": 0.1 * (number + 1), "kind": "plain"}, TrialStatus.COMPLETED)
        trial.stats = {"params": 1000 * (number + 1)}
        trial.epochs = [
            EpochMetrics(n, 1.0, 0.0, 1.0, 0.5 + 0.05 * number, 0.1, 1.0 + number, 1.0, 1.0)
            for n in range(1, EPOCHS + 1)
        ]
        trials[number] = trial
    trials[6] = Trial(6, {}, {"rate": 0.9, "kind": "plain"}, TrialStatus.DIVERGED, stats={"params": 1})
    sampler = ModelSampler(0, EPOCHS, lambda one: None, costs=[cost])
    found = outcomes(trials, EPOCHS)
    for seed in range(10):
        ranked = sampler._ranked(random.Random(seed), found, trials)
        assert ranked.argmin() == found.numbers.index(6)
        assert len(set(ranked[:6])) > 1


def test_nothing_is_proposed_twice_nor_beyond_the_limits() -> None:
    searched = Search(make_source())
    searched.run(30)
    configs = [draw(_Given(trial.params)) for trial in searched.trials.values()]
    assert len({config_id(config) for config in configs}) == 30
    assert all(config.train.lr <= 0.5 for config in configs)


class _Given:
    """A suggestion that answers with what was recorded."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._params[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return self._params[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return self._params[name]


def test_a_repeat_is_no_configuration_of_its_own() -> None:
    searched = Search(make_source())
    searched.run(12)
    first = searched.trials[0]
    searched.trials[12] = dataclasses.replace(first, number=12, repeat_of=0, origin="repeat")
    proposed = searched.source.propose(13, searched.trials)
    assert proposed.params not in [trial.params for trial in searched.trials.values()]


def test_an_earlier_study_is_used_from_the_first_proposal_on() -> None:
    old = Search(make_source(7))
    old.run(30)
    helped = Search(make_source(0, (Earlier("old", old.trials, EPOCHS),)))
    helped.run(8)
    alone = Search(make_source(0))
    alone.run(8)

    def median(searched: Search) -> float:
        return float(np.median([quality(trial.config) for trial in searched.trials.values()]))

    assert median(helped) > median(alone) + 0.1


def test_an_earlier_study_that_is_wrong_is_overruled() -> None:
    old = Search(make_source(7))
    old.run(30)
    for trial in old.trials.values():
        trial.epochs = [dataclasses.replace(one, val_accuracy=1.0 - one.score) for one in trial.epochs]
    misled = Search(make_source(0, (Earlier("old", old.trials, EPOCHS),)))
    misled.run(40)
    late = [quality(trial.config) for number, trial in misled.trials.items() if number >= 20]
    assert max(late) > 0.84


def test_where_everything_near_is_refused_it_is_drawn_anywhere() -> None:
    sampler = ModelSampler(0, EPOCHS, lambda _draw: None)
    searched = Search(make_source())
    searched.run(12)
    assert sampler.candidates(12, searched.trials, {}) is None


def test_candidates_come_with_all_that_a_proposal_needs() -> None:
    def candidate(drawn: Draw) -> Candidate:
        config = draw(drawn)
        return Candidate(config, drawn.params, drawn.distributions, {"params": 1})

    searched = Search(make_source())
    searched.run(12)
    found = next(
        candidates
        for number in range(12, 30)
        if (candidates := ModelSampler(0, EPOCHS, candidate).candidates(number, searched.trials, {})) is not None
    )
    assert draw(_Given(found[0].params)) == found[0].config
    assert set(found[0].distributions) == set(found[0].params)


def test_with_a_cost_among_the_objectives_cheaper_configurations_are_proposed() -> None:
    """Smoothing makes a configuration better, and ten times as large."""

    def complete(config: TrialConfig, number: int) -> TrialConfig:
        return dataclasses.replace(config, seed=number)

    def share_of_small(objectives: tuple[str, ...]) -> float:
        source = OptunaSource(SPACE, 0, "model", complete, check, epochs=EPOCHS, objectives=objectives)
        searched = Search(source)
        searched.run(50)
        late = [trial.stats["params"] == 100 for number, trial in searched.trials.items() if number >= 10]
        return float(np.mean(late))

    assert share_of_small(("val_accuracy", "params")) > share_of_small(("val_accuracy",)) + 0.1


# What is drawn and encoded once.


def test_a_few_proposals_in_turn_choose_from_the_same_candidates() -> None:
    """Those that are near a configuration are drawn when it becomes one of the best."""
    searched = Search(make_source())
    searched.run(16)
    before = {number: trial for number, trial in searched.trials.items() if number < 15}
    drawn: list[Draw] = []

    def candidate(one: Draw) -> Candidate:
        config = draw(one)
        drawn.append(one)
        return Candidate(config, one.params, one.distributions, {"params": 1})

    sampler = ModelSampler(0, EPOCHS, candidate)
    counts, found = [], []
    for number in (20, 21, 23, 24, 23):
        drawn.clear()
        found.append(sampler.candidates(number, before, {}))
        counts.append(len(drawn))
    whole = ANYWHERE + NEAR_BEST * NEAR_EACH
    assert counts == [whole, 0, 0, whole, whole], "24 begins another block"
    assert found[0] is not None
    assert (
        [one.params for one in found[0]]
        == [one.params for one in found[1] or ()]
        == [one.params for one in found[4] or ()]
    ), "with the same trials the same is expected of them"
    best = max(before, key=lambda number: quality(before[number].config))
    better = dataclasses.replace(before[best], number=15)  # one of the best five makes room
    drawn.clear()
    assert sampler.candidates(23, {**before, 15: better}, {}) is not None
    assert len(drawn) == NEAR_EACH


def test_the_model_of_the_cost_lasts_once_the_first_trials_are_as_many_as_it_knows() -> None:
    x = np.random.default_rng(0).random((MOST_TO_KNOW, 3))
    hyper = Hyperparameters(np.full(3, 1.0), 1.0, 0.05)
    seen = Seen(x, np.zeros(len(x)), np.full(len(x), 0.05), 3.0 * x[:, 2])
    lasting = CostModel(x, seen.log_seconds, hyper)
    assert _Fitted((None, ()), hyper, hyper, lasting).cost_of(seen) is lasting
    assert _Fitted((None, ()), hyper, None, None).cost_of(seen) is None
    fresh = _Fitted((None, ()), hyper, hyper, None).cost_of(seen)
    assert fresh is not None
    assert fresh is not lasting
    assert fresh.log_cost(x).tolist() == lasting.log_cost(x).tolist()
