"""What the commands print: tables and short summaries for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunelab.capacity import describe_size
from tunelab.errors import TunelabError
from tunelab.liveness import Sign
from tunelab.records import Trial
from tunelab.standings import Place
from tunelab.study import Study, count_statuses, current, describe_repeats, proposed

from .diagnose import describe_divergence, divergence
from .effective_plots import ending
from .rank import asked, describe_config, noise_row, ranking, rung_table, tied
from .sawteeth import say_teeth

_PLAIN_WIDTH = 10_000
_TIES_NAMED = 8
_EPOCHS_SHOWN = 60  # rows of a table, our choice
_BEST_COLUMNS = "rank", "trial", "val acc", "expected", "runs", "tie", "epochs", "params", "Mflops", "seconds", "what"


def console() -> Console:
    """Standard output; wide where it is not a terminal, so that no row is folded in a file."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table whose columns are the rows' keys."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[Text(_cell(value)) for value in row.values()])
    console().print(table)


def print_best(shown: Mapping[str, Any]) -> None:
    """What `tunelab best` says: the ranking, and how the other trials ended."""
    out = console()
    state = " (running)" if shown["running"] else ""
    ends = _ends(shown["statuses"], shown["asked"], shown["repeats"], shown["history"])
    out.print(f"{shown['study']}{state}: {ends}", style="bold")
    if not shown["ranking"]:
        out.print("no trial has run its full length yet")
        if shown["diverged"]:
            out.print(describe_divergence(shown["diverged"]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _BEST_COLUMNS:
        table.add_column(name, justify="left" if name == "what" else "right", overflow="fold")
    for row in shown["ranking"]:
        table.add_row(
            str(row["rank"]),
            str(row["trial"]),
            percent(row["score"]),
            _interval(row),
            _runs(row),
            "=" if row["tied"] else "",
            str(row["epochs"]),
            count(row["params"]),
            f"{row['mflops']:.1f}",
            f"{row['seconds']:.0f}",
            Text(row["what"]),
        )
    out.print(table)
    out.print(describe_ties(shown["ranking"][0]["trial"], shown["tied"], shown["noise"], shown["compared"]))
    if shown["new_data"]:
        out.print(describe_new_data(shown["new_data"]))
    if shown["diverged"]:
        out.print(describe_divergence(shown["diverged"]))
    out.print(
        "trials of full length only; expected: without the luck of having been chosen, and its 95% interval; "
        f"{_rungs(shown['rungs'])}"
    )
    if shown["front"]:
        _print_front(out, shown["front"], shown["objectives"])
    if shown["kind"] == "search":
        out.print(f"next: tunelab best {shown['study']} --retrain --epochs 150")


def _print_front(out: Console, rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> None:
    """The configurations that no other beats in all objectives, the cheapest first."""
    out.print(f"no other beats these in {', '.join(objectives[:-1])} and {objectives[-1]}:", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "expected", *objectives[1:], "better"):
        table.add_column(name, justify="right")
    for row in rows:
        costs = [count(int(row[name])) if name == "params" else f"{row[name]:.1f}" for name in objectives[1:]]
        table.add_row(str(row["trial"]), _interval(row), *costs, "yes" if row["better"] else "")
    out.print(table)
    out.print("better: more accurate than each cheaper one above it, beyond the noise between runs")


def describe_ties(best: int, ties: Sequence[int], noise: Mapping[str, Any], compared: int) -> str:
    """Whether the best of `compared` configurations is really better than the others, in one line, and the noise."""
    if compared < 2:
        return f"trial {best} is the only configuration of full length: there is nothing to compare it with"
    source = noise["source"] if noise["repeats"] else f"not measured: guessed from {noise['source']}"
    judged = f"(run-to-run noise {100 * noise['sd']:.2g}%, {source})"
    if not ties:
        return f"trial {best} is better than every other at {100 * noise['confidence']:.0f}% confidence {judged}"
    named, more = sorted(ties[:_TIES_NAMED]), len(ties) - _TIES_NAMED
    listed = [str(number) for number in named] + ([f"{more} more"] if more > 0 else [])
    return f"trials {', '.join(listed[:-1])} and {listed[-1]} cannot be told apart {judged}"


def describe_new_data(row: Mapping[str, Any]) -> str:
    """What the winner scored and what it is expected to score on new data: "validation 57.1%, expected ..."."""
    best = f"the best of {row['configurations']}" if row["configurations"] > 1 else "the only one"
    luck = f"; {100 * row['optimism']:.1f} of it is taken for luck" if row["optimism"] >= 0.0005 else ""
    return (
        f"trial {row['trial']}: validation {percent(row['score'])}, expected on new data {100 * row['low']:.1f} to "
        f"{percent(row['high'])} ({best} on {row['val_images']} images{luck})"
    )


def study_rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """One row per study for `tunelab list`."""
    rows = []
    for study in studies:
        trials, damaged = _trials_or_damage(study)
        counted = current(study.info, trials)
        own = proposed(counted)
        ranked = study.places_of(trials)
        rows.append(
            {
                "study": study.name,
                "space": study.info["space"]["name"] if "space" in study.info else study.info["kind"],
                "data": study.info["data"]["name"],
                "created": study.info["created"],
                "state": damaged or _state(study, trials),
                "sign": study.sign_of_life(),
                "trials": f"{sum(trial.status.ended for trial in own)}/{study.info['options']['trials']}",
                "repeats": len(counted) - len(own),
                "best": ranked[0].standing.mean if ranked else None,
            }
        )
    return rows


def print_studies(rows: Sequence[Mapping[str, Any]]) -> None:
    """What `study_rows` gives as a table, and what to do about searches that seem to hang."""
    shown = [{**row, "state": _with_sign(row["state"], row["sign"])} for row in rows]
    print_rows([{name: value for name, value in row.items() if name != "sign"} for row in shown])
    for row in rows:
        if row["sign"] is not None and row["sign"].silent:
            console().print(f"{row['study']}: {row['sign'].advice()}")


def _with_sign(state: str, sign: Sign | None) -> str:
    return state if sign is None else f"{state} ({sign.describe()})"


def _trials_or_damage(study: Study) -> tuple[list[Trial], str]:
    """The trials, and a word if their record is damaged: a list goes on with the next study."""
    try:
        return study.list_trials(), ""
    except TunelabError:
        return [], "damaged"


def study_summary(study: Study) -> dict[str, Any]:
    """What `tunelab show STUDY` tells: what was asked for, on what, and how it stands."""
    trials = study.runs_of(study.list_trials())
    counted = current(study.info, trials)
    own = proposed(counted)
    ranked = study.places_of(trials)
    return {
        **study.info,
        "path": study.place,
        "state": _state(study, trials),
        "sign": study.sign_of_life(),
        "statuses": {status.value: number for status, number in count_statuses(own).items()},
        "repeats": len(counted) - len(own),
        "history": len(trials) - len(counted),
        "rungs": rung_table(counted),
        "diverged": divergence(counted),
        "noise": noise_row(trials, ranked, study.val_images),
        "trials": [
            {
                "trial": trial.number,
                "status": trial.status.value,
                "epochs": len(trial.epochs),
                "score": trial.score,
                "origin": trial.origin,
                "repeat_of": trial.repeat_of,
            }
            for trial in trials
        ],
        "compared": sum(place.epochs == ranked[0].epochs for place in ranked),
        "tied": tied(ranked),
        "best": next(iter(ranking(ranked, 1)), None),
    }


def print_study(study: Study, shown: Mapping[str, Any]) -> None:
    """A study for people."""
    out = console()
    data, options, hardware = shown["data"], shown["options"], shown["hardware"]
    ends = _ends(shown["statuses"], asked(study, shown["repeats"]), shown["repeats"], shown["history"])
    out.print(f"{shown['path']}, {_with_sign(shown['state'], shown['sign'])}: {ends}", style="bold")
    if shown["sign"] is not None and shown["sign"].silent:
        out.print(shown["sign"].advice())
    if "space" in shown:
        out.print(f"space     {shown['space']['name']} (version {shown['space']['version']})")
    counts = ", ".join(f"{number} {split}" for split, number in data["counts"].items())
    height, width = data["image_size"]
    out.print(
        f"data      {data['name']}, {height}x{width}x{data['channels']}, {len(data['classes'])} classes, {counts}"
    )
    out.print(f"options   {_options(options)}")
    out.print(
        f"machine   {hardware['processor']}, {hardware['cpus']} CPUs, GPUs: {', '.join(hardware['gpus']) or 'none'}"
    )
    if "calibration" in shown:
        out.print(f"trials    {shown['calibration']['reason']}")
    out.print(f"rungs     {_rungs(shown['rungs'])}")
    if shown["diverged"]:
        out.print(f"health    {describe_divergence(shown['diverged'])}")
    if shown["best"] is not None:
        best = f"trial {shown['best']['trial']}, {percent(shown['best']['score'])}, expected {_interval(shown['best'])}"
        out.print(f"best      {best}, runs: {_runs(shown['best'])}")
        out.print(
            f"ties      {describe_ties(shown['best']['trial'], shown['tied'], shown['noise'], shown['compared'])}"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "status", "epochs", "val acc", "what", "reason"):
        table.add_column(name, overflow="fold")
    for trial in study.list_trials():
        table.add_row(
            str(trial.number),
            trial.status.value.lower(),
            str(len(trial.epochs)),
            percent(trial.score),
            Text(describe_config(trial.config) if trial.repeat_of is None else f"trial {trial.repeat_of} again"),
            Text(trial.reason),
        )
    out.print(table)


def print_trial(study: Study, trial: Trial) -> None:
    """A trial for people: what it was made of, every epoch, every decision."""
    out = console()
    ending = f" ({trial.reason})" if trial.reason else ""
    again = "" if trial.repeat_of is None else f", trial {trial.repeat_of} again with another seed"
    out.print(f"trial {trial.number} of {study.place}{again}: {trial.status.value.lower()}{ending}", style="bold")
    out.print(describe_config(trial.config))
    size = f"{count(trial.stats.get('params'))} parameters, {trial.stats.get('mflops', 0):.1f} million multiply-adds"
    out.print(f"{size}, architecture {trial.arch_id}, files in {study.trial_folder(trial.number)}")
    if trial.params:
        out.print(", ".join(f"{name}={_cell(value)}" for name, value in trial.params.items()))
    if trial.epochs:
        print_epochs(out, trial)
    for note in trial.notes:
        out.print(f"note: {note}")
    for retry in trial.retries:
        out.print(f"lost after epoch {retry['epoch']} and tried again: {retry['why']}")
    for finding in trial.findings:
        kind = "remark" if finding.is_remark else "finding"
        out.print(f"{kind}, epoch {finding.epoch}: {finding.what}: {finding.suggestion}")
    for decision in trial.decisions:
        verdict = "stopped" if decision["stop"] else "paused" if decision.get("pause") else "went on"
        noise = f", noise {100 * decision['noise']:.2g}%" if decision.get("noise") else ""
        out.print(
            f"rung at epoch {decision['epoch']}: {verdict} with {percent(decision['score'])} "
            f"({decision['why']}; the last that goes on has {percent(decision['cutoff'])}{noise})"
        )
    trials = study.list_trials()
    place = next((one for one in study.places_of(trials) if trial.number in one.runs), None)
    if place is not None and len(place.runs) + len(place.lost) > 1:
        out.print(_all_runs(trials, place))


def print_epochs(out: Console, trial: Trial) -> None:
    """The epochs of a trial as a table, of a long one every so many and the last, and how norm and score went."""
    every = -(-len(trial.epochs) // _EPOCHS_SHOWN)
    shown = [one for one in trial.epochs if (one.epoch - 1) % every == 0 or one is trial.epochs[-1]]
    print_rows([{**metrics.to_json(), "effective_lr": metrics.effective_lr} for metrics in shown])
    if every > 1:
        out.print(f"one in {every} of {len(trial.epochs)} epochs; --json has all")
    found = ending(trial)
    if found["effective_lr"] is not None:
        rate = f"effective rate lr / norm^2 {found['effective_lr']:.3g}"
        out.print(f"norm of the weights {found['weight_norm']:.4g}, {rate}; {say_teeth(found)} in the accuracy")


def percent(score: float | None) -> str:
    """A score in percent with one decimal, or a dash."""
    return "-" if score is None else f"{100 * score:.1f}%"


def count(number: int | None) -> str:
    """A number of parameters in thousands or millions."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.1f}k"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(row: Mapping[str, Any]) -> str:
    """The expected score and its interval: "56.2% (55.1 to 57.3)"; no accuracy lies outside 0 to 100%."""
    low, high = max(0.0, row["low"]), min(1.0, row["high"])
    return f"{percent(row['expected'])} ({100 * low:.1f} to {100 * high:.1f})"


def _runs(row: Mapping[str, Any]) -> str:
    """How many runs of full length there were, and how many came to nothing."""
    return f"{row['runs']}" + (f", {len(row['lost'])} lost" if row["lost"] else "")


def _all_runs(trials: Sequence[Trial], place: Place) -> str:
    """The runs of one configuration with their scores, in one line."""
    scores = ", ".join(f"trial {one.number}: {percent(one.score)}" for one in trials if one.number in place.runs)
    lost = f"; diverged or failed: {', '.join(f'trial {number}' for number in place.lost)}" if place.lost else ""
    mean = f"mean {percent(place.standing.mean)}"
    if len(place.runs) > 1:
        shown = {"expected": place.standing.expected, "low": place.standing.low, "high": place.standing.high}
        mean += f", expected {_interval(shown)}"
    return f"all runs of this configuration: {scores}; {mean}{lost}"


def _state(study: Study, trials: Sequence[Trial]) -> str:
    if study.running:
        return "running"
    counted = current(study.info, trials)
    ended = sum(trial.status.ended for trial in proposed(counted))
    begun = all(trial.status.ended for trial in counted)
    return "finished" if begun and ended >= int(study.info["options"]["trials"]) else "paused"


def _ends(statuses: Mapping[str, int], asked: int, repeats: int, history: int) -> str:
    said = ", ".join(f"{number} {status.lower()}" for status, number in statuses.items())
    counted = f"{sum(statuses.values())} of {asked} trials begun ({said or 'none'})"
    earlier = [f"{history} from before it was changed"] if history else []
    return ", ".join([counted, *describe_repeats(repeats), *earlier])


def _rungs(rungs: Sequence[Mapping[str, int]]) -> str:
    if not rungs:
        return "no trial was compared at a rung"
    return "; ".join(
        f"{rung['kept']} of {rung['reached']} went on at epoch {rung['epoch']}"
        + (f" and {rung['paused']} wait" if rung["paused"] else "")
        for rung in rungs
    )


def _options(options: Mapping[str, Any]) -> str:
    told = {name: value for name, value in options.items() if value is not None and name != "data"}
    if "memory" in told:
        told["memory"] = describe_size(told["memory"])
    if "base" in told:
        base = told.pop("base")
        told["from"] = f"{base['study']} trial {base['trial']}"
    return ", ".join(f"{name} {value}" for name, value in told.items())
