from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tunelab.config import to_json

if TYPE_CHECKING:
    from tests.training.conftest import MakeConfig

GO = {"go": True, "threads": 1, "seconds": 0.05}

# What `-m tunelab.training.probe` does, where torch takes a minute to be imported.
SLOWLY = """
import importlib.abc, runpy, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
runpy.run_module("tunelab.training.probe", run_name="__main__")
"""


def test_the_process_speaks_lines_and_ends_with_its_input(make_config: MakeConfig) -> None:
    lines = [{"config": to_json(make_config()), "device": "cpu", "threads": 1}, GO]
    command = [sys.executable, "-m", "tunelab.training.probe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = [json.loads(process.stdout.readline())]
        for line in lines:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            said.append(json.loads(process.stdout.readline()))
        assert [next(iter(one)) for one in said] == ["hello", "ready", "measured"]
        # Its driver is gone while it is at work.
        process.stdin.write(json.dumps({**GO, "seconds": 600}) + "\n")
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        assert process.stdout.read() == ""


def test_it_ends_with_its_input_while_it_imports_too() -> None:
    """A driver that is killed in its first second."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "torch\n"
        process.stdin.close()
        assert process.wait(timeout=20) == 0, "it did not wait for torch"
