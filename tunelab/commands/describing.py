"""The commands about what there is to search: describe, new-space, trust."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunelab.commands.studies import here_or_inside
from tunelab.errors import InputError
from tunelab.shared_options import FOLDER, JSON, RUNS_DIR, shared

if TYPE_CHECKING:
    from tunelab.space import SearchSpace
    from tunelab.tuning.options import Base

_FILES = (".json", ".yaml", ".yml")


@click.command()
@click.argument("subject")
@click.argument("trial", type=click.IntRange(min=0), required=False)
@click.option(
    "--image-size", type=click.IntRange(min=1, max=1024), help="Images of N x N pixels  [default: the study's, else 32]"
)
@click.option("--channels", type=click.IntRange(min=1, max=1024), help="Their channels  [default: the study's, else 3]")
@click.option(
    "--classes", type=click.IntRange(min=2, max=100_000), help="Their classes  [default: the study's, else 10]"
)
@click.option(
    "--from",
    "from_study",
    type=FOLDER,
    metavar="STUDY",
    help="The study that a space such as recipe begins with.",
)
@click.option("--from-trial", type=click.IntRange(min=0), help="Another trial of --from  [default: the best]")
@shared(RUNS_DIR, JSON)
def describe(
    subject: str,
    trial: int | None,
    image_size: int | None,
    channels: int | None,
    classes: int | None,
    from_study: Path | None,
    from_trial: int | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Show the layers of a network: output shapes, parameters, multiply-adds, receptive fields.

    SUBJECT is a study (with a TRIAL, else its best one), a space (which is told with its parameters and the network of
    its baseline), or a YAML or JSON file with a configuration or a network. Nothing is trained and no data is read.

    \b
    tunelab describe arch --image-size 40
    tunelab describe runs/arch-20261121-2330 7
    tunelab describe config.json --image-size 28 --channels 1
    """
    from tunelab.study import load
    from tunelab.tuning.memory import find_base

    module = importlib.import_module("tunelab.analysis.describe")
    asked = {"image_size": image_size, "channels": channels, "classes": classes}
    base = find_base(from_study, from_trial, runs_dir)
    path = here_or_inside(Path(subject).expanduser(), runs_dir)
    space = _space_of(subject, path, base, runs_dir)
    if trial is not None and (space is not None or not path.is_dir()):
        raise InputError(f"a TRIAL can only be of a study; {subject} is none")
    if space is not None:
        shown = module.describe_space(space, asked, None if base is None else load(Path(base.study)))
    elif path.suffix in _FILES:
        shown = module.describe_file(path, asked)
    else:
        shown = module.describe_trial(load(path), trial, asked)
    click.echo(json.dumps(shown)) if as_json else module.print_description(shown)


def _space_of(subject: str, path: Path, base: Base | None, runs_dir: Path) -> SearchSpace | None:
    """The space that is meant; None where it is a study or a file of a configuration."""
    from tunelab.space import load_space, require_base, space_names

    if subject not in space_names() and (path.is_dir() or path.suffix in _FILES):
        if base is not None:
            raise InputError("--from can only be used with a space")
        return None
    if not subject.endswith(".py") and subject not in space_names():
        raise InputError(
            f"{subject} is neither a study, here or in {runs_dir}, nor a space ({', '.join(space_names())}), nor a "
            "file of a space (.py) or of a configuration (.json, .yaml)"
        )
    space = load_space(subject, None if base is None else base.config)
    require_base(space)
    return space


@click.command("new-space")
@click.argument("name")
@click.option("--from-model", is_flag=True, help="With a network of your own, any torch.nn.Module, in place of blocks.")
def new_space(name: str, from_model: bool) -> None:
    """Write NAME.py, a commented space that works, to change into one of your own.

    NAME may be a path; a file that is there already is left as it is.

    \b
    tunelab new-space my_space
    tunelab new-space experiments/my_space --from-model
    """
    from tunelab.space_template import write_space

    file = write_space(name, from_model=from_model)
    click.echo(f"{file} is written; `tunelab search {file} --trials 4 --epochs 2` tries it")


@click.command()
@click.argument("factory")
def trust(factory: str) -> None:
    """Allow the code of FACTORY, path/to/file.py:function or package.module:function, to make networks.

    A study or a model may name such code; it is run only if you have allowed it, here or by a search of a space that
    draws it, and only as long as its file is the same. FACTORY may also be the file of a space, path/to/space.py, that
    a study goes on with; a search of that file allows it too. Read the file before.

    \b
    tunelab trust models/my_model.py:build
    tunelab trust my_space.py
    """
    if factory.endswith(".py"):
        from tunelab.foreign import allow_space, read_source

        path = Path(factory).expanduser().resolve()
        read_source(path, "space file")
        allow_space(path)
        click.echo(f"{path} may be run by the studies that name it")
        return
    from tunelab.config import CustomSpec, from_json
    from tunelab.foreign import settle
    from tunelab.foreign import trust as allow

    spec = settle(from_json(CustomSpec, {"factory": factory}), None)
    allow(spec)
    click.echo(f"{spec.factory} may make networks, as its file is now (sha256 {spec.sha256[:16]}...)")
