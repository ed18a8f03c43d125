from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunelab.credentials import hide
from tunelab.errors import InputError, UnfitError
from tunelab.tuning import roll_call, survey
from tunelab.tuning.fleet import Fleet
from tunelab.tuning.node_versions import requirements
from tunelab.tuning.roll_call import FAILED_START, describe_node, digest_of
from tunelab.tuning.site import Site

VERSIONS: dict[str, str | None] = dict.fromkeys(requirements(), "999")
VERSIONS |= {"torch": "2.13.0+cpu", "ray": "2.60.0", "torchvision": "0.28.0"}
HERE = {"python": "3.11.7", "executable": "/venv/bin/python", "versions": VERSIONS, "tunelab": "abc"}


def node(**other: Any) -> dict[str, Any]:
    return {"NodeManagerAddress": "10.0.0.7", "host": "seven", **HERE, **other}


def test_nodes_like_this_one_are_not_spoken_of() -> None:
    assert survey.check_nodes([node(), node()], HERE, "head:1") == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"python": "3.12.1"}, ["10.0.0.7 (seven): Python: it is 3.12.1, the driver has 3.11.7"]),
        ({"versions": VERSIONS | {"torch": None, "pydantic-core": None}}, ["torch is missing", "pydantic-core is"]),
        ({"versions": VERSIONS | {"torch": "2.12.1+cpu"}}, ["torch is 2.12.1+cpu, the driver has", "torch==2.13.0"]),
        (
            {"versions": VERSIONS | {"ray": "2.61.0"}},
            ["ray is 2.61.0", "/venv/bin/python -m pip install 'ray==2.60.0'"],
        ),
        ({"versions": VERSIONS | {"numpy": "0.9"}}, ["numpy is 0.9, tunelab works with numpy>="]),
        ({"error": "RuntimeEnvSetupError: no"}, ["answer: it runs no task (RuntimeEnvSetupError: no)"]),
    ],
)
def test_a_node_that_cannot_train_is_named_with_what_mends_it(other: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnfitError) as raised:
        survey.check_nodes([node(), node(**other)], HERE, "head:1")
    for word in [*words, "a node of the cluster is not fit: 10.0.0.7 (seven): ", "tunelab doctor --address head:1"]:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "other",
    [
        {"versions": VERSIONS | {"torch": "2.13.0+cu130"}},
        {"versions": VERSIONS | {"torchvision": "0.27.0"}},
        {"versions": VERSIONS | {"numba": None}},
        {"python": "3.11.9"},
    ],
)
def test_what_differs_without_harm_is_told_when_the_nodes_are_visited(other: dict[str, Any]) -> None:
    assert survey.check_nodes([node(**other)], HERE, "head:1") == []


@pytest.mark.parametrize(("theirs", "what"), [("", "no tunelab"), ("other", "another tunelab")])
def test_that_tunelab_is_sent_along_is_noted(theirs: str, what: str) -> None:
    (note,) = survey.check_nodes([node(tunelab=theirs), node()], HERE, "head:1")
    assert f"10.0.0.7 (seven) has {what}: this one is sent along" in note


def test_a_search_and_the_doctor_judge_versions_alike() -> None:
    """What is asked of the nodes before a search is what is judged then."""
    assert set(survey._here()["versions"]) == set(requirements())


def test_what_a_node_tells_is_true_of_this_one() -> None:
    told = describe_node(["torch", "no-such-package"])
    assert told["versions"]["torch"]
    assert told["versions"]["no-such-package"] is None
    assert told["tunelab"] == digest_of(Path(roll_call.__file__).parents[1])


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
    with pytest.raises(InputError, match="is none of auto, HOST:PORT and ray://HOST:PORT") as raised:
        survey.survey(Site(address))
    assert not isinstance(raised.value, UnfitError), "that will not pass"


def test_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        with pytest.raises(UnfitError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            survey.survey(Site(f"127.0.0.1:{port}"))


def test_this_machine_is_not_asked() -> None:
    assert survey.survey(Site(None, dashboard=True)) == Site(None, dashboard=True)


@pytest.mark.parametrize(
    ("error", "said", "words", "may_pass"),
    [
        ("AuthenticationError", "RPC error: InvalidAuthToken", "wants its token: set RAY_AUTH_MODE=token", False),
        ("ConnectionError", "Failed\nray.exceptions.AuthenticationError: no", "wants its token", False),
        ("RuntimeError", "Version mismatch: The cluster was started with:\n  Python: 3.12", "other versions", False),
        ("TimeoutError", "no answer within 20 s", "no Ray cluster answers at x:1 (no answer within 20 s)", True),
        ("ValueError", "no Ray cluster runs on this machine", "--address auto: no Ray cluster runs", True),
    ],
)
def test_why_there_is_no_way_in_is_one_line(error: str, said: str, words: str, may_pass: bool) -> None:
    found = survey.explain("x:1", error, said, here=True)
    line = str(found)
    assert words in line
    assert isinstance(found, UnfitError) == may_pass
    assert "\n" not in line
    assert hide(line) == line  # the names of the variables are no secrets


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody listens, who says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_token_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"the cluster {taken} wants its token"):
        survey.survey(Site(taken))


def test_a_client_without_the_token_is_told_of_it(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    answers: list[dict[str, str]] = []
    monkeypatch.setattr(survey, "asks", lambda address: address == f"ray://{taken}")
    monkeypatch.setattr(survey, "_tell", lambda address, _patience: {"address": address, **answers.pop()})
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(InputError, match=f"the cluster ray://{taken} wants its token"):
        survey.survey(Site(f"ray://{taken}"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    answers.append({"error": "ConnectionError", "said": "ray client connection timeout"})
    with pytest.raises(InputError, match=f"the cluster ray://{taken} wants its token"):
        survey.survey(Site(f"ray://{taken}"))


def test_a_client_whose_process_did_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    failed = {"error": "ConnectionAbortedError", "said": "Initialization failure from server:\nTraceback"}
    answers = [{"nodes": [], "token": ""}, failed]
    monkeypatch.setattr(survey, "asks", lambda _address: False)
    monkeypatch.setattr(survey, "_tell", lambda address, _patience: {"address": address, **answers.pop()})
    assert survey.reach(Site(f"ray://{taken}")).fleet == Fleet(())
    answers += [failed] * roll_call.TRIES
    with pytest.raises(InputError, match=r"no Ray cluster answers.*Initialization failure from server"):
        survey.reach(Site(f"ray://{taken}"))


def test_a_client_whose_farewell_takes_long_is_given_up_at_once(tmp_path: Path) -> None:
    """Ray raises, and before that leaves its block it waits for streams that the head keeps open."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(
        "import time\n\n\ndef init(**_given):\n    try:\n"
        f"        raise ConnectionAbortedError('{FAILED_START}: gone')\n"
        "    except Exception:\n        time.sleep(200)\n        raise\n"
    )
    (tmp_path / "authentication_token_setup.py").write_text("def ensure_token_if_auth_enabled(**_given): pass\n")
    program = (
        "import sys, authentication_token_setup as setup\n"
        "sys.modules['ray._private.authentication.authentication_token_setup'] = setup\n"
        "sys.modules['ray.util'] = sys.modules['ray.util.scheduling_strategies'] = setup\n"
        "setup.NodeAffinitySchedulingStrategy = None\n" + survey._PROGRAM
    )
    given = {"address": "ray://head:1", "packages": [], "connect": 150.0, "patience": 1.0}
    path = os.pathsep.join([str(tmp_path), str(Path(survey.__file__).parents[2])])
    told = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(given),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = json.loads(told.stdout)
    assert found == {"error": "ConnectionAbortedError", "said": f"{FAILED_START}: gone", "address": "ray://head:1"}


def test_auto_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert roll_call.resolve("auto") == "10.0.0.1:6379"
    assert roll_call.resolve("10.0.0.2:6379") == "10.0.0.2:6379"


def test_the_import_of_ray_is_not_the_clusters_to_answer_for(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("import time; time.sleep(1.5); raise ImportError('imported')")
    given = {"address": "127.0.0.1:1", "packages": [], "connect": 0.2, "patience": 1.0}
    path = os.pathsep.join([str(tmp_path), str(Path(roll_call.__file__).parents[2])])
    asked = subprocess.run(
        [sys.executable, "-c", survey._PROGRAM],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert json.loads(asked.stdout)["said"].startswith("imported"), asked.stderr
