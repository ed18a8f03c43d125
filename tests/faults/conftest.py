"""Searches in processes of their own, on a real Ray, in which things go wrong; and the books that must balance then.

`faults` makes a `Fault`: a study with its own space, cache and temporary folder, whose commands are real processes.
What goes wrong inside of workers is ordered through `benchmarks/provoked`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest

from tests.ray_nodes import (
    MARK,
    NODE,
    PROVOKED,
    command_line,
    give_orders,
    is_marked,
    launch,
    trained,
)
from tunelab.config import DataConfig
from tunelab.data.cache import prepare
from tunelab.journal import is_locked, read_journal
from tunelab.records import Trial, TrialStatus
from tunelab.study import load, proposed

if TYPE_CHECKING:
    from tests.conftest import MakeRayNodes
    from tests.ray_nodes import RayNodes

LIMIT = 100  # training images
GONE = 15.0  # seconds until no process of a search is left
SPACE = """
from tunelab.config import ArchSpec, BlockSpec, StemSpec, TrainConfig, TrialConfig

SUMMARY = "one block, and recipes that cannot work"
VERSION = 1
BASELINES = ({"lr": 0.1, "kind": "good"},)
KINDS = ("good", "idles", "raises", "diverges")
STARTERS = tuple(({"lr": 0.05 + 0.01 * at, "kind": kind},) for at, kind in enumerate(FIRST))


def draw(suggest):
    lr = suggest.suggest_float("lr", 0.001, 0.5, log=True)
    kind = suggest.suggest_categorical("kind", KINDS[:LAST])
    recipe = {"lr": 999.0 + lr, "batch_size": 8, "precision": "float32"}
    if kind != "diverges":
        recipe = {"lr": 1e-6 * lr if kind == "idles" else lr, "batch_size": 8}
        recipe["optimizer"] = "nothing" if kind == "raises" else "sgd"
    norm = "none" if kind == "diverges" else "batch"
    stages = ((BlockSpec("basic", 4, 2, 1),),)
    return TrialConfig(ArchSpec(StemSpec(4), stages, activation="leaky_relu", norm=norm), TrainConfig(**recipe))
"""


class Machine:
    """Starts commands whose processes, and whose processes' processes, can be told from all others."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # short: Ray puts sockets below it
        self._started: list[subprocess.Popen[str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": str(PROVOKED), **more}

    def start(self, *arguments: str, before: str = "", **more: str) -> subprocess.Popen[str]:
        """Starts a command of tunelab in a session of its own, after the lines of Python in `before`."""
        self._started.append(launch([*command_line(before), *arguments], self.environment(**more)))
        return self._started[-1]

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs because of these commands, by the variable that all inherit; with one of `words` in its command."""
        return [process for process in psutil.process_iter() if self._is_ours(process, words)]

    def _is_ours(self, process: psutil.Process, words: tuple[str, ...]) -> bool:
        return is_marked(process, MARK, self.mark, words)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return self.processes("ray::TrialWorker", "ray::ResourceTrainable")

    def raylet(self) -> psutil.Process:
        (found,) = [process for process in self.processes("/raylet") if process.name() == "raylet"]
        return found

    def gcs(self) -> psutil.Process:
        (found,) = [process for process in self.processes("/gcs_server") if process.name() == "gcs_server"]
        return found

    def assert_nothing_runs(self, seconds: float = GONE) -> None:
        """No process outlives the driver by more than a few seconds."""
        end = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < end, f"after {seconds} s there still are {[describe(one) for one in left]}"
            time.sleep(0.1)

    def leftovers(self) -> list[str]:
        """What is in the temporary folder, but for the empty one that torch makes when it is imported."""
        return sorted(path.name for path in self.temporary.iterdir() if path.name != f"torchinductor_{getuser()}")

    def close(self) -> None:
        """Ends all that was started, however the test ended."""
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self._started:
            process.communicate()
        shutil.rmtree(self.temporary, ignore_errors=True)


def describe(process: psutil.Process) -> str:
    """A process that should not be there."""
    try:
        return f"{process.pid} ({process.status()}): {' '.join(process.cmdline()[:3])}"
    except psutil.Error:
        return f"{process.pid} (just gone)"


class Fault:
    """One study, the commands that search it, and its books.

    `orders` are those of `benchmarks/provoked`; `order` changes them while the search runs.
    """

    def __init__(self, machine: Machine, folder: Path, cache: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.study = folder / "study"
        self.log = folder / "log"
        self.cache = cache
        self.command: subprocess.Popen[str] | None = None
        self._kept: dict[int, tuple[str, list[Any]]] = {}
        self.asked = (0, 0)
        self.kills = 0
        self.order()

    def order(self, *orders: dict[str, Any]) -> None:
        give_orders(self.folder, orders)

    def write_space(self, *first: str) -> str:
        """The space file; `first` are the kinds of the trials after the baseline, all the others are good."""
        last = 1 + max((("good", "idles", "raises", "diverges").index(kind) for kind in first), default=0)
        file = self.folder / "small.py"
        file.write_text(f"FIRST = {first!r}\nLAST = {last}\n{SPACE}", encoding="utf-8")
        return str(file)

    def environment(self, *, quick: bool = True) -> dict[str, str]:
        given = {
            "TUNELAB_CACHE": str(self.cache),
            "PROVOKED_LOG": str(self.log),
            "PROVOKED_ORDERS": str(self.folder / "orders.json"),
        }
        return {**given, "PROVOKED_QUICK": "1"} if quick else given

    def search(
        self,
        *options: str,
        kinds: tuple[str, ...] = (),
        trials: int = 4,
        epochs: int = 4,
        concurrent: int = 2,
        before: str = "",
        quick: bool = True,
        **more: str,
    ) -> subprocess.Popen[str]:
        """Starts the search: its trials have no repeats, and none is stopped early, unless `options` say so.

        If it is not to be `quick`, it measures the machine, as every search does.
        """
        self.asked = (trials, epochs)
        words = ["--trials", str(trials), "--epochs", str(epochs), "--concurrent", str(concurrent)]
        words += ["--limit-train", str(LIMIT), "--telemetry", "off", "--race", "0", "--scheduler", "none", *options]
        given = ["search", self.write_space(*kinds), "--study", str(self.study), *words]
        self.command = self.machine.start(*given, before=before, **{**self.environment(quick=quick), **more})
        return self.command

    def resume(self, *options: str, before: str = "", **more: str) -> subprocess.Popen[str]:
        """Starts `tunelab resume`."""
        given = {**self.environment(), **more}
        self.command = self.machine.start("resume", str(self.study), *options, before=before, **given)
        return self.command

    def end(self, status: int, seconds: float = 300) -> tuple[str, str]:
        """Waits for the command's end and checks its exit status and that nothing of it runs; what it said."""
        assert self.command is not None
        out, err = self.command.communicate(timeout=seconds)
        assert self.command.returncode == status, f"{self.command.returncode}: {err}"
        assert "Traceback" not in err
        assert not is_locked(self.study)
        self.machine.assert_nothing_runs()
        return out, err

    def kill(self) -> None:
        """Kills the driver, which nothing of it outlives; the record is whole and keeps what it held."""
        assert self.command is not None
        self.command.kill()
        self.command.communicate()
        self.kills += 1
        self.machine.assert_nothing_runs()
        self.keep()

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        assert self.command is not None
        (os.killpg if group else os.kill)(self.command.pid, number)

    def wait_until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Waits while the command runs."""
        assert self.command is not None
        end = time.monotonic() + seconds
        while not condition():
            if self.command.poll() is not None:
                pytest.fail(f"the command has ended with {self.command.returncode}: {self.command.communicate()}")
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.05)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What the record holds."""
        return [event for event in read_journal(self.study / "journal.jsonl") if not kinds or event["event"] in kinds]

    def results(self) -> int:
        """How many epochs the record holds."""
        return len(self.events("result"))

    def trained(self, what: str = "end") -> Counter[tuple[int, int]]:
        """How often each epoch of each trial was really trained (or begun), by (trial, epoch)."""
        return trained(self.log, what)

    def trials(self) -> list[Trial]:
        return load(self.study).list_trials()

    def keep(self) -> None:
        """Notes what has ended: it must be just so at the end."""
        ended = {trial.number: told(trial) for trial in self.trials() if trial.status.ended}
        for number, before in self._kept.items():
            assert ended.get(number) == before, f"trial {number} is not what it was"
        self._kept = ended

    def check_books(self, retrained: int = 0) -> list[Trial]:
        """What must hold at the end of a search, whatever went wrong in it; its trials.

        Args:
            retrained: how many epochs may have been trained twice beside one for each running trial and kill.
        """
        total, epochs = self.asked
        self.keep()
        trials = self.trials()
        assert [trial.number for trial in trials] == list(range(total))
        assert all(trial.status.ended for trial in trials)
        own = proposed(trials)
        assert len({json.dumps({**trial.config, "seed": 0}, sort_keys=True) for trial in own}) == len(own)
        assert len({trial.config["seed"] for trial in trials}) == len(trials), "all seeds differ"
        for kind in ("proposed", "ended"):
            assert sorted(event["trial"] for event in self.events(kind)) == list(range(total)), f"{kind} once each"
        told = [(event["trial"], event["metrics"]["epoch"]) for event in self.events("result")]
        assert len(set(told)) == len(told), "no epoch is in the record twice"
        for trial in trials:
            numbers = [metrics.epoch for metrics in trial.epochs]
            assert numbers == list(range(1, len(numbers) + 1)), "none is missing"
            assert (trial.status is TrialStatus.COMPLETED) == (len(numbers) == epochs)
        trained = self.trained()
        assert trained.keys() >= set(told), "what was recorded was trained"
        again = sum(times - 1 for times in trained.values())
        assert again <= 2 * self.kills + retrained, f"{again} epochs were trained again"
        return trials

    def check_nothing_is_left(self) -> None:
        self.machine.assert_nothing_runs()
        assert self.machine.leftovers() == []


class NodesMachine(Machine):
    """Starts commands that search on a cluster of Ray nodes, which goes on when they have ended."""

    def __init__(self, nodes: RayNodes, temporary: Path) -> None:
        self._nodes, self.temporary, self.mark = nodes, temporary, nodes.mark

    def start(self, *arguments: str, before: str = "", **more: str) -> subprocess.Popen[str]:
        return self._nodes.start(*arguments, "--address", self._nodes.address, before=before, **more)

    def _is_ours(self, process: psutil.Process, words: tuple[str, ...]) -> bool:
        """True for drivers and what they start, trials and outposts, and not for the nodes themselves."""
        if not super()._is_ours(process, words):
            return False
        try:
            return NODE not in process.environ() or process.cmdline()[0].startswith(("ray::Trial", "ray::Outpost"))
        except (psutil.Error, OSError, IndexError):
            return False


class NodesFault(Fault):
    """One study that is searched on a cluster."""

    def __init__(self, nodes: RayNodes, temporary: Path, folder: Path, cache: Path) -> None:
        self.nodes = nodes
        super().__init__(NodesMachine(nodes, temporary), folder, cache)
        self.log = nodes.log
        nodes.forget()

    def order(self, *orders: dict[str, Any]) -> None:
        self.nodes.orders(*orders)

    def environment(self, *, quick: bool = True) -> dict[str, str]:
        assert quick, "the nodes are"
        return {}


def told(trial: Trial) -> tuple[str, list[Any]]:
    """What must never change of an ended trial."""
    return trial.status.value + trial.reason, [metrics.to_json() for metrics in trial.epochs]


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the images are decoded."""
    folder = tmp_path_factory.mktemp("decoded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELAB_CACHE", str(folder))
        prepare(DataConfig(limit_train=LIMIT))
    return folder


class MakeFault(Protocol):
    """What the fixture `make_fault` gives."""

    def __call__(self) -> Fault: ...


@pytest.fixture(scope="module")
def make_fault(tmp_path_factory: pytest.TempPathFactory, decoded: Path) -> Iterator[MakeFault]:
    """Makes studies that are not begun yet, each with a temporary folder of its own; for all tests of a file."""
    with contextlib.ExitStack() as stack:

        def make() -> Fault:
            machine = stack.enter_context(contextlib.closing(Machine()))
            return Fault(machine, tmp_path_factory.mktemp("fault"), decoded)

        yield make


@pytest.fixture
def fault(tmp_path: Path, decoded: Path) -> Iterator[Fault]:
    """A study that is not begun yet."""
    with contextlib.closing(Machine()) as machine:
        yield Fault(machine, tmp_path, decoded)


@pytest.fixture(scope="module")
def node_temporary() -> Iterator[Path]:
    """The temporary folder of the nodes that `ray_nodes` starts, and of what runs on them."""
    folder = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def fault_nodes(node_temporary: Path, make_ray_nodes: MakeRayNodes, cache_dir: Path) -> RayNodes:
    """Two nodes with a processor each."""
    prepare(DataConfig(limit_train=LIMIT))
    return make_ray_nodes()


@pytest.fixture
def nodes_fault(tmp_path: Path, fault_nodes: RayNodes, node_temporary: Path, cache_dir: Path) -> NodesFault:
    """A study that is not begun yet, on two nodes; one that was killed has been replaced."""
    while len(fault_nodes.nodes) < 2:
        fault_nodes.wait_until(lambda: fault_nodes.alive() == len(fault_nodes.nodes))  # Ray has noticed
        fault_nodes.add()
    return NodesFault(fault_nodes, node_temporary, tmp_path, cache_dir)


@pytest.fixture(scope="module")
def networks() -> Iterator[list[tuple[str, list[str]]]]:
    """Two machines' networks, joined by a cable: for each its address, and what brings a command there."""
    names = [f"tl{uuid.uuid4().hex[:8]}" for _ in range(2)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    first, second = names
    script = [
        f"netns add {first}",
        f"netns add {second}",
        f"link add name eth1 netns {first} type veth peer name eth1 netns {second}",
    ]
    for name, own, other in zip(names, addresses, reversed(addresses), strict=True):
        script += [f"-n {name} addr add {own}/24 dev eth1", f"-n {name} link set lo up", f"-n {name} link set eth1 up"]
        script.append(f"-n {name} route add default via {other}")
    try:
        try:
            for line in script:
                subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no command ip")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        inside = [["ip", "netns", "exec", name] for name in names]
        yield list(zip(addresses, inside, strict=True))
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def apart_fault(
    tmp_path: Path,
    networks: list[tuple[str, list[str]]],
    node_temporary: Path,
    make_ray_nodes: MakeRayNodes,
    cache_dir: Path,
) -> NodesFault:
    """A study that is not begun yet, on two nodes that have addresses of their own."""
    prepare(DataConfig(limit_train=LIMIT))
    return NodesFault(make_ray_nodes(inside=networks), node_temporary, tmp_path, cache_dir)
