"""What has to do with being among the best: Optuna's PED-ANOVA, held against chance.

PED-ANOVA (Watanabe et al., arXiv 2304.10255) asks of each parameter by how much its values among the best trials differ
from those among all; its conditional form (arXiv 2601.20800) covers parameters that only some trials have. It compares
with what was tried, not with the whole space, so that a sampler that prefers some values does not make them important
by itself. Optuna's other evaluators leave conditional parameters out.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

FEWEST = 20
"""Of a parameter that fewer configurations have nothing is said (our choice)."""
BEST, SHARE = 10, 0.25
"""So many configurations count as the best, a quarter of all where that is more (our choice).

Optuna's default is a tenth. In simulated searches of 60 and 150 random configurations of the space `arch`, in which the
norm and the optimizer mattered, a tenth found them seldom, a quarter mostly.
"""
MOST = 500
"""Of more configurations so many are drawn (our choice): more change little and cost time."""
SHUFFLES = 20
"""The scores are dealt out anew so often; one of 21 parameters without meaning exceeds all of these by chance."""


@dataclass(frozen=True)
class Importance:
    """One parameter: its share of the importance of all in [0, 1], in how many trials it was asked for, if it is clear.

    `above` is by how many standard deviations it exceeds what shuffled scores give; `clear` means that it exceeds each
    of the shuffles. Of a parameter of fewer than FEWEST trials neither is said, nor a share: chance alone makes it
    large.
    """

    name: str
    trials: int
    share: float | None = None
    above: float | None = None
    clear: bool = False


def importances(
    params: Sequence[Mapping[str, Any]], scores: Sequence[float], ranges: Mapping[str, BaseDistribution]
) -> list[Importance]:
    """The importance of each parameter for being among the best, what is farthest above chance first.

    Args:
        params: per configuration, the values that it was made of; a conditional one is missing where it is inactive.
        scores: of as many, higher is better, all after the same number of epochs.
        ranges: of the parameters, as `recorded_ranges` has them; where one is missing it is taken from the values.
    """
    generator = random.Random(0)
    if len(params) > MOST:
        drawn = sorted(generator.sample(range(len(params)), MOST))
        params, scores = [params[at] for at in drawn], [scores[at] for at in drawn]
    counts = Counter(name for one in params for name in one)
    judged = [name for name, count in counts.items() if count >= FEWEST]
    rest = [Importance(name, count) for name, count in sorted(counts.items()) if count < FEWEST]
    if not judged:
        return rest
    study = _study(params, ranges)
    dealt = list(scores)
    pool = [_evaluate(study, scores, judged)]
    for _ in range(SHUFFLES):
        generator.shuffle(dealt)
        pool.append(_evaluate(study, dealt, judged))
    above = _above_chance(pool)
    total = sum(pool[0].values()) or 1.0
    found = [
        Importance(
            name,
            counts[name],
            pool[0][name] / total,
            above[name],
            all(pool[0][name] > one[name] for one in pool[1:]),
        )
        for name in judged
    ]
    return sorted(found, key=lambda one: (-(one.above or 0.0), one.name)) + rest


def _above_chance(pool: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By how many standard deviations the first value of each name lies above the mean of the pool, itself included."""
    found = {}
    for name in pool[0]:
        values = [one[name] for one in pool]
        spread = statistics.pstdev(values)
        found[name] = (values[0] - statistics.fmean(values)) / spread if spread > 0 else 0.0
    return found


def recorded_ranges(file: Path) -> dict[str, BaseDistribution]:
    """The ranges of a study's parameters from Optuna's journal, as far as it can be read; the first of a name stays.

    Args:
        file: `optuna.journal` of a study; it may be missing.
    """
    known: dict[str, BaseDistribution] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                told = json.loads(line).get("distributions") or {}
                known.update({name: json_to_distribution(text) for name, text in told.items() if name not in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return known  # missing, cut off or damaged: it is derived from the record, and a help here
    return known


def _study(params: Sequence[Mapping[str, Any]], ranges: Mapping[str, BaseDistribution]) -> optuna.Study:
    """A study in memory whose trial n has these parameters; its values mean nothing."""
    values: dict[str, list[Any]] = {}
    for one in params:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    fitting = {
        name: ranges[name] if name in ranges and _fits(ranges[name], found) else _range_of(found)
        for name, found in values.items()
    }
    storage = InMemoryStorage()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        number = storage.create_new_study([StudyDirection.MAXIMIZE], "importance")
        for one in params:
            template = optuna.create_trial(
                state=TrialState.COMPLETE,
                value=0.0,
                params=dict(one),
                distributions={name: fitting[name] for name in one},
            )
            storage.create_new_trial(number, template_trial=template)
        return optuna.Study("importance", storage)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _evaluate(study: optuna.Study, scores: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """PED-ANOVA of some parameters of a study whose trial n scored `scores[n]`."""

    def worse(trial: FrozenTrial) -> float:
        return -scores[trial.number]

    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(max(SHARE, BEST / len(scores)), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lower targets are better, as is meant; few trials have some parameters
        return get_param_importances(study, evaluator=evaluator, params=list(names), target=worse, normalize=False)


def _fits(distribution: BaseDistribution, values: Sequence[Any]) -> bool:
    """True if a range holds all of these values."""
    if isinstance(distribution, CategoricalDistribution):
        choices = {(type(choice), choice) for choice in distribution.choices}
        return all((type(value), value) in choices for value in values)
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return all(
        type(value) in (int, float) and distribution._contains(distribution.to_internal_repr(value)) for value in values
    )


def _range_of(values: Sequence[Any]) -> BaseDistribution:
    """The range that values seem to come from: of numbers from the lowest to the highest, else a choice among them."""
    kinds = {type(value) for value in values}
    if not kinds <= {int, float}:
        return CategoricalDistribution(sorted(set(values), key=repr))
    low, high = min(values), max(values)
    log = low > 0 and _skewed(values)
    return IntDistribution(low, high, log=log) if kinds == {int} else FloatDistribution(low, high, log=log)


def _skewed(values: Sequence[float]) -> bool:
    """True if the median lies nearer to the middle of the range on a logarithmic scale than on a plain one."""
    low, middle, high = min(values), statistics.median(values), max(values)
    if low == high:
        return False
    plain = abs((middle - low) / (high - low) - 0.5)
    return abs(math.log(middle / low) / math.log(high / low) - 0.5) < plain
