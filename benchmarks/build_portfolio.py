"""Builds the portfolio of a space: a few configurations that together do well on several data sets, to be tried first.

    tunelab search arch --data digits --study runs/a ...          searches, as long as there is time for
    tunelab search arch --data mnist --study runs/b ...
    python benchmarks/build_portfolio.py runs/a runs/b --size 8 --out search_spaces/arch_portfolio.json

The best and most different configurations of each search are candidates, and so is what the space begins with. All of
them are then trained in full on the data of every search (`tunelab search --grid`), so that like is compared with like.
The portfolio is chosen greedily: each time the candidate that adds most to the sum, over data sets, of the best value
chosen so far, where 0 is the median candidate of a data set and 1 its best one. When nothing adds any more, the sum
begins anew with what is left. The file names the searches, the data and every score; how well such a choice does on
data that had no part in it is printed, and in the file.

Trainings that a stopped run has finished are found again in --work.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml

import tunelab
from tunelab.config import DataConfig, TrialConfig, config_id
from tunelab.data.cache import DataInfo, prepare
from tunelab.errors import InputError, RefusedError
from tunelab.noise import configuration_of, full_length
from tunelab.records import Trial, TrialStatus
from tunelab.space import SearchSpace, load_space
from tunelab.study import Study, load
from tunelab.tuning import memory
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.preflight import make_check, make_source
from tunelab.tuning.runner import resume
from tunelab.tuning.sources import Check

Params = Mapping[str, Any]
Family = tuple[Params, ...]
"""One candidate: parameter sets of which the first that fits the limits is meant."""

_LIMIT_OPTIONS = ("max_params", "max_mflops")


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set to be good at, as one search had it."""

    study: Study
    options: SearchOptions
    info: DataInfo
    check: Check

    @property
    def name(self) -> str:
        """Of the study's folder."""
        return self.study.path.name

    def fitting(self, space: SearchSpace, family: Family) -> dict[str, Any] | None:
        """The first parameter set of a family within the limits, None if there is none."""
        for params in family:
            config: TrialConfig = space.draw(optuna.trial.FixedTrial(dict(params)))
            try:
                self.check(config)
            except RefusedError:
                continue
            return dict(params)
        return None


def open_task(path: Path) -> Task:
    """The data and the limits of a search."""
    study = load(path)
    plain = study.info["options"]
    known = {field.name for field in dataclasses.fields(SearchOptions)}
    options = SearchOptions(**{name: value for name, value in plain.items() if name in known})
    info = prepare(options.data)
    if info.fingerprint != study.info["data"]["fingerprint"]:
        raise InputError(f"the data {info.name!r} has changed since {path} was made")
    return Task(study, options, info, make_check(options, info))


def variants(space: SearchSpace, params: Params) -> Family:
    """The parameter set, and what its space has in place of it for images or limits that it does not fit.

    A space says so with a function `fallbacks`, from a parameter set to a sequence of them, as `arch` does.
    """
    module = sys.modules[space.draw.__module__]
    fallbacks = getattr(module, "fallbacks", None)
    return (dict(params),) if fallbacks is None else tuple(fallbacks(params))


def collect(space: SearchSpace, tasks: Sequence[Task], each: int) -> list[tuple[str, Family]]:
    """The candidates, and where each is from."""
    families = [("baseline", tuple(space.baselines)), *(("starter", tuple(family)) for family in space.starters)]
    for task in tasks:
        source = make_source(space, task.options, task.info, 0, None)
        for origin, params in memory.tried_first(memory.collect([task.study], source.ranges), source.ranges)[:each]:
            families.append((origin, variants(space, params)))
    return distinct(families, [[task.fitting(space, family) for task in tasks] for _, family in families])


def distinct(
    families: Sequence[tuple[str, Family]], fitting: Sequence[Sequence[Params | None]]
) -> list[tuple[str, Family]]:
    """The families that fit anywhere, and are not the same as an earlier one wherever they do.

    Args:
        families: each with where it is from.
        fitting: for each of them what it is on each data set, None where it does not fit.
    """
    found: list[tuple[str, Family]] = []
    before: list[Sequence[Params | None]] = []
    for named, mine in zip(families, fitting, strict=True):
        known = any(all(one in (None, other) for one, other in zip(mine, others, strict=True)) for others in before)
        if any(one is not None for one in mine) and not known:
            found.append(named)
            before.append(mine)
    return found


def train(space: SearchSpace, task: Task, families: Sequence[Family], work: Path, repeat: int) -> list[float | None]:
    """The scores of the candidates in full on one data set, means over seeds.

    None for one that does not fit, and for one of which no training came to its end.

    Raises:
        InputError: the folder of the trainings was begun with other candidates.
    """
    wanted = [task.fitting(space, family) for family in families]
    unique: list[dict[str, Any]] = []
    for params in wanted:
        if params is not None and params not in unique:
            unique.append(params)
    folder = work / task.name
    if folder.exists():
        study = resume(folder)
    else:
        work.mkdir(parents=True, exist_ok=True)
        file = work / f"{task.name}.yaml"
        file.write_text(yaml.safe_dump(unique, sort_keys=False), encoding="utf-8")
        limits = {name: getattr(task.options, name) for name in _LIMIT_OPTIONS}
        study = tunelab.search(
            space.source,
            data=DataConfig(**dataclasses.asdict(task.options.data)),
            epochs=task.options.epochs,
            grid=file,
            repeat=repeat,
            study=folder,
            seed=1,  # not the seed of the searches: their luck is not had again
            **limits,
        )
    scores = scores_of(space, study.list_trials(), task.options.epochs)
    made = [None if params is None else identity(space, params) for params in wanted]
    if any(one is not None and one not in scores for one in made):
        raise InputError(f"{folder} was begun with other candidates; remove it, or name another folder with --work")
    return [None if one is None else scores[one] for one in made]


def identity(space: SearchSpace, params: Params) -> str:
    """Of what the space makes of a parameter set: two of them may be the same network and recipe."""
    return config_id(space.draw(optuna.trial.FixedTrial(dict(params))))


def scores_of(space: SearchSpace, trials: Sequence[Trial], epochs: int) -> dict[str, float | None]:
    """The mean score of each configuration over its completed trainings of this length; None where there is none."""
    params = {trial.number: trial.params for trial in trials if trial.repeat_of is None}
    found: dict[str, list[float]] = {identity(space, one): [] for one in params.values()}
    for trial in trials:
        if trial.status is TrialStatus.COMPLETED and full_length(trial) == epochs and trial.score is not None:
            found[identity(space, params[configuration_of(trial)])].append(trial.score)
    return {one: float(np.mean(scores)) if scores else None for one, scores in found.items()}


def choose(values: np.ndarray, size: int) -> list[int]:
    """Greedily: rows are data sets, columns candidates; which of them, in order."""
    chosen: list[int] = []
    covered = np.full(len(values), values.min())
    while len(chosen) < min(size, values.shape[1]):
        left = [place for place in range(values.shape[1]) if place not in chosen]
        gains = {place: float(np.maximum(values[:, place] - covered, 0.0).sum()) for place in left}
        best = max(left, key=lambda place: (gains[place], float(values[:, place].mean()), -place))
        if gains[best] <= 0.0 and covered.max() > values.min():
            covered = np.full(len(values), values.min())
            continue
        chosen.append(best)
        covered = np.maximum(covered, values[:, best])
    return chosen


def held_out(values: np.ndarray, origins: Sequence[str], names: Sequence[str], size: int) -> list[dict[str, Any]]:
    """How good the choice is on data that had no part in it: for each data set a portfolio from all the others.

    Beside it, the best of what the space begins with anyway, and of as many candidates as luck would choose.
    """
    rows = []
    plain = [place for place, origin in enumerate(origins) if origin in ("baseline", "starter")]
    for at, name in enumerate(names):
        own = re.compile(rf"trial \d+ of {re.escape(name)}(, \d+ epochs)?")
        others = [place for place, origin in enumerate(origins) if not own.fullmatch(origin)]
        chosen = [others[place] for place in choose(np.delete(values, at, axis=0)[:, others], size)]
        luck = np.random.default_rng(0)
        draws = [values[at, luck.choice(others, min(size, len(others)), replace=False)].max() for _ in range(1000)]
        rows.append(
            {
                "data": name,
                "portfolio": float(values[at, chosen].max()),
                "space's own": float(values[at, plain].max()) if plain else None,
                "random": float(np.mean(draws)),
            }
        )
    return rows


def normalise(scores: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Scores by data set and candidate as values: 0 for the median candidate, 1 for the best, at least -1."""
    rows = []
    for row in scores:
        known = [score for score in row if score is not None] or [0.0]
        best, middle = max(known), float(np.median(known))
        width = max(best - middle, 1e-9)
        rows.append([-1.0 if score is None else max(-1.0, (score - middle) / width) for score in row])
    return np.array(rows)


def describe(task: Task) -> dict[str, Any]:
    """Where a data set's scores are from."""
    told = sum(trial.repeat_of is None for trial in task.study.list_trials())
    return {
        "search": task.name,
        "data": task.info.name.rpartition("/")[2],  # of a folder its own name
        "fingerprint": task.info.fingerprint,
        "images": task.info.counts["train"],
        "image_size": list(task.info.image_size),
        "epochs": task.options.epochs,
        "trials": told,
        "seed": task.options.seed,
        "hardware": task.study.info["hardware"]["processor"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="a finished search of each data set")
    parser.add_argument("--size", type=int, default=8, help="of the portfolio (default: 8)")
    parser.add_argument("--each", type=int, default=memory.TRIED_FIRST, help="candidates of each search (at most 8)")
    parser.add_argument("--repeat", type=int, default=1, help="trainings of each candidate on each data set")
    parser.add_argument("--work", type=Path, default=Path("runs/portfolio"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    asked = parser.parse_args()
    try:
        tasks = [open_task(path) for path in asked.studies]
        sources = {task.study.info["space"]["source"] for task in tasks}
        if len(sources) != 1:
            raise InputError(f"the searches are of different spaces: {', '.join(sorted(sources))}")
        space = load_space(sources.pop())
        candidates = collect(space, tasks, asked.each)
        print(f"{len(candidates)} candidates, {len(tasks)} data sets", file=sys.stderr)
        families = [family for _, family in candidates]
        scores = [train(space, task, families, asked.work, asked.repeat) for task in tasks]
    except InputError as error:
        parser.error(str(error))
    except tunelab.TunelabError as error:  # interrupted, say; the same command goes on
        sys.exit(f"build_portfolio.py: {error}")
    values = normalise(scores)
    chosen = choose(values, asked.size)
    origins, names = [origin for origin, _ in candidates], [task.name for task in tasks]
    held = held_out(values, origins, names, asked.size) if len(tasks) > 1 else []
    configurations = [
        {
            "from": candidates[place][0],
            "scores": {task.name: row[place] for task, row in zip(tasks, scores, strict=True)},
            "params": families[place][0],
        }
        for place in chosen
    ]
    made = {
        "made_by": "benchmarks/build_portfolio.py",
        "made": datetime.date.today().isoformat(),
        "space": {"name": space.name, "version": space.version},
        "tunelab": tunelab.__version__,
        "hardware": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "candidates": len(candidates),
        "trainings_of_each": asked.repeat,
        "searches": [describe(task) for task in tasks],
        "best_value_on_held_out_data": held,
    }
    asked.out.write_text(json.dumps({**made, "configurations": configurations}, indent=1) + "\n", encoding="utf-8")
    for place in chosen:
        print(candidates[place][0], *(f"{row[place] or 0:.3f}" for row in scores))
    print("best value (0: the median candidate, 1: the best) on data that had no part in the choice")
    for row in held:
        print(*(f"{name} {f'{cell:.2f}' if isinstance(cell, float) else cell}" for name, cell in row.items()), sep="  ")


if __name__ == "__main__":
    main()
