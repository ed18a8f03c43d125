"""`tunelab describe` and `tunelab trust`, as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.cli import run
from tunelab.config import ArchSpec, BlockSpec, LeNetSpec, StemSpec, TrialConfig, from_json, to_json
from tunelab.models.check import check

if TYPE_CHECKING:
    from tests.conftest import MakeModel, MakeStudy

ARCH = ArchSpec(StemSpec(8), ((BlockSpec("basic", 16, 2),) * 3,))


def asked(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    capfd.readouterr()
    status = run([str(word) for word in words])
    return status, *capfd.readouterr()


def described(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    status, out, err = asked(capfd, "describe", *words, "--json")
    assert status == 0, err
    shown: dict[str, Any] = json.loads(out)
    return shown


def assert_whole(shown: dict[str, Any]) -> None:
    """The layers are those of the network, and the totals those of the check."""
    arch = from_json(TrialConfig, {"arch": shown["arch"]}).arch
    images = {"image_size": tuple(shown["image_size"]), "channels": shown["channels"], "classes": shown["classes"]}
    stats = check(arch, **images)
    assert sum(row["params"] for row in shown["layers"]) == shown["totals"]["params"] == stats.params
    assert sum(row["multiply_adds"] for row in shown["layers"]) == round(stats.mflops * 1e6)


def test_a_trial_with_the_images_of_its_study_and_with_others(
    capfd: pytest.CaptureFixture[str], make_study: MakeStudy
) -> None:
    study = make_study([("COMPLETED", [0.1] * 4), ("COMPLETED", [0.5] * 4)])
    shown = described(capfd, study.path, 0)
    assert (shown["trial"], shown["image_size"], shown["channels"], shown["classes"]) == (0, [8, 8], 1, 10)
    assert_whole(shown)
    assert described(capfd, study.name)["trial"] == 1, "the best one, found in the folder of studies"
    other = described(capfd, study.path, 1, "--image-size", 40, "--channels", 3, "--classes", 7)
    assert (other["image_size"], other["channels"], other["classes"]) == ([40, 40], 3, 7)
    assert other["totals"]["receptive_field"] == 3 + 2 * 2 + 2 * 1 + 2 * 2
    assert_whole(other)
    status, out, _ = asked(capfd, "describe", study.path, 0)
    assert status == 0
    assert "branches.0.1.residual.0" in out
    assert "a value of its last maps sees 13x13 pixels" in out
    assert "FLOPs as torchvision counts them" in out


@pytest.mark.parametrize("name", ["arch", "lenet", "mlp"])
def test_a_space(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    shown = described(capfd, name, "--image-size", 28, "--channels", 1)
    assert_whole(shown)
    assert shown["version"] == 1
    parameters = {row["name"]: row for row in shown["parameters"]}
    assert parameters["batch_size"]["kind"] == "choice"
    assert all(0 < row["asked"] <= 1 for row in parameters.values())
    status, out, _ = asked(capfd, "describe", name, "--image-size", 28)
    assert status == 0
    assert shown["summary"] in out
    assert all(f"grid {grid}: {entries} configurations" in out for grid, entries in shown["grids"].items())
    assert name != "arch" or "branch_#_block_#_kind (36 of them)" in out


def test_a_space_for_images_that_it_cannot_take(capfd: pytest.CaptureFixture[str]) -> None:
    shown = described(capfd, "lenet", "--image-size", 30)
    assert shown["baseline"] is None
    assert "LeNet-5 takes images of 28x28 or 32x32 pixels" in shown["refusal"]
    assert shown["parameters"]
    assert "no network to show: LeNet-5 takes" in asked(capfd, "describe", "lenet", "--image-size", 30)[1]


def test_recipe_needs_a_study(capfd: pytest.CaptureFixture[str], make_study: MakeStudy) -> None:
    study = make_study([("COMPLETED", [0.1] * 4)])
    shown = described(capfd, "recipe", "--from", study.path)
    assert shown["arch"] == to_json(study.config(study.trial(0)).arch)
    assert (shown["image_size"], shown["channels"]) == ([8, 8], 1), "those of the study"
    assert {"later", "averaging", "schedule"} <= {row["name"] for row in shown["parameters"]}


@pytest.mark.parametrize("what", ["config", "arch", "yaml"])
def test_a_file(what: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain = to_json(TrialConfig(ARCH)) if what == "config" else to_json(ARCH)
    file = tmp_path / ("net.yml" if what == "yaml" else "net.json")
    text = "{activation: tanh, pooling: max, init: he}" if what == "yaml" else json.dumps(plain)
    file.write_text(text)
    shown = described(capfd, file)
    assert shown["arch"] == (to_json(LeNetSpec("tanh", "max", "he")) if what == "yaml" else to_json(ARCH))
    assert (shown["image_size"], shown["channels"], shown["classes"]) == ([32, 32], 3, 10)
    assert_whole(shown)


def test_the_description_of_a_model(capfd: pytest.CaptureFixture[str], make_model: MakeModel) -> None:
    shown = described(capfd, make_model(channels=3, image_size=(9, 7)) / "config.json")
    assert (shown["image_size"], shown["channels"], shown["classes"]) == ([9, 7], 3, 3)
    assert_whole(shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("describe", "SUBJECT"),
        ("describe nowhere", "nowhere is neither a study, here or in "),
        ("describe nowhere.py", "there is no space file "),
        ("describe nowhere.json", "nowhere.json cannot be read: No such file"),
        ("describe bad.json", "bad.json is no configuration of a network: TrialConfig: arch.activation"),
        ("describe list.yaml", "it must be a mapping of names to values"),
        ("describe torn.yaml", "torn.yaml is neither YAML nor JSON"),
        ("describe small.json --image-size 4", "block 3 of branch 1 halves a map of 1x1 pixel (the images have 4x4)"),
        ("describe arch 3", "a TRIAL can only be of a study; arch is none"),
        ("describe arch --image-size 0", "--image-size"),
        ("describe arch --classes 1", "--classes"),
        ("describe recipe", "begins with the network of a study"),
        ("describe empty", "is not a study"),
        ("describe small.json --from x", "there is no study x to start from"),
        ("describe own.json", "not allowed yet"),
        ("trust nowhere.py:build", "there is no file of a factory"),
        ("trust nowhere", "factory: string should match pattern"),
        ("trust", "FACTORY"),
    ],
)
def test_what_cannot_be_described_is_one_line(
    words: str, said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"activation": "gelu", "pooling": "max"}')
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "torn.yaml").write_text("a: [")
    (tmp_path / "small.json").write_text(json.dumps(to_json(ARCH)))
    (tmp_path / "net.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "own.json").write_text('{"factory": "net.py:build", "arguments": {}}')
    status, out, err = asked(capfd, *words.split())
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_network_of_ones_own_is_described_when_it_is_trusted(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\n\ndef build(channels, classes, image_size, width):\n"
    code += "    first = [nn.Conv2d(channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
    (tmp_path / "net.py").write_text(code + "    return nn.Sequential(*first, nn.Linear(width, classes))\n")
    (tmp_path / "own.yaml").write_text("{factory: 'net.py:build', arguments: {width: 5}}")
    assert asked(capfd, "describe", "own.yaml")[0] == 2
    status, out, _ = asked(capfd, "trust", "net.py:build")
    assert status == 0
    assert out.startswith(f"{tmp_path}/net.py:build may make networks, as its file is now (sha256 ")
    shown = described(capfd, "own.yaml")
    assert [row["shape"] for row in shown["layers"]] == [[5, 30, 30], [5, 1, 1], [5], [10]]
    assert shown["totals"]["receptive_field"] is None
    assert_whole(shown)


def test_it_needs_neither_ray_nor_data(capfd: pytest.CaptureFixture[str], cache_dir: Path) -> None:
    before = sorted(cache_dir.rglob("*"))
    loaded = "ray" in sys.modules
    described(capfd, "arch", "--image-size", 40)
    assert ("ray" in sys.modules) is loaded
    assert sorted(cache_dir.rglob("*")) == before
