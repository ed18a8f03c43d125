"""The command that shows a study in a browser: dashboard."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import click

from tunelab.commands.studies import find_study
from tunelab.errors import InputError
from tunelab.shared_options import JSON, RUNS_DIR, STUDY, shared

_KEYS = ("page", "tensorboard", "optuna")  # what `--json` calls them


@click.command()
@STUDY
@click.option(
    "--port",
    type=click.IntRange(min=0, max=65535),
    default=0,
    help="Port of the page on 127.0.0.1  [default: one that is free]",
)
@shared(RUNS_DIR, JSON)
def dashboard(study: Path | str | None, port: int, runs_dir: Path, as_json: bool) -> None:
    """Show STUDY (by default the newest) in a browser on this machine: TensorBoard, Optuna's dashboard, until Ctrl-C.

    One page links them, and Ray's dashboard while a search runs with --dashboard. The study is read, never changed.

    \b
    tunelab dashboard
    tunelab dashboard runs/arch-20261121-2330 --port 8000
    """
    from tunelab.dashboards.events import tensorboard
    from tunelab.dashboards.page import Page, state_of
    from tunelab.dashboards.serving import Door, Key, Served

    if isinstance(study, str):
        raise InputError(f"the dashboard shows studies of this machine; `tunelab show {study}` reads one in a store")
    found = find_study(study, runs_dir)
    state_of(found)  # refused before anything is served
    key = Key()
    with contextlib.ExitStack() as stack:
        links: dict[str, int | str] = {}
        page = stack.enter_context(Served(Door(Page(functools.partial(state_of, found), links), key), port))
        links["TensorBoard"] = stack.enter_context(Served(Door(tensorboard(found.path), key, reading=False))).port
        try:
            view = importlib.import_module("tunelab.tuning.optuna_view").OptunaView(found.path / "optuna.journal")
            links["Optuna's dashboard"] = stack.enter_context(Served(Door(view, key))).port
        except InputError as error:
            links["Optuna's dashboard"] = str(error)
            click.echo(f"note: {error}", err=True)
        _tell({"The page": page.port, **links}, key.secret, as_json)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def _tell(ports: Mapping[str, int | str], secret: str, as_json: bool) -> None:
    """Prints the addresses; what is not served has none, and a reason in place of its port."""
    from tunelab.dashboards.serving import HOST

    there = {name: f"http://{HOST}:{port}/?token={secret}" for name, port in ports.items() if isinstance(port, int)}
    if as_json:
        click.echo(json.dumps({key: there.get(name) for key, name in zip(_KEYS, ports, strict=True)}))
        return
    for name, address in there.items():
        click.echo(f"{name}: {address}")
    click.echo("Ctrl-C ends it.")
