"""What a node tells of itself, and what it tries out; here on this machine, without Ray."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tunelab
from tunelab.config import DataConfig, to_json
from tunelab.tuning import node_facts
from tunelab.tuning.node_facts import leave_token, prepare, tell, unseen
from tunelab.tuning.nodes import Facts

FAKE_SMI = """#!/bin/sh
echo "NVIDIA H100, 81559, 80000"
echo "NVIDIA H100, 81559, [N/A]"
"""


def smi(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an nvidia-smi of ours before any other."""
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_is_told_is_plain_and_makes_facts(tmp_path: Path, cache_dir: Path) -> None:
    plain = tell(("torch", "no-such-package"), str(tmp_path / "runs" / "study"), "/no/such/folder")
    facts = Facts.from_json(json.loads(json.dumps(plain)))
    assert facts.packages["no-such-package"] is None
    assert facts.packages["torch"]
    assert facts.tunelab is not None
    assert facts.tunelab.version == tunelab.__version__
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.disks["study"].free > 0
    assert facts.disks["cache"].folder == str(cache_dir)
    assert 0 < facts.free_memory_mib <= facts.all_memory_mib
    assert set(facts.disks) == {"study", "temporary", "ray", "cache"}


def test_gpus_are_told_with_their_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, FAKE_SMI, monkeypatch)
    facts = Facts.from_json(tell((), str(tmp_path)))
    assert [(gpu.name, gpu.total_mib, gpu.free_mib) for gpu in facts.gpus] == [
        ("NVIDIA H100", 81559, 80000),
        ("NVIDIA H100", 81559, None),
    ]
    smi(tmp_path, "#!/bin/sh\necho no driver\nexit 9\n", monkeypatch)
    plain = tell((), str(tmp_path))
    assert (plain["gpus"], plain["gpu_problem"]) == ([], "nvidia-smi fails: no driver")


def test_tokens_are_left_and_seen(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert leave_token(str(place / "deeper"), "a", "0" * 64) == "missing"
    assert leave_token(str(place), "a", "0" * 64) == "another"
    place.mkdir()
    assert leave_token(str(place), "a", "0" * 64) == ""
    assert (place / "a").stat().st_size == 4096
    assert [file.name for file in place.iterdir()] == ["a"]
    assert unseen(str(place), {"a": "0" * 64}, 0.0) == []
    assert unseen(str(place), {"a": "1" * 64, "b": "0" * 64}, 0.0) == ["a", "b"]
    assert leave_token(str(place), "a", "1" * 64) == ""
    assert unseen(str(place), {"a": "1" * 64}, 0.0) == []


def test_a_full_disk_takes_no_token() -> None:
    assert leave_token("/dev/full/x", "a", "0" * 64) in ("missing", "ENOTDIR")


def test_data_is_opened_and_built_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_CACHE", str(tmp_path / "cache"))
    asked = [json.dumps(to_json(one)) for one in (DataConfig(limit_train=50), DataConfig(name="folder:/not/there"))]
    found = prepare(asked, build=False, with_gpus=False)["data"]
    assert [one["name"] for one in found] == ["digits", "folder:/not/there"]
    assert found[0]["fingerprint"] == ""
    assert "/not/there" in found[1]["problem"]
    assert not list((tmp_path / "cache").rglob("*.npy"))
    built = prepare(asked[:1], build=True, with_gpus=False)["data"][0]["fingerprint"]
    assert built
    assert prepare(asked[:1], build=False, with_gpus=False)["data"][0]["fingerprint"] == built


def test_torch_is_asked_for_gpus_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "_TORCH", "print('chatter'); print('[\"2.13.0\", null, 0]')")
    found = prepare([], build=False, with_gpus=True)
    assert (found["torch"], found["data"]) == (["2.13.0", None, 0], [])
    monkeypatch.setattr(node_facts, "_TORCH", "raise SystemExit('libcudart.so is missing')")
    assert prepare([], build=False, with_gpus=True)["torch_problem"] == "libcudart.so is missing"


def test_what_is_sent_along_imports_nothing_that_a_bare_node_lacks() -> None:
    """At the top of these modules: the standard library, each other, psutil, which Ray brings, and the errors."""
    allowed = {*sys.stdlib_module_names, "psutil"}
    for name in node_facts.BY_VALUE:
        source = Path(str(sys.modules[name].__file__)).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for one in names:
                assert one.split(".")[0] in allowed or one in (*node_facts.BY_VALUE, "tunelab.errors"), f"{name}: {one}"


def test_it_runs_where_tunelab_is_missing() -> None:
    """Pickled here, and run by a Python that has Ray and finds no tunelab."""
    from ray import cloudpickle

    from tunelab.tuning import node_visit

    with node_visit._sent_along():
        sent = cloudpickle.dumps((tell, leave_token, unseen))
    code = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tunelab":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import ray, pickle, json
tell, leave_token, unseen = pickle.loads(sys.stdin.buffer.read())
found = tell(("ray",), "/nowhere")
assert not [name for name in sys.modules if name.split(".")[0] == "tunelab"]
assert leave_token("/nowhere/at/all", "a", "0") == "missing"
assert unseen("/nowhere", {"a": "0"}, 0.0) == ["a"]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    facts = Facts.from_json(json.loads(done.stdout))
    assert facts.tunelab is None
    assert facts.packages["ray"]
    assert facts.free_memory_mib > 0
