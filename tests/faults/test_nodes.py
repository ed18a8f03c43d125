"""Searches on two real Ray nodes, of which one goes away or freezes, or has a trial that hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tunelab.records import TrialStatus
from tunelab.tuning.watchdog import LIMITS_VARIABLE, STACKS

if TYPE_CHECKING:
    from tests.faults.conftest import NodesFault
    from tests.ray_nodes import Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ONE = ("--cpus-per-trial", "1")  # each node has one


def limits(**seconds: float) -> dict[str, str]:
    """The environment in which these limits hold in place of the usual ones."""
    return {LIMITS_VARIABLE: json.dumps({"look": 0.2, **seconds})}


def pids(node: Node) -> set[int]:
    return {process.pid for process in node.workers()}


def logged(fault: NodesFault) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fault.log.read_text().splitlines()] if fault.log.exists() else []


def has(fault: NodesFault, node: Node, what: str, *, since: int = 0) -> bool:
    """True if one of the processes that train on a node now has done `what`, or ended an epoch ("end").

    The first `since` lines of the log do not count.
    """
    return bool({line["pid"] for line in logged(fault)[since:] if line["what"] == what} & pids(node))


def search_on_both(fault: NodesFault, seconds: float, *, trials: int, epochs: int) -> None:
    """Starts a search whose epochs take so long, in which each node trains.

    None goes on before the other's first process has begun, or it were done with all by then.
    """
    fault.order({"do": "wait"})
    fault.search(*ONE, trials=trials, epochs=epochs)
    fault.wait_until(lambda: all(has(fault, node, "wait") for node in fault.nodes.nodes))
    fault.order({"do": "sleep", "seconds": seconds})


def kill_in_the_middle(fault: NodesFault, node: Node) -> None:
    """Kills a node while each of them trains and its checkpoint is on the disk; what has ended must stay as it is."""
    since = len(logged(fault))
    fault.order({"do": "wait", "saved": True})
    fault.wait_until(lambda: all(has(fault, one, "wait", since=since) for one in fault.nodes.nodes))
    fault.keep()
    fault.nodes.kill(node)
    fault.order()


def test_a_node_that_is_killed_costs_no_trial(nodes_fault: NodesFault) -> None:
    """Row 20: both nodes train; one is gone all at once, and its trial goes on from its checkpoint on the other."""
    fault, (_, second) = nodes_fault, nodes_fault.nodes.nodes
    search_on_both(fault, 0.3, trials=24, epochs=2)
    fault.wait_until(lambda: len(fault.events("ended")) >= 4)
    kill_in_the_middle(fault, second)
    fault.end(0, 300)
    trials = fault.check_books()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    (retry,) = [retry for trial in trials for retry in trial.retries]
    assert retry["cause"] == "node"
    assert retry["why"].startswith(("its node ", "node "))  # the latter of a trial that had hardly begun
    assert retry["why"].endswith(" is gone")


def test_a_driver_that_is_killed_or_told_to_end_leaves_nothing_on_any_node(nodes_fault: NodesFault) -> None:
    """Rows 1 and 6: the study goes on from its record. What a killed outpost leaves, the next one there removes."""
    fault = nodes_fault
    search_on_both(fault, 0.5, trials=6, epochs=3)
    fault.wait_until(lambda: len(fault.machine.processes("ray::Outpost")) == 2)
    fault.kill()
    fault.resume()
    known = fault.results()
    fault.wait_until(lambda: fault.results() > known)
    fault.signal(signal.SIGTERM)
    _, err = fault.end(3)
    assert f"`tunelab resume {fault.study}` goes on" in err
    fault.kills += 1
    fault.order()
    fault.resume()
    fault.end(0)
    trials = fault.check_books()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    assert not any(trial.retries for trial in trials)
    assert fault.nodes.alive() == 2
    assert [name for name in fault.machine.leftovers() if name.startswith("tunelab-")] == []


def test_trials_that_hang_are_found_on_each_node(nodes_fault: NodesFault) -> None:
    """Row 12: one per node, so one is not on the driver's; a node that is frozen meanwhile is no hang of its trial."""
    fault, (_, second) = nodes_fault, nodes_fault.nodes.nodes
    fault.order({"do": "busy", "trial": 0, "times": 1}, {"do": "sleep", "seconds": 10_000, "trial": 1, "times": 1})
    fault.search(*ONE, trials=4, epochs=2, **limits(pause=25.0))
    fault.wait_until(lambda: fault.trained("busy") and fault.trained("sleep"))
    fault.wait_until(lambda: len(fault.events("retried")) == 2, 300)
    fault.order({"do": "sleep", "seconds": 2})
    fault.wait_until(second.workers)
    frozen = second.processes()
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    time.sleep(30)
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    fault.order()
    fault.end(0, 300)
    trials = fault.trials()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    assert [[retry["cause"] for retry in trial.retries] for trial in trials] == [["hung"], ["hung"], [], []]
    for trial, word in zip(trials, ("in _busy", "in _obey"), strict=False):
        assert f"see trials/{trial.number:04d}/{STACKS}" in trial.retries[0]["why"]
        assert word in (fault.study / "trials" / f"{trial.number:04d}" / STACKS).read_text()


def test_without_the_head_the_search_pauses_and_goes_on_elsewhere(nodes_fault: NodesFault) -> None:
    """Row 21: nobody is retried for it, one line says how to go on; without `--address` it does on this machine."""
    fault = nodes_fault
    fault.order({"do": "sleep", "seconds": 0.3})
    fault.search(*ONE, trials=4, epochs=6, **limits(head=3.0, end=10.0))
    fault.wait_until(lambda: fault.results() >= 3)
    (head,) = [one for one in fault.nodes.nodes[0].processes("/gcs_server") if one.name() == "gcs_server"]
    os.kill(head.pid, signal.SIGKILL)
    assert fault.command is not None
    _, err = fault.command.communicate(timeout=300)
    assert fault.command.returncode == 3, err
    last = err.strip().splitlines()[-1]
    assert "the cluster's head" in last
    assert f"`tunelab resume {fault.study}`" in last
    assert all(not trial.retries for trial in fault.trials())
    fault.kills += 1
    fault.order()
    for node in list(fault.nodes.nodes):
        fault.nodes.kill(node)
    command = fault.nodes.start("resume", str(fault.study))
    _, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    assert all(trial.status is TrialStatus.COMPLETED for trial in fault.check_books())


def test_nodes_with_addresses_of_their_own(apart_fault: NodesFault) -> None:
    """As on several machines: two networks, and the one that the driver is not on is gone."""
    fault, (_, second) = apart_fault, apart_fault.nodes.nodes
    search_on_both(fault, 0.5, trials=8, epochs=3)
    fault.wait_until(lambda: all(has(fault, node, "end") for node in fault.nodes.nodes))
    kill_in_the_middle(fault, second)
    fault.end(0, 300)
    trials = fault.check_books()
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETED}
    (retry,) = [retry for trial in trials for retry in trial.retries]
    assert retry["cause"] == "node"
    assert "node 10.77.0.2" in retry["why"]
