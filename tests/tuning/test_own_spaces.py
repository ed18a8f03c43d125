"""Spaces and networks of the user's own, as a search meets them: good ones work, bad ones are one clear line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab.cli import run
from tunelab.config import CustomSpec
from tunelab.errors import InputError
from tunelab.study import load
from tunelab.tuning.extend import extend
from tunelab.tuning.runner import PausedError, resume, search

if TYPE_CHECKING:
    from tests.tuning.conftest import Played

SMALL: dict[str, Any] = {"epochs": 2, "limit_train": 100, "progress": False, "sampler": "tpe", "race": 0.0}
HEAD = """\
from tunelab.config import ArchSpec, BlockSpec, CustomSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY, VERSION, BASELINES = "bad", 1, ()
ARCH = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))


"""
MODEL = """\
from torch import nn


def build(channels, classes, image_size, width=4):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def plain(channels, classes, image_size, width=4):
    layers = [nn.Conv2d(channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, classes))
"""
OWN = """\
from tunelab.config import CustomSpec, TrainConfig, TrialConfig
from .sizes import WIDTHS

SUMMARY, VERSION, BASELINES = "a network of my own", 1, ({"width": 4, "lr": 0.1},)


def draw(suggest):
    arguments = {"width": suggest.suggest_categorical("width", WIDTHS)}
    lr = suggest.suggest_float("lr", 0.01, 1)
    return TrialConfig(CustomSpec("models/net.py:plain", arguments), TrainConfig(lr=lr))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A space in a folder of its own, with a file beside it and a network in a folder below."""
    folder = tmp_path / "foreign"
    (folder / "models").mkdir(parents=True)
    (folder / "space.py").write_text(OWN)
    (folder / "sizes.py").write_text("WIDTHS = (4, 8)\n")
    (folder / "models" / "net.py").write_text(MODEL)
    return folder / "space.py"


BAD = {
    "raises": ("def draw(suggest):\n    raise RuntimeError('no luck')\n", "raised RuntimeError: no luck", 8),
    "wrong type": ("def draw(suggest):\n    return ARCH\n", "returned ArchSpec, not a TrialConfig", 7),
    "nothing": ("def draw(suggest):\n    pass\n", "returned NoneType, not a TrialConfig", 7),
    "no argument": ("def draw():\n    pass\n", "raised TypeError: draw() takes 0 positional arguments", 7),
    "wrong value": (
        "def draw(suggest):\n    return TrialConfig(ARCH,\n        TrainConfig(lr=-1.0))\n",
        "lr: input should be greater than 0 (got -1.0)",
        9,
    ),
    "state": (
        "def make():\n    seen = []\n\n    def draw(suggest):\n"
        "        seen.append(suggest.suggest_float('lr', 0.1, 1))\n"
        "        return TrialConfig(ARCH, TrainConfig(lr=sum(seen)))\n\n    return draw\n\n\ndraw = make()\n",
        "makes another configuration of the same parameters the second time (train differ); what it makes must depend",
        10,
    ),
    "choices": (
        "def draw(suggest):\n    many = suggest.suggest_int('many', 1, 3)\n"
        "    lr = suggest.suggest_categorical('lr', tuple(0.1 * (n + 1) for n in range(many)))\n"
        "    return TrialConfig(ARCH, TrainConfig(lr=lr))\n",
        "a name must always come with the same choices or the same kind of range: give each a name of its own",
        7,
    ),
    "unbuildable": (
        "def draw(suggest):\n    suggest.suggest_float('x', 0, 1)\n"
        "    blocks = tuple(BlockSpec('basic', 8, 2) for _ in range(6))\n"
        "    return TrialConfig(ArchSpec(StemSpec(4), (blocks,)))\n",
        "(the last: block 4 of branch 1 halves a map of 1x1 pixel (the images have 8x8)); widen",
        7,
    ),
    "syntax": (
        "def draw(suggest):\n    return TrialConfig(\n",
        "cannot be imported: SyntaxError: '(' was never closed",
        8,
    ),
    "import": (
        "import helper_of_mine\n",
        "cannot be imported: ModuleNotFoundError: No module named 'helper_of_mine'",
        7,
    ),
    "exits": ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3", 8),
    "exits in draw": ("def draw(suggest):\n    raise SystemExit(0)\n", "raised SystemExit: 0", 8),
    "no factory": (
        "def draw(suggest):\n    return TrialConfig(CustomSpec('nowhere.py:build'))\n",
        "there is no file of a factory",
        None,
    ),
    "no function": (
        "def draw(suggest):\n    return TrialConfig(CustomSpec('net.py:make'))\n",
        "there is no function 'make' there; there are nn, build, plain",
        None,
    ),
    "local function": (
        "def draw(suggest):\n    return TrialConfig(CustomSpec('net.py:plain', {'act': lambda x: x}))\n",
        "value error, must be plain JSON values (Object of type function",
        8,
    ),
    "a factory that fails": (
        "def draw(suggest):\n    width = suggest.suggest_int('width', -2, -1)\n"
        "    return TrialConfig(CustomSpec('net.py:plain', {'width': width}))\n",
        "net.py:plain raised RuntimeError: Trying to create tensor with negative dimension",
        None,
    ),
    "wrong scores": (
        "def draw(suggest):\n    suggest.suggest_float('x', 0, 1)\n"
        "    return TrialConfig(CustomSpec('wrong.py:build'))\n",
        "wrong.py:build gives torch.float32 of shape (2, 3) for 2 images in training; it must give scores of shape (2,",
        None,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_space_is_one_line_with_its_file(
    name: str,
    tmp_path: Path,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_calibration: None,
) -> None:
    text, said, line = BAD[name]
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "wrong.py").write_text(
        MODEL.replace("nn.Linear(width, classes)", "nn.Linear(width, 3)") + "\nbuild = plain\n"
    )
    (tmp_path / "bad.py").write_text(HEAD + text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status = run(["search", "../bad.py", "--trials", "2", "--limit-train", "100", "--device", "cpu"])
    out, err = capfd.readouterr()
    assert (status, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    assert said in err
    if line is not None:
        assert f"{tmp_path / 'bad.py'}, line {line})" in err
    assert "Traceback" not in err
    assert not runs_dir.exists()


def test_a_closure_is_no_harm(tmp_path: Path, played: Played) -> None:
    """What is closed over and does not change is as good as a constant: no process but this one needs the function."""
    text = (
        "def make(width):\n    def draw(suggest):\n"
        "        arch = ArchSpec(StemSpec(width), ((BlockSpec('basic', 8, 2, 1),),))\n"
        "        return TrialConfig(arch, TrainConfig(lr=suggest.suggest_float('lr', 0.1, 1)))\n\n    return draw\n\n\n"
        "draw = make(4)\n"
    )
    (tmp_path / "closed.py").write_text(HEAD + text)
    assert len(search(str(tmp_path / "closed.py"), trials=2, **SMALL).list_trials()) == 2


def test_a_space_in_a_foreign_folder(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played: Played
) -> None:
    """Started from elsewhere, resumed from elsewhere again; it imports a file beside it, and changes no path."""
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 2 else ""
    with pytest.raises(PausedError):
        search("foreign/space.py", trials=4, study=tmp_path / "study", **SMALL)
    played.halt = lambda trial, epoch: ""
    monkeypatch.chdir("/")
    study = resume(tmp_path / "study", progress=False)
    archs = [study.config(trial).arch for trial in study.list_trials()]
    assert len(archs) == 4
    for arch in archs:
        assert isinstance(arch, CustomSpec)
        assert arch.factory == f"{own.parent / 'models' / 'net.py'}:plain"
        assert len(arch.sha256) == 64
    assert sys.path == before
    assert "sizes" not in sys.modules
    assert {trial.stats["params"] for trial in study.list_trials()} <= {4 * 10 + 50, 8 * 10 + 90}


def test_code_that_has_changed_is_not_gone_on_with(own: Path, tmp_path: Path, played: Played) -> None:
    model = own.parent / "models" / "net.py"
    study = search(str(own), trials=2, **SMALL)
    model.write_text(MODEL.replace("nn.AdaptiveAvgPool2d", "nn.AdaptiveMaxPool2d"))
    for go_on in (lambda: resume(study, progress=False), lambda: extend(study, trials=3, progress=False)):
        with pytest.raises(InputError, match=r"net.py, which .* has changed .* when the VERSION of its space"):
            go_on()
    model.unlink()
    with pytest.raises(InputError, match=r"there is no file of a factory .*net\.py"):
        resume(study, progress=False)
    model.write_text(MODEL)
    assert len(extend(study, trials=3, progress=False).list_trials()) == 3


def test_another_version_may_have_other_code(own: Path, played: Played) -> None:
    study = search(str(own), trials=2, **SMALL)
    (own.parent / "models" / "net.py").write_text(MODEL + "\n# another one\n")
    own.write_text(OWN.replace('"a network of my own", 1', '"a network of my own", 2'))
    more = extend(study, trials=4, progress=False)
    assert more.info["spaces"][-1]["set_aside"] == [0, 1]
    hashes = [trial.config["arch"]["sha256"] for trial in more.list_trials()]
    assert len(set(hashes[:2])) == len(set(hashes[2:])) == 1
    assert hashes[0] != hashes[2]


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
def test_a_network_of_ones_own_is_searched_trained_in_full_and_used(own: Path, tmp_path: Path) -> None:
    """By Ray's workers, from another folder; its model is used until the code changes."""
    import numpy as np
    from tunelab.analysis.predict import predict
    from tunelab.analysis.retrain import retrain

    study = search(str(own), trials=2, scheduler="none", concurrent=1, cpus_per_trial=1, **SMALL)
    assert [trial.status.value for trial in study.list_trials()] == ["COMPLETED"] * 2
    metrics = retrain(study, epochs=1, compile="off", progress=False)
    images = np.zeros((2, 8, 8, 1), dtype=np.uint8)
    assert len(predict(metrics["folder"], images)) == 2
    (own.parent / "models" / "net.py").write_text(MODEL + "\nprint('other code')\n")
    with pytest.raises(InputError, match="has changed since it was recorded"):
        predict(metrics["folder"], images)


def test_recipe_keeps_the_network_and_begins_with_its_own_recipe(
    played: Played, tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the study that it comes from is gone: resumed, extended, and on the same images."""
    first = search(str(space), trials=4, study=tmp_path / "first", epochs=4, limit_train=120, progress=False, race=0.0)
    best = first.best()
    played.halt = lambda trial, epoch: "SIGTERM" if trial.number == 3 else ""
    with pytest.raises(PausedError):
        search(
            "recipe",
            from_study="first",
            runs_dir=tmp_path,
            trials=6,
            study=tmp_path / "second",
            **{name: value for name, value in SMALL.items() if name != "limit_train"},
        )
    shutil.rmtree(tmp_path / "first")
    played.halt = lambda trial, epoch: ""
    resume(tmp_path / "second", progress=False)
    study = extend(tmp_path / "second", trials=8, progress=False)
    configs = [study.config(trial) for trial in study.list_trials()]
    base = first.config(best)
    assert len(configs) == 8
    assert {config.data for config in configs} == {base.data}
    assert configs[0].train == type(base.train)(**{**vars_of(base.train), "epochs": 2})
    assert study.list_trials()[0].origin == "baseline"
    assert {config.arch.branches for config in configs} == {base.arch.branches}  # type: ignore[union-attr]
    assert len({config.train.optimizer for config in configs}) > 1
    assert study.info["options"]["base"]["trial"] == best.number


def vars_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_another_trial_and_other_data_for_recipe(played: Played, tmp_path: Path, space: Path) -> None:
    first = search(str(space), trials=3, study=tmp_path / "first", epochs=2, progress=False, race=0.0, scheduler="none")
    study = search("recipe", from_study=first.path, from_trial=2, data="digits", trials=1, **SMALL)
    assert study.config(study.list_trials()[0]).data.limit_train == 100
    assert study.info["options"]["base"]["trial"] == 2
    assert study.config(study.list_trials()[0]).train.lr == first.config(first.trial(2)).train.lr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "search recipe",
            "the space 'recipe' begins with the network of a study; `tunelab search recipe --from STUDY`",
        ),
        (
            "search arch --from STUDY",
            "the space 'arch' begins with no study; leave out --from (the space recipe needs it)",
        ),
        ("search recipe --from nowhere", "there is no study nowhere to start from"),
        ("search recipe --from-trial 3", "--from-trial 3 can only be used with --from STUDY"),
        ("search recipe --from STUDY --from-trial 30", "has no trial 30"),
        ("profile --space recipe --seconds 1 --threads 1", "begins with the network of a study"),
    ],
)
def test_from_goes_with_the_spaces_that_need_it(
    words: str, said: str, played: Played, space: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = search(str(space), trials=1, study=tmp_path / "first", **SMALL)
    capfd.readouterr()
    assert run(words.replace("STUDY", str(first.path)).split()) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert (out, len(err.strip().splitlines())) == ("", 1)


PACKAGE = {
    "setup.cfg": (
        "[metadata]\nname = birds\nversion = 1.0\n\n[options]\npackages = birds\n\n"
        "[options.entry_points]\ntunelab.spaces =\n    birds = birds.space\n    eggs = birds.broken\n"
    ),
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
    "birds/__init__.py": "",
    "birds/space.py": OWN.replace("from .sizes", "from birds.sizes").replace("models/net.py:plain", "birds.net:plain"),
    "birds/sizes.py": "WIDTHS = (4, 8)\n",
    "birds/net.py": MODEL,
    "birds/broken.py": "import sys\n\nsys.exit('not today')\n",
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_calibration")
def test_a_space_of_an_installed_package(tmp_path: Path, runs_dir: Path) -> None:
    """Built and installed here, without a network; a broken one beside it is named and hides nothing."""
    pytest.importorskip("setuptools")
    for name, text in PACKAGE.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(text)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(site), str(tmp_path / "source")], check=True, timeout=300)
    shutil.rmtree(tmp_path / "source")

    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ['PYTHONPATH']}"}

    def tunelab(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tunelab.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)

    listed = tunelab("spaces", "--json")
    assert {"name": "birds", "version": 1, "summary": "a network of my own", "grids": []} in json.loads(listed.stdout)
    assert "left out: the space 'eggs' (birds.broken) cannot be imported: SystemExit: not today" in listed.stderr
    assert f"({site / 'birds' / 'broken.py'}, line 3)" in listed.stderr
    bad = tunelab("search", "eggs", "--trials", "1")
    assert (bad.returncode, bad.stdout, len(bad.stderr.strip().splitlines())) == (2, "", 1)
    small = "--trials 2 --epochs 1 --limit-train 100 --concurrent 1 --cpus-per-trial 1 --race 0 --scheduler none"
    done = tunelab("search", "birds", *small.split(), "--study", str(runs_dir / "birds"))
    assert done.returncode == 0, done.stderr
    study = load(runs_dir / "birds")
    assert study.info["space"] == {"name": "birds", "source": "birds", "version": 1}
    assert [trial.status.value for trial in study.list_trials()] == ["COMPLETED"] * 2, done.stderr
    assert study.list_trials()[0].config["arch"]["factory"] == "birds.net:plain"
