"""What fuzzing has in common: how a command is asked in this process, what may come of it, and hostile values.

`TUNELAB_FUZZ=20` runs twenty times as many cases, drawn anew each time; without it they are the same in every run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tunelab.cli import run
from tunelab.config import ArchSpec, BlockSpec, ComputeConfig, DataConfig, StemSpec, TrainConfig, TrialConfig
from tunelab.errors import InputError, TunelabError
from tunelab.records import EpochMetrics, Finding
from tunelab.tuning.engine import Engine

TIMES = float(os.environ.get("TUNELAB_FUZZ") or 1)
DEEP = '"deep"'  # stands for lists in lists, which json.dumps would not write

SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY, VERSION, BASELINES = "one block", 1, ({"lr": 0.1, "width": 4},)
GRIDS = {"rates": ({"lr": 0.1, "width": 4}, {"lr": 0.2, "width": 8})}


def draw(suggest):
    width = suggest.suggest_categorical("width", (4, 8))
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", width, 2, 1),),))
    return TrialConfig(arch, TrainConfig(batch_size=32, lr=suggest.suggest_float("lr", 0.001, 0.5, log=True)))
"""


class NotStartedError(TunelabError):
    """A test of bad input came as far as a training, which is not begun."""

    exit_status = 3


class Asked:
    """What a command answered."""

    def __init__(self, words: Sequence[str], status: int, out: str, err: str) -> None:
        self.words, self.status, self.out, self.err = list(words), status, out, err

    def check(self) -> None:
        """One line and a status that says whose fault it is."""
        told = f"tunelab {' '.join(map(ascii, self.words))}: {self.status}\n{self.err[-3000:]}"
        assert self.status in (0, 2, 3), told
        assert "Traceback" not in self.err, told
        assert "tunelab: unexpected" not in self.err, told
        if self.status:
            said = [line for line in self.err.splitlines() if line.startswith("tunelab: ")]
            said = [line for line in said if not line.startswith(("tunelab: left out: ", "tunelab: note: "))]
            assert len(said) == 1, told
            assert len(said[0]) < 20_000, told


def ask(*words: str) -> Asked:
    """Runs a command in this process, with streams that refuse what a terminal cannot show."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        status = run(list(words))
    texts = [stream.buffer.getvalue().decode() for stream in streams]  # type: ignore[attr-defined]
    return Asked(words, status, *texts)


class World:
    """A folder with one of everything that commands read, made once, and copies of it that may be spoilt."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.study, self.model, self.space = root / "study", root / "model", root / "plain.py"
        self.images, self.npz = root / "images", root / "data.npz"
        self.ask = ask
        self._count = 0

    def fresh(self, path: Path) -> Path:
        """A copy of a file or folder, in a folder of its own; the last one is removed."""
        shutil.rmtree(self.folder / str(self._count), ignore_errors=True)
        self._count += 1
        target = self.folder / str(self._count) / path.name
        target.parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)
        return target


def _played(engine: Engine, _slots: Any, *, log: Path, **_more: Any) -> None:
    """In place of Ray's: what a training measures is a formula."""
    log.touch()
    while (trial := engine.next_trial()) is not None:
        found = [Finding("dead units", "features.3", {"dead share": 0.97, "of": "relu"}, "a lower lr", 1, 3)]
        score, goes_on = 0.3 + 0.1 * (trial.number % 5), True
        while goes_on and not engine.should_halt:
            epoch = len(trial.epochs) + 1
            metrics = EpochMetrics(epoch, 1.0, score, 1 - score, score, 0.1, 1.0, 100.0, 10.0, 2.0, 1.0, 0.01)
            goes_on = engine.report(trial.number, metrics, ["a note"], found if trial.number == 1 else [])


def _refuse(*_given: Any, **_more: Any) -> Any:
    raise NotStartedError("a training is not begun in a test of bad input")


@contextlib.contextmanager
def _nothing_costly(run_trials: Callable[..., None]) -> Iterator[None]:
    """Nothing is measured, downloaded, trained or timed."""
    from tunelab.data import vision
    from tunelab.doctor import examine
    from tunelab.tuning import calibrate, compute, packing, prospect, ray_tune
    from tunelab.tuning import profile as profiling

    def pretend(samples: Any, candidates: Any, *_more: Any) -> calibrate.Calibration:
        layouts = tuple(calibrate.Layout(slots, 100.0, 300.0) for slots in candidates)
        return calibrate.Calibration(candidates[0], layouts, (), 2.0, 0.1, 4000.0, "nothing was measured")

    def no_download(name: str, root: Path) -> None:
        raise InputError(f"{name} is not downloaded to {root} in a test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_tune, "run", run_trials)
        patch.setattr(calibrate, "calibrate", pretend)
        patch.setattr(compute, "recall", lambda _key: None)
        patch.setattr(compute, "fastest", lambda *_given, **_more: compute.Choice(ComputeConfig(), {}))
        patch.setattr(vision, "_download", no_download)
        patch.setattr(profiling, "Probes", _refuse)
        patch.setattr(examine, "examine", lambda *_given, **_more: [])
        for module in (packing, prospect):
            patch.setattr(module, "Probes", lambda count: contextlib.nullcontext())
        yield


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """One of everything, made by the commands themselves."""
    import torch

    from tunelab.data.cache import DataInfo
    from tunelab.models.network import build_network
    from tunelab.training.model_files import write_model

    root = tmp_path_factory.mktemp("fuzz")
    (root / "plain.py").write_text(SPACE, encoding="utf-8")
    with _nothing_costly(_played):
        made = ask(
            "search", str(root / "plain.py"), "--trials", "5", "--epochs", "9", "--limit-train", "100", "--race", "0.3",
            "--study", str(root / "study"), "--scheduler", "asha", "--concurrent", "1",
        )  # fmt: skip
    assert made.status == 0, made.err
    arch = ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))
    info = DataInfo("images", (8, 8), 3, ("cat", "dog"), {"train": 9}, "0" * 16, (0.5,) * 3, (0.2,) * 3, ())
    torch.manual_seed(1)
    (root / "model").mkdir()
    config = TrialConfig(arch, TrainConfig(), DataConfig("folder:/nowhere"))
    write_model(root / "model", build_network(arch, 3, 2, (8, 8)), config, info)
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
    pixels, labels = random.integers(0, 255, (30, 8, 8), dtype=np.uint8), np.arange(30) % 3
    np.savez_compressed(root / "data.npz", images=pixels, labels=labels)
    return root


@pytest.fixture(scope="module")
def world(_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One of everything; the current folder is an empty one, and the folder of studies is in it."""
    folder = tmp_path_factory.mktemp("here")
    with _nothing_costly(_refuse), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield World(_made, folder)
    sys.stdout.flush()


hostile = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, 1, -1, 2, 10**9, 10**30, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "",
            "0", "nan", "a", "x" * 5000, "\ud800", "\x00", "\x1b[31m", "../../x", "/dev/zero", "/", [], {}, [[]],
            [None], ["a", 1], {"a": {}}, {"": None}, "deep", "RUNNING", "val_accuracy", 10**5000 // 7,
        ]
    ),
    st.integers(-5, 20),
    st.floats(),
    st.text(max_size=20),
).map(copy.deepcopy)  # fmt: skip  # what is changed later is no other case's
"""What may stand in the place of any value."""


@st.composite
def spoilt(draw: st.DrawFn, plain: Any) -> Any:
    """JSON values with one to three changes: another value, one that is gone, one more."""
    changed = json.loads(json.dumps(plain))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = changed, None
        while isinstance(holder, (dict, list)) and holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = draw(st.sampled_from(keys))
            inner = holder[key]
            if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 4)) == 0:
                break
            holder = inner
        if key is None:
            return draw(hostile)
        how = draw(st.integers(0, 9))
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[draw(st.sampled_from(["later", "", "0", "name", "\ud800"]))] = draw(hostile)
        else:
            holder[key] = draw(hostile)
    return changed


def as_text(plain: Any) -> str:
    """JSON as text, with deep lists where they are meant."""
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(plain)
    finally:
        sys.set_int_max_str_digits(4300)
    return text.replace(DEEP, "[" * 3000 + "]" * 3000)


def checked_line(plain: Any) -> bytes:
    """A line of a record whose checksum fits, whatever is in it."""
    body = as_text(plain)[1:].encode()
    return b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut, flipped, filled with zeros, doubled or replaced."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.integers(0, 6))
        if how == 0:
            del changed[at:]
        elif how == 1 and changed:
            changed[at] = draw(st.integers(0, 255))
        elif how == 2:
            changed[at : at + draw(st.integers(1, 64))] = b""
        elif how == 3:
            changed[at:at] = draw(st.binary(max_size=32))
        elif how == 4:
            size = draw(st.integers(1, 512))
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif how == 5:
            changed += changed[at : at + 4096]
        elif changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


class Fuzz:
    """Draws of bad input by name, and the way to run a case many times: test modules cannot import each other."""

    hostile = hostile
    spoilt = staticmethod(spoilt)
    spoilt_bytes = staticmethod(spoilt_bytes)
    as_text = staticmethod(as_text)
    checked_line = staticmethod(checked_line)

    @staticmethod
    def run(number: int, case: Callable[[st.DataObject], None]) -> None:
        """Runs a case so many times, with other draws each time."""
        asked = settings(
            max_examples=max(1, round(number * TIMES)),
            derandomize=TIMES == 1,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        given(data=st.data())(asked(case))()


@pytest.fixture(scope="session")
def fuzz() -> type[Fuzz]:
    """Draws of bad input, and the way to run a case many times."""
    return Fuzz
