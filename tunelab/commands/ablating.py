"""The command that asks what each component of the winner is worth: ablate."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from tunelab.commands.studies import find_study, mirrored_after
from tunelab.shared_options import ADDRESS, JSON, RUNS_DIR, STUDY, several, shared


@click.command()
@STUDY
@click.option("--trial", type=click.IntRange(min=0), help="Ablate this trial instead of the best one.")
@click.option(
    "--epochs", type=click.IntRange(min=1, max=1_000_000), help="Epochs of each training  [default: the study's]"
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1, max=1000),
    default=3,
    show_default=True,
    help="Trainings of each configuration.",
)
@click.option(
    "--components",
    metavar="NAME,...",
    callback=several(click.STRING),
    help="What is changed, such as mixup,dropout,norm  [default: all that differ]",
)
@click.option("--list", "only_list", is_flag=True, help="Say what would be trained, and train nothing.")
@shared(ADDRESS, RUNS_DIR, JSON)
def ablate(
    study: Path | str | None,
    trial: int | None,
    epochs: int | None,
    seeds: int,
    components: tuple[str, ...],
    only_list: bool,
    address: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Change one component of STUDY's winner at a time (by default of the newest study) and see what it is worth.

    Each component is put back to the study's baseline, and removed where that has a meaning; each variant and the
    unchanged winner are trained with the same seeds. After an interrupt the same command goes on.

    \b
    tunelab ablate --list
    tunelab ablate --components mixup,dropout,norm --seeds 5
    """
    found = find_study(study, runs_dir, to_change=not only_list)
    text = importlib.import_module("tunelab.analysis.ablate_text")
    if only_list:
        plan = importlib.import_module("tunelab.analysis.ablate_plan")
        laid_out = plan.lay_out(found, trial=trial, epochs=epochs, seeds=seeds, components=components)
        shown, tell = plan.listing(found, laid_out), text.print_listing
    else:
        run = importlib.import_module("tunelab.analysis.ablate").ablate
        with mirrored_after(found):
            shown = run(found, trial=trial, epochs=epochs, seeds=seeds, components=components, address=address)
        tell = text.print_ablation
    click.echo(json.dumps(shown)) if as_json else tell(shown)
