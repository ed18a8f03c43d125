"""The command line: its surface, its answers, and one clear line for everything that is wrong."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from PIL import Image

from tunelab import commands
from tunelab.cli import run
from tunelab.cli import tunelab as command_line
from tunelab.records import Trial
from tunelab.summary import template

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

# Adding an option is a decision, not an accident.
SURFACE = {
    "search": (
        "space --trials --epochs --data --data-dir --download --skip-unreadable --image-size --limit-train"
        " --val-fraction --study --dry-run --race --warm-start --from --from-trial --grid --repeat --objective --seed"
        " --cpus-per-trial --gpus-per-trial --device --sampler --scheduler --max-params --max-mflops --telemetry"
        " --no-health --health-grace --keep-weights --deadline --trial-timeout --supervise --concurrent --memory"
        " --address --dashboard --storage --runs-dir --config --json"
    ),
    "resume": "study --deadline --trial-timeout --supervise --concurrent --address --dashboard --runs-dir --json",
    "extend": (
        "study --trials --epochs --grid --deadline --supervise --concurrent --address --dashboard --runs-dir --json"
    ),
    "best": (
        "study --top --retrain --epochs --seeds --trial --keep-val --average --recipe --compile --telemetry --gpus"
        " --processes --address --runs-dir --json"
    ),
    "ablate": "study --trial --epochs --seeds --components --list --address --runs-dir --json",
    "profile": (
        "study trial --space --data --data-dir --download --skip-unreadable --image-size --limit-train --val-fraction"
        " --batch-sizes --threads --device --seconds --out --runs-dir --json"
    ),
    "dashboard": "study --port --runs-dir --json",
    "importance": "study --epochs --runs-dir --json",
    "compare": "studies --runs-dir --json",
    "predict": "model images --top-k --batch-size --device --out --skip-unreadable --runs-dir --json",
    "export": "model --format --out --runs-dir --json",
    "reproduce": "study trial --address --runs-dir --json",
    "doctor": "--data --data-dir --address --runs-dir --json",
    "report": "study --out --runs-dir --json",
    "list": "--storage --runs-dir --json",
    "show": "study trial --runs-dir --json",
    "diagnose": "study trial --runs-dir --json",
    "spaces": "--json",
    "describe": "subject trial --image-size --channels --classes --from --from-trial --runs-dir --json",
    "new-space": "name --from-model",
    "trust": "factory",
}
RAISING_SPACE = """
SUMMARY, VERSION, BASELINES = "raises", 1, ()


def draw(suggest):
    raise RuntimeError("no such thing")
"""


class Asked:
    """What a command line answered."""

    def __init__(self, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        capfd.readouterr()
        self.status = run(arguments)
        self.out, self.err = capfd.readouterr()


def assert_one_line(asked: Asked, *words: str, status: int = 2) -> None:
    """The answer is one line on standard error, and this exit status."""
    assert asked.status == status, asked.err
    lines = asked.err.strip().splitlines()
    assert len(lines) == 1, asked.err
    assert lines[0].startswith("tunelab: ")
    assert "Traceback" not in asked.err
    assert asked.out == ""
    for word in words:
        assert word in lines[0]


def images(folder: Path, classes: str, size: int = 8, count: int = 12) -> Path:
    """A folder of grey images, one sub-folder per letter."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_surface_is_frozen() -> None:
    assert isinstance(command_line, click.Group)
    found = {
        name: " ".join(
            next((word for word in option.opts if word.startswith("--")), option.opts[0]) for option in command.params
        )
        for name, command in command_line.commands.items()
    }
    assert {name: set(words.split()) for name, words in found.items()} == {
        name: set(words.split()) for name, words in SURFACE.items()
    }


def test_every_command_that_is_written_can_be_asked_for() -> None:
    assert isinstance(command_line, click.Group)
    written = [
        value
        for module in pkgutil.iter_modules(commands.__path__)
        for value in vars(importlib.import_module(f"tunelab.commands.{module.name}")).values()
        if isinstance(value, click.Command)
    ]
    assert {command.name: command for command in written} == dict(command_line.commands)


def test_a_command_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import sys; from tunelab.cli import run; status = run(['spaces']);"
        "print(*(name for name in sys.modules if name.startswith('tunelab.commands.')), status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert set(done.stderr.split()) == {"tunelab.commands.looking", "tunelab.commands.studies", "0"}


@pytest.mark.parametrize("name", SURFACE)
def test_every_command_has_help_with_an_example(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    asked = Asked([name, "--help"], capfd)
    assert asked.status == 0
    assert f"  tunelab {name}" in asked.out
    assert asked.err == ""


def test_no_words_at_all_are_answered_with_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    asked = Asked([], capfd)
    assert (asked.status, asked.err) == (0, "")
    assert asked.out == Asked(["--help"], capfd).out


def test_the_group_has_help_with_an_example_and_a_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert "tunelab search arch --trials 16" in Asked(["--help"], capfd).out
    assert Asked(["--version"], capfd).out.startswith("tunelab")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("search nope", ["'nope'", "arch"]),
        ("search ./nope.py", ["nope.py"]),
        ("search arch --data nope", ["'nope'", "digits", "folder:PATH"]),
        ("search arch --trials 0", ["--trials", "0"]),
        ("search arch --epochs many", ["--epochs", "'many'"]),
        ("search arch --limit-train 1", ["--limit-train"]),
        ("search arch --memory much", ["--memory 'much'", "8GiB"]),
        ("search arch --memory 8", ["--memory '8'", "8GiB"]),
        ("search arch --device cpu --memory 100MiB", ["--memory: 100 MiB", "at least 470MiB"]),
        ("search arch --val-fraction 1", ["--val-fraction"]),
        ("search arch --image-size 2", ["--image-size"]),
        ("search arch --sampler magic", ["--sampler", "tpe"]),
        ("search arch --deadline soon", ["--deadline", "'soon'", "07:30"]),
        ("search arch --max-params 10", ["--max-params"]),
        ("search arch --gpus-per-trial 2 --device cpu", ["--gpus-per-trial"]),
        ("search arch --cpus-per-trial 4096 --device cpu", ["--cpus-per-trial", "4096"]),
        ("search arch --data folder:nowhere", ["nowhere"]),
        ("search arch --data npz:nowhere.npz", ["nowhere.npz"]),
        ("search arch --data mnist", ["--download", "--data-dir"]),
        ("search arch --config nowhere.yaml", ["nowhere.yaml"]),
        ("search arch --grid nowhere.yaml", ["nowhere.yaml"]),
        ("search arch --repeat 3", ["--repeat 3", "--grid"]),
        ("search arch --objective mflops", ["objective", "val_accuracy"]),
        ("search arch --objective beauty", ["--objective", "'beauty'"]),
        ("extend nowhere --trials 3", ["nowhere"]),
        ("extend", ["there is no study"]),
        ("search", ["SPACE"]),
        ("resume nowhere", ["nowhere"]),
        ("best nowhere", ["nowhere"]),
        ("best", ["there is no study"]),
        ("show nowhere", ["nowhere"]),
        ("show", ["there is no study"]),
        ("dashboard nowhere", ["nowhere"]),
        ("dashboard", ["there is no study"]),
        ("dashboard --port 70000", ["--port", "70000", "0<=x<=65535"]),
        ("diagnose nowhere", ["nowhere"]),
        ("diagnose 3", ["there is no study"]),
        ("search arch --health-grace 0", ["--health-grace", "0", "x>=1"]),
        ("importance nowhere", ["nowhere"]),
        ("importance", ["there is no study"]),
        ("importance --epochs 0", ["--epochs", "0", "x>=1"]),
        ("compare", ["STUDY"]),
        ("compare nowhere elsewhere", ["nowhere"]),
        ("profile nowhere", ["nowhere"]),
        ("profile 3", ["there is no study"]),
        ("profile --batch-sizes 32,many", ["--batch-sizes", "'many'"]),
        ("profile --batch-sizes 32,,64", ["--batch-sizes", "''"]),
        ("profile --batch-sizes 0", ["--batch-sizes", "0", "1<=x<=65536"]),
        ("profile --threads 0", ["--threads", "0", "x>=1"]),
        ("profile --threads 1,4096", ["--threads 4096", "processors"]),
        ("profile --device cpu,tpu", ["--device", "'tpu'", "cuda"]),
        ("profile --seconds 0", ["--seconds", "0"]),
        ("profile --data cifar10 --limit-train 9", ["--data and --limit-train", "--space"]),
        ("profile runs --space arch", ["--space arch", "leave out runs"]),
        ("profile --space nope", ["'nope'", "arch"]),
        ("profile --space arch --data nope", ["'nope'", "digits"]),
        ("ablate nowhere", ["nowhere"]),
        ("ablate", ["there is no study"]),
        ("ablate --seeds 0", ["--seeds", "0", "1<=x<=1000"]),
        ("ablate --epochs none", ["--epochs", "'none'"]),
        ("ablate --trial -1", ["--trial", "-1"]),
        ("predict", ["MODEL"]),
        ("predict nowhere", ["IMAGES"]),
        ("predict nowhere photo.png", ["nowhere", "model.safetensors"]),
        ("predict . photo.png", [". is not a model", "model.safetensors"]),
        ("predict nowhere photo.png --top-k 0", ["--top-k", "0", "x>=1"]),
        ("predict nowhere photo.png --device tpu", ["--device", "'tpu'"]),
        ("predict nowhere photo.png --out nowhere/file.csv", ["--out nowhere/file.csv", "No such file"]),
        ("predict nowhere photo.png --out .", ["--out .", "folder"]),
        ("export nowhere", ["nowhere", "model.safetensors"]),
        ("export . --format pickle", ["--format", "'pickle'", "onnx"]),
        ("reproduce nowhere 1", ["nowhere"]),
        ("reproduce 1", ["there is no study"]),
        ("fly", ["'fly'"]),
        ("search arch --fly", ["--fly"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: str,
    said: list[str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(Asked(words.split(), capfd), *said)
    assert not runs_dir.exists()


def test_bad_folders_are_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path, runs_dir: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(Asked(["search", "arch", "--data", f"folder:{tmp_path / 'empty'}"], capfd), "empty")
    one = images(tmp_path / "one", "a")
    assert_one_line(Asked(["search", "arch", "--data", f"folder:{one}"], capfd), "class")
    mixed = images(tmp_path / "mixed", "ab")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(mixed / "a" / "large.png")
    assert_one_line(Asked(["search", "arch", "--data", f"folder:{mixed}"], capfd), "--image-size", "9x9")
    text = images(tmp_path / "text", "ab")
    (text / "b" / "note.txt").write_text("not an image")
    assert_one_line(Asked(["search", "arch", "--data", f"folder:{text}"], capfd), "note.txt", "--skip-unreadable")
    assert not runs_dir.exists()


def test_a_corrupt_archive_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    np.savez(path, images=np.zeros((40, 8, 8), dtype=np.uint8), labels=np.arange(40) % 2)
    path.write_bytes(path.read_bytes()[:900])
    assert_one_line(Asked(["search", "arch", "--data", f"npz:{path}"], capfd), "cut.npz")


@pytest.fixture
def halted(monkeypatch: pytest.MonkeyPatch, no_calibration: None) -> list[str]:
    """Searches are begun and halted at once, instead of run on Ray; the reason is what the list holds last."""
    reasons = ["SIGTERM"]
    monkeypatch.setattr("tunelab.tuning.ray_tune.run", lambda engine, slots, **more: engine.halt(reasons[-1]))
    return reasons


@pytest.mark.parametrize(("why", "status"), [("SIGTERM", 3), ("SIGHUP", 3), ("deadline", 3), ("SIGINT", 130)])
def test_a_search_that_was_stopped_says_how_to_go_on(
    why: str, status: int, halted: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    halted.append(why)
    for command in (
        ["search", "arch", "--trials", "2", "--study", str(tmp_path / why)],
        ["resume", str(tmp_path / why)],
    ):
        asked = Asked(command, capfd)
        assert (asked.status, asked.out) == (status, "")
        assert asked.err.splitlines()[-1] == (
            f"tunelab: stopped before the end ({why}): 2 trials are left; `tunelab resume {tmp_path / why}` goes on"
        )


@pytest.mark.usefixtures("no_calibration")
def test_a_dry_run_says_how_long_it_takes_and_makes_nothing(
    capfd: pytest.CaptureFixture[str], runs_dir: Path, tmp_path: Path
) -> None:
    command = ["search", "arch", "--trials", "300", "--deadline", "2m", "--dry-run"]
    asked = Asked(command, capfd)
    assert (asked.status, asked.err) == (0, "")
    first, second, third = asked.out.splitlines()
    assert re.fullmatch(
        r"forecast: 300 trials need [\d.]+ (min|h) \([\d.]+ to [\d.]+\); there are (2|1\.\d) min: \d+ trials?"
        r"(, or 300 with --epochs \d+)?",
        first,
    )
    assert second == "nothing was measured", "how the machine is shared; the fixture says so"
    assert re.fullmatch(
        r"space: about \d+ MiB in the study \(checkpoints of running trials [\d.]+ MiB, of the best 10 [\d.]+ MiB, "
        r"events [\d.]+ MiB, record [\d.]+ MiB, to spare 100 MiB\)",
        third,
    )
    asked = Asked([*command, "--json"], capfd)
    found = json.loads(asked.out)
    assert (asked.status, asked.err) == (0, "")
    assert 0 < found["low"] < found["expected"] < found["high"]
    assert found["seconds_until_deadline"] == pytest.approx(120, abs=30)
    assert found["trials_that_fit"] < 300
    assert found["calibration"]["slots"]["concurrent"] >= 1
    assert found["bytes_needed"]["study"] > found["bytes_needed"]["kept"] > 0
    assert not runs_dir.exists()
    assert_one_line(Asked(["search", "nothing", "--dry-run"], capfd), "'nothing'")


def test_a_resumed_search_says_how_long_the_rest_takes(
    halted: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Asked(["search", "arch", "--trials", "2", "--study", str(tmp_path / "study")], capfd)
    said = Asked(["resume", str(tmp_path / "study"), "--deadline", "8h"], capfd).err.splitlines()[0]
    assert re.fullmatch(r"forecast: 2 trials need .* \(.* to .*\); there are 8 h: all of them fit", said)


def test_files_that_are_no_images_can_be_skipped(
    halted: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = images(tmp_path / "text", "ab", count=40)
    (text / "b" / "note.txt").write_text("not an image")
    command = ["search", "arch", "--data", f"folder:{text}", "--study", str(tmp_path / "study"), "--skip-unreadable"]
    asked = Asked(command, capfd)
    assert asked.status == 3, asked.err
    assert next(line for line in asked.err.splitlines() if "unreadable" in line).startswith("data: 1 unreadable file")
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert sum(study["data"]["counts"].values()) == 80


def test_images_of_mixed_sizes_are_resized_and_that_is_said_once(
    halted: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mixed = images(tmp_path / "mixed", "ab", count=40)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(mixed / "a" / "large.png")
    command = ["search", "arch", "--data", f"folder:{mixed}", "--study", str(tmp_path / "study"), "--image-size", "12"]
    asked = Asked(command, capfd)
    assert asked.status == 3, asked.err
    assert [line for line in asked.err.splitlines() if "resized" in line] == [
        "data: images of 2 sizes resized to 12x12"
    ]


def test_a_small_disk_is_one_line_and_nothing_is_made_on_it(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here; test_runner.py has the same without one")
    try:
        asked = Asked(["search", "arch", "--study", str(disk / "study")], capfd)
        assert_one_line(asked, "no room", str(disk), "--runs-dir")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_place_that_is_no_folder_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for option in (["--runs-dir", str(tmp_path / "file")], ["--study", str(tmp_path / "file" / "study")]):
        assert_one_line(Asked(["search", "arch", *option], capfd), "cannot be made", "file")


def test_a_store_in_the_place_of_a_folder_is_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in ("--study", "--runs-dir", "--warm-start", "--from"):
        assert_one_line(Asked(["search", "arch", option, "s3://bucket/x"], capfd), option, "s3://bucket/x", "no folder")
    for words in (["list", "--runs-dir"], ["describe", "recipe", "--from"], ["export"]):
        assert_one_line(Asked([*words, "s3://bucket/x"], capfd), "s3://bucket/x is no folder", "--storage")
    assert_one_line(Asked(["search", "arch", "--storage", "s3:bucket/x"], capfd), "--storage s3:", "s3://BUCKET")
    monkeypatch.setenv("TUNELAB_RUNS", "s3://bucket/x")
    assert_one_line(Asked(["search", "arch"], capfd), "--runs-dir s3://bucket/x", "no folder")
    assert list(tmp_path.iterdir()) == []


def test_a_space_that_raises_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path, runs_dir: Path) -> None:
    path = tmp_path / "raising.py"
    path.write_text(RAISING_SPACE)
    assert_one_line(Asked(["search", str(path)], capfd), "RuntimeError", "no such thing")
    assert not runs_dir.exists()


def test_an_existing_folder_is_no_new_study(capfd: pytest.CaptureFixture[str], make_study: MakeStudy) -> None:
    path = str(make_study().path)
    assert_one_line(Asked(["search", "arch", "--study", path], capfd), "exists already", f"tunelab resume {path}")


def test_debug_shows_the_traceback_before_and_after_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "best"], ["best", "--debug"]):
        asked = Asked(arguments, capfd)
        assert asked.status == 2
        assert "Traceback" in asked.err


def test_options_of_retraining_need_it(capfd: pytest.CaptureFixture[str], make_study: MakeStudy) -> None:
    path = str(make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])]).path)
    assert_one_line(Asked(["best", path, "--epochs", "150"], capfd), "--epochs", "--retrain")
    assert_one_line(Asked(["best", path, "--seeds", "3"], capfd), "--seeds", "--retrain")
    assert_one_line(Asked(["best", path, "--keep-val", "--trial", "0"], capfd), "--trial and --keep-val", "--retrain")
    assert_one_line(Asked(["best", path, "--compile", "off"], capfd), "--compile", "--retrain")
    assert_one_line(Asked(["best", path, "--average", "ema"], capfd), "--average", "--retrain")
    assert_one_line(Asked(["best", path, "--telemetry", "full"], capfd), "--telemetry", "--retrain")
    assert_one_line(Asked(["best", path, "--gpus", "4"], capfd), "--gpus", "--retrain")
    assert_one_line(Asked(["best", path, "--recipe", __file__], capfd), "--recipe", "--retrain")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr: 0.1", ["lrr: unexpected keyword argument"]),
        ("- lr: 0.1", ["must hold lines such as `lr: 0.05`"]),
        ("lr: [", ["is not YAML"]),
        ("[" * 5000, ["nested too deeply"]),
        ("epochs: 3", ["--epochs says how many"]),
        ("stages: [{begin: 0.5, optimizer: lion, lr: 0.1}]", ["optimizer 'lion' is unknown"]),
        ("x" * 200_000, ["is larger than"]),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(
    text: str, words: list[str], capfd: pytest.CaptureFixture[str], make_study: MakeStudy, tmp_path: Path
) -> None:
    path = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])]).path
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert_one_line(Asked(["best", str(path), "--retrain", "--recipe", str(file)], capfd), *words)
    assert not list(path.glob("retrain-*"))


@pytest.mark.parametrize("option", [[], ["--retrain"]])
def test_best_of_nothing(option: list[str], capfd: pytest.CaptureFixture[str], make_study: MakeStudy) -> None:
    path = str(make_study([("STOPPED", [0.9]), ("FAILED", [0.99])]).path)
    asked = Asked(["best", path, *option], capfd)
    if option:
        assert_one_line(asked, "no trial", "1 stopped, 1 failed")
    else:
        assert asked.status == 0
        assert "no trial has run its full length yet" in asked.out


def test_the_reading_commands_answer_in_words_and_in_json(
    capfd: pytest.CaptureFixture[str], make_study: MakeStudy
) -> None:
    study = make_study(
        [("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("COMPLETED", [0.2, 0.3, 0.4, 0.5]), ("FAILED", [0.9])], asked=4
    )
    best = Asked(["best"], capfd)
    assert best.status == 0
    assert best.err == ""
    assert "50.0%" in best.out
    assert "1 failed" in best.out
    shown = json.loads(Asked(["best", "--json", "--top", "1"], capfd).out)
    assert [row["trial"] for row in shown["ranking"]] == [1]
    assert shown["asked"] == 4
    listed = json.loads(Asked(["list", "--json"], capfd).out)
    assert [(row["study"], row["state"], row["best"]) for row in listed] == [("study", "paused", 0.5)]
    assert "study" in Asked(["list"], capfd).out
    summary = json.loads(Asked(["show", "study", "--json"], capfd).out)
    assert summary["statuses"] == {"COMPLETED": 2, "FAILED": 1}
    assert "failed for a reason" in Asked(["show"], capfd).out
    one = json.loads(Asked(["show", str(study.path), "1", "--json"], capfd).out)
    assert [epoch["val_accuracy"] for epoch in one["epochs"]] == [0.2, 0.3, 0.4, 0.5]
    assert [epoch["effective_lr"] for epoch in one["epochs"]] == [None] * 4, "this record has no norms"
    assert one["ending"]["saw_teeth"] == 0
    assert "trial 1" in Asked(["show", "1"], capfd).out
    assert_one_line(Asked(["show", "study", "9"], capfd), "no trial 9", "3 trials")


def test_spaces_and_an_empty_list(capfd: pytest.CaptureFixture[str]) -> None:
    listed = {row["name"]: row for row in json.loads(Asked(["spaces", "--json"], capfd).out)}
    assert listed["arch"]["grids"] == []
    assert "arch" in Asked(["spaces"], capfd).out
    assert json.loads(Asked(["list", "--json"], capfd).out) == []
    assert "there are no studies" in Asked(["list"], capfd).out


# The plot of several objectives.

TWO = {"objective": ["val_accuracy", "mflops"], "trials": 2, "epochs": 4, "device": "cpu"}


def test_best_draws_the_plot_of_several_objectives(
    capfd: pytest.CaptureFixture[str], make_study: MakeStudy, tmp_path: Path
) -> None:
    scores = [("COMPLETED", [0.1, 0.2, 0.3, 0.4]), ("COMPLETED", [0.2, 0.3, 0.4, 0.5])]
    one, two = make_study(scores), make_study(scores, path=tmp_path / "two", info={"options": TWO})
    for study, drawn in ((one, False), (two, True)):
        assert Asked(["best", str(study.path)], capfd).status == 0
        assert (study.path / "pareto.png").exists() == drawn


def test_a_plot_that_cannot_be_written_is_said_and_no_error(
    capfd: pytest.CaptureFixture[str], make_study: MakeStudy
) -> None:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], info={"options": TWO})
    (study.path / "pareto.png").mkdir()
    asked = Asked(["best", "--json"], capfd)
    assert asked.status == 0
    assert json.loads(asked.out)["ranking"]
    assert asked.err == f"tunelab: the plot of {study.path} cannot be written: Is a directory\n"


@pytest.mark.parametrize("why", ["deadline", "SIGINT"])
def test_a_search_that_was_stopped_leaves_its_plot(
    why: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, make_study: MakeStudy
) -> None:
    from tunelab.tuning.execute import PausedError

    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])], info={"options": TWO})

    def stop(*_given: Any, **_options: Any) -> None:
        raise PausedError(study, why, 1)

    monkeypatch.setattr("tunelab.tuning.runner.start_search", stop)
    monkeypatch.setattr("tunelab.tuning.runner.resume", stop)
    monkeypatch.setattr("tunelab.tuning.extend.extend", stop)
    for command in (["search", "arch"], ["resume"], ["extend", "--trials", "3"]):
        asked = Asked(command, capfd)
        assert asked.status == (130 if why == "SIGINT" else 3)
        assert len(asked.err.splitlines()) == 1
        (study.path / "pareto.png").unlink()


def test_health_is_watched_unless_it_is_said_not_to(
    capfd: pytest.CaptureFixture[str], started: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "options.yaml").write_text("no-health: yes\nhealth-grace: 7\n")
    for words in ([], ["--no-health", "--health-grace", "5"], ["--config", str(tmp_path / "options.yaml")]):
        assert Asked(["search", "arch", *words], capfd).status == 0
    told = [(options.health, options.health_grace) for _, options, *_ in started]
    assert told == [(True, 3), (False, 5), (False, 7)]


def test_weights_are_kept_of_ten_unless_something_else_is_said(
    capfd: pytest.CaptureFixture[str], started: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "options.yaml").write_text("keep-weights: all\n")
    for words in (
        [],
        ["--keep-weights", "0"],
        ["--keep-weights", "all"],
        ["--config", str(tmp_path / "options.yaml")],
    ):
        assert Asked(["search", "arch", *words], capfd).status == 0
    assert [options.keep_weights for _, options, *_ in started] == [10, 0, None, None]
    assert_one_line(Asked(["search", "arch", "--keep-weights", "-1"], capfd), "--keep-weights", "'-1'", "all")


def test_an_earlier_study_is_found_by_name_and_counts_once(
    capfd: pytest.CaptureFixture[str], started: list[Any], runs_dir: Path
) -> None:
    words = ["--warm-start", "study", "--warm-start", str(runs_dir / "study"), "--warm-start", f"{runs_dir}/./study"]
    assert Asked(["search", "arch", *words], capfd).status == 0
    assert started[0][1].warm_start == (str(runs_dir / "study"),)
    asked = Asked(["search", "arch", "--grid", "rates.yaml", *words], capfd)
    assert_one_line(asked, "--warm-start changes nothing with --grid alone", "give --trials")


def test_options_that_are_not_given_are_those_of_a_template(
    capfd: pytest.CaptureFixture[str], started: list[Any], make_study: MakeStudy, tmp_path: Path
) -> None:
    content = template(make_study(path=tmp_path / "other"), Trial(0, {}, {"lr": 0.1}))
    content["options"] = {"epochs": 7, "max_params": 9000, "data": {"name": "mnist", "limit_train": 300}}
    file = tmp_path / "one.json"
    file.write_text(json.dumps(content))
    asked = Asked(["search", "arch", "--grid", str(file), "--limit-train", "200"], capfd)
    assert asked.status == 0
    options = started[0][1]
    assert (options.epochs, options.max_params, options.data.name, options.data.limit_train) == (7, 9000, "mnist", 200)
    assert f"note: epochs 7, max_params 9000, data mnist, as {file} has it" in asked.err
    named = Asked(["search", "arch", "--grid", "strategies", "--epochs", "3"], capfd)
    assert named.status == 0
    assert (started[1][1].epochs, started[1][1].data.name) == (3, "digits")


# Options from a file. `started` is what the search would have been started with.


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, make_study: MakeStudy) -> list[Any]:
    study = make_study()
    calls: list[Any] = []

    def start_search(
        space: str, options: Any, path: Any, runs: Any, deadline: Any, grid: Any, site: Any, storage: Any
    ) -> Any:
        calls.append((space, options, deadline))
        return study

    monkeypatch.setattr("tunelab.tuning.runner.start_search", start_search)
    return calls


def test_a_file_gives_options_and_the_command_line_wins(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, started: list[Any]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        "trials: 7\nepochs: 012\nmax_mflops: 2e1\nlimit-train: 500\ndeadline: 07:30\nskip-unreadable: yes\n"
    )
    asked = Asked(["search", "arch", "--config", str(file), "--trials", "3"], capfd)
    assert asked.status == 0, asked.err
    ((space, options, deadline),) = started
    assert (space, options.trials, options.epochs, options.max_mflops) == ("arch", 3, 12, 20.0)
    assert (options.data.limit_train, options.data.skip_unreadable, deadline) == (500, True, "07:30")


def test_json_can_be_asked_for_in_a_file(capfd: pytest.CaptureFixture[str], tmp_path: Path, started: list[Any]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("json: yes\nruns-dir: elsewhere\ndownload: no\n")
    asked = Asked(["search", "arch", "--config", str(file)], capfd)
    assert json.loads(asked.out)["trials"] == 0
    assert not started[0][1].data.download


def test_an_empty_file_changes_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path, started: list[Any]) -> None:
    (tmp_path / "options.yaml").write_text("# trials: 3\n")
    assert Asked(["search", "arch", "--config", str(tmp_path / "options.yaml")], capfd).status == 0
    assert started[0][1].trials == 100


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe\x00", "is not YAML"), (b"#" * 1_000_001, "larger than 1,000,000 bytes")]
)
def test_a_file_of_something_else_is_one_line(
    content: bytes, said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, started: list[Any]
) -> None:
    (tmp_path / "options.yaml").write_bytes(content)
    assert_one_line(Asked(["search", "arch", "--config", str(tmp_path / "options.yaml")], capfd), said)
    assert_one_line(Asked(["search", "arch", "--config", str(tmp_path)], capfd), "is a directory")
    assert not started


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trials: 3\ntrials: 4\n", ["'trials'", "twice"]),
        ("max-params: 3\nmax_params: 4\n", ["'max_params'", "twice"]),
        ("? [trials, epochs]\n: 3\n", ["`trials: 16`"]),
        ("trials: 3\n---\ntrials: 4\n", ["not YAML"]),
        ("trials: &many [*many]\n", ["line 1", "contains itself"]),
        ("trials: " + "[" * 5000, ["nested too deeply"]),
        ("trials:\n", ["--trials"]),
        ("config: other.yaml\n", ["'config'"]),
        ("help: yes\n", ["'help'"]),
        ("trails: 3\n", ["'trails'", "trials"]),
        ("space: arch\n", ["'space'"]),
        ("data:\n  name: digits\n", ["'data'", "one value"]),
        ("- trials\n", ["`trials: 16`"]),
        ("trials: [3\n", ["not YAML"]),
        ("trials: many\n", ["--trials", "'many'"]),
        ("download: perhaps\n", ["perhaps"]),
    ],
)
def test_a_bad_file_is_one_line(
    text: str, said: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, started: list[Any]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert_one_line(Asked(["search", "arch", "--config", str(file)], capfd), *said)
    assert not started


def test_what_nobody_expected_is_one_line_too(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, left_out: list[str]) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("tunelab.study.list_studies", fail)
    assert_one_line(Asked(["list"], capfd), "RuntimeError", "two lines", "--debug", status=1)


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "search --help",
        "profile --help",
        "predict --help",
        "export --help",
        "reproduce --help",
        "best",
        "best --json",
        "list",
        "show",
        "show 0",
        "spaces",
    ],
)
def test_looking_imports_neither_torch_nor_ray(words: str, make_study: MakeStudy) -> None:
    make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    code = (
        "import sys; from tunelab.cli import run; status = run(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'optuna', 'pandas', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, timeout=300, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 3), (signal.SIGHUP, 3), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_one_line(
    number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has cleaned up by then, and the process answers signals as before."""
    cleaned = []

    def wait(**_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned.append([signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)])

    monkeypatch.setattr(importlib.import_module("tunelab.commands.looking").list_command, "callback", wait)
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    asked = Asked(["list"], capfd)
    assert asked.status == status
    said = "interrupted" if number is signal.SIGINT else f"stopped ({number.name})"
    assert asked.err.strip() == f"tunelab: {said}"
    assert len(cleaned) == 1
    if number is not signal.SIGINT:
        assert cleaned == [[signal.SIG_DFL] * 2], "a second one ends the process at once"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As under nohup."""

    def wait(**_: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(importlib.import_module("tunelab.commands.looking").list_command, "callback", wait)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert Asked(["list"], capfd).status == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
