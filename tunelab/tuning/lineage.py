"""What a search that was changed takes over: one that was extended, whose space has changed, or with trials by hand.

`study.json` tells it all. `first` lists what is proposed before anything is drawn, with where it came from; `extended`
lists the extensions, and `spaces` the changes of the space with the trials that were set aside.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunelab.config import CustomSpec, TrialConfig, config_id, from_json
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError
from tunelab.foreign import require_allowed_space, require_unchanged
from tunelab.noise import full_length
from tunelab.records import Trial
from tunelab.space import SearchSpace, load_space
from tunelab.standings import places
from tunelab.study import Study, current, history, proposed
from tunelab.tuning import memory
from tunelab.tuning.grid import ORIGIN as GRID
from tunelab.tuning.hardware import describe_versions
from tunelab.tuning.model_sampler import Earlier
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.preflight import data_of, make_source, require_same_data
from tunelab.tuning.prospect import open_data
from tunelab.tuning.repeats import Again, Race, Repeats
from tunelab.tuning.searcher import OptunaSource

TAKEN_OVER = 8
"""So many of the best configurations of a shorter length are trained first at a longer one (our choice)."""
_TOLD = "tunelab", "torch", "torchvision", "optuna", "ray"
_EXTENDED = "extended from trial"


@dataclass(frozen=True)
class Begun:
    """A search that was begun, with what is needed to go on with it."""

    study: Study
    space: SearchSpace
    options: SearchOptions
    info: DataInfo


def reopen(study: str | Path | Study, show_progress: bool) -> Begun:
    """Opens a study to go on with it.

    Its space may be another version by now; see `carry_over`.

    Raises:
        InputError: it is no search, or its space or its data is gone, or the data or the code of its networks has
            changed.
    """
    opened = study if isinstance(study, Study) else Study.open(Path(study).expanduser())
    if opened.info["kind"] != "search":
        raise InputError(f"{opened.path} is a {opened.info['kind']}; the command that began it goes on with it")
    options = from_json(SearchOptions, opened.info["options"])
    require_allowed_space(opened.info["space"]["source"], opened.path)
    space = load_space(opened.info["space"]["source"], options.base_config)
    if space.version == opened.info["space"]["version"]:
        _require_same_code(opened)
    if show_progress:
        _tell_versions(opened)
    info = open_data(options.data, show_progress)
    require_same_data(opened, info)
    return Begun(opened, space, options, info)


def _tell_versions(study: Study) -> None:
    """Says which packages have other versions than when a study was begun: results may differ in their last digits."""
    then, now = study.info.get("versions", {}), describe_versions()
    changed = [f"{name} {then[name]}, now {now[name]}" for name in _TOLD if then.get(name, now[name]) != now[name]]
    if changed:
        print(f"note: the study was begun with {'; '.join(changed)}", file=sys.stderr)


def _require_same_code(study: Study) -> None:
    """Raises InputError if a factory that made networks of the study is missing or has changed."""
    archs = [trial.config["arch"] for trial in study.list_trials() if "factory" in trial.config["arch"]]
    for factory, sha256 in dict.fromkeys((arch["factory"], arch["sha256"]) for arch in archs):
        require_unchanged(CustomSpec(factory, {}, sha256))


def carry_over(begun: Begun, show_progress: bool) -> None:
    """Notes in the study that its space is another version, and which trials the new one does not draw any more.

    These are kept as history; what the new version still makes the same configuration of is taken over. Nothing is done
    if the version is the same.

    Raises:
        StudyLockedError: another process writes the study.
    """
    study, space = begun.study, begun.space
    if space.version == study.info["space"]["version"]:
        return
    study.update(lambda info: _new_version(begun, info))
    (study.path / "optuna.journal").unlink(missing_ok=True)  # one study of Optuna's cannot have both versions' choices
    if show_progress:
        aside, trials = set(study.info["spaces"][-1]["set_aside"]), study.list_trials()
        print(
            f"the space {space.name!r} is now version {space.version}: {len(trials) - len(aside)} of {len(trials)} "
            f"trials are taken over, {len(aside)} are kept as history",
            file=sys.stderr,
        )


def foresee(begun: Begun) -> Begun:
    """The study as `carry_over` will leave it, but for its files, which stay as they are."""
    info = begun.study.info
    if begun.space.version == info["space"]["version"]:
        return begun
    return dataclasses.replace(begun, study=Study(begun.study.path, {**info, **_new_version(begun, info)}))


def _new_version(begun: Begun, info: Mapping[str, Any]) -> dict[str, Any]:
    """What another version of the space changes in `study.json`, whose content is `info`."""
    source = make_source(begun.space, begun.options, begun.info, begun.options.seed, None)
    trials = begun.study.list_trials()
    gone = {trial.number for trial in trials if not _still_drawn(trial, source, begun.options)}
    gone |= {trial.number for trial in trials if trial.repeat_of in gone}
    entry = {
        "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "from": info["space"]["version"],
        "to": begun.space.version,
        "set_aside": sorted(gone),
    }
    return {"space": {**info["space"], "version": begun.space.version}, "spaces": [*info.get("spaces", ()), entry]}


def _still_drawn(trial: Trial, source: OptunaSource, options: SearchOptions) -> bool:
    """True if the space makes the same configuration of a trial's parameters, apart from data, length and seed."""
    try:
        config = from_json(TrialConfig, trial.config)
        train = dataclasses.replace(config.train, epochs=options.epochs)
        data = data_of(options.data, config)
        return source.identity(trial.params) == config_id(dataclasses.replace(config, data=data, train=train))
    except InputError:
        return False


def _can_draw(params: Mapping[str, Any], source: OptunaSource) -> bool:
    try:
        source.ranges(params)
    except InputError:
        return False
    return True


def _shorter(study: Study, known: Iterable[Trial]) -> list[Earlier]:
    """The trials of each full length before the study was extended, to learn from as from an earlier study."""
    reasons = history({**study.info, "spaces": ()}, known)
    lengths: dict[int, dict[int, Trial]] = {}
    for trial in known:
        if trial.number in reasons and trial.epochs:
            lengths.setdefault(full_length(trial), {})[trial.number] = trial
    return [Earlier(f"{study.path}, {epochs} epochs", trials, epochs) for epochs, trials in lengths.items()]


def study_source(
    study: Study,
    space: SearchSpace,
    options: SearchOptions,
    info: DataInfo,
    known: Collection[Trial],
    storage: Path | None = None,
) -> OptunaSource:
    """Draws for a study that was begun: its own first proposals, without those of `known` that are its history."""
    first = [(str(one["origin"]), dict(one["params"])) for one in study.info.get("first", ())]
    if any(origin.startswith(_EXTENDED) for origin, _ in first):  # the best of them are among these
        space = dataclasses.replace(space, starters=())
    aside = history(study.info, known)
    earlier = [*memory.read(study.path, study.info["options"].get("warm_start", ())), *_shorter(study, known)]
    if study.info.get("spaces"):  # what was known of an earlier version may be no part of this one
        now = make_source(space, options, info, options.seed, None)
        first = [(origin, params) for origin, params in first if _can_draw(params, now)]
        earlier = [
            dataclasses.replace(one, trials={n: t for n, t in one.trials.items() if _can_draw(t.params, now)})
            for one in earlier
        ]
        earlier = [one for one in earlier if one.trials]
    return make_source(space, options, info, options.seed, storage, first=first, history=aside, earlier=earlier)


def again_of(study: Study, times: int, source: OptunaSource, race: Race) -> Repeats:
    """The repeats of a search: those of its grid, if there are to be any, before those of its baseline and its best."""
    grid = [one["params"] for one in study.info.get("first", ()) if one["origin"] == GRID]
    if times == 1 or not grid:
        return race
    return Again(times, grid, lambda: all(origin != GRID for origin, _ in source.opening()), race)


def baseline_number(info: Mapping[str, Any], known: Collection[Trial], source: OptunaSource) -> int | None:
    """The number of the trial that is, or will be, the space's baseline; None if it has none that fits.

    Args:
        info: of the study.
        known: all its trials.
        source: draws from the space as it is now, whose baseline may be another one than it was.
    """
    if not source.has_baseline:
        return None
    present = proposed(current(info, known))
    for trial in sorted(present, key=lambda trial: trial.origin not in ("baseline", "")):
        if source.is_baseline(trial.params):
            return trial.number
    return len(known)


def best_of(
    trials: Iterable[Trial], val_images: int, without: Collection[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The best configurations so far, those of the longest full length before others, as entries of `first`.

    Args:
        trials: what has been trained.
        val_images: on how many images a score was measured.
        without: parameters of configurations that are tried anyway.
    """
    found: list[dict[str, Any]] = []
    for place in places(trials, val_images):
        taken = [*without, *(one["params"] for one in found)]
        if len(found) < TAKEN_OVER and place.trial.params not in taken:
            found.append({"origin": f"{_EXTENDED} {place.trial.number}", "params": place.trial.params})
    return found


def best_first(entries: Sequence[Mapping[str, Any]], trials: Iterable[Trial], val_images: int) -> list[dict[str, Any]]:
    """Entries of `first` in the order of the ranking; those that it does not have come last, as they were."""
    ranked = [place.trial.params for place in places(trials, val_images)]
    order = {at: ranked.index(one["params"]) for at, one in enumerate(entries) if one["params"] in ranked}
    return [dict(entries[at]) for at in sorted(range(len(entries)), key=lambda at: order.get(at, len(ranked)))]
