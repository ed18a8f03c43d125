from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tunelab
from tunelab.study import Study

SLOW_TO_IMPORT = {"matplotlib", "optuna", "pandas", "ray", "sklearn", "tensorboard", "torch", "torchvision"}


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The slow packages that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys\nprint(*({SLOW_TO_IMPORT!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", tunelab.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(tunelab, name)
    assert value.__name__ == name
    assert getattr(tunelab, name) is value


def test_public_names_are_listed_in_one_order_and_shown() -> None:
    assert tunelab.__all__ == sorted(tunelab.__all__)
    assert set(tunelab.__all__) < set(dir(tunelab))
    assert dir(tunelab) == sorted(set(dir(tunelab)))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tunelab' has no attribute 'serch'"):
        _ = tunelab.serch  # type: ignore[attr-defined]


def test_type_checkers_see_every_public_name_at_its_home() -> None:
    tree = ast.parse(Path(tunelab.__file__).read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(guard.test) == "TYPE_CHECKING"
    told = {
        alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunelab.")
        for alias in node.names
    }
    declared = {ast.unparse(node.target) for node in guard.body if isinstance(node, ast.AnnAssign)}
    assert declared == {"ablate", "predict", "retrain"}
    assert set(told) | declared == set(tunelab.__all__)
    for name, module in told.items():
        assert module is not None
        assert getattr(tunelab, name).__module__ == module
        assert getattr(importlib.import_module(module), name) is getattr(tunelab, name)


@pytest.mark.parametrize(
    "code",
    [
        "import tunelab; tunelab.__version__; dir(tunelab)",
        "import tunelab; tunelab.load, tunelab.Study, tunelab.Trial, tunelab.TrialStatus, tunelab.EpochMetrics",
        "import tunelab; tunelab.TrialConfig, tunelab.ArchSpec, tunelab.InputError, tunelab.TunelabError",
        "import tunelab.space; tunelab.space.space_names()",
    ],
)
def test_reading_names_loads_nothing_slow(code: str, tmp_path: Path) -> None:
    assert loaded_by(code, tmp_path) == set()


def test_opening_a_study_loads_nothing_slow(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"kind": "retrain"})
    opening = f"import tunelab; study = tunelab.load({str(study.path)!r}); study.ranked(); study.list_trials()"
    assert loaded_by(opening, tmp_path) == set()


def test_the_table_of_a_study_loads_pandas_but_neither_torch_nor_ray(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", {"kind": "retrain"})
    loaded = loaded_by(f"import tunelab; tunelab.load({str(study.path)!r}).trials", tmp_path)
    assert "pandas" in loaded
    assert not loaded & {"torch", "ray", "optuna"}
