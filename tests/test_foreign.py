from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from tunelab import foreign
from tunelab.config import CustomSpec
from tunelab.errors import InputError
from tunelab.foreign import import_file, load_factory, require_unchanged, settle, trust

CODE = "def build(channels, classes, image_size):\n    return 1\n"


@pytest.fixture(autouse=True)
def _own_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def spec(tmp_path: Path) -> CustomSpec:
    """A factory that is found and not allowed yet."""
    (tmp_path / "net.py").write_text(CODE)
    return settle(CustomSpec("net.py:build"), tmp_path)


def test_a_factory_is_found_from_the_folder_of_its_space(tmp_path: Path, spec: CustomSpec) -> None:
    assert spec.factory == f"{tmp_path / 'net.py'}:build"
    assert spec.sha256 == hashlib.sha256(CODE.encode()).hexdigest()
    assert settle(spec, Path("/")) == spec
    (tmp_path / "below").mkdir()
    assert settle(CustomSpec("../net.py:build"), tmp_path / "below") == spec


def test_nothing_runs_before_it_is_allowed(tmp_path: Path, spec: CustomSpec) -> None:
    """Neither because a file that somebody else wrote names it, with the right hash, nor for another function of it."""
    (tmp_path / "net.py").write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{CODE}\nother = build\n"
    )
    spec = settle(spec, None)
    with pytest.raises(InputError, match=rf"you have not allowed yet; read it, then `tunelab trust {tmp_path}"):
        load_factory(spec)
    assert not (tmp_path / "ran").exists()
    trust(spec)
    trust(spec)
    assert load_factory(spec)(1, 2, (3, 4)) == 1
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "cache" / foreign.FILE).read_text().count("\n") == 1
    with pytest.raises(InputError, match="not allowed yet"):
        load_factory(CustomSpec(spec.factory.replace("build", "other"), {}, spec.sha256))
    with pytest.raises(InputError, match="not allowed yet"):
        load_factory(CustomSpec(spec.factory))


def test_a_module_that_is_not_allowed_is_not_even_looked_for() -> None:
    with pytest.raises(InputError, match="not allowed yet"):
        load_factory(CustomSpec("antigravity:fly", {}, "0" * 64))
    assert "antigravity" not in sys.modules


def test_code_that_has_changed_or_is_missing_is_named(tmp_path: Path, spec: CustomSpec) -> None:
    trust(spec)
    load_factory(spec)
    (tmp_path / "net.py").write_text(CODE + "\n")
    for use in (load_factory, require_unchanged):
        with pytest.raises(InputError, match=rf"{tmp_path}/net\.py, which makes the network, has changed since it was"):
            use(spec)
    (tmp_path / "net.py").unlink()
    for use in (load_factory, require_unchanged):
        with pytest.raises(InputError, match="there is no file of a factory"):
            use(spec)


def test_what_runs_is_the_text_that_was_hashed(
    tmp_path: Path, spec: CustomSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is put back as it was while it is looked at does not lend its hash to what was read before."""
    trust(spec)
    (tmp_path / "net.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{CODE}")

    def put_back(_: CustomSpec) -> bool:
        (tmp_path / "net.py").write_text(CODE)
        return True

    monkeypatch.setattr(foreign, "_is_trusted", put_back)
    with pytest.raises(InputError, match="has changed since it was recorded"):
        load_factory(spec)
    assert not (tmp_path / "ran").exists()


def test_what_runs_is_the_text_of_the_file_and_no_compiled_copy(tmp_path: Path) -> None:
    """Python believes a compiled copy if the time and the size of the file are those that it was compiled from."""
    file = tmp_path / "space.py"
    for number in (1, 2):
        file.write_text(f"VERSION = {number}\n")
        os.utime(file, (0, 0))
        module = import_file(file, "space file", anew=True)
        assert (number,) == (module.VERSION,)


def test_files_beside_are_there_and_are_read_anew(tmp_path: Path) -> None:
    (tmp_path / "my-space.py").write_text("from .sizes import WIDTHS\nfrom . import sizes\n")
    path = list(sys.path)
    for widths in ((1, 2), (1, 2, 3)):
        (tmp_path / "sizes.py").write_text(f"WIDTHS = {widths}\n")
        module = import_file(tmp_path / "my-space.py", "space file", anew=True)
        assert module.WIDTHS == module.sizes.WIDTHS == widths
    assert sys.path == path
    (tmp_path / "other.py").write_text("import sizes\n")
    with pytest.raises(
        InputError, match=r"a file beside it is imported by `from \. import sizes` \(.*other\.py, line 1\)"
    ):
        import_file(tmp_path / "other.py", "space file")


def test_a_folder_may_have_any_bytes_for_a_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xe4")
    folder.mkdir()
    (folder / "space.py").write_text("WIDTHS = (1, 2)\n")
    assert import_file(folder / "space.py", "space file").WIDTHS == (1, 2)


def test_an_error_in_a_file_beside_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text("from . import sizes\n")
    (tmp_path / "sizes.py").write_text("\n\nWIDTHS = 1 / 0\n")
    with pytest.raises(InputError, match=r"ZeroDivisionError: division by zero \(.*/sizes\.py, line 3\)"):
        import_file(tmp_path / "space.py", "space file")
    (tmp_path / "sizes.py").write_text("def (\n")
    with pytest.raises(InputError, match=r"SyntaxError: .* \(.*/sizes\.py, line 1\)"):
        import_file(tmp_path / "space.py", "space file", anew=True)


def test_a_factory_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package_for_tests").mkdir()
    (tmp_path / "own_package_for_tests" / "__init__.py").touch()
    (tmp_path / "own_package_for_tests" / "net.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = settle(CustomSpec("own_package_for_tests.net:build"), Path("/nowhere"))
    assert spec.factory == "own_package_for_tests.net:build"
    assert "own_package_for_tests.net" not in sys.modules
    trust(spec)
    assert load_factory(spec)(1, 2, (3, 4)) == 1


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("none.py:build", "there is no file of a factory"),
        ("nothing_of_this_name:build", "there is no Python module 'nothing_of_this_name' for a factory"),
        (
            "nothing.of_this_name:build",
            "the module 'nothing.of_this_name' of a factory cannot be found: ModuleNotFound",
        ),
        ("math:sqrt", "there is no Python module 'math' for a factory; it is written as"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path: Path, factory: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        settle(CustomSpec(factory), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"there is no function 'build' there; there are nothing"),
        ("build = 3\nother = 4", "there is no function 'build' there; there are build, other"),
        ("raise OSError('gone')", r"cannot be imported: OSError: gone \(.*net\.py, line 1\)"),
        ("import sys; sys.exit()", "cannot be imported: SystemExit"),
    ],
)
def test_a_factory_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "net.py").write_text(text)
    spec = settle(CustomSpec("net.py:build"), tmp_path)
    trust(spec)
    with pytest.raises(InputError, match=said):
        load_factory(spec)


def test_a_factory_is_lent_to_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There neither its files are, nor has anybody allowed it; nothing of the folder's other things travels."""
    home = tmp_path / "home"
    (home / "parts").mkdir(parents=True)
    (home / "data").mkdir()
    (home / "parts" / "__init__.py").write_text("value = 7\n")
    (home / "beside.py").write_text("from . import parts\n\nvalue = parts.value\n")
    (home / "data" / "script.py").write_text("raise SystemExit\n")
    (home / "secret.txt").write_text("secret")
    (home / "net.py").write_text("from . import beside\n\n\ndef build(*_):\n    return beside.value\n")
    spec = settle(CustomSpec("net.py:build"), home)
    trust(spec)
    lent = json.loads(json.dumps(foreign.lend(spec)))
    assert set(lent["files"]) == {"net.py", "beside.py", "parts/__init__.py"}
    home.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "other-cache"))
    monkeypatch.setattr(foreign, "_ALLOWED", set())
    monkeypatch.setattr(foreign, "_BORROWED", {})
    with pytest.raises(InputError):
        load_factory(spec)
    foreign.borrow(lent)
    foreign.borrow(lent)
    assert load_factory(spec)(1, 2, (3, 4)) == 7
    require_unchanged(spec)
    with pytest.raises(InputError, match="not allowed yet"):
        load_factory(CustomSpec(spec.factory.replace("build", "other"), {}, spec.sha256))
    assert not (tmp_path / "other-cache" / foreign.FILE).exists(), "for this process alone"


def test_where_the_files_are_the_same_nothing_is_copied(tmp_path: Path, spec: CustomSpec) -> None:
    trust(spec)
    foreign.borrow(foreign.lend(spec))
    assert not (tmp_path / "cache" / "code").exists()
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match="there is no file of a factory"):
        foreign.lend(spec)
