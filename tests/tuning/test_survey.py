from __future__ import annotations

import socket
from typing import Any

import pytest

from tunelab.errors import InputError
from tunelab.tuning import roll_call, survey
from tunelab.tuning.roll_call import describe_node, digest_of
from tunelab.tuning.site import Site

VERSIONS = dict.fromkeys(survey.PACKAGES, "1.2.3") | {"torch": "2.13.0+cpu"}
HERE = {"python": "3.11.7", "versions": VERSIONS, "tunelab": "abc"}


def node(**other: Any) -> dict[str, Any]:
    return {"NodeManagerAddress": "10.0.0.7", "host": "seven", **HERE, **other}


def test_nodes_like_this_one_are_not_spoken_of() -> None:
    assert survey.check_nodes([node(), node()], HERE) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"python": "3.12.1"}, ["10.0.0.7 (seven) has Python 3.12.1", "3.11.7 runs here"]),
        ({"versions": VERSIONS | {"torch": None, "psutil": None}}, ["lacks torch, psutil", "install torch==2.13.0"]),
        ({"versions": VERSIONS | {"torch": "2.12.1+cpu"}}, ["has torch 2.12.1+cpu, 2.13.0+cpu is here"]),
        ({"versions": VERSIONS | {"ray": "2.59.0"}}, ["has ray 2.59.0"]),
        ({"error": "RuntimeEnvSetupError: no"}, ["runs no task (RuntimeEnvSetupError: no)"]),
    ],
)
def test_a_node_that_cannot_train_is_named_with_what_mends_it(other: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        survey.check_nodes([node(), node(**other)], HERE)
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"versions": VERSIONS | {"torch": "2.13.0+cu130"}}, "has torch 2.13.0+cu130 (here 2.13.0+cpu)"),
        ({"versions": VERSIONS | {"torchvision": "0.1"}}, "has torchvision 0.1 (here 1.2.3)"),
        ({"python": "3.11.9"}, "has Python 3.11.9 (here 3.11.7)"),
        ({"tunelab": ""}, "10.0.0.7 (seven) has no tunelab: this one is sent along"),
        ({"tunelab": "other"}, "10.0.0.7 (seven) has another tunelab: this one is sent along"),
    ],
)
def test_what_differs_without_harm_is_noted(other: dict[str, Any], words: str) -> None:
    (note,) = survey.check_nodes([node(**other), node()], HERE)
    assert words in note


def test_what_a_node_tells_is_true_of_this_one() -> None:
    told = describe_node(["torch", "no-such-package"])
    assert told["versions"]["torch"]
    assert told["versions"]["no-such-package"] is None
    assert told["tunelab"] == digest_of(survey.Path(roll_call.__file__).parents[1])


def test_the_hash_is_of_what_workers_run(tmp_path: Any) -> None:
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "worker.py").write_text("a = 1")
    (tmp_path / "analysis").mkdir()
    before = digest_of(tmp_path)
    (tmp_path / "analysis" / "rank.py").write_text("b = 1")
    (tmp_path / "notes.txt").write_text("c")
    assert digest_of(tmp_path) == before
    (tmp_path / "tuning" / "worker.py").write_text("a = 2")
    assert digest_of(tmp_path) != before


@pytest.mark.parametrize(
    "address", ["nowhere", "host:", "host:0", "host:70000", "http://host:1", "a b:1", "u:p@host:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is none of auto, HOST:PORT and ray://HOST:PORT"):
        survey.survey(Site(address))


def test_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            survey.survey(Site(f"127.0.0.1:{port}"))


def test_this_machine_is_not_asked() -> None:
    assert survey.survey(Site(None, dashboard=True)) == Site(None, dashboard=True)


@pytest.mark.parametrize(
    ("error", "said", "words"),
    [
        ("AuthenticationError", "RPC error: InvalidAuthToken", "wants its token: set RAY_AUTH_MODE=token"),
        ("ConnectionError", "Failed\nray.exceptions.AuthenticationError: no", "wants its token"),
        ("RuntimeError", "Version mismatch: The cluster was started with:\n  Python: 3.12", "other versions"),
        ("TimeoutError", "no answer within 20 s", "no Ray cluster answers at x:1 (no answer within 20 s)"),
        ("ValueError", "no Ray cluster runs on this machine", "--address auto: no Ray cluster runs"),
    ],
)
def test_why_there_is_no_way_in_is_one_line(error: str, said: str, words: str) -> None:
    line = survey.explain("x:1", error, said, here=True)
    assert words in line
    assert "\n" not in line


def test_auto_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert roll_call.resolve("auto") == "10.0.0.1:6379"
    assert roll_call.resolve("10.0.0.2:6379") == "10.0.0.2:6379"
