"""Nothing that tunelab reads can run code: no function that unpickles is called, but where it is told not to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tunelab", "search_spaces", "analysis")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
"""Modules whose `load` runs what it reads; of `pickle` the names of its errors may be used."""
LOADING = {"load", "loads", "Unpickler", "open"}
RUNNING = {"eval", "exec", "compile"}


def sources() -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    """The name that is called, such as `np.load`; "" if it is no name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def told(call: ast.Call, name: str, value: object) -> bool:
    """True if the call has this argument with this value."""
    return any(
        one.arg == name and isinstance(one.value, ast.Constant) and one.value.value is value for one in call.keywords
    )


def dangers(source: str) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"line {node.lineno} imports from {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        first, _, last = name.rpartition(".")
        if first in MODULES and last in LOADING:
            yield f"line {node.lineno} calls {name}"
        if name in RUNNING or (first and last in ("unsafe_load", "full_load", "read_pickle", "ExperimentAnalysis")):
            yield f"line {node.lineno} calls {name}"
        if name == "yaml.load" and not any(dotted(one.value).endswith("Loader") for one in node.keywords):
            yield f"line {node.lineno} calls {name} without a loader"
        if name in ("torch.jit.load", "Tuner.restore", "tune.Tuner.restore"):
            yield f"line {node.lineno} calls {name}"
        if name == "torch.load" and not told(node, "weights_only", True):
            yield f"line {node.lineno} calls {name} without weights_only=True"
        if (name.endswith("np.load") or last == "read_array") and not told(node, "allow_pickle", False):
            yield f"line {node.lineno} calls {name} without allow_pickle=False"


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled(file: Path) -> None:
    assert list(dangers(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(stream)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "pandas.read_pickle(path)",
        "joblib.load(path)",
        "tune.Tuner.restore(path, train)",
        "eval(text)",
    ],
)
def test_what_would_run_code_is_found(line: str) -> None:
    assert len(list(dangers(line))) == 1


@pytest.mark.parametrize(
    "line",
    ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)", "re.compile(text)", "json.load(f)"],
)
def test_what_reads_data_is_not(line: str) -> None:
    assert list(dangers(line)) == []
