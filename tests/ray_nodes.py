"""Real Ray nodes on this machine for tests: processes of `ray start`, each with a folder of its own, and a token.

And what all commands share that are real processes. `tests/conftest.py` has the fixture `ray_nodes`, and lets other
conftest files import this one as `tests.ray_nodes`. Workers inherit the environment of their node: orders for
`benchmarks/provoked` are in `orders.json`, what it tells is in `log`, both in `folder`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROVOKED = Path(__file__).resolve().parents[1] / "benchmarks" / "provoked"
MARK, NODE = "TUNELAB_TEST_MARK", "TUNELAB_TEST_NODE"
_STARTS = 90.0  # seconds until a node is there, on a busy machine
_ANSWERS = 30.0  # seconds until the head says which nodes are alive, if it does
_PORTS = range(24_001, 32_768)  # below those that the kernel gives to connections, above those that Ray takes by itself
_ALIVE = """
import sys
from ray._raylet import GcsClient
for _ in sys.stdin:
    nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
    print(*(node.temp_dir for node in nodes if node.state == 0), flush=True)
"""


_CLAIMS: list[socket.socket] = []
_KERNEL = 2  # the process whose children are the kernel's
_OTHERS: dict[tuple[str, str], weakref.WeakSet[psutil.Process]] = {}  # that have no such mark, which all inherit


@dataclass
class Node:
    """A node: the process of `ray start`, and the mark that all its processes inherit."""

    name: str
    process: subprocess.Popen[str]
    mark: str
    temporary: Path
    said: Path = field(repr=False)

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs on this node; with one of `words` in its command."""
        return [one for one in psutil.process_iter() if is_marked(one, NODE, self.mark, words)]

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return self.processes("ray::TrialWorker", "ray::ResourceTrainable")

    def raylet(self) -> psutil.Process:
        (found,) = [one for one in self.processes("/raylet") if one.name() == "raylet"]
        return found


class RayNodes:
    """A cluster of nodes on this machine; `start` starts commands of tunelab that may use it.

    Args:
        nodes: how many there are, the head included.
        cpus: what each of them has.
        head_cpus: what the head has.
        dashboard: the head takes jobs, at `dashboard`.
        client: the head takes Ray clients, at `client`.
        inside: where the nodes are, if not on this machine's own network: for each its address, and the words before a
            command that bring it there. Commands of tunelab run where the head is.
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 1,
        head_cpus: int | None = None,
        *,
        dashboard: bool = False,
        client: bool = False,
        inside: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        self._inside = inside
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # short: Ray puts sockets below it
        self.token = self.folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.log, self._cpus = self.folder / "log", cpus
        self.orders()
        self._ports = dict(zip(("gcs", "dashboard", "client"), free_ports(3), strict=True))
        self.address = f"{inside[0][0] if inside else '127.0.0.1'}:{self._ports['gcs']}"
        self.dashboard = f"http://127.0.0.1:{self._ports['dashboard']}" if dashboard else ""
        self.client = f"ray://127.0.0.1:{self._ports['client']}" if client else ""
        self.nodes: list[Node] = []
        self._started: list[subprocess.Popen[str]] = []
        self._asked: subprocess.Popen[str] | None = None
        try:
            self._start_head(cpus if head_cpus is None else head_cpus)
            for _ in range(nodes - 1):
                self.add(wait=False)
            self.wait_until(lambda: self.alive() == nodes, _STARTS)
        except BaseException:
            self.close()
            raise

    def environment(self, **more: str) -> dict[str, str]:
        """That of nodes and commands: quick, with the token, and what `benchmarks/provoked` reads."""
        return {
            **os.environ,
            MARK: self.mark,
            "PYTHONPATH": str(PROVOKED),
            "PROVOKED_QUICK": "1",
            "PROVOKED_LOG": str(self.log),
            "PROVOKED_ORDERS": str(self.folder / "orders.json"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",  # with it, a head's processes for clients end as they start, now and then
            **more,
        }

    def orders(self, *orders: dict[str, Any]) -> None:
        """What is provoked from now on."""
        give_orders(self.folder, orders)

    def trained(self, what: str = "end") -> Counter[tuple[int, int]]:
        """How often each epoch of each trial was really trained (or begun), by (trial, epoch), since `forget`."""
        return trained(self.log, what)

    def forget(self) -> None:
        """Begins a new log."""
        self.log.unlink(missing_ok=True)

    def add(self, *options: str, wait: bool = True, within: Sequence[str] = (), **more: str) -> Node:
        """One more node, with further options of `ray start` and variables; `within` are words before its command."""
        cpus = [] if any(option.startswith("--num-cpus") for option in options) else [f"--num-cpus={self._cpus}"]
        node = self._start_node(f"--address={self.address}", *cpus, *options, within=within, **more)
        if wait:
            self.wait_until(lambda: node in self.joined(), _STARTS)
        return node

    def kill(self, node: Node) -> None:
        """Kills all processes of a node at once, as a power cut does."""
        while left := node.processes():
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            time.sleep(0.05)
        node.process.wait()
        if node in self.nodes:
            self.nodes.remove(node)

    def alive(self) -> int:
        """How many nodes the cluster takes for alive; 0 if it does not answer."""
        return len(self._alive())

    def joined(self) -> list[Node]:
        """Those of the nodes that the cluster takes for alive; a node that was killed may be for a while."""
        folders = self._alive()
        return [node for node in self.nodes if str(node.temporary) in folders]

    def _alive(self) -> list[str]:
        """The folders of the nodes that the cluster takes for alive."""
        if self._asked is None:
            command = [*self._enter(0), sys.executable, "-c", _ALIVE, self.address]
            self._asked = launch(command, self.environment(**{NODE: "asks"}), subprocess.PIPE)  # no command of a test
            self._started.append(self._asked)
        asked = self._asked
        assert asked.stdin is not None
        assert asked.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            asked.stdin.write("\n")
            asked.stdin.flush()
        answered, _, _ = select.select([asked.stdout], [], [], _ANSWERS)
        told = asked.stdout.readline() if answered else ""
        if not told:  # of a head that starts, or is gone
            asked.kill()
            self._asked = None
        return told.split()

    def start(self, *arguments: str, before: str = "", **more: str) -> subprocess.Popen[str]:
        """Starts a command of tunelab in a session of its own, after the lines of Python in `before`."""
        return self.start_program(*command_line(before), *arguments, **more)

    def start_program(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Starts any program in a session of its own, with the environment of the commands."""
        self._started.append(launch([*self._enter(0), *command], self.environment(**more)))
        return self._started[-1]

    def wait_until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Waits while all nodes run."""
        end = time.monotonic() + seconds
        while not condition():
            for node in self.nodes:
                assert node.process.poll() is None, f"{node.name} has ended: {node.said.read_text()}"
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.05)

    def close(self) -> None:
        """Ends all that was started, however the test ended, and waits for it."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 3
            while left := [one for one in psutil.process_iter() if is_marked(one, MARK, self.mark)]:
                for one in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.send_signal(signum)
                if signum == signal.SIGTERM and time.monotonic() > end:
                    break
                time.sleep(0.1)
        for process in self._started:
            process.communicate()
        for node in self.nodes:
            node.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _enter(self, node: int) -> Sequence[str]:
        return self._inside[node][1] if self._inside else ()

    def _start_head(self, cpus: int) -> None:
        options = ["--head", f"--port={self._ports['gcs']}", f"--num-cpus={cpus}"]
        options.append(f"--include-dashboard={'true' if self.dashboard else 'false'}")
        if self.dashboard:
            options.append(f"--dashboard-port={self._ports['dashboard']}")
        if self.client:
            options.append(f"--ray-client-server-port={self._ports['client']}")
        self._start_node(*options)
        self.wait_until(lambda: self.alive() == 1, _STARTS)

    def _start_node(self, *options: str, within: Sequence[str] = (), **more: str) -> Node:
        name, mark = f"n{len(self.nodes)}", uuid.uuid4().hex
        temporary = Path(tempfile.mkdtemp(prefix=name, dir=self.folder))
        said = temporary / "said.txt"
        # Two nodes on one machine: nothing may have a usual port.
        listen, grpc, metrics = free_ports(3)
        ports = [f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}"]
        ports += [f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0"]
        command = [*self._enter(len(self.nodes)), sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command.append("--object-store-memory=80000000")
        if self._inside:
            command.append(f"--node-ip-address={self._inside[len(self.nodes)][0]}")
        with said.open("w") as file:
            process = subprocess.Popen(
                [*within, *command, f"--temp-dir={temporary}", *ports, *options],
                env=self.environment(**{NODE: mark, **more}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        node = Node(name, process, mark, temporary, said)
        self.nodes.append(node)
        return node


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, all different; no other test run is given them while this process lives."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            claim = socket.socket(socket.AF_UNIX)
            claim.bind(
                f"\0tunelab-test-port-{port}"
            )  # a name without a file, which the kernel forgets with the process
            _CLAIMS.append(claim)
            found.append(port)
    return found


def command_line(before: str = "") -> list[str]:
    """Python that runs the words after it as tunelab does, after the lines of Python in `before`."""
    return [sys.executable, "-c", f"{before}\nimport sys\nfrom tunelab.cli import run\nsys.exit(run(sys.argv[1:]))"]


def launch(
    command: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts a program in a session of its own, whose words can be read."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=environment,
        stdin=stdin,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


def give_orders(folder: Path, orders: Sequence[dict[str, Any]]) -> None:
    """What `benchmarks/provoked` does from now on where it reads `orders.json` in this folder."""
    new = folder / "orders.new"
    new.write_text(json.dumps(orders))
    new.replace(folder / "orders.json")


def trained(log: Path, what: str) -> Counter[tuple[int, int]]:
    """How often an epoch of a trial has ended (or has begun), by (trial, epoch), as `benchmarks/provoked` tells."""
    lines = log.read_text().splitlines() if log.exists() else []
    told = [json.loads(line) for line in lines]
    return Counter((one["trial"], one["epoch"]) for one in told if one["what"] == what)


def is_marked(process: psutil.Process, name: str, mark: str, words: tuple[str, ...] = ()) -> bool:
    """True if it runs and has the variable `name` with this mark; with one of `words` in its command."""
    others = _OTHERS.setdefault((name, mark), weakref.WeakSet())
    if process in others:
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        environment = {"of": "the kernel"} if process.ppid() == _KERNEL else process.environ()
        if environment.get(name) != mark:
            if environment:  # it may have none yet while it starts
                others.add(process)
            return False
        line = " ".join(process.cmdline()[:3])
        return not words or any(word in line for word in words)
    except (psutil.Error, OSError):
        return False  # gone, or somebody else's
