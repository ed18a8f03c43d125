"""Shared by all tests: one thread, no window, and a cache and a folder of studies that belong to the test run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tunelab.config import (
    AnyArch,
    ArchSpec,
    BlockSpec,
    DataConfig,
    StemSpec,
    TrainConfig,
    TrialConfig,
    arch_id,
    to_json,
)
from tunelab.journal import Journal
from tunelab.records import EpochMetrics
from tunelab.study import Study

if TYPE_CHECKING:
    from tests.ray_nodes import RayNodes

# Before torch is imported anywhere, and inherited by every process that a test starts: results do not depend on the
# number of processors, and tests beside each other do not fight for them.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MPLBACKEND"] = "Agg"


def _share(name: str) -> None:
    """Has conftest files import the file of that name beside this one, which the importlib mode would not find."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name.rpartition('.')[2]}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_RAY_NODES = "tests.ray_nodes"
_share(_RAY_NODES)


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data cache of this test run, never the user's; shared by its tests, so that `digits` is decoded once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELAB_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of studies of this test alone (not made yet)."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("TUNELAB_RUNS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _numbers_as_usual() -> Iterator[None]:
    """Training in a test's own process flushes denormal numbers, which hypothesis refuses to work with."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches believe a calibration that was not made: a measured second is a long time in a test.

    So do those in processes that the test starts.
    """
    _pretend_to_calibrate(monkeypatch)


@pytest.fixture(scope="module")
def no_calibration_at_all() -> Iterator[None]:
    """As `no_calibration`, for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        _pretend_to_calibrate(patch)
        yield


def _pretend_to_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunelab.config import ComputeConfig
    from tunelab.tuning import calibrate, compute, packing, prospect

    def pretend(samples: Any, candidates: Any, *_more: Any) -> calibrate.Calibration:
        layouts = tuple(calibrate.Layout(slots, 100.0, 300.0) for slots in candidates)
        return calibrate.Calibration(candidates[0], layouts, (), 2.0, 0.1, 4000.0, "nothing was measured")

    monkeypatch.setattr(calibrate, "calibrate", pretend)
    monkeypatch.setattr(compute, "recall", lambda _key: None)  # another test may have measured
    monkeypatch.setattr(compute, "fastest", lambda *_given, **_more: compute.Choice(ComputeConfig(), {}))
    for module in (packing, prospect):
        monkeypatch.setattr(module, "Probes", lambda count: contextlib.nullcontext())
    provoked = Path(__file__).resolve().parents[1] / "benchmarks" / "provoked"
    monkeypatch.setenv("PYTHONPATH", str(provoked), prepend=os.pathsep)
    monkeypatch.setenv("PROVOKED_QUICK", "1")


class MakeStudy(Protocol):
    """What the fixture `make_study` gives."""

    def __call__(
        self,
        trials: Sequence[tuple[str, Sequence[float]]] = (),
        *,
        path: Path | None = None,
        asked: int | None = None,
        config: TrialConfig | None = None,
        info: dict[str, Any] | None = None,
        repeats: Mapping[int, int] | None = None,
    ) -> Study: ...


@pytest.fixture
def make_study(runs_dir: Path) -> MakeStudy:
    """Writes a study as a search does, through its journal: per trial its status and the scores of its epochs.

    A trial with the status RUNNING has no end in the record. The loss of an epoch is 1 - its score. `repeats` tells of
    a trial which one it repeats.
    """

    def make(
        trials: Sequence[tuple[str, Sequence[float]]] = (),
        *,
        path: Path | None = None,
        asked: int | None = None,
        config: TrialConfig | None = None,
        info: dict[str, Any] | None = None,
        repeats: Mapping[int, int] | None = None,
    ) -> Study:
        made = config or TrialConfig(
            arch=ArchSpec(StemSpec(4), ((BlockSpec("basic", 4), BlockSpec("basic", 8, 2)),)),
            train=TrainConfig(epochs=4, batch_size=32),
            data=DataConfig(limit_train=100),
        )
        content = {
            "kind": "search",
            "space": {"name": "plain", "source": "plain", "version": 1},
            "options": {"trials": len(trials) if asked is None else asked, "epochs": 4, "device": "cpu"},
            "data": {
                "name": "digits",
                "image_size": [8, 8],
                "channels": 1,
                "classes": [str(digit) for digit in range(10)],
                "counts": {"train": 100, "val": 269, "test": 270},
                "fingerprint": "0123456789abcdef",
            },
            "hardware": {"processor": "a processor", "cpus": 2, "gpus": []},
        }
        study = Study.create(path or runs_dir / "study", {**content, **(info or {})})
        journal = Journal.open(study.path)
        stats = {"params": 1234, "mflops": 0.5, "activations": 10, "depth": 6}
        for number, (status, scores) in enumerate(trials):
            proposed = {"config": to_json(made), "params": {"width": 4, "rate": number / 10}, "stats": stats}
            if number in (repeats or {}):
                proposed["repeat_of"] = (repeats or {})[number]
            journal.append({"event": "proposed", "trial": number, "arch_id": arch_id(made.arch), **proposed})
            for epoch, score in enumerate(scores, start=1):
                metrics = EpochMetrics(epoch, 2.0, score / 2, 1 - score, score, 0.1 / epoch, 0.25, 400.0, 300.0)
                journal.append({"event": "result", "trial": number, "metrics": metrics.to_json()})
            if status != "RUNNING":
                reason = "" if status == "COMPLETED" else f"{status.lower()} for a reason"
                journal.append({"event": "ended", "trial": number, "status": status, "reason": reason})
        journal.close()
        return study

    return make


class MakeModel(Protocol):
    """What the fixture `make_model` gives."""

    def __call__(
        self,
        arch: AnyArch | None = None,
        *,
        folder: Path | None = None,
        channels: int = 1,
        image_size: tuple[int, int] = (8, 8),
        classes: Sequence[str] = ("cat", "dog", "ox, or cow"),
    ) -> Path: ...


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a model as a retraining does, and gives its folder; its weights are drawn, and none of them is idle."""

    def make(
        arch: AnyArch | None = None,
        *,
        folder: Path | None = None,
        channels: int = 1,
        image_size: tuple[int, int] = (8, 8),
        classes: Sequence[str] = ("cat", "dog", "ox, or cow"),
    ) -> Path:
        import torch

        from tunelab.data.cache import DataInfo
        from tunelab.models.network import build_network
        from tunelab.training.model_files import write_model

        arch = arch or ArchSpec(StemSpec(4), ((BlockSpec("basic", 8, 2, 1),),))
        torch.manual_seed(1)
        network = build_network(arch, channels, len(classes), image_size)
        with torch.no_grad():
            for values in filter(torch.is_floating_point, (*network.parameters(), *network.buffers())):
                if values.ndim < 2:  # biases, and those of norms
                    values.uniform_(0.5, 1.5)
                elif not values.any():  # as a network without norms begins
                    values.normal_(0, 0.1)
        mean, std = tuple(0.3 + 0.1 * i for i in range(channels)), tuple(0.2 + 0.1 * i for i in range(channels))
        counts = {"train": 9, "val": 0, "test": 9}
        info = DataInfo("images", image_size, channels, tuple(classes), counts, "0123456789abcdef", mean, std, ())
        folder = folder or tmp_path / "model"
        folder.mkdir(parents=True)
        write_model(folder, network, TrialConfig(arch, data=DataConfig("folder:/nowhere/at/all")), info)
        return folder

    return make


class MakeRayNodes(Protocol):
    """What the fixture `make_ray_nodes` gives: `RayNodes`, which are gone when the tests of a file are."""

    def __call__(
        self,
        nodes: int = 2,
        cpus: int = 1,
        head_cpus: int | None = None,
        *,
        dashboard: bool = False,
        client: bool = False,
        inside: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> RayNodes: ...


@pytest.fixture(scope="module")
def make_ray_nodes(cache_dir: Path) -> Iterator[MakeRayNodes]:
    """Starts clusters of real Ray nodes, for all tests of a file: see `tests/ray_nodes.py`."""
    made = sys.modules[_RAY_NODES].RayNodes
    with contextlib.ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(contextlib.closing(made(*given, **more)))


@pytest.fixture(scope="module")
def ray_nodes(make_ray_nodes: MakeRayNodes) -> RayNodes:
    """Two nodes with a processor each."""
    return make_ray_nodes()


@dataclass(frozen=True)
class Bucket:
    """A bucket of an object store that this test run has started; `environment` leads processes to it."""

    uri: str
    environment: Mapping[str, str]


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of an object store that speaks S3, in a thread of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """An empty bucket, and this process with what it needs to reach it."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    environment = {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ACCESS_KEY_ID": "AKIAQQQQQQQQQQQQQQQQ",
        "AWS_SECRET_ACCESS_KEY": "a/secret+of/the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    request = urllib.request.Request(f"{object_store}/{name}", data=b"", method="PUT")
    urllib.request.urlopen(request).close()
    return Bucket(f"s3://{name}", environment)


class Line:
    """A way to the object store which may fall silent: then connections are accepted, and no request is answered."""

    def __init__(self, store: str) -> None:
        self.requests = 0
        self._silent = threading.Event()
        self._store = urllib.parse.urlsplit(store)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """From now on nothing is answered; `requests` counts what is asked."""
        self.requests = 0
        self._silent.set()

    def close(self) -> None:
        for one in (self._server, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._server.accept()[0]
                far = socket.create_connection((self._store.hostname, self._store.port))
                self._open += [near, far]
                threading.Thread(target=self._pass_on, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(far, near, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(2**16):
                if self._silent.is_set():
                    self.requests += asks and b" HTTP/1.1\r\n" in content
                else:
                    target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(object_store: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The way to the bucket."""
    made = Line(object_store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
    yield made
    made.close()


@pytest.fixture
def silent(line: Line, monkeypatch: pytest.MonkeyPatch) -> Line:
    """A way to the bucket on which nothing is ever answered; a moment is waited for that in place of 20 and 60 s."""
    from tunelab.stores import store

    usual = store._OPTIONS["s3"]["config_kwargs"]
    monkeypatch.setitem(store._OPTIONS, "s3", {"config_kwargs": {**usual, "read_timeout": 0.2}})
    monkeypatch.setattr(store, "_WRITE", 0.5)
    line.fall_silent()
    return line
