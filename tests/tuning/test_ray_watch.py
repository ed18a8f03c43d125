"""A Ray that is gone or does not answer: processes that bear its names alone. A real one is in tests/faults."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tunelab.liveness import SignsOfLife
from tunelab.training.pulse import started
from tunelab.tuning import ray_watch as module
from tunelab.tuning.guard import Guard
from tunelab.tuning.outposts import Outposts
from tunelab.tuning.ray_watch import RayWatch
from tunelab.tuning.watchdog import Limits

LIMITS = Limits(ray=10.0, end=5.0)


class Engine:
    def __init__(self) -> None:
        self.halted = ""

    def halt(self, why: str) -> None:
        self.halted = self.halted or why


class Left(BaseException):
    """The process would have ended."""


class Ray:
    """Its head, as two processes that sleep."""

    def __init__(self, folder: Path) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in module.HEAD:
            program = folder / name
            shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
            self.processes[name] = subprocess.Popen([str(program), "1000"])
        for name, process in self.processes.items():
            while psutil.Process(process.pid).name() != name:  # until it has become that program
                time.sleep(0.005)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "private"
    made.mkdir()
    return made


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(module.os, "_exit", leave)
    return []


@pytest.fixture
def watch(engine: Engine, said: list[str]) -> RayWatch:
    return RayWatch(engine, said.append, LIMITS)


@pytest.fixture
def ray(watch: RayWatch, folder: Path, tmp_path: Path) -> Iterator[Ray]:
    """A Ray that is up."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch.around(folder))
        started = Ray(tmp_path)
        stack.callback(started.stop)
        stack.enter_context(watch.up())
        yield started


def look(watch: RayWatch, seconds: int, *, asks: bool = True) -> None:
    for _ in range(seconds):
        if asks:
            watch.ask()
        watch.look(1.0)


def test_a_ray_that_asks_is_well(watch: RayWatch, ray: Ray, engine: Engine) -> None:
    look(watch, 100)
    assert (watch.lost, engine.halted) == ("", "")
    assert watch.testify(0) is None


@pytest.mark.parametrize("name", module.HEAD)
def test_a_head_that_is_gone_halts_the_engine_at_once(watch: RayWatch, ray: Ray, engine: Engine, name: str) -> None:
    ray.processes[name].kill()
    while psutil.Process(ray.processes[name].pid).status() != psutil.STATUS_ZOMBIE:  # as which it stays
        time.sleep(0.01)
    look(watch, 1)
    assert engine.halted == watch.lost == f"Ray's process {name} is gone"


def test_a_trial_that_died_with_ray_is_not_to_blame(watch: RayWatch, ray: Ray, engine: Engine) -> None:
    """The engine, which is halted by then, counts no retry."""
    ray.stop()
    loss = watch.testify(3)
    assert loss is not None
    assert loss.cause == "lost"
    assert engine.halted == loss.why == "Ray's process gcs_server is gone"


def test_a_ray_that_asks_nothing_is_given_up(watch: RayWatch, ray: Ray, engine: Engine) -> None:
    look(watch, 10, asks=False)
    assert engine.halted == ""
    look(watch, 1, asks=False)
    assert engine.halted == "Ray has not answered for 11 s"


def test_while_the_engine_works_ray_may_be_silent(watch: RayWatch, folder: Path, engine: Engine) -> None:
    """The question has come, and is being answered in the thread that runs Ray."""
    inside, over = threading.Event(), threading.Event()
    work = compile("inside.set(); over.wait(30)", "ray_pieces.py", "exec")

    def run() -> None:
        with watch.around(folder), watch.up():
            types.FunctionType(work, {"__name__": module._OURS, "inside": inside, "over": over})()

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(30)
    look(watch, 100, asks=False)
    over.set()
    thread.join()
    assert engine.halted == ""


def test_a_ray_that_does_not_end_in_time_is_left(
    watch: RayWatch, ray: Ray, folder: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ray.processes["gcs_server"].kill()
    ray.processes["gcs_server"].wait()
    look(watch, 6)
    assert said == []
    with pytest.raises(Left, match="3"):
        look(watch, 1)
    assert said == ["Ray's process gcs_server is gone"]
    assert not folder.exists()
    assert ray.processes["raylet"].wait(10) == -9


def test_an_end_that_hangs_is_noticed(watch: RayWatch, folder: Path, engine: Engine) -> None:
    with watch.around(folder):
        with watch.up():
            look(watch, 1)
        look(watch, 10)
        assert engine.halted == ""
        look(watch, 1)
        assert engine.halted == "Ray has not ended for 11 s"


def test_other_children_are_not_rays(watch: RayWatch, folder: Path, tmp_path: Path, said: list[str]) -> None:
    """What the program that searches had started before goes on."""
    mine = subprocess.Popen([sys.executable, "-c", textwrap.dedent("import time; time.sleep(1000)")])
    started = None
    try:
        with watch.around(folder):
            started = Ray(tmp_path)
            with watch.up():
                started.processes["raylet"].kill()
                started.processes["raylet"].wait()
                look(watch, 1)
        assert started.processes["gcs_server"].wait(10) == -9, "nothing of a Ray that is lost is left"
        assert mine.poll() is None
    finally:
        mine.kill()
        mine.wait()
        if started is not None:
            started.stop()
    assert os.getpid() not in watch._processes


@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="the kernel does not say who started whom"
)
def test_what_rays_processes_start_later_is_found_without_a_look_at_all_others(
    watch: RayWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("it looks through all processes of the machine")

    child = subprocess.Popen(["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        watch._processes[os.getpid()] = started(os.getpid()) or 0.0
        monkeypatch.setattr(psutil.Process, "children", refuse)
        watch._find_processes()
        assert {child.pid, grandchild} <= watch._processes.keys()
    finally:
        os.kill(grandchild, signal.SIGKILL)
        child.communicate()


class Cluster:
    """The head of a cluster; it answers as long as there is no `why`, or when it has been asked `until` so often."""

    def __init__(self) -> None:
        self.rounds = 0
        self.why = ""
        self.hangs = False
        self.until = sys.maxsize

    def trouble(self) -> str:
        self.until -= 1
        return self.why if self.until > 0 else ""

    def ask(self) -> None:
        self.rounds += not self.why and not self.hangs


def look_at(watch: RayWatch, cluster: Cluster, seconds: int) -> None:
    for _ in range(seconds):
        cluster.ask()
        look(watch, 1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "_AGAIN", 0.0)
    return Cluster()


@pytest.fixture
def joined(engine: Engine, said: list[str], cluster: Cluster, folder: Path) -> Iterator[RayWatch]:
    """A watch over a cluster that this process has joined."""
    made = RayWatch(engine, said.append, Limits(ray=10.0, head=3.0, end=5.0), cluster)
    with made.around(folder), made.up():
        yield made


def test_a_head_that_is_started_again_in_time_is_no_trouble(joined: RayWatch, cluster: Cluster, engine: Engine) -> None:
    for why in ("", "gone", "", "gone", ""):
        cluster.why = why
        look_at(joined, cluster, 3)
    assert (joined.lost, engine.halted) == ("", "")
    assert joined.testify(0) is None


def test_a_head_that_is_gone_pauses_the_search(joined: RayWatch, cluster: Cluster, engine: Engine) -> None:
    look_at(joined, cluster, 20)
    cluster.why = "the cluster's head 10.0.0.1:6379 does not answer"
    look_at(joined, cluster, 3)
    assert engine.halted == ""
    look_at(joined, cluster, 1)
    assert engine.halted == joined.lost == cluster.why


def test_a_trial_that_dies_without_the_head_is_not_lost(joined: RayWatch, cluster: Cluster, engine: Engine) -> None:
    cluster.why = "this machine is no node of the cluster any more"
    loss = joined.testify(0)
    assert loss is not None
    assert loss.why == engine.halted == cluster.why


def test_one_connection_that_fails_is_not_the_end_of_the_head(
    joined: RayWatch, cluster: Cluster, engine: Engine
) -> None:
    cluster.why, cluster.until = "the cluster's head 10.0.0.1:6379 does not answer", 3
    assert joined.testify(0) is None
    assert (joined.lost, engine.halted) == ("", "")


class Joined(Outposts):
    """A cluster whose head is gone."""

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        yield

    def trouble(self) -> str:
        return "the cluster's head 10.0.0.1:10001 does not answer"


@pytest.mark.parametrize("gone", [True, False])
def test_what_ray_raises_without_its_head_is_a_pause(
    engine: Engine, cluster: Cluster, folder: Path, gone: bool
) -> None:
    """As it does in a Ray client, which asks nothing but the head."""
    nodes = Joined() if gone else None
    guard = Guard(lambda number: folder, None, None, SignsOfLife(folder), sys.stderr, nodes)
    with guard.over(engine, folder), pytest.raises(ConnectionError), guard.up():
        raise ConnectionError("Client is shutting down.")
    assert guard.ray_is_lost == gone
    assert engine.halted == (nodes.trouble() if nodes else "")


def test_a_head_that_accepts_connections_and_does_nothing_is_given_up(
    joined: RayWatch, cluster: Cluster, engine: Engine
) -> None:
    look_at(joined, cluster, 1)
    cluster.hangs = True
    look_at(joined, cluster, 10)
    assert engine.halted == ""
    look_at(joined, cluster, 1)
    assert engine.halted == "the cluster's head has not answered for 11 s"
