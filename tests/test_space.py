from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import optuna
import pytest

from tunelab.config import CustomSpec, LeNetSpec, TrainConfig, TrialConfig
from tunelab.errors import InputError
from tunelab.foreign import load_factory
from tunelab.space import SearchSpace, draw_config, load_space, space_names

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block"
VERSION = 3
BASELINES = [{"width": 8}]


def draw(suggest):
    width = suggest.suggest_categorical("width", (4, 8))
    return TrialConfig(arch=ArchSpec(stem=StemSpec(width), branches=((BlockSpec("basic", width),),)))
"""


def write(path: Path, text: str = SPACE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def width_of(space: SearchSpace) -> int:
    config = space.draw(optuna.trial.FixedTrial(dict(space.baselines[0])))
    assert isinstance(config, TrialConfig)
    return config.arch.stem.width


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of modules with an installed package that offers two spaces."""
    site = tmp_path / "site"
    write(site / "foreign_space_for_tests.py")
    write(site / "broken_space_for_tests.py", "raise RuntimeError('no luck')")
    write(site / "foreign-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    write(
        site / "foreign-1.0.dist-info" / "entry_points.txt",
        """\
        [tunelab.spaces]
        foreign = foreign_space_for_tests
        broken = broken_space_for_tests
        function = foreign_space_for_tests:draw
        arch = foreign_space_for_tests
        """,
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_space_by_name() -> None:
    space = load_space("arch")
    assert (space.name, space.source) == ("arch", "arch")
    assert space.version >= 1
    assert space.summary
    assert "\n" not in space.summary
    assert width_of(space) >= 8


def test_every_space_that_comes_with_tunelab_can_be_loaded() -> None:
    assert "arch" in space_names()
    for name in space_names():
        assert load_space(name).name == name


def test_a_space_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "folder" / "my-space.py")
    space = load_space(str(file))
    assert (space.name, space.source, space.version, space.summary) == ("my-space", str(file), 3, "one block")
    assert width_of(space) == 8
    monkeypatch.chdir(tmp_path)
    assert load_space("folder/my-space.py").source == str(file), "found again from any folder"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_space("~/folder/my-space.py").source == str(file)


def test_a_space_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = write(tmp_path / "space.py")
    assert load_space(str(file)).version == 3
    write(file, SPACE.replace("VERSION = 3", "VERSION = 40"))
    assert load_space(str(file)).version == 40


def test_a_space_file_hides_no_other_module(tmp_path: Path) -> None:
    load_space(str(write(tmp_path / "json.py")))
    import json

    assert json.loads("1") == 1


def test_a_space_file_may_use_what_any_module_may(tmp_path: Path) -> None:
    """Dataclasses with annotations as text look their module up by its name."""
    head = """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Range:
            low: float = 1.0
    """
    file = write(tmp_path / "space.py", textwrap.dedent(head) + SPACE)
    assert load_space(str(file)).version == 3


def test_a_space_by_entry_point(offer: Path) -> None:
    space = load_space("foreign")
    assert (space.name, space.source, space.version) == ("foreign", "foreign", 3)
    assert width_of(space) == 8
    assert set(space_names()) >= {"arch", "foreign"}
    assert space_names().count("arch") == 1
    assert load_space("arch").version != 3, "tunelab's own name is tunelab's own space"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", r"'broken' \(broken_space_for_tests\) cannot be imported: RuntimeError: no luck"),
        ("function", r"'function' \(foreign_space_for_tests:draw\) is not a module"),
    ],
)
def test_a_broken_entry_point_is_one_line(offer: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_space(name)


@pytest.mark.parametrize("name", ["nothing", "", "Arch", "arch.py.txt", "../arch", "__init__", "_hidden"])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no search space .*; there are arch.*my_space\.py") as refused:
        load_space(name)
    assert repr(name) in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for path in (tmp_path / "none.py", tmp_path / "folder.py"):
        with pytest.raises(InputError, match="there is no space file") as refused:
            load_space(str(path))
        assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def draw(:", "cannot be imported: SyntaxError"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise KeyError('x')", "cannot be imported: KeyError: 'x'"),
        ("import sys\nsys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("", "lacks draw, VERSION, SUMMARY, BASELINES; a space defines"),
        (SPACE.replace("VERSION", "VARIANT"), "lacks VERSION;"),
        (SPACE.replace("def draw", "def drawn"), "lacks draw;"),
        (SPACE + "draw = 'x'", "draw must be a function"),
        (SPACE + "VERSION = '3'", "VERSION an integer"),
        (SPACE + "BASELINES = None", "BASELINES and each of STARTERS must be a sequence of dicts"),
        (SPACE + "BASELINES = {'width': 8}", "BASELINES and each of STARTERS must be a sequence of dicts"),
        (SPACE + "BASELINES = ['width']", "BASELINES and each of STARTERS must be a sequence of dicts"),
        (SPACE + "STARTERS = ({'width': 8},)", "each of STARTERS must be a sequence of dicts"),
        (SPACE + "STARTERS = None", "each of STARTERS must be a sequence of dicts"),
        (SPACE + "STARTERS = 5", "each of STARTERS must be a sequence of dicts"),
        (SPACE + "STARTERS = {}", "each of STARTERS must be a sequence of dicts"),
        (SPACE + "GRIDS = [{'width': 8}]", "GRIDS must be a dict from names (letters, digits, - and _) to sequences"),
        (SPACE + "GRIDS = {'rates': {'width': 8}}", "GRIDS must be a dict from names"),
        (SPACE + "GRIDS = {'rates': []}", "to sequences of dicts from names to values, none of them empty"),
        (SPACE + "GRIDS = {'rates': [{}]}", "to sequences of dicts from names to values, none of them empty"),
        (SPACE + "GRIDS = {'a/b': [{'width': 8}]}", "GRIDS must be a dict from names (letters, digits, - and _)"),
        (SPACE + "GRIDS = {3: [{'width': 8}]}", "GRIDS must be a dict from names (letters, digits, - and _)"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "space.py", text)
    with pytest.raises(InputError) as refused:
        load_space(str(file))
    assert said in str(refused.value)
    assert str(file) in str(refused.value)


def test_no_baseline_is_allowed(tmp_path: Path) -> None:
    assert load_space(str(write(tmp_path / "space.py", SPACE + "BASELINES = ()"))).baselines == ()


def test_a_space_in_the_current_folder_does_not_replace_one_of_tunelab(tmp_path: Path) -> None:
    write(tmp_path / "arch.py")
    write(tmp_path / "search_spaces" / "__init__.py", "raise SystemExit('the wrong folder')")
    code = "from tunelab.space import load_space; print(load_space('arch').summary)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "one block" not in done.stdout


FROM = """
import dataclasses

SUMMARY = "another rate"
VERSION = 1


def draw_from(suggest, base):
    rate = suggest.suggest_float("lr", 0.01, 1.0, log=True)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, lr=rate))


def baselines_from(base):
    return [{"lr": base.train.lr}]
"""


def test_a_space_that_begins_with_a_configuration(tmp_path: Path) -> None:
    file = write(tmp_path / "rates.py", FROM)
    base = TrialConfig(LeNetSpec(), TrainConfig(lr=0.2))
    space = load_space(str(file), base)
    assert space.baselines == ({"lr": 0.2},)
    assert draw_config(space, optuna.trial.FixedTrial({"lr": 0.2})) == base
    assert space.place == f" ({file}, line 8)"
    alone = load_space(str(file))
    with pytest.raises(InputError, match=rf"begins with the network of a study; `tunelab search {file} --from STUDY`"):
        draw_config(alone, optuna.trial.FixedTrial({"lr": 0.2}))
    with pytest.raises(InputError, match=r"'arch' begins with no study; leave out --from"):
        load_space("arch", base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("def baselines_from", "def other"),
            "lacks baselines_from; a space defines draw_from, VERSION, SUMMARY, baselines",
        ),
        (("return [{", "raise KeyError({"), "raised KeyError: {'lr': 0.1}"),
        (("[{", "({"), "BASELINES and each of STARTERS must be a sequence"),
    ],
)
def test_a_bad_space_that_begins_with_a_configuration(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    text = FROM.replace(*change).replace("}]", "})" if "[{" in change[0] else "}]")
    file = write(tmp_path / "rates.py", text)
    with pytest.raises(InputError) as refused:
        load_space(str(file), TrialConfig(LeNetSpec()))
    assert said in str(refused.value)


def test_a_factory_is_settled_and_allowed_by_a_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays what it was when the first network was drawn, so that a change in between is found out."""
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    text = """
        from tunelab.config import CustomSpec, TrialConfig

        SUMMARY, VERSION, BASELINES = "own", 1, ()


        def draw(suggest):
            return TrialConfig(CustomSpec("net.py:build", {"width": suggest.suggest_int("width", 1, 9)}))
    """
    space = load_space(str(write(tmp_path / "space.py", text)))
    write(tmp_path / "net.py", "def build(channels, classes, image_size, width):\n    return width\n")
    first = draw_config(space, optuna.trial.FixedTrial({"width": 3})).arch
    assert isinstance(first, CustomSpec)
    assert load_factory(first)(1, 10, (8, 8), 5) == 5
    write(tmp_path / "net.py", "raise OSError")
    second = draw_config(space, optuna.trial.FixedTrial({"width": 4})).arch
    assert second == dataclasses.replace(first, arguments={"width": 4})


def test_a_study_of_somebody_else_allows_no_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search fills in the hash of a factory; a record without one would pass for a spec that the space made."""
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    net = write(tmp_path / "net.py", "raise OSError('it was run')\n")
    file = write(tmp_path / "rates.py", FROM)
    for factory in (str(net), "net.py"):
        with pytest.raises(InputError, match=r"net\.py:build comes without the hash of its file"):
            load_space(str(file), TrialConfig(CustomSpec(f"{factory}:build")))
    assert not (tmp_path / "cache" / "trusted.txt").exists()
