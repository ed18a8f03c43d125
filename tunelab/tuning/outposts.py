"""The nodes of a cluster, as the driver of a search sees them through its outposts: `Reach` and `Head` of its guard.

Every answer has a time limit. That a node does not answer says nothing about its trials; that it is gone explains what
became of them.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunelab.training.pulse import Beat
from tunelab.tuning.losses import Loss
from tunelab.tuning.machine import STACKS_PATIENCE, Stacks
from tunelab.tuning.memory_guard import Word
from tunelab.tuning.outpost import Outpost, Sight

_PATIENCE = 1.0  # seconds that a look waits for answers (our choice)
_CONNECT = 3.0  # seconds that a node may take to accept a connection (our choice)
_ASK = 5.0  # seconds that an outpost may take for what it is asked beside its beats (our choice)
_AGAIN = 10.0  # seconds until there is a new outpost where one has died (our choice)
_ROUND = 1.0  # seconds between two looks at which nodes there are (our choice)
_SETTLES = 2.0  # seconds that a node may take to go, from the end of the first process (our choice)
_NOTICED = 20.0  # seconds until the cluster notices that, where its nodes cannot be asked (13.8 s with Ray 2.60)
_RECENT = 120.0  # seconds in which a trial that never beat may have died with a node (our choice)


@dataclass
class _Post:
    """A node of the cluster: where it is, its outpost, and what was last asked and seen there."""

    address: str
    port: int
    actor: Any = None
    pending: Any = None
    sight: Sight | None = None
    answers: bool = False
    next_actor: float = 0.0
    gone: float | None = None  # since when the cluster takes it for dead, on the monotonic clock


class Outposts:
    """All nodes of the cluster that this process has joined, each with an outpost while `up`.

    Args:
        address: by which it has joined; a client ("ray://HOST:PORT") can reach nothing else of the cluster.
    """

    def __init__(self, address: str = "") -> None:
        self.search = secrets.token_hex(8)
        self.rounds = 0
        self._posts: dict[str, _Post] = {}
        self._places: dict[int, str] = {}
        self._kills: dict[int, int] = {}
        self._lock = threading.Lock()
        self._calls = threading.Lock()  # held while something is asked of Ray
        self._up = False  # Ray would start itself anew for a question that comes later
        self._own = ""
        self._head: tuple[str, int] | None = None
        scheme, _, door = address.rpartition("://")
        self._door = _split(door) if scheme else None

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """While this process is a driver of the cluster; in the end no folder of an outpost is left."""
        import ray
        from ray.util import client

        if not client.ray.is_connected():  # type: ignore[no-untyped-call]  # a client reaches the head through one port alone
            here = ray.get_runtime_context()
            self._own, self._head = here.get_node_id(), _split(here.gcs_address)
        self._up = True
        self._look_for_nodes()
        over = threading.Event()
        thread = threading.Thread(target=self._keep_posts, args=(over,), name="outposts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_CONNECT + _ASK)
            with self._calls:
                self._close()
                self._up = False
            self._head = None

    # The head, for `RayWatch`.

    def trouble(self) -> str:
        """Why the cluster cannot be reached any more, asked now; "" if it can, or it is not known."""
        if self._head is None:
            return self._trouble_of_a_client()
        if not _accepts(*self._head):
            return f"the cluster's head {self._head[0]}:{self._head[1]} does not answer"
        own = self._posts.get(self._own)
        if own is not None and (own.gone is not None or not _accepts(own.address, own.port)):
            return "this machine is no node of the cluster any more"
        return ""

    def _trouble_of_a_client(self) -> str:
        from ray.util import client

        if self._door is None or not self._up:
            return ""
        head = f"the cluster's head {self._door[0]}:{self._door[1]}"
        known: Any = client.ray
        if not known.get_context().is_connected():  # after half a minute in which Ray tried
            return f"the connection to {head} has broken"
        return "" if _accepts(*self._door) else f"{head} does not answer"

    # What a watchdog needs.

    def forget(self, number: int) -> None:
        """See `Reach`."""
        with self._lock:
            self._places.pop(number, None)
            self._kills.pop(number, None)

    def beats(self, numbers: Collection[int]) -> dict[int, Beat | None]:
        """See `Reach`. All nodes are asked at once, and those that do not answer in time are left out."""
        posts = self._standing()
        self._ask_all(posts, sorted(numbers))
        found: dict[int, Beat | None] = {}
        with self._lock:
            for node, post in posts.items():
                if post.sight is None or not post.answers:
                    continue
                for number, beat in post.sight.beats.items():
                    if number not in numbers or (beat.phase == "idle" and self._places.get(number) != node):
                        continue  # of an earlier attempt, say, whose process waits for another trial
                    found[number] = beat
                    self._places[number], self._kills[number] = node, post.sight.kills
            if all(post.answers for post in self._posts.values() if post.gone is None):
                return {number: found.get(number) for number in numbers}
        return found

    def has_room(self) -> bool:
        """See `Reach`."""
        posts = self._standing()
        told = [self._ask(post, "has_room") for post in posts.values()]
        return bool(told) and all(told)

    def take_stacks(self, number: int, beat: Beat) -> Stacks | None:
        """See `Reach`."""
        post = self._post_of(number)
        told = None if post is None else self._ask(post, "take_stacks", number, beat)
        return told if isinstance(told, Stacks) else None

    def end(self, number: int, beat: Beat) -> bool:
        """See `Reach`."""
        post = self._post_of(number)
        return post is not None and self._ask(post, "end", number, beat) is True

    def end_unknown(self, known: Mapping[int, Beat], note: Callable[[], None]) -> None:
        """See `Reach`."""
        posts = self._standing()
        with self._lock:
            pids = {node: [beat.pid for at, beat in known.items() if self._places.get(at) == node] for node in posts}
        found = [node for node, post in posts.items() if self._ask(post, "unknown", pids[node])]
        if found:
            note()
        for node in found:
            self._ask(posts[node], "end_unknown", pids[node])

    # What witnesses need.

    def testify(self, number: int) -> Loss | None:
        """That the node of a trial is gone; None if it is not. A node's processes may end one after the other."""
        end = time.monotonic() + (_NOTICED if self._head is None else _SETTLES)
        while (loss := self._find_gone(number)) is None and time.monotonic() < end:
            time.sleep(0.2)
        return loss

    def _find_gone(self, number: int) -> Loss | None:
        with self._lock:
            place = self._places.get(number)
            posts = dict(self._posts)
        if place is not None:
            return Loss("node", f"its node {posts[place].address} is gone") if self._is_gone(posts[place]) else None
        for post in posts.values():
            recent = post.gone is None or time.monotonic() - post.gone < _RECENT
            if recent and self._is_gone(post):
                return Loss("node", f"node {post.address}, which it may have been on, is gone")
        return None

    def note(self, number: int) -> None:
        """Nothing: it is noted with each beat how many processes the kernel has killed on the trial's node."""

    def claim(self, number: int) -> bool:
        """True if the kernel has killed a process on the trial's node since it was last seen alive; told once."""
        post = self._post_of(number)
        with self._lock:
            before = self._kills.get(number)
        if post is None or before is None:
            return False
        sight = self._ask(post, "look", [])
        if not isinstance(sight, Sight) or sight.kills <= before:
            return False
        with self._lock:
            place = self._places.get(number)
            for other in self._kills:
                self._kills[other] += self._places.get(other) == place
        return True

    def take_word(self, number: int) -> Word | None:
        """What the process of a trial wrote of its memory on its node, where that does not see the study; told once.

        It may be gone before it was ever seen: then all nodes are asked, and the word of one that ended counts most.
        """
        post = self._post_of(number)
        told = [self._ask(one, "take_word", number) for one in (self._standing().values() if post is None else [post])]
        words = [word for word in told if isinstance(word, Word)]
        return max(words, key=lambda word: word.ended, default=None)

    def _is_gone(self, post: _Post) -> bool:
        return post.gone is not None or (self._head is not None and not _accepts(post.address, post.port))

    def _standing(self) -> dict[str, _Post]:
        """The nodes that have an outpost."""
        with self._lock:
            return {node: post for node, post in self._posts.items() if post.gone is None and post.actor is not None}

    def _post_of(self, number: int) -> _Post | None:
        with self._lock:
            return self._posts.get(self._places.get(number, ""))

    def _ask(self, post: _Post, what: str, *given: Any) -> Any:
        """What an outpost answers; None if it does not."""
        import ray

        with self._calls:
            if post.actor is None or not self._up:
                return None
            try:
                return ray.get(getattr(post.actor, what).remote(*given), timeout=_ASK + STACKS_PATIENCE)
            except Exception:  # it is gone, or its node is; that is found out elsewhere
                return None

    def _ask_all(self, posts: Mapping[str, _Post], numbers: list[int]) -> None:
        """Has each outpost look, and takes in what those answer that do it in time."""
        for post in posts.values():
            post.answers = False
        with self._calls:
            if self._up:
                self._look_everywhere(posts, numbers)

    def _look_everywhere(self, posts: Mapping[str, _Post], numbers: list[int]) -> None:
        import ray

        for post in posts.values():
            if post.pending is None:
                with contextlib.suppress(Exception):
                    post.pending = post.actor.look.remote(numbers)
        pending = [post.pending for post in posts.values() if post.pending is not None]
        if not pending:
            return
        ready = set(ray.wait(pending, num_returns=len(pending), timeout=_PATIENCE)[0])
        for post in posts.values():
            if post.pending not in ready:
                continue
            asked, post.pending = post.pending, None
            try:
                post.sight, post.answers = ray.get(asked, timeout=_ASK), True
            except ray.exceptions.ActorDiedError:  # no failure: there will be another one
                post.actor, post.next_actor = None, time.monotonic() + _AGAIN
            except Exception:
                continue  # not there for the moment; it is asked again

    def _keep_posts(self, over: threading.Event) -> None:
        """Looks which nodes there are, and sends an outpost to each; waits for the head as long as that takes."""
        while True:
            try:
                reached = self._head is None or _accepts(*self._head)
                if reached and not over.is_set():  # else Ray would not come back
                    self._look_for_nodes()
                    self.rounds += 1
            except Exception:
                traceback.print_exc()
            if over.wait(_ROUND):
                return

    def _look_for_nodes(self) -> None:
        import ray

        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
        now = time.monotonic()
        for node in nodes:
            name, alive = node["NodeID"], node["Alive"]
            with self._lock:
                post = self._posts.get(name)
                if post is None and alive:
                    post = self._posts[name] = _Post(node["NodeManagerAddress"], node["NodeManagerPort"])
                if post is not None and not alive and post.gone is None:
                    post.gone, post.actor, post.pending = now, None, None
            if post is not None and alive and post.actor is None and now >= post.next_actor:
                post.pending = None
                post.actor = self._send(name)

    def _send(self, node: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=0)(Outpost)
        return actor.options(scheduling_strategy=on).remote(self.search, node)

    def _close(self) -> None:
        """Has the outposts remove their folders; Ray ends them with the search."""
        import ray

        with contextlib.suppress(Exception):
            pending = [post.actor.close.remote() for post in self._standing().values()]
            if pending:
                ray.wait(pending, num_returns=len(pending), timeout=_ASK)


def _split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _accepts(address: str, port: int) -> bool:
    """True if something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT):
            return True
    except OSError:
        return False
