"""The nodes of a cluster as the driver sees them, without Ray: its outposts are objects here that answer or do not."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util import client

from tunelab.training.pulse import Beat
from tunelab.tuning import outposts as module
from tunelab.tuning.losses import Loss
from tunelab.tuning.machine import Stacks
from tunelab.tuning.memory_guard import Word
from tunelab.tuning.outpost import Sight
from tunelab.tuning.outposts import Outposts

BEAT = Beat(7, 100, 1.0, 2.0, 3, "training", 60.0, 0.1)
IDLE = dataclasses.replace(BEAT, phase="idle", limit=0.0)


class Post:
    """An outpost: what it sees, and what it was told to do."""

    def __init__(self) -> None:
        self.seen: dict[int, Beat] = {}
        self.kills = 0
        self.others: set[int] = set()
        self.ended: list[Any] = []
        self.words: dict[int, Word] = {}
        self.silent = self.dead = False

    def look(self, numbers: Sequence[int]) -> Sight:
        return Sight({number: beat for number, beat in self.seen.items() if number in numbers}, self.kills)

    def has_room(self) -> bool:
        return True

    def take_stacks(self, number: int, beat: Beat) -> Stacks:
        return Stacks("there", f"stacks of {number}")

    def end(self, number: int, beat: Beat) -> bool:
        self.ended.append(number)
        return True

    def take_word(self, number: int) -> Word | None:
        return self.words.pop(number, None)

    def unknown(self, known: Sequence[int]) -> list[int]:
        return sorted(self.others - set(known))

    def end_unknown(self, known: Sequence[int]) -> None:
        self.ended += self.unknown(known)


class Call:
    """A question to an outpost that is under way."""

    def __init__(self, post: Post, what: Callable[..., Any], given: tuple[Any, ...]) -> None:
        self.post, self.what, self.given = post, what, given

    def answer(self) -> Any:
        if self.post.dead:
            raise ray.exceptions.ActorDiedError
        if self.post.silent:
            raise ray.exceptions.GetTimeoutError
        return self.what(*self.given)


class Actor:
    def __init__(self, post: Post) -> None:
        self._post = post

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Call(self._post, getattr(self._post, name), given))


class Nodes:
    """A cluster of two nodes whose ports are open; `rows` is what Ray tells of them."""

    def __init__(self) -> None:
        self.listening = {name: socket.create_server(("127.0.0.1", 0)) for name in "ab"}
        self.rows = [
            {
                "NodeID": name,
                "Alive": True,
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerPort": listens.getsockname()[1],
            }
            for name, listens in self.listening.items()
        ]
        self.posts: dict[str, Post] = {}

    def send(self, node: str) -> Actor:
        self.posts[node] = Post()
        return Actor(self.posts[node])


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    made = Nodes()

    def wait(calls: list[Call], *, num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        assert num_returns == len(calls)
        assert timeout > 0
        silent = [call for call in calls if call.post.silent]
        return [call for call in calls if call not in silent], silent

    monkeypatch.setattr(ray, "nodes", lambda: made.rows)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda call, timeout: call.answer())
    monkeypatch.setattr(module, "_SETTLES", 0.0)
    monkeypatch.setattr(module, "_NOTICED", 0.0)
    yield made
    for listens in made.listening.values():
        listens.close()


@pytest.fixture
def outposts(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Outposts:
    made = Outposts()
    monkeypatch.setattr(made, "_send", nodes.send)
    made._up = True
    made._head = nodes.listening["a"].getsockname()[:2]
    made._look_for_nodes()
    return made


def test_a_client_knows_of_the_head_what_its_port_and_its_connection_say(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = nodes.listening["a"].getsockname()[1]
    connected = [True, True, False]
    context = SimpleNamespace(is_connected=lambda: connected.pop(0))
    monkeypatch.setattr(client.ray, "get_context", lambda: context)
    found = Outposts(f"ray://127.0.0.1:{port}")
    assert found.trouble() == "", "it is not joined yet"
    found._up = True
    assert found.trouble() == ""
    nodes.listening["a"].close()
    assert found.trouble() == f"the cluster's head 127.0.0.1:{port} does not answer"
    assert found.trouble() == f"the connection to the cluster's head 127.0.0.1:{port} has broken"


def test_what_all_nodes_see_is_put_together(outposts: Outposts, nodes: Nodes) -> None:
    nodes.posts["a"].seen = {1: BEAT}
    nodes.posts["b"].seen = {2: BEAT, 9: BEAT}
    assert outposts.beats([1, 2, 3]) == {1: BEAT, 2: BEAT, 3: None}


def test_a_node_that_does_not_answer_says_nothing(outposts: Outposts, nodes: Nodes) -> None:
    """Neither that its trial beats, nor that a trial that nobody else sees does not."""
    nodes.posts["a"].seen, nodes.posts["b"].seen = {1: BEAT}, {2: BEAT}
    assert outposts.beats([1, 2]) == {1: BEAT, 2: BEAT}
    nodes.posts["b"].silent = True
    assert outposts.beats([1, 2, 3]) == {1: BEAT}
    nodes.posts["b"].silent = False
    assert outposts.beats([1, 2, 3]) == {1: BEAT, 2: BEAT, 3: None}


def test_an_idle_process_of_an_earlier_attempt_says_nothing(outposts: Outposts, nodes: Nodes) -> None:
    nodes.posts["a"].seen = {1: IDLE}
    assert outposts.beats([1]) == {1: None}
    nodes.posts["b"].seen = {1: BEAT}
    assert outposts.beats([1]) == {1: BEAT}
    nodes.posts["b"].seen = {1: IDLE}
    assert outposts.beats([1]) == {1: IDLE}, "it has begun"
    outposts.forget(1)
    assert outposts.beats([1]) == {1: None}


def test_what_is_done_to_a_trial_is_done_on_its_node(outposts: Outposts, nodes: Nodes) -> None:
    nodes.posts["b"].seen = {7: BEAT}
    assert outposts.take_stacks(7, BEAT) is None
    outposts.beats([7])
    assert outposts.take_stacks(7, BEAT) == Stacks("there", "stacks of 7")
    assert outposts.end(7, BEAT)
    assert (nodes.posts["a"].ended, nodes.posts["b"].ended) == ([], [7])
    nodes.posts["b"].dead = True
    assert outposts.take_stacks(7, BEAT) is None
    assert not outposts.end(7, BEAT)


def test_processes_that_beat_for_no_trial_are_ended_on_every_node(outposts: Outposts, nodes: Nodes) -> None:
    """Process 100 of one node is not that of the other."""
    nodes.posts["a"].seen = {7: BEAT}
    nodes.posts["a"].others, nodes.posts["b"].others = {100}, set()
    outposts.beats([7, 8])
    noted: list[str] = []
    outposts.end_unknown({7: BEAT}, lambda: noted.append("noted"))
    assert (noted, nodes.posts["a"].ended) == ([], [])
    nodes.posts["b"].others = {100}
    outposts.end_unknown({7: BEAT}, lambda: noted.append("noted"))
    assert (noted, nodes.posts["a"].ended, nodes.posts["b"].ended) == (["noted"], [], [100])


def test_a_trial_whose_node_is_gone_was_lost_with_it(outposts: Outposts, nodes: Nodes) -> None:
    nodes.posts["a"].seen, nodes.posts["b"].seen = {1: BEAT}, {2: BEAT}
    outposts.beats([1, 2])
    assert outposts.testify(1) is None
    assert outposts.testify(3) is None
    nodes.listening["b"].close()  # before Ray says so
    gone = Loss("node", "its node 127.0.0.1 is gone")
    assert (outposts.testify(1), outposts.testify(2)) == (None, gone)
    nodes.rows[1]["Alive"] = False
    outposts._look_for_nodes()
    assert (outposts.testify(1), outposts.testify(2)) == (None, gone)
    unknown = outposts.testify(3)
    assert unknown is not None
    assert unknown.cause == "node"
    assert outposts.beats([1, 2]) == {1: BEAT, 2: None}, "a dead node is not waited for"


def test_a_client_of_the_cluster_knows_what_ray_tells_alone(outposts: Outposts, nodes: Nodes) -> None:
    """It cannot reach the nodes themselves."""
    outposts._head = None
    nodes.posts["b"].seen = {2: BEAT}
    outposts.beats([2])
    nodes.listening["b"].close()
    assert outposts.testify(2) is None
    assert outposts.trouble() == ""
    nodes.rows[1]["Alive"] = False
    outposts._look_for_nodes()
    assert outposts.testify(2) == Loss("node", "its node 127.0.0.1 is gone")


def test_a_node_that_went_long_ago_took_no_trial_that_begins_now(
    outposts: Outposts, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.rows[1]["Alive"] = False
    outposts._look_for_nodes()
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 1000.0)
    assert outposts.testify(3) is None


def test_an_outpost_that_died_is_replaced_and_no_failure(
    outposts: Outposts, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nodes.posts["a"]
    first.seen, first.dead = {1: BEAT}, True
    assert outposts.beats([1]) == {}
    outposts._look_for_nodes()
    assert nodes.posts["a"] is first, "not at once: it may die again"
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 60.0)
    outposts._look_for_nodes()
    nodes.posts["a"].seen = {1: BEAT}
    assert nodes.posts["a"] is not first
    assert outposts.beats([1]) == {1: BEAT}


def test_nothing_is_asked_of_a_ray_that_has_ended(outposts: Outposts, nodes: Nodes) -> None:
    """It would start itself anew."""
    nodes.posts["a"].seen = {1: BEAT}
    outposts.beats([1])
    outposts._up = False
    assert outposts.beats([1]) == {}
    assert outposts.take_stacks(1, BEAT) is None
    assert not outposts.end(1, BEAT)
    assert nodes.posts["a"].ended == []


def test_a_node_that_joins_later_gets_one_too(outposts: Outposts, nodes: Nodes) -> None:
    nodes.rows.append({**nodes.rows[0], "NodeID": "c"})
    outposts._look_for_nodes()
    assert set(nodes.posts) == {"a", "b", "c"}


def test_each_kill_of_a_nodes_kernel_explains_one_trial_there(outposts: Outposts, nodes: Nodes) -> None:
    nodes.posts["a"].seen = {1: BEAT, 2: BEAT}
    nodes.posts["b"].seen = {3: BEAT}
    for post in nodes.posts.values():
        post.kills = 4
    outposts.beats([1, 2, 3])
    assert not outposts.claim(1)
    nodes.posts["a"].kills = 5
    assert not outposts.claim(3)
    assert outposts.claim(1)
    assert not outposts.claim(2), "it killed only one"
    nodes.posts["a"].kills = 6
    assert outposts.claim(2)
    assert not outposts.claim(9), "it was never seen"


def test_what_a_process_wrote_of_its_memory_is_told_by_its_node(outposts: Outposts, nodes: Nodes) -> None:
    ended, earlier = Word(1, 99, 500.0, 400.0, True, "ended"), Word(1, 98, 390.0, 400.0, False, "close")
    nodes.posts["b"].seen = {1: BEAT}
    outposts.beats([1])
    nodes.posts["a"].words, nodes.posts["b"].words = {1: earlier}, {1: ended}
    assert outposts.take_word(1) == ended
    assert outposts.take_word(1) is None, "that of the other node is of another attempt"
    outposts.forget(1)
    nodes.posts["b"].words = {1: ended}
    assert outposts.take_word(1) == ended, "it ended before it was seen: all nodes are asked"
    assert nodes.posts["a"].words == {}
    nodes.posts["b"].words, nodes.posts["b"].silent = {1: ended}, True
    assert outposts.take_word(1) is None


def test_the_head_and_the_own_node_are_asked_for(outposts: Outposts, nodes: Nodes) -> None:
    head = socket.create_server(("127.0.0.1", 0))
    outposts._head, outposts._own = head.getsockname()[:2], "a"
    assert outposts.trouble() == ""
    nodes.listening["a"].close()
    assert outposts.trouble() == "this machine is no node of the cluster any more"
    head.close()
    assert outposts.trouble() == f"the cluster's head 127.0.0.1:{outposts._head[1]} does not answer"
