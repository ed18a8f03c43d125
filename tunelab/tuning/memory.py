"""What earlier studies know: their trials, on other data too, and the configurations of theirs to try first.

They are copied into the new study (`earlier.jsonl`), so that it can be resumed when they are gone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution

from tunelab.config import DataConfig, from_json
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError
from tunelab.files import write_atomically
from tunelab.noise import full_length
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.space import SearchSpace
from tunelab.study import Study, load, runs_dir
from tunelab.tuning.draws import Encoder, merge
from tunelab.tuning.model_sampler import Earlier
from tunelab.tuning.options import Base, SearchOptions
from tunelab.tuning.outcomes import outcomes
from tunelab.tuning.preflight import make_source

FILE = "earlier.jsonl"
TRIED_FIRST = 8
"""So many configurations of earlier studies come first (our choice; measured by benchmarks/search_quality.py)."""
AMONG_BEST = 3
"""They are taken from this many times as many of the best: different ones cover more (our choice)."""

Redraw = Callable[[Mapping[str, Any]], Mapping[str, BaseDistribution]]
"""The ranges of a configuration's parameters; raises InputError if the space cannot draw it."""


def recall(space: SearchSpace, options: SearchOptions, info: DataInfo) -> tuple[list[Earlier], list[dict[str, Any]]]:
    """The studies of `options.warm_start`, and what of theirs is tried first: entries of `first` in `study.json`.

    A study that is given twice counts once.

    Raises:
        InputError: there is no such study, or none of its trials can be drawn here.
    """
    studies = [load(path) for path in dict.fromkeys(Path(one).expanduser().resolve() for one in options.warm_start)]
    source = make_source(space, options, info, options.seed, None)
    earlier = collect(studies, source.ranges)
    first = [{"origin": origin, "params": params} for origin, params in tried_first(earlier, source.ranges)]
    return earlier, first


def find_studies(given: str | Path | Sequence[str | Path], folder: str | Path | None = None) -> list[str]:
    """The absolute paths of earlier studies.

    Args:
        given: the folder of a study, or its name inside `folder`; or several of them.
        folder: of studies; by default `TUNELAB_RUNS` or `runs`.

    Raises:
        InputError: there is no such study.
    """
    found = []
    for one in [given] if isinstance(given, (str, Path)) else given:
        path = Path(one).expanduser()
        inside = runs_dir(folder) / path
        if not path.exists() and not inside.exists():
            raise InputError(
                f"there is no study {one} to start from, neither here nor in {runs_dir(folder)}; `tunelab list` names "
                "those that there are"
            )
        found.append(str(load(path if path.exists() else inside).path.resolve()))
    return list(dict.fromkeys(found))


def find_base(given: str | Path | None, number: int | None, folder: str | Path | None = None) -> Base | None:
    """The trial of an earlier study that a search begins with; None if no study is given.

    Args:
        given: the folder of the study, or its name inside `folder`.
        number: of the trial; None is the best one.
        folder: of studies; by default `TUNELAB_RUNS` or `runs`.

    Raises:
        InputError: there is no such study or trial, or none has run its full length.
    """
    if given is None:
        if number is not None:
            raise InputError(f"--from-trial {number} can only be used with --from STUDY")
        return None
    study = load(find_studies(given, folder)[0])
    trial = study.best() if number is None else study.trial(number)
    stats = {name: trial.stats[name] for name in ("params", "mflops") if name in trial.stats}
    return Base(str(study.path), trial.number, study.config(trial), **stats)


def choose_data(name: str | None, given: Mapping[str, Any], base: Base | None) -> DataConfig:
    """The images of a search: `name`, else those that its base was trained on, else the digits.

    Args:
        name: of a data set.
        given: further fields of a DataConfig. Those that are at their default leave the base's images as they were.
        base: what the search begins with.

    Raises:
        InputError: a field cannot be what is given.
    """
    asked = from_json(DataConfig, {**given, **({} if name is None else {"name": name})})
    if base is None or name is not None:
        return asked
    usual = DataConfig()
    changed = {field: getattr(asked, field) for field in given if getattr(asked, field) != getattr(usual, field)}
    return dataclasses.replace(base.config.data, train_on="train", **changed)


def collect(studies: Sequence[Study], redraw: Redraw) -> list[Earlier]:
    """The trials of each study that this space can draw too, repeats included.

    Scores of different full lengths are not compared: a study that was extended counts as one of each length.

    Raises:
        InputError: a study has no trial that the space can draw.
    """
    found = []
    for study in studies:
        trials = {trial.number: trial for trial in study.list_trials() if trial.epochs and _can_draw(trial, redraw)}
        if not trials:
            raise InputError(f"--warm-start {study.path}: the study has no trial that the space can draw; leave it out")
        lengths: dict[int, dict[int, Trial]] = {}
        for number, trial in trials.items():
            lengths.setdefault(full_length(trial), {})[number] = trial
        for epochs in sorted(lengths, reverse=True):
            length = "" if epochs == int(study.info["options"]["epochs"]) else f", {epochs} epochs"
            found.append(Earlier(f"{study.path}{length}", lengths[epochs], epochs))
    return found


def write(folder: Path, studies: Iterable[Earlier]) -> None:
    """Copies what is known into a new study; nothing is written of no studies."""
    studies = list(studies)
    if not studies:
        return
    lines = [
        json.dumps({"study": study.name, "full_length": study.epochs, **trial.to_json()}) + "\n"
        for study in studies
        for trial in study.trials.values()
    ]
    write_atomically(folder / FILE, "".join(lines))


def read(folder: Path, begun_with: Collection[str] = ()) -> list[Earlier]:
    """What `write` wrote; nothing if it never did.

    Args:
        folder: the study's.
        begun_with: the earlier studies that it was begun with.

    Raises:
        InputError: the file is damaged, or gone although there were earlier studies.
    """
    file = folder / FILE
    if not file.exists():
        if begun_with:
            raise InputError(
                f"{file} is missing, with what was known of {', '.join(begun_with)}; put it back, or an empty file "
                "in its place to go on without the earlier studies"
            )
        return []
    found: dict[str, tuple[dict[int, Trial], int]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            plain = json.loads(line)
            trials, _ = found.setdefault(plain["study"], ({}, int(plain["full_length"])))
            trials[plain["number"]] = _from_json(plain)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); empty it to go on without the earlier studies") from error
    return [Earlier(name, trials, epochs) for name, (trials, epochs) in found.items()]


def tried_first(studies: Sequence[Earlier], redraw: Redraw) -> list[tuple[str, Mapping[str, Any]]]:
    """Origin and parameters of the best and most different configurations, each study's best first, in turn.

    After a study's best one comes whichever of its best ones is farthest from those chosen so far (Gonzalez,
    Theoretical Computer Science 38, 1985).
    """
    if not studies:
        return []
    each = -(-TRIED_FIRST // len(studies))
    chosen = [_best_and_different(study, each, redraw) for study in studies]
    in_turn = [queue[place] for place in range(each) for queue in chosen if place < len(queue)]
    return in_turn[:TRIED_FIRST]


def _best_and_different(study: Earlier, count: int, redraw: Redraw) -> list[tuple[str, Mapping[str, Any]]]:
    found = outcomes(study.trials, study.epochs)
    order = np.argsort(-found.expected, kind="stable")[: count * AMONG_BEST]
    best = [study.trials[found.numbers[place]] for place in order]
    best = [trial for trial in best if trial.status is not TrialStatus.DIVERGED]
    if not best:
        return []
    distributions: dict[str, BaseDistribution] = {}
    merge(distributions, (redraw(trial.params) for trial in best))
    rows = np.nan_to_num(Encoder(distributions, pooled=True).rows([trial.params for trial in best]), nan=0.5)
    chosen = [0]
    while len(chosen) < min(count, len(best)):
        distance = np.linalg.norm(rows[:, None, :] - rows[None, chosen, :], axis=2).min(axis=1)
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return [(f"trial {best[place].number} of {Path(study.name).name}", dict(best[place].params)) for place in chosen]


def _can_draw(trial: Trial, redraw: Redraw) -> bool:
    try:
        redraw(trial.params)
    except InputError:
        return False
    return True


def _from_json(plain: Mapping[str, Any]) -> Trial:
    return Trial(
        number=plain["number"],
        config=plain["config"],
        params=plain["params"],
        status=TrialStatus(plain["status"]),
        reason=plain["reason"],
        epochs=[EpochMetrics(**metrics) for metrics in plain["epochs"]],
        decisions=plain["decisions"],
        stats=plain["stats"],
        arch_id=plain["arch_id"],
        origin=plain["origin"],
        repeat_of=plain["repeat_of"],
    )
