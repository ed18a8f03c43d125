"""The files that `tunelab new-space` writes: a space to change into one's own, and a network of one's own."""

from __future__ import annotations

import re
from pathlib import Path

from tunelab.errors import InputError

_HEAD = '''"""{title}

`tunelab search ./{file}` searches it. `draw` makes one configuration of what `suggest` gives it, and must depend on
nothing else; the search fills in the epochs, the data and the seed. A name must always come with the same choices, or
with the same kind of range. `tunelab describe ./{file}` shows what it draws from.
"""

from tunelab.config import {imports}
from tunelab.space import Suggest

SUMMARY = "{summary}"  # one line, for `tunelab spaces` and `tunelab describe`
VERSION = 1  # raise it when a name or a list of choices changes: `tunelab resume` then sorts out the trials before

# Trial 0 is the first of these that fits the images and the limits. A set has every name that `draw` asks for then.
BASELINES = ({baseline},)

# Lists of configurations; `tunelab search ./{file} --grid rates` trains this one. What a set leaves out is as
# in the baseline, which is trained beside them.
GRIDS = {{"rates": ({{"lr": 0.02}}, {{"lr": 0.05}}, {{"lr": 0.2}})}}


def draw(suggest: Suggest) -> TrialConfig:
'''

_RECIPE = """        train=TrainConfig(
            lr=suggest.suggest_float("lr", 0.01, 0.5, log=True),  # `log` for what may differ by a factor of ten
            batch_size=suggest.suggest_categorical("batch_size", (32, 64, 128)),
            schedule=ScheduleConfig("one_cycle"),  # tunelab/config.py has all names of a recipe
            augment=AugmentConfig(crop=suggest.suggest_float("crop", 0.0, 0.2)),
        ),
    )
"""

_OF_BLOCKS = """    width = suggest.suggest_categorical("width", (8, 16, 32))
    depth = suggest.suggest_int("depth", 1, 4)
    # The first block halves the resolution. There are also "bottleneck", "inception", "plain" and "plain_bottleneck".
    blocks = [BlockSpec("basic", 2 * width, stride=2)] + [BlockSpec("basic", 2 * width)] * (depth - 1)
    return TrialConfig(
        arch=ArchSpec(
            stem=StemSpec(width=width),
            branches=(tuple(blocks),),
            norm=suggest.suggest_categorical("norm", ("batch", "group")),
        ),
"""

_OF_A_MODEL = """\
    # The file is looked for beside this one. The arguments here are plain JSON values; the function has three more,
    # channels, classes and image_size, which come from the data.
    return TrialConfig(
        arch=CustomSpec(
            "{model}:build",
            {{
                "width": suggest.suggest_categorical("width", (8, 16, 32)),
                "depth": suggest.suggest_int("depth", 1, 4),
            }},
        ),
"""

_MODEL = '''"""A network for the space {file}: any torch.nn.Module, made by a function.

The search records this file's hash: it must stay as it is for as long as its studies and models are to be used.
"""

import torch
from torch import nn


def build(channels: int, classes: int, image_size: tuple[int, int], width: int, depth: int) -> nn.Module:
    """From images (N, channels, height, width) to scores (N, classes), before any softmax; the loss does that itself.

    The weights must come from PyTorch's random state, which the search seeds. `image_size` is (height, width).
    """
    return Network(channels, classes, width, depth)


class Network(nn.Module):
    """Some convolutions with a mean over the map at their end, so that images of any size will do."""

    def __init__(self, channels: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(depth):
            layers += [nn.Conv2d(width if place else channels, width, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The scores."""
        scores: torch.Tensor = self.classifier(self.features(images).mean((2, 3)))
        return scores
'''

_BASELINE = {"width": 16, "depth": 2, "lr": 0.1, "batch_size": 32, "crop": 0.1}


def write_space(name: str, *, from_model: bool) -> Path:
    """Writes a space that works, and returns its file.

    Args:
        name: of the space, or a path to it, with or without `.py`.
        from_model: with a network of one's own, in a second file `NAME_model.py`.

    Raises:
        InputError: the name cannot be one, or there is such a file already; nothing is written then.
    """
    path = Path(name).expanduser()
    file_name = path.name if path.suffix == ".py" else f"{path.name}.py"
    if not re.fullmatch(r"[A-Za-z]\w*\.py", file_name):
        raise InputError(f"{file_name!r} cannot be a space's file; a name has letters, digits and _, such as my_space")
    path = path.parent / file_name
    model = path.with_name(f"{path.stem}_model.py")
    texts = {path: _space_text(path.name, model.name if from_model else None)}
    if from_model:
        texts[model] = _MODEL.format(file=path.name)
    for file in texts:
        if file.exists():
            raise InputError(f"{file} is there already, and is left as it is; give another name")
    try:
        for file, text in texts.items():
            with file.open("x", encoding="utf-8") as stream:
                stream.write(text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _space_text(file: str, model: str | None) -> str:
    baseline = dict(_BASELINE) if model is not None else {**_BASELINE, "norm": "batch"}
    own = "AugmentConfig, CustomSpec, ScheduleConfig, TrainConfig, TrialConfig"
    blocks = "ArchSpec, AugmentConfig, BlockSpec, ScheduleConfig, StemSpec, TrainConfig, TrialConfig"
    head = _HEAD.format(
        title="A space of your own." if model is None else "A space of a network of your own.",
        file=file,
        imports=blocks if model is None else own,
        summary="plain networks of basic blocks" if model is None else "a network of my own",
        baseline="{" + ", ".join(f'"{name}": {value!r}' for name, value in baseline.items()).replace("'", '"') + "}",
    )
    return head + (_OF_BLOCKS if model is None else _OF_A_MODEL.format(model=model)) + _RECIPE
