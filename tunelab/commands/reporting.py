"""The command for a study on one page: report."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from tunelab.commands.studies import find_study, mirrored_after
from tunelab.shared_options import JSON, RUNS_DIR, STUDY, shared


@click.command()
@STUDY
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report  [default: report in the study]")
@shared(RUNS_DIR, JSON)
def report(study: Path | str | None, out: Path | None, runs_dir: Path, as_json: bool) -> None:
    """Write the report of STUDY (by default the newest): plots, their data, and one page that needs nothing else.

    It can be made while the search runs, and is made anew each time.

    \b
    tunelab report
    tunelab report runs/arch-20261121-2330 --out ~/report
    """
    with mirrored_after(find_study(study, runs_dir)) as found:
        written = importlib.import_module("tunelab.analysis.report").write_report(found, out)
    if as_json:
        click.echo(json.dumps(written))
        return
    reasons: dict[str, list[str]] = {}
    for title, reason in written["left_out"].items():
        reasons.setdefault(reason, []).append(title)
    for reason, titles in reasons.items():
        click.echo(f"left out: {'; '.join(titles)}: {reason}")
    for row in written["recommendations"]:
        click.echo(f"- {row['text']}")
    click.echo(written["page"])
