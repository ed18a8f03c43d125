"""More trials, more epochs or trials given by hand for a study that was begun, finished or not."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import from_json, to_json
from tunelab.errors import InputError
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, current
from tunelab.tuning.grid import ORIGIN, complete, note
from tunelab.tuning.grid_files import Grid, find_grid
from tunelab.tuning.lineage import Begun, best_first, best_of, carry_over, foresee, reopen, study_source
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.preflight import check_room, make_check, make_source
from tunelab.tuning.prospect import DRAWS, end_time, first_proposals
from tunelab.tuning.room import estimate
from tunelab.tuning.runner import go_on
from tunelab.tuning.site import Site


def extend(
    study: str | Path | Study,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    grid: str | Path | None = None,
    deadline: str | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    dashboard: bool = False,
    progress: bool = True,
) -> Study:
    """Asks for more trials or more epochs on a study, goes on with it, and returns it at its end.

    With more epochs, the trials so far are kept as history: they are ranked after those of the new length and are not
    compared with them, and those of them that were open end. The best configurations so far are trained first; those
    given by hand all of them, as often and as far as was asked for.

    Args:
        study: the study or its folder.
        trials: how many trials there are to be, all in all; with more epochs, how many of the new length (by default
            as many as there were to be before, or as there are given by hand).
        epochs: the full length from now on.
        grid: trials to add, as for `search`.
        deadline: as for `search`.
        concurrent: trials at once; by default what the study was started with.
        address: as for `search`; wherever the study was started.
        dashboard: as for `search`.
        progress: shows the progress on standard error.

    Raises:
        InputError: there is nothing to extend, less is asked for than before, `grid` cannot be used, or the study is
            damaged; it is as it was then.
        PausedError: a signal or the deadline stopped it; it can be resumed.
        TunelabError: the search failed.
    """
    end_time(deadline)  # refused before anything is changed
    site = Site(address, dashboard)
    begun = reopen(study, progress)
    asked = None if grid is None else find_grid(grid, begun.space)
    extended(begun.options, trials, epochs, int(grid is not None))
    ahead = foresee(begun)
    study_source(ahead.study, begun.space, begun.options, begun.info, begun.study.list_trials())  # refuses lost files
    by_hand = [] if asked is None else _by_hand(ahead, asked, epochs, progress)
    longer = extended(begun.options, trials, epochs, len(by_hand), len(_kept(ahead.study.info, epochs, by_hand)))
    more = lacking(begun.options, longer, begun.study.list_trials())
    draws = first_proposals(make_source(begun.space, more, begun.info, more.seed, None), None, min(DRAWS, more.trials))
    slots = begun.study.info.get("slots", {})
    check_room(begun.study.path, estimate(draws, more, int(slots.get("concurrent", 1))))
    carry_over(begun, progress)

    def change(info: dict[str, Any]) -> Mapping[str, Any]:
        kept = len(_kept(info, epochs, by_hand))
        options = extended(from_json(SearchOptions, info["options"]), trials, epochs, len(by_hand), kept)
        return changes(info, begun.study.list_trials(), options, by_hand)

    begun.study.update(change)
    options = from_json(SearchOptions, begun.study.info["options"])
    begun = Begun(begun.study, begun.space, options, begun.info)
    return go_on(begun, deadline, concurrent, show_progress=progress, site=site)


def extended(
    options: SearchOptions, trials: int | None, epochs: int | None, by_hand: int = 0, kept: int = 0
) -> SearchOptions:
    """The options with more trials or epochs.

    Args:
        options: those so far.
        trials: how many there are to be; None leaves them, and makes room for those given by hand.
        epochs: the full length; None leaves it.
        by_hand: how many trials are given by hand.
        kept: how many were given by hand before and are to be trained at the new length.

    Raises:
        InputError: they are not more.
    """
    longer = epochs is not None and epochs != options.epochs
    if epochs is not None and epochs < options.epochs:
        raise InputError(f"--epochs {epochs} is less than the {options.epochs} epochs that the study has; ask for more")
    least = by_hand if longer else options.trials + by_hand
    if trials is not None and trials < least:
        many = f"{options.trials} trials that the study has" if not longer else "trials of --grid"
        many += f" and the {by_hand} of --grid" if by_hand and not longer else ""
        raise InputError(f"--trials {trials} is less than the {many}; ask for more")
    if not longer and not by_hand and trials in (None, options.trials):
        raise InputError(
            f"nothing to extend: ask for more than the study's --trials {options.trials} or --epochs {options.epochs}"
        )
    room = by_hand + kept + 1 if longer and by_hand + kept else least  # for the baseline too
    total = trials or max(room, options.trials)
    return from_json(SearchOptions, {**to_json(options), "trials": total, "epochs": epochs or options.epochs})


def changes(
    info: Mapping[str, Any], known: Sequence[Trial], options: SearchOptions, by_hand: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What becomes different in `study.json`: the options, the history of extensions, and what is tried first.

    Args:
        info: its present content.
        known: all trials so far.
        options: those from now on.
        by_hand: parameters of trials to add.
    """
    before = {name: info["options"][name] for name in ("trials", "epochs")}
    entry = {
        "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "from": before,
        "to": {"trials": options.trials, "epochs": options.epochs},
        "grid": len(by_hand),
    }
    first = list(info.get("first", ()))
    if options.epochs != before["epochs"]:
        drawable = current({**info, "extended": ()}, known)  # of whatever length
        val_images = int(info["data"]["counts"].get("val", 0))
        kept = best_first(_kept(info, options.epochs, by_hand), drawable, val_images)
        taken = [*by_hand, *(one["params"] for one in kept)]
        first = [*kept, *best_of(drawable, val_images, taken)]
    first = [*({"origin": ORIGIN, "params": dict(params)} for params in by_hand), *first]
    return {"options": to_json(options), "extended": [*info.get("extended", ()), entry], "first": first}


def _kept(info: Mapping[str, Any], epochs: int | None, by_hand: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of `first` that were given by hand and are to be trained at a new length, but those of `by_hand`."""
    if epochs in (None, info["options"]["epochs"]):
        return []
    return [one for one in info.get("first", ()) if one["origin"] == ORIGIN and one["params"] not in by_hand]


def _by_hand(begun: Begun, grid: Grid, epochs: int | None, show_progress: bool) -> list[dict[str, Any]]:
    """The parameters of those trials of a file that the study does not have yet."""
    options = dataclasses.replace(begun.options, epochs=epochs or begun.options.epochs)
    tell = note if show_progress else None
    found = complete(grid, begun.space, make_check(options, begun.info), options.seed, tell)
    known = [] if options.epochs != begun.options.epochs else begun.study.list_trials()
    source = study_source(begun.study, begun.space, options, begun.info, known)
    source.restore(known)
    awaited = [one["params"] for one in begun.study.info.get("first", ())] if known else []
    new = [params for params in found if source.is_new(params) and params not in awaited]
    if not new:
        raise InputError(f"the study {begun.study.path} has every trial of {grid.name} already")
    return new


def lacking(before: SearchOptions, now: SearchOptions, known: Iterable[Trial]) -> SearchOptions:
    """The options with the numbers of trials that need room on the disk beside those that there are.

    Args:
        before: the options so far.
        now: those from now on.
        known: all trials so far, the best of which keep checkpoints that others will take the place of.
    """
    trials = now.trials if now.epochs != before.epochs else now.trials - before.trials
    kept = sum(trial.status in (TrialStatus.COMPLETED, TrialStatus.STOPPED) for trial in known)
    keep = None if now.keep_weights is None else max(0, now.keep_weights - kept)
    return dataclasses.replace(now, trials=trials, keep_weights=keep)
