"""What several commands do with a study: find it, rank it, draw its plot."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunelab.errors import InputError
from tunelab.files import note_on

if TYPE_CHECKING:
    from tunelab.study import Study


def find_study(path: Path | str | None, runs_dir: Path, *, to_change: bool = False) -> Study:
    """The study at `path`, or of that name inside the folder of studies, or the newest one.

    One in an object store, whose URI is a text, is copied: to the cache, or `to_change` it to the folder of studies.
    """
    from tunelab.study import load, newest_study

    if isinstance(path, str):
        from tunelab.stores import copies

        if to_change:
            return load(copies.fetch_to_go_on(path, runs_dir, copies.note))
        copied = copies.fetch_to_read(path)
        copies.note(f"{path} is read from its copy in {copied.path}")
        return copied
    found = None if path is None else here_or_inside(path, runs_dir)
    if found is None or os.path.exists(found):  # noqa: PTH110  # raises nothing, however long a name is
        study = newest_study(runs_dir) if found is None else load(found)
        note = note_on(study.path)
        if note:
            click.echo(f"note: {note}", err=True)
        return study
    raise InputError(
        f"there is no study {path}, neither here nor in {runs_dir}; `tunelab list` names those that there are"
    )


def here_or_inside(path: Path, runs_dir: Path) -> Path:
    """The path, or that of this name inside the folder of studies if there is one there alone."""
    inside = runs_dir / path
    return inside if os.path.exists(inside) and not os.path.exists(path) else path  # noqa: PTH110  # raises nothing


@contextlib.contextmanager
def mirrored_after(study: Study) -> Iterator[Study]:
    """Around what writes into a study: at the end that goes into the study's store, if it has one."""
    try:
        yield study
    finally:
        if study.info.get("storage"):
            from tunelab.stores.copies import push_rest

            push_rest(study)


def find_trial(
    path: Path | str | None, trial: int | None, runs_dir: Path, *, to_change: bool = False
) -> tuple[Study, int | None]:
    """The study, as `find_study`, and the number of a trial; a number in place of a study is a trial of the newest."""
    if isinstance(path, Path) and trial is None and path.name.isdecimal() and not path.exists():
        return find_study(None, runs_dir), int(path.name)
    return find_study(path, runs_dir, to_change=to_change), trial


def draw_plot(study: Study) -> None:
    """Draws the plot of a study with several objectives; where it cannot be written, that is said, and is no error."""
    try:
        importlib.import_module("tunelab.analysis.front").write_plot(study)
    except OSError as error:
        click.echo(f"tunelab: the plot of {study.path} cannot be written: {error.strerror or error}", err=True)


def print_best(study: Study, top: int, as_json: bool) -> None:
    """The ranking, with a plot where there are several objectives."""
    draw_plot(study)
    rank = importlib.import_module("tunelab.analysis.rank")
    shown = rank.summary(study, top)
    if as_json:
        click.echo(json.dumps(shown))
    else:
        importlib.import_module("tunelab.analysis.text").print_best(shown)
