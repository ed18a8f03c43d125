"""A study: the folder of one search, read back from its record.

Opening one takes a moment and imports neither torch nor Ray, so that it can be looked at while a search runs. The
truth is `study.json` (what was asked for) and `journal.jsonl` (what happened); `trials.jsonl` and `trials.csv` are
derived from them.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunelab.errors import InputError, brief
from tunelab.files import make_vacant, read_json, sync_folder, write_atomically
from tunelab.journal import Journal, is_locked, read_journal, uncollected
from tunelab.liveness import Sign, last_sign
from tunelab.noise import full_length
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.replay import replay
from tunelab.standings import Place, Standing, as_runs, places
from tunelab.study_checks import require_info

if TYPE_CHECKING:
    import pandas as pd

    from tunelab.config import TrialConfig

FORMAT = 1
RUNS_DIR_VARIABLE = "TUNELAB_RUNS"


class Study:
    """One search, as its folder tells it. `info` is the content of `study.json`."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info

    @classmethod
    def create(cls, path: Path, info: Mapping[str, Any]) -> Study:
        """Makes the folder of a new study, readable by its owner alone; one that is empty is taken.

        Raises:
            InputError: `path` exists already, or cannot be made.
        """
        now = datetime.datetime.now().astimezone()
        full = {"format": FORMAT, "created": now.isoformat(timespec="seconds"), **info}
        try:
            make_vacant(path, "study.json")
        except OSError as error:
            if path.exists():
                raise InputError(describe_taken(path)) from None
            raise InputError(f"the study {path} cannot be made: {error.strerror}") from error
        try:
            write_atomically(path / "study.json", json.dumps(full, indent=2) + "\n")
            sync_folder(path.parent)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise InputError(f"the study {path} cannot be made: {error.strerror}") from error
        return cls(path, full)

    @classmethod
    def open(cls, path: Path) -> Study:
        """The study in the folder `path`.

        Raises:
            InputError: there is no study, or it was written in a format that this version cannot read.
        """
        file = path / "study.json"
        try:
            info = read_json(file)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path} is not a study (there is no {file.name} in it)") from None
        except (ValueError, OSError) as error:
            raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            found = info.get("format") if isinstance(info, dict) else None
            newer = type(found) is int and found > FORMAT
            more = "; a later one wrote it: `pip install --upgrade tunelab`" if newer else ""
            raise InputError(f"{file} has format {brief(found)}; this version of tunelab reads format {FORMAT}{more}")
        require_info(file, info)
        return cls(path, info)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def place(self) -> str:
        """Where it is, as people are told: its folder, or the URI of one that is read from a store."""
        return str(self.path)

    @property
    def called(self) -> str:
        """What a command takes it by, in advice: its name, or that URI."""
        return self.name

    @property
    def running(self) -> bool:
        """True while a process searches."""
        return is_locked(self.path)

    def sign_of_life(self) -> Sign | None:
        """The last sign of life of the process that searches; None if none does, or it has given none yet."""
        return last_sign(self.path) if self.running else None

    def list_trials(self) -> list[Trial]:
        """All trials in the order of their numbers; those that did not end are PAUSED unless the study is running."""
        with uncollected():
            file = self.path / "journal.jsonl"
            try:
                trials = replay(read_journal(file))
            except InputError as error:
                raise InputError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
        if not self.running:
            for trial in trials:
                if trial.status is TrialStatus.RUNNING:
                    trial.status = TrialStatus.PAUSED
        return trials

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: number, status, epochs, score, the last epoch's metrics, and a column per parameter."""
        import pandas as pd

        table: pd.DataFrame = pd.DataFrame([flat_row(trial) for trial in self.list_trials()])
        return table

    @property
    def val_images(self) -> int:
        """On how many images the scores were measured; 0 if the study does not say."""
        counts = self.info.get("data", {}).get("counts", {})
        return int(counts.get("val", 0))

    def standings(self) -> list[Place]:
        """The configurations with runs of full length, best first, with means, intervals and ties."""
        return self.places_of(self.list_trials())

    @uncollected()
    def places_of(self, trials: Sequence[Trial]) -> list[Place]:
        """As `standings`, of these trials; those that are no part of the search any more come last."""
        trials = self.runs_of(trials)
        aside = history(self.info, trials)
        present = [trial for trial in trials if trial.number not in aside]
        past = [trial for trial in trials if trial.number in aside]
        ranked, rest = places(present, self.val_images), places(past, self.val_images)
        if ranked:  # nothing of the past is compared with what is first now
            rest = [dataclasses.replace(one, standing=_untied(one.standing)) for one in rest]
        return ranked + rest

    def runs_of(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Those of a search as they are; of a list of trainings with the seeds of one configuration as its repeats."""
        return trials if self.info.get("kind") == "search" else as_runs(trials)

    def ranked(self) -> list[Trial]:
        """One trial per configuration of full length, best configuration first; see `rank`."""
        return [place.trial for place in self.standings()]

    def best(self) -> Trial:
        """The trial that the best configuration was proposed in.

        Raises:
            InputError: no trial has run its full length yet.
        """
        trials = self.list_trials()
        ranked = [place.trial for place in self.places_of(trials)]
        if not ranked:
            raise InputError(f"no trial of {self.place} has run its full length yet ({describe_counts(trials)})")
        return ranked[0]

    def trial(self, number: int) -> Trial:
        """The trial with this number.

        Raises:
            InputError: there is none.
        """
        trials = self.list_trials()
        for trial in trials:
            if trial.number == number:
                return trial
        raise InputError(f"{self.place} has no trial {number}; it has {len(trials)} trials, numbered from 0")

    def config(self, trial: Trial) -> TrialConfig:
        """What `trial` was made of."""
        from tunelab.config import TrialConfig, from_json  # it loads pydantic, which reading a study does without

        return from_json(TrialConfig, trial.config)

    def trial_folder(self, number: int) -> Path:
        """Where a trial keeps its checkpoints and events."""
        return self.path / "trials" / f"{number:04d}"

    def update(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Changes `study.json`, whole or not at all, while no other process writes the study.

        Args:
            change: from the present content to what is to be different.

        Raises:
            StudyLockedError: another process writes the study.
            InputError: `change` refused, or the file cannot be written.
        """
        journal = Journal.open(self.path)
        try:
            info = Study.open(self.path).info
            changed = {**info, **change(info)}
            write_atomically(self.path / "study.json", json.dumps(changed, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{self.path / 'study.json'} cannot be written: {error.strerror}") from error
        finally:
            journal.close()
        self.info = changed

    def write_tables(self) -> None:
        """Writes `trials.jsonl` and `trials.csv` anew from the record."""
        trials = self.list_trials()
        lines = [json.dumps(trial.to_json()) + "\n" for trial in trials if trial.status.ended]
        write_atomically(self.path / "trials.jsonl", "".join(lines))
        write_csv(self.path / "trials.csv", [flat_row(trial) for trial in trials])


def describe_taken(path: Path) -> str:
    """Why no study can be made where something is already."""
    if (path / "study.json").exists():
        return f"the study {path} exists already; `tunelab resume {path}` goes on with it"
    return f"{path} exists already and is no empty folder; a new study needs a name that is free"


def load(path: str | Path) -> Study:
    """The study in the folder `path`.

    Raises:
        InputError: there is none.
    """
    return Study.open(Path(path).expanduser())


def runs_dir(given: str | Path | None = None) -> Path:
    """The folder of studies: `given`, else the variable TUNELAB_RUNS, else `runs`."""
    return Path(given or os.environ.get(RUNS_DIR_VARIABLE) or "runs").expanduser()


def list_studies(folder: Path, left_out: list[str] | None = None) -> list[Study]:
    """The studies directly inside `folder`, newest first; none if there is no such folder.

    One that cannot be opened does not hide the others: the reason is appended to `left_out`.
    """

    def open_or_tell(file: Path) -> Iterator[Study]:
        try:
            yield Study.open(file.parent)
        except InputError as error:
            if left_out is not None:
                left_out.append(str(error))

    return newest_first(study for file in folder.glob("*/study.json") for study in open_or_tell(file))


def newest_first(studies: Iterable[Study]) -> list[Study]:
    """Studies by when they were made."""
    return sorted(studies, key=lambda study: (_created(study), study.name), reverse=True)


def _created(study: Study) -> float:
    """When a study was made, in seconds, whatever the time zone; the beginning of time if it does not say."""
    try:
        return datetime.datetime.fromisoformat(str(study.info.get("created"))).timestamp()
    except ValueError:
        return 0.0


def newest_study(folder: Path) -> Study:
    """The newest study inside `folder`.

    Raises:
        InputError: there is none.
    """
    studies = list_studies(folder)
    if not studies:
        raise InputError(
            f"there is no study in {folder}; `tunelab search arch` makes one, --runs-dir names another folder"
        )
    return studies[0]


def rank(trials: Iterable[Trial], val_images: int = 0) -> list[Trial]:
    """One trial per configuration that ran its full length, best configuration first.

    A configuration's score is the mean of its runs, each by its last epoch: the last, not the best one, because that is
    what a training of this length gives (our choice). The score that the search itself measured is corrected for having
    been chosen, so that luck does not pass for quality; see `tunelab.standings`. Without repeats that changes no order.
    """
    return [place.trial for place in places(trials, val_images)]


def _untied(standing: Standing) -> Standing:
    return dataclasses.replace(standing, tied_with_best=False)


def history(info: Mapping[str, Any], trials: Iterable[Trial]) -> dict[int, str]:
    """The trials that are kept but are no part of the search any more, by number, each with the reason.

    They are of another full length than the study was extended to, or of a version of the space that is gone.
    """
    set_aside = {number: change["to"] for change in info.get("spaces", ())[-1:] for number in change["set_aside"]}
    epochs = int(info["options"]["epochs"]) if info.get("extended") else None
    reasons = {}
    for trial in trials:
        if trial.number in set_aside:
            reasons[trial.number] = f"version {set_aside[trial.number]} of the space does not draw this configuration"
        elif epochs is not None and full_length(trial) != epochs:
            reasons[trial.number] = f"the study was extended to {epochs} epochs"
    return reasons


def current(info: Mapping[str, Any], trials: Iterable[Trial]) -> list[Trial]:
    """The trials that are part of the search as it is asked for now: all but its history."""
    trials = list(trials)
    aside = history(info, trials)
    return [trial for trial in trials if trial.number not in aside]


def proposed(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that are configurations of their own: all but the repeats."""
    return [trial for trial in trials if trial.repeat_of is None]


def count_statuses(trials: Iterable[Trial]) -> dict[TrialStatus, int]:
    """How many trials have each status; statuses without trials are left out."""
    counts: dict[TrialStatus, int] = {}
    for trial in trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    return {status: counts[status] for status in TrialStatus if status in counts}


def describe_counts(trials: Sequence[Trial]) -> str:
    """The statuses in words, repeats apart: "12 completed, 7 stopped, 1 failed, 3 repeats"."""
    counted = proposed(trials)
    said = [f"{count} {status.value.lower()}" for status, count in count_statuses(counted).items()]
    return ", ".join([*said, *describe_repeats(len(trials) - len(counted))]) or "no trials"


def describe_repeats(number: int) -> list[str]:
    """The number of repeats in words, as a list: nothing where there are none."""
    return [f"{number} {'repeat' if number == 1 else 'repeats'}"] if number else []


def flat_row(trial: Trial) -> dict[str, Any]:
    """A trial as one row of a table; the metrics are those of its last epoch, `seconds` its total.

    Each parameter is a column of its name, or `param_NAME` where the table has a column of that name already.
    """
    row: dict[str, Any] = {
        "number": trial.number,
        "status": trial.status.value,
        "epochs": len(trial.epochs),
        "origin": trial.origin,
        "repeat_of": trial.repeat_of,
        "score": trial.score,
        "best_val_accuracy": max((m.val_accuracy for m in trial.epochs if m.val_accuracy is not None), default=None),
        "arch_id": trial.arch_id,
        **trial.stats,
        "seconds": sum(metrics.seconds for metrics in trial.epochs),
    }
    if trial.epochs:
        last = {**trial.epochs[-1].to_json(), "effective_lr": trial.epochs[-1].effective_lr}
        row.update({name: value for name, value in last.items() if name not in ("epoch", "seconds")})
    row["reason"] = trial.reason
    taken = {"reason", "effective_lr", *row, *(column.name for column in dataclasses.fields(EpochMetrics))}
    row.update({f"param_{name}" if name in taken else name: value for name, value in trial.params.items()})
    return row


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of differing columns as one table; a column that a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())
