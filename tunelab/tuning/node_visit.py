"""A visit to all nodes of a cluster, to hear what they tell and to try out what trials need.

It sends an actor to every node that is alive. It takes no processors, and `node_facts` goes with it by value, so
that it runs where tunelab is missing. What does not answer in time is given up and named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import DataConfig, to_json
from tunelab.errors import InputError
from tunelab.files import existing
from tunelab.tuning import node_facts
from tunelab.tuning.node_facts import Visitor
from tunelab.tuning.nodes import Clock, Facts, NodeReport, Storage, Visited, describe_error
from tunelab.tuning.ray_home import first_line

PATIENCE = 90.0
"""Seconds that a node may take for an answer, the start of a process included (our choice)."""
BUILD_PATIENCE = 3600.0
"""Seconds that it may take to decode the images (our choice)."""
DRIVER = "driver"
_CLOCKS = 3  # readings of a node's clock, the quickest of which counts (our choice)


def visit(
    folder: Path,
    packages: Sequence[str],
    data: Sequence[DataConfig] = (),
    *,
    build: bool = False,
    patience: float = PATIENCE,
    with_gpus: bool = True,
) -> Visited:
    """Asks all nodes of the cluster that this process has joined; nothing is left there, but for a cache that is built.

    Args:
        folder: of the study, which need not exist.
        packages: whose versions are asked for.
        data: is opened.
        build: images that are not decoded yet are decoded into the cache of the node; else they are only looked for.
        patience: seconds for each answer.
        with_gpus: torch is asked for the GPUs that Ray gives to trials.

    Raises:
        InputError: the driver itself cannot write where the study is to be.
    """
    home = Facts.from_json(node_facts.tell(packages, str(folder.absolute())))
    with _meeting_place(folder) as place, contextlib.closing(_Visit(patience)) as visit:
        told = visit.ask("tell", lambda _key: (packages, str(folder.absolute())))
        clocks = {key: _read_clock(visit, key) for key in told}
        storage = _try_storage(visit, place)
        plain = [json.dumps(to_json(one)) for one in data]
        longer = max(patience, BUILD_PATIENCE) if build and data else patience
        training = visit.ask("prepare", lambda key: (plain, build, with_gpus and visit.has_gpus(key)), longer)
        visit.forget_the_gone()
    nodes = [
        dataclasses.replace(
            node,
            silent=visit.silent.get(key, ""),
            facts=Facts.from_json(told[key]) if key in told else None,
            clock=clocks.get(key),
            storage=storage.get(key),
            training=training.get(key),
        )
        for key, node in visit.nodes.items()
    ]
    return Visited(home, place.parent, tuple(sorted(nodes, key=lambda one: one.name)))


@contextlib.contextmanager
def _meeting_place(folder: Path) -> Iterator[Path]:
    """A new folder where the study is, or would be, for this user alone as that; gone afterwards."""
    there = existing(folder)
    try:
        place = Path(tempfile.mkdtemp(prefix=".tunelab-nodes-", dir=there))
    except OSError as error:
        raise InputError(f"{there} cannot be written: {error.strerror}; name another folder for the study") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Visit:
    """An actor on each node. `silent` has those that did not answer, with the reason: they are not asked again."""

    def __init__(self, patience: float) -> None:
        import ray

        self.nodes = _alive(ray.nodes())  # type: ignore[no-untyped-call]
        self.silent: dict[str, str] = {}
        self._patience = patience
        self._actors: dict[str, Any] = {}
        with _sent_along():
            for key in self.nodes:
                self._actors[key] = self._send(key)

    def _send(self, key: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(key, soft=False)
        return ray.remote(Visitor).options(num_cpus=0, max_restarts=0, scheduling_strategy=there).remote()

    def has_gpus(self, key: str) -> bool:
        """True if Ray gives GPUs of this node to trials."""
        return self.nodes[key].resources.get("GPU", 0.0) > 0

    def ask(
        self,
        method: str,
        given: Callable[[str], tuple[Any, ...]],
        patience: float | None = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Any]:
        """The answers of all that still answer, or of `only` some, asked at once; `given` makes the arguments."""
        import ray

        patience = self._patience if patience is None else patience
        actors = {key: actor for key, actor in self._actors.items() if only is None or key in only}
        asked = {getattr(actor, method).remote(*given(key)): key for key, actor in actors.items()}
        if not asked:
            return {}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
        answers = {}
        for one in ready:
            with self._named(asked[one]):
                answers[asked[one]] = ray.get(one)
        for one in late:
            self._give_up(asked[one], f"no answer within {patience:.0f} s")
        return answers

    @contextlib.contextmanager
    def _named(self, key: str) -> Iterator[None]:
        """Gives a node up that has died, or where no process starts."""
        try:
            yield
        except Exception as error:
            self._give_up(key, _reason(error))

    def forget_the_gone(self) -> None:
        """Leaves out those that did not answer because they are alive no more: a search does without them."""
        import ray

        if self.silent:
            alive = _alive(ray.nodes())  # type: ignore[no-untyped-call]
            self.nodes = {key: node for key, node in self.nodes.items() if key in alive or key not in self.silent}

    def _give_up(self, key: str, why: str) -> None:
        self.silent[key] = why
        self._end(self._actors.pop(key))

    def _end(self, actor: Any) -> None:
        import ray

        with contextlib.suppress(Exception):  # it is gone
            ray.kill(actor)

    def close(self) -> None:
        """Ends the actors."""
        for actor in self._actors.values():
            self._end(actor)


def _alive(told: Sequence[Mapping[str, Any]]) -> dict[str, NodeReport]:
    """The nodes that are alive, by their ids, from what `ray.nodes()` tells."""
    alive = [one for one in told if one["Alive"]]
    addresses = Counter(str(one["NodeManagerAddress"]) for one in alive)
    found = {}
    for one in alive:
        name = str(one["NodeManagerAddress"])
        name += f":{one['NodeManagerPort']}" if addresses[name] > 1 else ""
        found[str(one["NodeID"])] = NodeReport(name, str(one["NodeID"]), dict(one["Resources"]))
    return found


@contextlib.contextmanager
def _sent_along() -> Iterator[None]:
    """What is pickled meanwhile has the code of these modules in it."""
    from ray import cloudpickle

    modules = [sys.modules[name] for name in node_facts.BY_VALUE]
    for one in modules:
        cloudpickle.register_pickle_by_value(one)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for one in modules:
            cloudpickle.unregister_pickle_by_value(one)  # type: ignore[no-untyped-call]


def _read_clock(visit: _Visit, key: str) -> Clock | None:
    """A node's clock against the driver's; None if it does not answer."""
    readings = []
    for _ in range(_CLOCKS):
        before = time.time()
        there = visit.ask("now", lambda _key: (), only=(key,)).get(key)
        after = time.time()
        if there is None:
            return None
        readings.append(((after - before) / 2, there - (before + after) / 2))
    doubt, ahead = min(readings)
    return Clock(ahead, doubt)


def _try_storage(visit: _Visit, place: Path) -> dict[str, Storage]:
    """Has everybody write a token and read those of all others, then one of the driver's that was replaced.

    Raises:
        InputError: the driver's cannot be written.
    """
    tokens = {key: secrets.token_hex(32) for key in (DRIVER, *visit.nodes)}
    _write_own(place, tokens[DRIVER])
    problems = visit.ask("leave_token", lambda key: (str(place), key, tokens[key]))
    tokens = {key: token for key, token in tokens.items() if key == DRIVER or problems.get(key) == ""}
    unseen = visit.ask("unseen", lambda _key: (str(place), tokens))
    lost = node_facts.unseen(str(place), {key: token for key, token in tokens.items() if key != DRIVER})
    tokens = {DRIVER: secrets.token_hex(32)}
    _write_own(place, tokens[DRIVER])
    stale = visit.ask("unseen", lambda _key: (str(place), tokens))
    names = {DRIVER: "the driver", **{key: node.name for key, node in visit.nodes.items()}}
    return {
        key: Storage(
            problem,
            tuple(names[other] for other in unseen.get(key, ())),
            stale=bool(stale.get(key)),
            lost=key in lost,
        )
        for key, problem in problems.items()
    }


def _write_own(place: Path, token: str) -> None:
    problem = node_facts.leave_token(str(place), DRIVER, token)
    if problem:
        said = describe_error(problem)
        raise InputError(f"{place.parent} cannot be written: {said}; name another folder for the study")


def _reason(error: Exception) -> str:
    """What is wrong, in a line; of an error in an actor the last one, which names it."""
    lines = str(error).strip().splitlines()
    told = lines[-1].strip() if lines and "Task" in type(error).__name__ else first_line(error)
    return told[:300]
