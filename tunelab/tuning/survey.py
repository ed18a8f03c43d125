"""Finds out what a cluster has before a search begins there, and whether its nodes can run tunelab's trials.

Nothing of Ray runs in this process for that: what does not answer can be given up in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import InputError, TunelabError, UnfitError
from tunelab.tuning.fleet import Fleet, Node
from tunelab.tuning.node_findings import LEAVE_OUT, NodeFinding, refusal
from tunelab.tuning.node_versions import NEEDED, WANTED, judge_versions, requirements
from tunelab.tuning.nodes import Versions
from tunelab.tuning.ray_token import CLIENT, asks, warning
from tunelab.tuning.roll_call import FAILED_START, TRIES, describe_node, digest_of
from tunelab.tuning.site import Site

_PACKAGES = (*NEEDED, *WANTED)
_KNOCK = 5.0  # seconds until a port answers at all; our choice
_CONNECT = 20.0  # until a cluster does, with the start of a process on a busy machine; our choice
_CLIENT = 60.0  # likewise, where the cluster starts a process for each Ray client first; our choice
_NODES = 90.0  # until all its nodes do, each by a new process; our choice
_GLANCE = 5.0  # where it does not matter what they say; our choice
_JOB = 10  # times as long where a Ray job has an environment that each node must first make; our choice
_SILENT = "ray client connection timeout"
"""What Ray's client says of a head that refuses its token, too."""
_ADDRESS = re.compile(r"(ray://)?(\[[0-9a-fA-F:]+\]|[^\s:/@]+):(\d{1,5})")
_PROGRAM = "from tunelab.tuning.roll_call import main; main()"


def survey(site: Site, *, show_progress: bool = True) -> Site:
    """The site with what its cluster has: its real address and its nodes; a site without an address as it is.

    Nodes whose versions do not fit are named, and that tunelab is sent to nodes that have none or another one.
    So is a cluster that lets anybody in.

    Raises:
        InputError: the address is none, or nobody is let in there.
        UnfitError: nobody answers there, or a node that would train cannot.
    """
    if site.address is None or site.fleet is not None:
        return site
    found = _ask(site.address)
    if said := warning(found["address"]):
        print(said, file=sys.stderr)
    working = [told for told in found["nodes"] if told["Resources"].get("CPU")]
    notes = check_nodes(working, _here(), found["address"])
    if show_progress:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return _known(site, found)


def reach(site: Site) -> Site:
    """As `survey`, whatever the nodes are, and without waiting for those that do not answer.

    Raises:
        InputError: the address is none, or nobody is let in there.
        UnfitError: nobody answers there.
    """
    return site if site.address is None or site.fleet is not None else _known(site, _ask(site.address, _GLANCE))


def _known(site: Site, found: Mapping[str, Any]) -> Site:
    """A site with what its cluster said."""
    fleet = Fleet(tuple(_node(told) for told in found["nodes"]))
    return dataclasses.replace(site, address=found["address"], fleet=fleet, token=found["token"])


def check_nodes(nodes: Sequence[Mapping[str, Any]], here: Mapping[str, Any], address: str) -> list[str]:
    """What is worth knowing of the nodes that would train, against this machine (`here`, as they tell it).

    What is a warning alone is told when the nodes are visited (`tunelab.tuning.cluster_check`).

    Raises:
        UnfitError: a node did not answer, lacks a package, or has another Python, Ray or torch; all such are named.
    """
    wanted, found = requirements(), []
    for told in nodes:
        if "error" in told:
            said = f"it runs no task ({told['error']})"
            found.append(NodeFinding(name_of(told), "answer", said, "error", f"start Ray there again, {LEAVE_OUT}"))
        else:
            found += judge_versions(name_of(told), _versions(told), _versions(here), wanted)
    if any(one.verdict == "error" for one in found):
        raise UnfitError(refusal(found, address))
    strangers = [name_of(told) for told in nodes if told["tunelab"] != here["tunelab"]]
    if not strangers:
        return []
    absent = sum(not told["tunelab"] for told in nodes)
    which = "no tunelab" if absent == len(strangers) else "another tunelab, or none" if absent else "another tunelab"
    verb = "has" if len(strangers) == 1 else "have"
    return [f"{', '.join(strangers)} {verb} {which}: this one is sent along for the time of the search"]


def name_of(told: Mapping[str, Any]) -> str:
    """A node in words: its address, and its name where it told it."""
    host = told.get("host")
    return f"{told['NodeManagerAddress']} ({host})" if host else str(told["NodeManagerAddress"])


def _versions(told: Mapping[str, Any]) -> Versions:
    return Versions(told["python"], told["executable"], told["versions"])


def _here() -> dict[str, Any]:
    """This machine, as a node would tell of itself."""
    return {**describe_node(_PACKAGES), "tunelab": digest_of(Path(__file__).parents[1])}


def _node(told: Mapping[str, Any]) -> Node:
    has = told["Resources"]
    return Node(
        told["NodeID"],
        name_of(told),
        has.get("CPU", 0.0),
        has.get("GPU", 0.0),
        has.get("memory", 0.0),
        told.get("processor", ""),
        tuple(told.get("models", ())),
    )


def _ask(address: str, patience: float = _NODES) -> dict[str, Any]:
    """What the cluster says, and its nodes within some seconds.

    Raises:
        InputError: we are not let in.
        UnfitError: nobody answers.
    """
    if address != "auto":
        _knock(address)
    client = address.startswith(CLIENT)
    if client and os.environ.get("RAY_AUTH_MODE") != "token" and asks(address):
        raise _token_wanted(address)  # Ray's own client only waits then
    for _ in range(TRIES if client else 1):
        found = _tell(address, patience)
        if FAILED_START not in found.get("said", ""):
            break
    if "error" not in found:
        return found
    unknown = client and _SILENT in found["said"] and asks(address)  # a token that is not the cluster's
    error = "AuthenticationError" if unknown else found["error"]
    raise explain(found["address"], error, found["said"], here=address == "auto")


def _tell(address: str, patience: float) -> dict[str, Any]:
    """What the program that asks a cluster tells of it, an error included.

    Raises:
        UnfitError: it does not end.
    """
    connect = _CLIENT if address.startswith(CLIENT) else _CONNECT
    longer = _JOB if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else 1
    given = {"address": address, "packages": _PACKAGES, "connect": connect, "patience": patience * longer}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=2 * connect + 1.5 * patience * longer,
            env={**os.environ, "PYTHONPATH": _import_path()},
        )
    except subprocess.TimeoutExpired:
        raise _nobody(address, "no answer") from None
    try:
        found: dict[str, Any] = json.loads(asked.stdout)
    except ValueError:
        said = " ".join(asked.stderr.split())[-300:]
        raise TunelabError(f"the cluster {address} cannot be asked: {said}") from None
    return found


def _import_path() -> str:
    """PYTHONPATH with which another process finds the tunelab that runs here, and what the user has on it."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH", ""), package)))


def _knock(address: str) -> None:
    """Passes if something listens at an address.

    Raises:
        InputError: it is no address.
        UnfitError: nothing listens there.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(f"--address {address!r} is none of auto, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((match[2].strip("[]"), int(match[3])), timeout=_KNOCK).close()
    except OSError as error:
        raise _nobody(address, error.strerror or str(error)) from error


def _nobody(address: str, why: str) -> UnfitError:
    kind = "port of Ray clients, 10001 as a rule" if address.startswith(CLIENT) else "port of its GCS, 6379 as a rule"
    return UnfitError(f"no Ray cluster answers at {address} ({why}); is its head up, and is this the {kind}?")


def explain(address: str, error: str, said: str, *, here: bool) -> InputError:
    """Why a cluster could not be joined, in one line with what mends it.

    Args:
        address: its address.
        error: the name of what was raised.
        said: what that said.
        here: it was looked for on this machine.
    """
    if error == "AuthenticationError" or "InvalidAuthToken" in said or "AuthenticationError" in said:
        return _token_wanted(address)
    if "ersion mismatch" in said:
        told = " ".join(said.split())
        what = f"the cluster {address} runs other versions than this machine, which must have the same"
        return InputError(f"{what}: {told[:300]}")
    if error == "ValueError" and here:
        return UnfitError(f"--address auto: {said.strip()}")
    return _nobody(address, " ".join(said.split())[:200] or error)


def _token_wanted(address: str) -> InputError:
    return InputError(
        f"the cluster {address} wants its token: set RAY_AUTH_MODE=token, and have the token of its head node (`ray "
        "get-auth-token` there tells it) in ~/.ray/auth_token, or in a file that RAY_AUTH_TOKEN_PATH names"
    )
