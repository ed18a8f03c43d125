"""README.md tells the truth: its commands, its options, its Python and its paths are those of the code."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
from pathlib import Path

import click
import optuna
import pytest
import yaml
from tunelab.analysis.retrain import changed

import tunelab
from tunelab.cli import tunelab as command_line
from tunelab.config import CustomSpec, TrainConfig, TrialConfig
from tunelab.data.datasets import DATASETS, PATH_DATASETS
from tunelab.foreign import settle, trust
from tunelab.models.check import check
from tunelab.space import load_space
from tunelab.training.schedules import lr_factor
from tunelab.training.stages import recipe_of, stage_of

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("search", "tests")


def marked_block(mark: str) -> list[str]:
    """The lines of the fenced block after `<!-- MARK -->`, which stands in the text once."""
    found = re.findall(rf"^<!-- {re.escape(mark)} -->\n```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{mark}: {len(found)} blocks"
    return str(found[0]).splitlines()


def option_names(command: click.Command) -> set[str]:
    """The long options of a command."""
    return {name for option in command.params for name in option.opts if name.startswith("--")}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_for_newcomers_is_one_line(name: str) -> None:
    lines = marked_block(f"ci: {name}")
    assert len(lines) == 1
    assert lines[0].startswith("python -m pip install -c constraints.txt ")
    assert lines[0] == lines[0].strip()
    assert not lines[0].endswith("\\")


@pytest.mark.parametrize("name", COMMANDS)
def test_ci_takes_the_commands_out_of_the_text(name: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--print", name], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == marked_block(f"ci: {name}")


def test_ci_refuses_a_command_that_is_not_there() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--print", "x"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "README.md must have '<!-- ci: x -->' once" in done.stderr


def test_every_command_and_option_is_documented() -> None:
    assert isinstance(command_line, click.Group)
    for name, command in command_line.commands.items():
        assert f"`tunelab {name}" in README
        missing = [
            option for option in sorted(option_names(command)) if not re.search(rf"(?<![\w-]){option}(?![\w-])", README)
        ]
        assert not missing, f"tunelab {name}: {', '.join(missing)}"


def test_every_documented_option_exists() -> None:
    there = option_names(command_line) | {"--help"}
    for command in command_line.commands.values():
        there |= option_names(command)
    others = {"--check", "--dist", "--logdir", "--shm-size"}  # of ruff, pytest, tensorboard and docker
    others |= {
        "--dashboard-host",
        "--generate",
        "--head",
        "--no-wait",
        "--num-cpus",
        "--port",
        "--screen",
        "--temp-dir",
    }  # of ray
    others |= {"--from-literal", "--ray"}  # of kubectl, and of a benchmark
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert written - others <= there, sorted(written - others - there)


def test_tunelab_is_installed_from_the_clone_with_extras_that_there_are() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(parser["options.extras_require"])
    installs = re.findall(r"pip install ([^\n`#&]+)", README)
    assert installs
    assert not [one for one in installs if "tunelab" in one]  # no registry has it; a stranger's would be installed
    asked = [name for one in installs for name in re.findall(r'"\.\[(\w+)\]"', one)]
    assert {"dashboard", "s3", "onnx", "test", "dev"} <= set(asked) <= extras
    assert all("-c constraints.txt" in one for one in installs)


def test_every_data_set_is_documented() -> None:
    for name in [*DATASETS, *(f"{kind}:PATH" for kind in PATH_DATASETS)]:
        assert f"`{name}`" in README


def test_the_python_uses_public_names() -> None:
    tree = ast.parse("\n".join(marked_block("test: python")))
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tunelab"
    }
    assert used
    assert used <= set(tunelab.__all__)


def test_the_space_of_your_own_works(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text("\n".join(marked_block("test: space")) + "\n", encoding="utf-8")
    space = load_space(str(file))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert all(isinstance(space.draw(study.ask()), TrialConfig) for _ in range(20))
    assert all(isinstance(space.draw(optuna.trial.FixedTrial(dict(given))), TrialConfig) for given in space.baselines)


def test_the_model_of_your_own_works(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("\n".join(marked_block("test: factory")) + "\n", encoding="utf-8")
    spec = settle(CustomSpec("net.py:build", {"width": 16}), tmp_path)
    trust(spec)
    assert check(spec, image_size=(28, 28), channels=1, classes=10).params == 16 * 10 + 17 * 10


def test_the_recipe_is_one() -> None:
    train = changed(TrainConfig(epochs=150), yaml.safe_load("\n".join(marked_block("test: recipe"))))
    steps = [(epoch, recipe_of(train, stage_of(train, epoch))) for epoch in (30, 31, 61)]
    rates = [recipe.lr * lr_factor(train.schedule, (epoch - 0.5) / 150) for epoch, recipe in steps]
    assert rates == pytest.approx([0.001, 0.05, 0.005])
    assert (steps[0][1].optimizer, steps[1][1].optimizer) == ("adam", "sgd")


def test_links_and_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    named = re.findall(r"`((?:\.ci|deploy|tests|search_spaces|analysis|tunelab)/[\w./]+)`", README)
    assert links
    assert named
    titles = re.findall(r"^##+ (.+)$", README, re.MULTILINE)
    sections = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert [path for path in [*links, *named] if path not in sections and not (ROOT / path).exists()] == []
