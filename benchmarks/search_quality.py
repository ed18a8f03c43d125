"""How good is what a search finds, for what it costs? Recorded learning curves are replayed, nothing is trained.

A folder holds benchmarks as `NAME.json` (the space) and `NAME.npz` (`X` (n, p), configurations scaled to [0, 1]; `val`
and `sec` (n, epochs); `len` and `ok` (n,)). Four simulated workers take configurations from a method, run the recorded
epochs of the nearest recorded configuration, and stop when the method says so. tunelab's own engine, stopping rule,
noise margin and sampler decide as in a real search up to its race, which a table of one run each cannot replay; beside
them stand random search, Ray's and Optuna's own classes.

    python benchmarks/search_quality.py --curves FOLDER --seeds 10 --json quality.json

A space lists its parameters: `name`, `kind` (int, float, ord for ordered choices, cat for others), `lo`, `hi` and `log`
or `choices`; a conditional one has `when`, from names to the values that it is asked for with, or NaN in `X` where it
is inactive.

Cost is counted in full trainings: the seconds of one median full run. Regret is normalised: 0 is the best value
anywhere in the table, 1 the final value of the median configuration. With transfer, random searches of 20 full
trainings on each other benchmark of the same space came before; where there is none, it is the search without.

A table is a coarse grid: a sampler that settles on one region is answered by the same few rows again and again, while
tunelab trains nothing twice. With `--fresh` every proposal, whoever makes it, is answered by the nearest row that the
run has not had yet, as in a space where no two proposals are equal.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import dataclasses
import functools
import heapq
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe import sampler as tpe
from scipy.spatial import cKDTree
from scipy.special import log_ndtr
from threadpoolctl import threadpool_limits

from tunelab.config import ArchSpec, BlockSpec, DataConfig, StemSpec, TrainConfig, TrialConfig, derive_seed
from tunelab.noise import noise_at
from tunelab.records import EpochMetrics, Trial
from tunelab.space import SearchSpace, Suggest
from tunelab.tuning import memory
from tunelab.tuning.engine import Engine
from tunelab.tuning.model_sampler import Earlier
from tunelab.tuning.progress import Silent
from tunelab.tuning.searcher import OptunaSource
from tunelab.tuning.stopping import SuccessiveHalving

WORKERS = 4
BUDGETS = (5, 10, 20, 50)
EARLIER_BUDGET = 20
_TRIALS = 100_000  # never reached: the budget ends a run
_NETWORK = ArchSpec(stem=StemSpec(), branches=((BlockSpec("basic", 16),),))


class Curves:
    """One recorded benchmark.

    Attributes:
        rows: how many configurations are recorded.
        epochs: the full length.
        full_seconds: what one median full run costs.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.fresh = False
        self._had: set[int] = set()
        self._folder = folder
        self.name = name
        self.info = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        with np.load(folder / f"{name}.npz") as arrays:
            there = arrays["ok"].astype(bool) & (arrays["len"] > 0)
            x = arrays["X"][there].astype(float)
            self.val = arrays["val"][there].astype(float)
            self.sec = arrays["sec"][there].astype(float)
            self.length = arrays["len"][there].astype(int)
        self.space: list[dict[str, Any]] = self.info["space"]
        self.epochs = int(self.info.get("max_epochs", self.val.shape[1]))
        self.rows = len(x)
        self._weights = np.asarray(self.info.get("nn_weights") or np.ones(len(self.space)), dtype=float)
        self._x = x
        self._tree = cKDTree(self._points(x))
        missing = np.isnan(x).any(axis=0)
        self._always = ["when" not in one and not missing[place] for place, one in enumerate(self.space)]
        last = np.arange(self.rows), self.length - 1
        self.final = np.nan_to_num(self.val[last], nan=float(self.info.get("chance", 0.0)))
        inside = np.arange(self.val.shape[1])[None, :] < self.length[:, None]
        self.best = float(np.nanmax(np.where(inside, self.val, np.nan)))
        self.median = float(np.median(self.final))
        self.full_seconds = float(np.median(np.where(inside, self.sec, 0.0).sum(axis=1)))

    def related(self) -> list[Curves]:
        """The other benchmarks of the folder that have the same space: what knowledge can come from."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            same = json.loads(file.read_text(encoding="utf-8")).get("space") == self.space
            if same and file.stem != self.name and file.with_suffix(".npz").exists():
                found.append(load(self._folder, file.stem))
        return found

    def regret(self, value: float) -> float:
        """0 for the best value of the table, 1 for the final value of the median configuration."""
        return (self.best - value) / (self.best - self.median)

    def nearest(self, params: Mapping[str, Any]) -> int:
        """The row of the recorded configuration nearest to `params`; a parameter that is left out is inactive."""
        point: list[float] = []  # of the space in which distance means difference
        for weight, one in zip(self._weights, self.space, strict=True):
            if _is_categorical(one):
                chosen = params.get(one["name"])
                point += [weight * (choice == chosen) / math.sqrt(2.0) for choice in one["choices"]]
            else:
                scaled = self._scaled(one, params)
                point.append(weight * (-1.0 if math.isnan(scaled) else scaled))
        nearest = int(self._tree.query(point)[1])
        count = 1
        while nearest in self._had and count < self.rows:
            count = min(4 * count, self.rows)
            places = self._tree.query(point, count)[1]
            nearest = next((int(place) for place in places if int(place) not in self._had), nearest)
        return nearest

    def take(self, params: Mapping[str, Any]) -> int:
        """The row that answers a proposal; with `fresh` it answers no other one."""
        row = self.nearest(params)
        if self.fresh:
            self._had.add(row)
        return row

    def begin(self, *, fresh: bool) -> Curves:
        """The same benchmark for one run."""
        mine = copy.copy(self)
        mine.fresh, mine._had = fresh, set()
        return mine

    def draw(self, suggest: Suggest) -> dict[str, Any]:
        """Asks for every active parameter of the space."""
        params: dict[str, Any] = {}
        for place, one in enumerate(self.space):
            if self._always[place] or self._active(place, one, params):
                params[one["name"]] = _suggest(suggest, one)
        return params

    def _active(self, place: int, one: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
        """Whether a conditional parameter is asked for: by the `when` of the space, else as in the nearest rows."""
        if "when" in one:
            return all(params.get(name) in allowed for name, allowed in one["when"].items())
        inactive = np.isnan(self._x[:, place])
        alike = np.ones(self.rows, dtype=bool)
        for before, other in enumerate(self.space[:place]):
            if _is_categorical(other) and other["name"] in params:
                alike &= np.isclose(self._x[:, before], self._scaled(other, params))
        return not inactive[alike].mean() > 0.5

    def _points(self, x: np.ndarray) -> np.ndarray:
        """Scaled configurations (n, p) as points (n, q) among which distance means difference; NaN is inactive."""
        columns = []
        for place, one in enumerate(self.space):
            column, weight = x[:, place], self._weights[place]
            if _is_categorical(one):
                codes = np.round(column * (len(one["choices"]) - 1))
                columns += [weight * (codes == code) / math.sqrt(2.0) for code in range(len(one["choices"]))]
            else:
                columns.append(weight * np.nan_to_num(column, nan=-1.0))
        return np.stack(columns, axis=1)

    def _scaled(self, one: Mapping[str, Any], params: Mapping[str, Any]) -> float:
        value = params.get(one["name"])
        if value is None:
            return math.nan
        if "choices" in one:
            return list(one["choices"]).index(value) / max(1, len(one["choices"]) - 1)
        low, high = float(one["lo"]), float(one["hi"])
        if one.get("log"):
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (float(value) - low) / (high - low)


@functools.cache
def load(folder: Path, name: str) -> Curves:
    """One benchmark; read once in a process."""
    return Curves(folder, name)


def _is_categorical(one: Mapping[str, Any]) -> bool:
    return "choices" in one and one["kind"] not in ("ord", "ordinal")


def _suggest(suggest: Suggest, one: Mapping[str, Any]) -> Any:
    if "choices" in one:
        return suggest.suggest_categorical(one["name"], list(one["choices"]))
    if one["kind"] == "int":
        return suggest.suggest_int(one["name"], int(one["lo"]), int(one["hi"]), log=bool(one.get("log")))
    return suggest.suggest_float(one["name"], float(one["lo"]), float(one["hi"]), log=bool(one.get("log")))


class Method(Protocol):
    """What is compared: it hands out configurations and decides after every epoch."""

    def ask(self) -> tuple[Any, Mapping[str, Any], int] | None:
        """A trial's key, its parameters, and the epoch that it goes on after (0: new); None: nothing to run yet."""

    def tell(self, key: Any, epoch: int, value: float, last: bool) -> bool:
        """The value after an epoch; `last` if the run has no more. True if the trial goes on."""


class RandomFull:
    """Random configurations, all at full length."""

    def __init__(self, curves: Curves, seed: int) -> None:
        self._curves = curves
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._key = 0

    def ask(self) -> tuple[Any, Mapping[str, Any], int] | None:
        """A random configuration."""
        self._key += 1
        return self._key, self._curves.draw(self._study.ask()), 0

    def tell(self, key: Any, epoch: int, value: float, last: bool) -> bool:
        """Always True."""
        return True


class TpeHyperband:
    """Optuna's TPE sampler and Hyperband pruner, as their documentation puts them together."""

    def __init__(self, curves: Curves, seed: int) -> None:
        self._curves = curves
        self._study = optuna.create_study(
            study_name=f"{curves.name}-{seed}",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=curves.epochs, reduction_factor=3),
        )
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[Any, Mapping[str, Any], int] | None:
        """TPE's proposal."""
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return trial.number, self._curves.draw(trial), 0

    def tell(self, key: Any, epoch: int, value: float, last: bool) -> bool:
        """Prunes as Hyperband says."""
        trial = self._trials[key]
        trial.report(value, epoch)
        pruned = not last and trial.should_prune()
        if last:
            self._study.tell(trial, value)
        elif pruned:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return not pruned


@dataclasses.dataclass
class _RayTrial:
    trial_id: str


class RayAsha:
    """Ray's own ASHAScheduler with Ray's own OptunaSearch, or with random configurations."""

    def __init__(self, curves: Curves, seed: int, *, sampler: bool, first_rung: int, factor: int) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        names = {"metric": "score", "mode": "max"}
        self._scheduler = ASHAScheduler(max_t=curves.epochs, grace_period=first_rung, reduction_factor=factor, **names)
        chosen = None if sampler else optuna.samplers.RandomSampler(seed=seed)
        self._search = OptunaSearch(space=_RayDraw(curves), seed=seed if sampler else None, sampler=chosen, **names)
        self._number = 0

    def ask(self) -> tuple[Any, Mapping[str, Any], int] | None:
        """The searcher's proposal."""
        key = f"{self._number:08d}"
        self._number += 1
        params = self._search.suggest(key)
        self._scheduler.on_trial_add(None, _RayTrial(key))
        return key, params, 0

    def tell(self, key: Any, epoch: int, value: float, last: bool) -> bool:
        """Stops as the scheduler says."""
        result = {"score": value, "training_iteration": epoch}
        if last:
            self._scheduler.on_trial_complete(None, _RayTrial(key), result)
            self._search.on_trial_complete(key, result)
            return False
        self._search.on_trial_result(key, result)
        goes_on = self._scheduler.on_trial_result(None, _RayTrial(key), result) == "CONTINUE"
        if not goes_on:
            self._search.on_trial_complete(key, result)
        return goes_on


class _RayDraw:
    """What OptunaSearch calls to draw: it captures the suggestions by itself."""

    def __init__(self, curves: Curves) -> None:
        self._curves = curves

    def __call__(self, trial: optuna.Trial) -> None:
        self._curves.draw(trial)


class _Drawn(TrialConfig):
    """What a proposal asks for: nothing is checked, hundreds are drawn for each trial."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "arch", _NETWORK)


class _NoJournal:
    """A record in no file: nothing of a simulation is kept."""

    def append(self, *events: Mapping[str, Any]) -> None:
        """Forgets events."""


class Tunelab:
    """tunelab's engine with its stopping rule and its sampler."""

    def __init__(
        self, curves: Curves, seed: int, *, sampler: str, scheduler: str = "asha", transfer: bool = False
    ) -> None:
        self._curves = curves
        studies = [_study_on(other, seed) for other in curves.related()] if transfer else []

        def draw(suggest: Suggest) -> TrialConfig:
            return _Drawn(curves.draw(suggest))

        def complete(config: TrialConfig, _number: int) -> TrialConfig:
            assert isinstance(config, _Drawn)
            return config_of(curves.nearest(config.params))  # what would be trained, and never twice

        @functools.cache
        def config_of(row: int) -> TrialConfig:
            train = TrainConfig(epochs=int(curves.length[row]))
            return TrialConfig(arch=_NETWORK, train=train, data=DataConfig(name=f"row {row}"))

        def check(_config: TrialConfig) -> Mapping[str, Any]:
            return {}

        space = SearchSpace(curves.name, curves.name, 1, "recorded", draw, ())
        ranges = OptunaSource(space, seed, "random", complete, check).ranges
        first = memory.tried_first(studies, ranges)
        self._source = OptunaSource(
            space, seed, sampler, complete, check, first=first, epochs=curves.epochs, earlier=studies
        )
        stopping = SuccessiveHalving(curves.epochs, promote=scheduler == "promote")
        self._engine = Engine(
            _NoJournal(),  # type: ignore[arg-type]
            [],
            self._source,
            stopping,
            _TRIALS,
            Silent(),
            noise=lambda trials, epoch: noise_at(trials.values(), epoch, 0).sd,
        )

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials so far."""
        return self._engine.trials

    def ask(self) -> tuple[Any, Mapping[str, Any], int] | None:
        """The engine's next trial."""
        trial = self._engine.next_trial()
        if trial is None:
            return None
        return trial.number, trial.params, len(trial.epochs)

    def tell(self, key: Any, epoch: int, value: float, last: bool) -> bool:
        """Goes on as the engine says."""
        row = int(self._engine.trials[key].config["data"]["name"].split()[1])
        seconds = float(self._curves.sec[row, epoch - 1])
        metrics = EpochMetrics(epoch, 1.0, 0.0, 1.0 - value, value, 0.1, seconds, 1.0, 1.0)
        return self._engine.report(key, metrics)


@functools.cache
def _study_on(curves: Curves, seed: int) -> Earlier:
    """An earlier search of the benchmark, as a user would have it: random configurations, tunelab's stopping rule."""
    mine = curves.begin(fresh=True)
    method = Tunelab(mine, derive_seed(seed, "earlier", curves.name), sampler="random")
    simulate(mine, method, [EARLIER_BUDGET])
    return Earlier(curves.name, method.trials, curves.epochs)


METHODS: Mapping[str, Callable[[Curves, int], Method]] = {
    "random, full length": RandomFull,
    "random + ASHA (R/27, 3)": lambda curves, seed: RayAsha(
        curves, seed, sampler=False, first_rung=math.ceil(curves.epochs / 27), factor=3
    ),
    "Optuna TPE + Hyperband": TpeHyperband,
    "Ray OptunaSearch + ASHA, defaults": lambda curves, seed: RayAsha(
        curves, seed, sampler=True, first_rung=1, factor=4
    ),
    "Ray OptunaSearch + ASHA (R/27, 3)": lambda curves, seed: RayAsha(
        curves, seed, sampler=True, first_rung=math.ceil(curves.epochs / 27), factor=3
    ),
    "tunelab, random": lambda curves, seed: Tunelab(curves, seed, sampler="random"),
    "tunelab": lambda curves, seed: Tunelab(curves, seed, sampler="model"),
    "tunelab, with transfer": lambda curves, seed: Tunelab(curves, seed, sampler="model", transfer=True),
    "tunelab, promotion": lambda curves, seed: Tunelab(curves, seed, sampler="model", scheduler="promote"),
    "tunelab, tpe": lambda curves, seed: Tunelab(curves, seed, sampler="tpe"),
}


def simulate(curves: Curves, method: Method, budgets: Sequence[float]) -> dict[str, list[float]]:
    """The regret at each budget (in full trainings): of the best value seen, and of its configuration in full."""
    ends = [budget * curves.full_seconds for budget in budgets]
    events: list[tuple[float, int, Any, int, int]] = []  # when, order, trial, row, the epoch that ends then
    idle, order, now = WORKERS, 0, 0.0
    rows: dict[Any, int] = {}
    best, incumbent = -math.inf, -1
    found: dict[str, list[float]] = {"seen": [], "incumbent": []}

    def begin(key: Any, row: int, epoch: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (now + float(curves.sec[row, epoch - 1]), order, key, row, epoch))

    while True:
        while idle:
            asked = method.ask()
            if asked is None:
                break
            key, params, epochs = asked
            row = rows.setdefault(key, -1)
            if row < 0:
                row = rows[key] = curves.take(params)
            begin(key, row, epochs + 1)
            idle -= 1
        # A small table can be exhausted: a method that trains nothing twice has nothing left, and the budget is over.
        now, _, key, row, epoch = heapq.heappop(events) if events else (math.inf, 0, None, -1, 0)
        while len(found["seen"]) < len(ends) and now > ends[len(found["seen"])]:
            worst = curves.regret(float(np.min(curves.final)))
            found["seen"].append(curves.regret(best) if incumbent >= 0 else worst)
            found["incumbent"].append(curves.regret(float(curves.final[incumbent])) if incumbent >= 0 else worst)
        if len(found["seen"]) == len(ends):
            return found
        value = float(curves.val[row, epoch - 1])
        value = value if math.isfinite(value) else float(curves.info.get("chance", 0.0))
        if value > best:
            best, incumbent = value, row
        last = epoch >= curves.length[row]
        if method.tell(key, epoch, value, last) and not last:
            begin(key, row, epoch + 1)
        else:
            idle += 1


def hasten_optuna() -> None:
    """Lets Optuna's TPE make the same proposals (to rounding) several times as fast, most of a replay's time.

    Its log of the normal distribution takes one number at a time, and it looks at every earlier trial anew for each
    proposal. Nothing here has constraints.
    """
    known: dict[int, tuple[optuna.trial.FrozenTrial, dict[str, float]]] = {}  # by id, which is kept with the trial

    def row_of(sampler: Any, trial: optuna.trial.FrozenTrial, study: Any, space: Mapping[str, Any]) -> dict[str, float]:
        if id(trial) in known:
            return known[id(trial)][1]
        params = sampler._get_params(trial, study)
        row = {name: space[name].to_internal_repr(value) for name, value in params.items() if name in space}
        if trial.state.is_finished() and len(row) == len(params):
            known[id(trial)] = trial, row
        return row

    def internal_repr(self: Any, trials: Any, space: Mapping[str, Any], study: Any) -> dict[str, np.ndarray]:
        rows = [row for row in (row_of(self, trial, study, space) for trial in trials) if space.keys() <= row.keys()]
        return {name: np.asarray([row[name] for row in rows]) for name in space}

    def no_constraints(_trial: optuna.trial.FrozenTrial) -> float:
        return 0.0

    tpe.TPESampler._get_internal_repr = internal_repr  # type: ignore[method-assign]
    tpe._get_infeasible_trial_score = no_constraints
    _truncnorm._log_ndtr = log_ndtr


def _run(task: tuple[str, str, str, int, tuple[float, ...], bool]) -> dict[str, Any]:
    folder, name, method, seed, budgets, fresh = task
    threadpool_limits(1)  # one process per core, and one thread in each
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    hasten_optuna()
    curves = load(Path(folder), name).begin(fresh=fresh)
    began = time.perf_counter()
    found = simulate(curves, METHODS[method](curves, derive_seed(name, method, seed)), budgets)
    return {"curves": name, "method": method, "seed": seed, "wall": time.perf_counter() - began, **found}


def summarise(runs: Sequence[Mapping[str, Any]], kind: str, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """One row per method: at each budget the regret's mean over curves, and its standard error over seeds."""
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        names = sorted({run["curves"] for run in mine})
        row: dict[str, Any] = {"method": method, "seeds": len({run["seed"] for run in mine}), "curves": len(names)}
        for place, budget in enumerate(budgets):
            of_curves = [np.array([run[kind][place] for run in mine if run["curves"] == name]) for name in names]
            row[f"{budget:g}"] = float(np.mean([values.mean() for values in of_curves]))
            errors = [values.var(ddof=1) / len(values) if len(values) > 1 else math.nan for values in of_curves]
            row[f"{budget:g}_se"] = math.sqrt(sum(errors)) / len(of_curves)
        rows.append(row)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="folder of NAME.json and NAME.npz")
    parser.add_argument("--only", nargs="*", help="names of benchmarks (default: all)")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help="default: all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS, help="in full trainings")
    parser.add_argument("--fresh", action="store_true", help="no two proposals of a run have the same row")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="writes every figure to this file")
    asked = parser.parse_args()
    every = sorted(path.stem for path in asked.curves.glob("*.npz"))
    names = asked.only or every
    if not names:
        parser.error(f"there are no curves in {asked.curves}")
    if absent := [name for name in names if not (asked.curves / f"{name}.npz").exists()]:
        parser.error(f"{asked.curves} has no {absent[0]}.npz; it has {', '.join(every)}")
    budgets = tuple(sorted(asked.budgets))
    tasks = [
        (str(asked.curves), name, method, seed, budgets, asked.fresh)
        for method in asked.methods or METHODS
        for seed in range(asked.seeds)
        for name in names
    ]
    runs: list[dict[str, Any]] = []
    with concurrent.futures.ProcessPoolExecutor(asked.jobs) as pool:
        for run in pool.map(_run, tasks):
            runs.append(run)
            seen = " ".join(f"{value:.3f}" for value in run["seen"])
            where = f"{run['method']}, {run['curves']}, seed {run['seed']}"
            print(
                f"{len(runs)} of {len(tasks)} runs: {where}: {seen} ({run['wall']:.0f} s)", file=sys.stderr, flush=True
            )
    for kind, title in (("seen", "best value seen"), ("incumbent", "its configuration, trained in full")):
        print(
            f"\nmean normalised regret of the {title} ({len(names)} benchmarks, {asked.seeds} seeds, +- standard error)"
        )
        for row in summarise(runs, kind, budgets):
            cells = "  ".join(f"{row[f'{one:g}']:.3f} +- {row[f'{one:g}_se']:.3f}" for one in budgets)
            print(f"{row['method']:<36}{cells}")
    if asked.json:
        asked.json.write_text(
            json.dumps({"budgets": budgets, "fresh": asked.fresh, "runs": runs}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
