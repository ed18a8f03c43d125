"""The command that says what is wrong: diagnose."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from tunelab.commands.studies import find_trial
from tunelab.shared_options import JSON, RUNS_DIR, STUDY, shared


@click.command()
@STUDY
@click.argument("trial", type=click.IntRange(min=0), required=False)
@shared(RUNS_DIR, JSON)
def diagnose(study: Path | str | None, trial: int | None, runs_dir: Path, as_json: bool) -> None:
    """Say what is wrong with the trials of STUDY (by default the newest), or with one TRIAL and what to change.

    \b
    tunelab diagnose
    tunelab diagnose runs/arch-20261121-2330 7
    """
    found, trial = find_trial(study, trial, runs_dir)
    diagnosis = importlib.import_module("tunelab.analysis.diagnose")
    text = importlib.import_module("tunelab.analysis.diagnose_text")
    if trial is None:
        shown = diagnosis.diagnose_study(found)
        click.echo(json.dumps(shown)) if as_json else text.print_study_diagnosis(shown)
    else:
        shown = diagnosis.diagnose_trial(found, found.trial(trial))
        click.echo(json.dumps(shown)) if as_json else text.print_trial_diagnosis(shown)
