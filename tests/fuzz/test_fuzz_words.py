"""Command lines: any options with any values, and each option with a value that it cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import strategies as st

from tunelab.cli import tunelab as command_line

if TYPE_CHECKING:
    from tests.fuzz.conftest import Fuzz, World

assert isinstance(command_line, click.Group)
COMMANDS: dict[str, click.Command] = {name: command_line.commands[name] for name in command_line.commands}
# What no type of click's refuses: a value of each that cannot be, by the option's name.
WRONG = {
    "--components": "nonsense", "--batch-sizes": "many", "--threads": "x", "--device": "toaster", "--space": "nosuch",
    "--data": "nosuch", "--data-dir": "nosuch", "--grid": "nosuch", "--deadline": "soon", "--trial-timeout": "soon",
    "--memory": "much", "--recipe": "nosuch.yaml", "--from": "nosuch", "--warm-start": "nosuch",
    "--config": "nosuch.yaml", "--keep-weights": "some", "--study": "THERE", "--out": "FOLDER",
    "--address": "nowhere", "--storage": "s3:///nowhere",
}  # fmt: skip
# There nothing is an answer too; what `doctor` looks at is a finding; a folder is what `profile --out` makes.
FREE = {
    *((name, "--runs-dir") for name in COMMANDS), ("doctor", "--data"), ("doctor", "--data-dir"), ("profile", "--out"),
}  # fmt: skip
RETRAIN, OF_SPACE = ["STUDY", "--retrain"], ["--space", "lenet"]
ARGUMENTS = {
    "search": ["SPACE", "--dry-run"], "compare": ["STUDY", "STUDY"], "describe": ["lenet"], "new-space": ["mine"],
    "predict": ["MODEL", "IMAGE"], "export": ["MODEL"], "trust": ["nosuch.py:f"], "best": ["STUDY"],
    "ablate": ["STUDY"], "extend": ["STUDY"], "resume": ["STUDY"], "profile": ["STUDY"], "report": ["STUDY"],
    "search --study": ["SPACE"], "search --data-dir": ["SPACE", "--data", "mnist"], "best --recipe": RETRAIN,
    "best --average": RETRAIN, "best --compile": RETRAIN, "best --seeds": RETRAIN, "best --address": RETRAIN,
    "extend --address": ["STUDY", "--trials", "9"], "reproduce": ["STUDY", "0"], "dashboard": ["STUDY"],
    "profile --data": OF_SPACE,
    "profile --data-dir": [*OF_SPACE, "--data", "mnist"], "profile --space": [],
}  # fmt: skip
"""The rest of a command line, by the command, or by the command and the option."""


def wrong_values(option: click.Option) -> list[str]:
    """Values that an option must refuse, by its type; of those that click does not know, from the table above."""
    kind = option.type
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        found = ["", "many", "nan", "inf" if isinstance(kind, click.FloatRange) else "1.5", "٣x"]
        if kind.min is not None:
            found.append(str(kind.min if kind.min_open else kind.min - 1))
        if kind.max is not None:
            found.append(str(kind.max if kind.max_open else kind.max + 1))
        return found
    return ["nonsense", ""] if isinstance(kind, click.Choice) else [WRONG[option.opts[0]]]


OPTIONS = [
    (name, option, value)
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag and (name, option.opts[0]) not in FREE
    for value in wrong_values(option)
]


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS, ids=[f"{n} {o.opts[0]} {v}" for n, o, v in OPTIONS])
def test_a_value_that_cannot_be_is_named(name: str, option: click.Option, value: str, world: World) -> None:
    meant = {
        "SPACE": world.space, "STUDY": world.study, "MODEL": world.model, "IMAGE": world.images / "cat" / "0.png",
        "THERE": world.study, "FOLDER": world.images,
    }  # fmt: skip
    value = str(meant.get(value, value))
    word = option.opts[0]
    rest = ARGUMENTS.get(f"{name} {word}", ARGUMENTS.get(name, []))
    before = [str(meant.get(one, one)) for one in rest]
    if name == "report" and word == "--out":
        value = str(world.study / "journal.jsonl")  # where a folder is to be
    asked = world.ask(name, *before, word, value)
    asked.check()
    assert asked.status == 2, (asked.words, asked.out, asked.err)
    assert value in asked.err
    assert word in asked.err or len(value) > 3, asked.err  # where a word says what it is


odd = st.one_of(
    st.sampled_from(
        [
            "", "-", "--", "0", "-1", "1", "3", "1e3", "nan", "inf", "9" * 30, "1_0", "0x1", "٣", "a" * 5000, ".", "~",
            "~nobody/x", "here", "here/there", "nosuch", "digits", "folder:", "folder:.", "npz:", "npz:nosuch", "mnist",
            "arch", "lenet", "recipe", "8h", "07:30", "99:99", "0s", "8GiB", "-8GiB", "1,2", ",", "all", "auto", "cuda",
            "val_accuracy", "\x1b[31m", "\n", "\u202e", "%s%n", "{}", "${HOME}", "--json", "--help", "/proc/self/mem",
            "/dev/null", "/dev/zero", "fifo", "loop", "é" * 300, "STUDY", "MODEL", "IMAGE", "SPACE", "\U0001f600",
        ]
    ),
    st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@pytest.mark.slow
def test_any_command_line(world: World, fuzz: type[Fuzz]) -> None:
    import os

    os.mkfifo(world.folder / "fifo")
    (world.folder / "loop").symlink_to("loop")
    writes = {"--out", "--study"}  # where something is made, it is made in this folder
    here = {"STUDY": world.study, "MODEL": world.model, "IMAGE": world.images / "cat" / "0.png", "SPACE": world.space}

    def value_of(data: st.DataObject, parameter: click.Parameter, name: str) -> str:
        kind: Any = parameter.type
        if isinstance(kind, click.Choice) and data.draw(st.booleans()):
            return str(data.draw(st.sampled_from(list(kind.choices))))
        if isinstance(kind, click.IntRange) and data.draw(st.booleans()):
            return str(data.draw(st.integers(kind.min or 0, (kind.min or 0) + 9)))
        drawn: str = data.draw(odd)
        if (parameter.opts[0] in writes or name in ("new-space",)) and drawn.startswith(("/", "~", ".")):
            return "made"
        return str(here.get(drawn, drawn))

    def case(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(COMMANDS.keys() - {"dashboard"})))  # which serves until Ctrl-C
        words = [name]
        if data.draw(st.integers(0, 3)):
            words += [str(here.get(word, word)) for word in ARGUMENTS.get(name, [])]
        some = data.draw(st.lists(st.sampled_from(COMMANDS[name].params), max_size=4))
        for parameter in some:
            if isinstance(parameter, click.Argument):
                words.append(value_of(data, parameter, name))
            elif parameter.name in ("supervise", "address", "storage"):  # others answer, in their time
                continue
            elif isinstance(parameter, click.Option) and parameter.is_flag:
                words.append(parameter.opts[0])
            else:
                words += [parameter.opts[0], value_of(data, parameter, name)]
        if data.draw(st.integers(0, 9)) == 0:
            words.insert(data.draw(st.integers(0, len(words))), data.draw(odd))
        world.ask(*[word for word in words if word != "--debug"]).check()

    try:
        fuzz.run(380, case)
    finally:
        (Path(world.folder) / "fifo").unlink()
