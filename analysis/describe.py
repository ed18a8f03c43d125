"""What a network or a space is made of, before anything is trained: needs neither data nor Ray."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunelab.config import AnyArch, CustomSpec, TrialConfig, from_json, to_json
from tunelab.errors import InputError, RefusedError
from tunelab.foreign import settle
from tunelab.models.check import check
from tunelab.models.layers import LayerRow, list_layers
from tunelab.space import SearchSpace, draw_config
from tunelab.study import Study
from tunelab.tuning.draws import Draw, merge
from tunelab.yaml_files import load

from .rank import describe_config
from .text import console, print_rows

IMAGE_SIZE, CHANNELS, CLASSES = 32, 3, 10
"""The images that a network is described for where nothing else is known: those of CIFAR-10."""
_DRAWS = 300  # of a space, to meet its parameters; our choice
_MAX_BYTES = 4 * 2**20  # of a configuration; our choice
Images = Mapping[str, Any]


def images_of(
    image_size: int | None, channels: int | None, classes: int | None, known: Mapping[str, Any] | None = None
) -> Images:
    """The images to describe a network for: what is asked for, else what is known of the data, else the usual ones."""
    size, known = (image_size, image_size), known or {}
    return {
        "image_size": tuple(known.get("image_size", (IMAGE_SIZE, IMAGE_SIZE))) if image_size is None else size,
        "channels": channels or known.get("channels", CHANNELS),
        "classes": classes or known.get("classes", CLASSES),
    }


def describe_trial(study: Study, number: int | None, asked: Images) -> dict[str, Any]:
    """The network of a trial, the best one without a number.

    Args:
        study: of the trial.
        number: of the trial.
        asked: arguments of `images_of`, None for what the study's own images have.

    Raises:
        InputError: there is no such trial, or the images cannot be.
        RefusedError: the network cannot work for the images.
    """
    trial = study.best() if number is None else study.trial(number)
    config = study.config(trial)
    return {
        "study": study.place,
        "trial": trial.number,
        **network(config.arch, images_of(**asked, known=_images_in(study))),
        "config": to_json(config),
    }


def _images_in(study: Study) -> dict[str, Any]:
    data = study.info["data"]
    return {**data, "classes": len(data["classes"])}


def describe_file(path: Path, asked: Images) -> dict[str, Any]:
    """The network of a configuration in a file: a TrialConfig, a network alone, a model's description, a template.

    Raises:
        InputError: it is none of these.
        RefusedError: the network cannot work for the images.
    """
    plain = _read(path)
    known: dict[str, Any] = {}
    if "trial_config" in plain:
        known = {name: plain[name] for name in ("image_size", "channels", "classes") if name in plain}
        known["classes"] = len(known.get("classes", range(CLASSES)))
        plain = plain["trial_config"]
    elif isinstance(plain.get("config"), dict):
        plain = plain["config"]
    try:
        config = from_json(TrialConfig, plain if "arch" in plain else {"arch": plain})
    except InputError as error:
        raise InputError(f"{path} is no configuration of a network: {error}") from error
    arch = config.arch
    if isinstance(arch, CustomSpec) and not arch.sha256:
        arch = settle(arch, path.parent)
    return {"file": str(path), **network(arch, images_of(**asked, known=known))}


def describe_space(space: SearchSpace, asked: Images, study: Study | None = None) -> dict[str, Any]:
    """A space: its parameters with their ranges, its grids, and the network that it begins with.

    Args:
        space: what is described.
        asked: arguments of `images_of`, None for what is known.
        study: whose images are known, for a space that begins with it.

    Raises:
        InputError: it cannot draw.
    """
    content: dict[str, Any] = {
        "space": space.name,
        "source": space.source,
        "version": space.version,
        "summary": space.summary,
        "grids": {name: len(entries) for name, entries in space.grids.items()},
        "parameters": parameters(space),
    }
    archs = [draw_config(space, Draw(random.Random(0), params)).arch for params in space.baselines]
    images = images_of(**asked, known=None if study is None else _images_in(study))
    fitting = [place for place, arch in enumerate(archs) if not _refusal(arch, images)]
    if not fitting:
        refusal = _refusal(archs[-1], images) if archs else "it has no baseline"
        return {**content, "baseline": None, "refusal": refusal}
    return {**content, "baseline": dict(space.baselines[fitting[0]]), **network(archs[fitting[0]], images)}


def _refusal(arch: AnyArch, images: Images) -> str:
    """Why a network cannot work for the images, "" if it can."""
    try:
        check(arch, **images)
    except RefusedError as error:
        return str(error)
    return ""


def parameters(space: SearchSpace) -> list[dict[str, Any]]:
    """The parameters of a space in the order in which 300 random draws ask for them, and how many of these did.

    Raises:
        InputError: the space cannot draw, or gives a name other choices than before.
    """
    known: dict[str, Any] = {}
    asked: dict[str, int] = {}
    for number in range(_DRAWS):
        draw = Draw(random.Random(number))
        draw_config(space, draw)
        merge(known, [draw.distributions])
        for name in draw.params:
            asked[name] = asked.get(name, 0) + 1
    return [{"name": name, **_range(known[name]), "asked": asked[name] / _DRAWS} for name in known]


def network(arch: AnyArch, images: Images) -> dict[str, Any]:
    """A network for images, layer by layer, with its totals.

    Raises:
        RefusedError: it cannot work for them; the layer is named.
    """
    rows = list_layers(arch, **images)
    stats = dataclasses.asdict(check(arch, **images))
    return {
        "arch": to_json(arch),
        "image_size": list(images["image_size"]),
        "channels": images["channels"],
        "classes": images["classes"],
        "layers": [_layer(row) for row in rows],
        "totals": {**stats, "receptive_field": max((row.field or 0 for row in rows), default=0) or None},
    }


def _layer(row: LayerRow) -> dict[str, Any]:
    plain = dataclasses.asdict(row)
    return {**plain, "shape": list(row.shape), "receptive_field": plain.pop("field")}


def _range(distribution: Any) -> dict[str, Any]:
    """A distribution of Optuna's as plain JSON values."""
    if hasattr(distribution, "choices"):
        return {"kind": "choice", "choices": list(distribution.choices)}
    kind = "integer" if isinstance(distribution.low, int) else "number"
    ends = {"low": distribution.low, "high": distribution.high, "log": distribution.log}
    return {"kind": kind, **ends, "step": distribution.step}


def print_description(shown: Mapping[str, Any]) -> None:
    """What `tunelab describe` says, for people."""
    out = console()
    if "space" in shown:
        out.print(f"{shown['space']}, version {shown['version']}: {shown['summary']}", style="bold", highlight=False)
        print_rows(_parameter_rows(shown["parameters"]))
        for name, entries in shown["grids"].items():
            out.print(f"grid {name}: {entries} configurations", highlight=False)
        if shown["baseline"] is None:
            out.print(f"no network to show: {shown['refusal']}", highlight=False)
            return
        out.print("\nthe network of its baseline", style="bold")
    elif "study" in shown:
        config = describe_config(shown["config"])
        out.print(f"trial {shown['trial']} of {Path(shown['study']).name}: {config}", style="bold", highlight=False)
    _print_network(shown)


def _print_network(shown: Mapping[str, Any]) -> None:
    height, width = shown["image_size"]
    print_rows([_layer_row(row) for row in shown["layers"]])
    totals, field = shown["totals"], shown["totals"]["receptive_field"]
    sees = "" if field is None else f"; a value of its last maps sees {field}x{field} pixels through the convolutions"
    console().print(
        f"for images of {height}x{width} pixels, {shown['channels']} channels and {shown['classes']} classes: "
        f"{totals['params']:,} parameters, {totals['mflops']:,.4g} million multiply-adds (FLOPs as torchvision counts "
        f"them; others count twice as many), {totals['activations']:,} outputs of {totals['convs']} convolutions, "
        f"depth {totals['depth']}{sees}",
        highlight=False,
        soft_wrap=True,
    )


def _layer_row(row: Mapping[str, Any]) -> dict[str, Any]:
    field = row["receptive_field"]
    return {
        "layer": row["name"],
        "what": row["what"],
        "output": "x".join(map(str, row["shape"])),
        "parameters": f"{row['params']:,}",
        "multiply-adds": f"{row['multiply_adds']:,}",
        "sees": "" if field is None else f"{field}x{field}",
    }


def _parameter_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One line for parameters that differ by the numbers in their names alone, such as the kinds of blocks 1 to 12."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((re.sub(r"\d+", "#", row["name"]), _words(row)), []).append(row)
    return [
        {
            "parameter": found[0]["name"] if len(found) == 1 else f"{name} ({len(found)} of them)",
            "range": words,
            "asked for in": f"{100 * max(row['asked'] for row in found):.0f}% of draws",
        }
        for (name, words), found in groups.items()
    ]


def _words(row: Mapping[str, Any]) -> str:
    if row["kind"] == "choice":
        return ", ".join("none" if choice is None else str(choice) for choice in row["choices"])
    step = "" if row["step"] in (None, 1) else f", steps of {row['step']:g}"
    whole = ", whole numbers" if row["kind"] == "integer" else ""
    return f"{row['low']:g} to {row['high']:g}{whole}{step}{', logarithmic' if row['log'] else ''}"


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file."""
    plain = load(path, _MAX_BYTES, "neither YAML nor JSON")
    if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
        raise InputError(f"{path} is no configuration of a network: it must be a mapping of names to values")
    return plain
