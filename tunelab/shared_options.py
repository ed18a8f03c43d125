"""Options that several commands have, among them a YAML file of options."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from tunelab.errors import InputError
from tunelab.locations import folder, parse
from tunelab.yaml_files import compose

Command = TypeVar("Command", bound=Callable[..., Any])

_MAX_BYTES = 1_000_000


def read_options(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Takes defaults from a YAML file; its names are the options', with `-` or `_`. Some may have a list of values."""
    if path is None:
        return
    values = _load_yaml(path)
    options = [option for option in context.command.params if isinstance(option, click.Option)]
    known = {word[2:]: option for option in options for word in option.opts if option.name != "config"}
    defaults: dict[str, str | list[str]] = {}
    for name, value in values.items():
        key = str(name).replace("_", "-")
        if key in known and known[key].multiple and isinstance(value, str):
            value = [value]
        if key not in known or not isinstance(value, list if known[key].multiple else str):
            allowed = ", ".join(sorted(known))
            raise InputError(f"{path}: {name!r} is not an option with one value; there are {allowed}")
        if known[key].name in defaults:
            raise InputError(f"{path}: {name!r} is given twice")
        defaults[str(known[key].name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}


def _load_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping with every value as text, so that `07:30`, `1e-3` and `no` mean what they say."""
    import yaml

    node = compose(path, _MAX_BYTES, "not YAML")
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path} must hold lines such as `trials: 16`")
    values: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path} must hold lines such as `trials: 16`")
        if key.value in values:
            raise InputError(f"{path}: {key.value!r} is given twice")
        values[key.value] = _plain(value)
    return values


def _plain(node: Any) -> str | list[str] | None:
    """A text, or a list of texts; None of anything else."""
    if isinstance(node.value, str):
        return node.value
    if any(isinstance(one, tuple) or not isinstance(one.value, str) for one in node.value):
        return None
    return [str(one.value) for one in node.value]


@dataclass(frozen=True)
class CommandLine:
    """What was called: a command line, and what runs another one and gives its exit status."""

    arguments: tuple[str, ...]
    run: Callable[[list[str]], int]


def shared(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class _NumberOrAll(click.ParamType[int | None]):
    """A number from 0 on, or the word `all`, which becomes None."""

    name = "NUMBER|all"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | None:
        """What the text says."""
        if value is None or isinstance(value, int):
            return value
        text = str(value).strip()
        if text == "all":
            return None
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{value!r} is neither a number from 0 on nor all", parameter, context)
        return int(text)


NUMBER_OR_ALL = _NumberOrAll()


class _Place(click.ParamType[Path | str]):
    """A path, or the URI of a study in an object store, which stays a text."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path | str:
        """The path or URI; one with credentials is refused."""
        return value if isinstance(value, Path) else parse(str(value), "the study")


PLACE = _Place()


class _Folder(click.ParamType[Path]):
    """A folder (or file) of this machine, not a place in an object store."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        """The path; a URI of a store is refused."""
        named = "the path" if parameter is None else parameter.opts[0]
        return value if isinstance(value, Path) else folder(str(value), named)


FOLDER = _Folder()


class FiniteRange(click.FloatRange):
    """A number in a range, which "nan" is not: it is in every range that is asked for what is outside."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The number; `inf` and `nan` are refused."""
        found = super().convert(value, parameter, context)
        if not math.isfinite(found):
            self.fail(f"{value} is not in the range {self._describe_range()}.", parameter, context)
        return found


CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_options,
    help="YAML file with options, e.g. `trials: 16`; the command line wins.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
RUNS_DIR = click.option(
    "--runs-dir",
    type=FOLDER,
    envvar="TUNELAB_RUNS",
    show_envvar=True,
    default=Path("runs"),
    show_default=True,
    help="Folder of studies.",
)
DEADLINE = click.option("--deadline", help="Pause at a time (07:30) or after a length of time (8h, 90m).")
CONCURRENT = click.option("--concurrent", type=click.IntRange(min=1), help="Trials at once  [default: as measured]")
MEMORY = click.option(
    "--memory", metavar="SIZE", help="Memory that all trials together may take, e.g. 8GiB  [default: what is free]"
)
TRIAL_TIMEOUT = click.option(
    "--trial-timeout",
    metavar="LENGTH",
    help="End a trial that takes longer (2h, 90m)  [default: 20 times the forecast, at least 1h]",
)
SUPERVISE = click.option(
    "--supervise", is_flag=True, help="Start again if the search dies or hangs, not if it is told to stop."
)
ADDRESS = click.option(
    "--address",
    metavar="ADDRESS",
    help="Run on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT  [default: this machine alone]",
)
DASHBOARD = click.option("--dashboard", is_flag=True, help="Show Ray's dashboard while it runs, to this machine alone.")
STORAGE = click.option(
    "--storage",
    metavar="URI",
    help="Object store to mirror the study to, e.g. s3://bucket/prefix; a path is as --runs-dir.",
)
STUDY = click.argument("study", type=PLACE, required=False)


def data_options(command: Command) -> Command:
    """The options that say which images, and how they are taken; `take_data` reads them."""
    return shared(
        click.option("--data", default="digits", show_default=True, help="A data set, folder:PATH or npz:PATH."),
        click.option("--data-dir", type=click.Path(), help="Where torchvision's data sets lie."),
        click.option("--download", is_flag=True, help="Allow a download of the data."),
        click.option("--skip-unreadable", is_flag=True, help="Go on when a file of a folder is not an image."),
        click.option("--image-size", type=click.IntRange(min=4, max=1024), help="Resize images to N x N pixels."),
        click.option("--limit-train", type=click.IntRange(min=2), help="Use this many training images."),
        click.option(
            "--val-fraction",
            type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
            default=0.15,
            show_default=True,
            help="Share of images held out to compare trials by, where the data has no such split.",
        ),
    )(command)


DATA_NAMES = "data", "data_dir", "download", "skip_unreadable", "image_size", "limit_train", "val_fraction"
"""What click calls the options of `data_options`."""


def take_data(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what `data_options` read out of a command's options: the fields of a `DataConfig`."""
    taken = {name: options.pop(name) for name in DATA_NAMES}
    return {"name": taken.pop("data"), **taken}


def names_given(context: click.Context) -> set[str]:
    """The options that are given, by the command line or a file of options, as click or a `DataConfig` calls them."""
    defaults = (ParameterSource.DEFAULT, None)
    found = {name for name in context.params if context.get_parameter_source(name) not in defaults}
    return found | ({"name"} if "data" in found else set())


def words_given(context: click.Context, names: Collection[str]) -> list[str]:
    """Those of a command's options that the command line gives, as they are spelled there; `names` are click's."""
    return [
        option.opts[0]
        for option in context.command.params
        if option.name in names and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]


def several(
    one: click.ParamType[Any],
) -> Callable[[click.Context, click.Parameter, str | tuple[str, ...] | None], tuple[Any, ...]]:
    """The callback of an option that takes values with commas between them, each read by `one`: a tuple of them."""

    def read(
        context: click.Context, parameter: click.Parameter, given: str | tuple[str, ...] | None
    ) -> tuple[Any, ...]:
        texts = (given,) if isinstance(given, str) else given or ()
        return tuple(one.convert(word.strip(), parameter, context) for text in texts for word in text.split(","))

    return read
