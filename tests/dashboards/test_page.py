"""The page that links the dashboards of a study: what it says, and that nothing in a study is markup in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunelab import ray_address
from tunelab.dashboards.page import Page, render, state_of
from tunelab.errors import InputError
from tunelab.journal import Journal
from tunelab.ray_address import RayAddress

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

TRIALS = [("COMPLETED", (0.2, 0.4, 0.6, 0.8)), ("STOPPED", (0.1,)), ("RUNNING", (0.3,))]


def ask(page: Callable[..., Any], path: str = "/", method: str = "GET") -> tuple[str, dict[str, str], str]:
    """The status, the headers and the content of what the page answers."""
    seen: list[Any] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "HTTP_HOST": "localhost:8000"}
    content = b"".join(page(environ, lambda status, headers: seen.extend((status, dict(headers)))))
    return seen[0], seen[1], content.decode()


def test_it_says_how_the_study_stands(make_study: MakeStudy) -> None:
    study = make_study(TRIALS)
    state = state_of(study)
    assert state["trials"] == "1 completed, 1 stopped, 1 paused"
    assert state["running"] is False
    assert state["best"] == [{"trial": 0, "mean": 0.8, "runs": 1, "epochs": 4}]
    assert json.loads(json.dumps(state)) == state
    journal = Journal.open(study.path)
    try:
        assert state_of(study)["running"] is True
        assert state_of(study)["trials"] == "1 running, 1 completed, 1 stopped"
    finally:
        journal.close()


def test_it_links_what_is_served_under_the_name_that_was_asked_for(make_study: MakeStudy) -> None:
    study = make_study(TRIALS)
    page = Page(lambda: state_of(study), {"TensorBoard": 4711, "Optuna's dashboard": "there is none <here>"})
    status, headers, content = ask(page)
    assert status == "200 OK"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert '<a href="http://localhost:4711/">TensorBoard</a>' in content
    assert "there is none &lt;here&gt;" in content
    assert "80.0%" in content
    assert json.loads(ask(page, "/state.json")[2])["study"] == "study"
    assert ask(page, "/else")[0] == "404 Not Found"
    assert ask(page, method="HEAD")[2] == ""


def test_nothing_in_a_study_is_markup() -> None:
    evil = "<script>alert(1)</script>"
    ray = {"dashboard": evil, "metrics": evil, "command": evil}
    state = {"study": evil, "running": True, "sign": evil, "trials": evil, "best": [], "ray": ray}
    for shown in (state, {"error": evil}):
        assert "<script" not in render(shown, {evil: evil}, evil)


def test_a_study_that_cannot_be_read_any_more_is_told_on_the_page() -> None:
    def fail() -> Mapping[str, Any]:
        raise InputError("it is <gone>")

    assert "it is &lt;gone&gt;" in ask(Page(fail, {}))[2]


def test_what_was_read_is_shown_again_for_a_moment() -> None:
    looked: list[int] = []

    def look() -> Mapping[str, Any]:
        looked.append(1)
        return {"error": "nothing"}

    page = Page(look, {})
    ask(page)
    ask(page)
    assert len(looked) == 1


def test_rays_dashboard_is_linked_while_the_search_runs_that_shows_it(make_study: MakeStudy) -> None:
    study = make_study(TRIALS)
    address = RayAddress("127.0.0.1:8265", "127.0.0.1:9999", "/tmp/somewhere/token", os.getpid())
    with ray_address.told(study.path, address):
        assert state_of(study)["ray"] is None, "nothing searches"
        journal = Journal.open(study.path)
        try:
            state = state_of(study)
        finally:
            journal.close()
    assert state["ray"]["dashboard"] == "127.0.0.1:8265"
    shown = render(state, {}, "localhost")
    assert '<a href="http://127.0.0.1:8265/">' in shown
    assert "<code>cat /tmp/somewhere/token</code>" in shown
    assert list(study.path.glob("*ray*")) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"dashboard": "javascript:alert(1)"},
        {"dashboard": "evil.example/x:80"},
        {"dashboard": ""},
        {"dashboard": 5},
        {"metrics": "http://evil.example"},
        {"token": "a\nb"},
        {"pid": 2**22 + 1},
        {"pid": "1"},
        {"more": 1},
    ],
)
def test_a_file_of_a_stranger_is_not_believed(changed: dict[str, Any], tmp_path: Path) -> None:
    good = {"dashboard": "127.0.0.1:8265", "metrics": "", "token": "", "pid": os.getpid()}
    file = tmp_path / ray_address.FILE
    file.write_text(json.dumps(good))
    assert ray_address.find(tmp_path) is not None
    file.write_text(json.dumps({**good, **changed}))
    assert ray_address.find(tmp_path) is None
    file.write_text("[" * 3000)
    assert ray_address.find(tmp_path) is None
