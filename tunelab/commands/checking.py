"""The command that checks the machine: doctor."""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunelab.errors import TunelabError
from tunelab.shared_options import JSON, RUNS_DIR, shared

if TYPE_CHECKING:
    from tunelab.doctor.checks import Asked
    from tunelab.doctor.findings import MachineFinding

_HEADS = {"error": "a search would not run:", "warning": "a search runs, but:", "ok": "fine:"}
_NARROWEST, _WIDEST = 60, 120


@click.command()
@click.option(
    "--data", multiple=True, help="Check this data set too, folder:PATH or npz:PATH; may be given several times."
)
@click.option("--data-dir", type=click.Path(), help="Where torchvision's data sets lie.")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Check the nodes of a Ray cluster in place of this machine: auto, HOST:PORT or ray://HOST:PORT.",
)
@shared(RUNS_DIR, JSON)
def doctor(data: tuple[str, ...], data_dir: str | None, address: str | None, runs_dir: Path, as_json: bool) -> None:
    """Check whether this machine is fit for a search, and say how what is wrong is mended.

    Starts Ray and stops it again; leaves nothing behind. Exit status 1 if a search would not run. With --address, each
    node of a cluster is asked.

    \b
    tunelab doctor
    tunelab doctor --data folder:photos --runs-dir /data/runs
    tunelab doctor --address auto --runs-dir /shared/runs
    """
    from tunelab.doctor.checks import Asked
    from tunelab.doctor.findings import is_fit

    begun = time.monotonic()
    asked = Asked(str(runs_dir.expanduser().absolute()), data, data_dir)
    findings = _examine(asked, address)
    what = "machine" if address is None else "cluster"
    fit = is_fit(findings)
    if as_json:
        plain = [one.to_json() for one in findings]
        click.echo(json.dumps({"fit": fit, "seconds": round(time.monotonic() - begun, 1), "findings": plain}))
    else:
        for line in report(findings, shutil.get_terminal_size().columns, what):
            click.echo(line)
    if not fit:
        errors = sum(one.verdict == "error" for one in findings)
        raise TunelabError(f"a search would not run on this {what} ({errors} {'error' if errors == 1 else 'errors'})")


def _examine(asked: Asked, address: str | None) -> list[MachineFinding]:
    if address is None:
        from tunelab.doctor.examine import examine

        return examine(asked)
    from tunelab.doctor.cluster import examine_cluster

    return examine_cluster(address, asked)


def report(findings: Sequence[MachineFinding], columns: int, what: str = "machine") -> list[str]:
    """The lines of a report for people: errors, then warnings, each with its mend, then what is fine, by group."""
    from tunelab.doctor.findings import is_fit

    width = max(_NARROWEST, min(columns, _WIDEST))
    lines = []
    for verdict, head in _HEADS.items():
        some = [one for one in findings if one.verdict == verdict]
        if not some:
            continue
        lines.append(head)
        groups = list(dict.fromkeys(one.group for one in some))
        for one in sorted(some, key=lambda one: groups.index(one.group)):
            lines += _wrapped(f"{one.name}: {one.measured}", "  ", width)
            if one.mend:
                lines += _wrapped(f"-> {one.mend}", "     ", width)
    if is_fit(findings):
        warnings = sum(one.verdict == "warning" for one in findings)
        lines.append(
            f"This {what} is fit for a search" + (" as it is; with the mends it is better." if warnings else ".")
        )
    return lines


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    """A text in lines; commands and paths are not broken, so that they can be copied."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
