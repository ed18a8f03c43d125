"""Who is let in to what is served on this machine, and what is served to them."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tunelab.dashboards.serving import HOST, Door, Key, Served, Start
from tunelab.errors import InputError


def hello(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}".encode()]


@contextlib.contextmanager
def served(key: Key, *, reading: bool = True) -> Iterator[int]:
    with Served(Door(hello, key, reading=reading)) as server:
        yield server.port


def ask(
    port: int, path: str = "/", method: str = "GET", cookie: str = "", host: str = ""
) -> tuple[int, str, http.client.HTTPMessage]:
    """The status, the content and the headers of an answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=300)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"{HOST}:{port}")
    if cookie:
        connection.putheader("Cookie", cookie)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def cookie_of(key: Key) -> str:
    return key.header()[1].partition(";")[0]


def test_the_address_with_the_secret_gives_a_cookie_that_opens_the_other_servers_too() -> None:
    key = Key()
    with served(key) as first, served(key) as second:
        status, _, headers = ask(first, f"/a/b?x=1&token={key.secret}")
        assert (status, headers["Location"]) == (303, "/a/b?x=1"), "the secret does not stay in the address"
        assert "HttpOnly; SameSite=Strict" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert ask(first, "/a/b?x=1", cookie=cookie)[:2] == (200, "GET /a/b?x=1")
        assert ask(second, cookie=f"other=1; {cookie}", host="localhost")[0] == 200


@pytest.mark.parametrize("cookie", ["", "tunelab-00000000=guess", "\x01;;=", "tunelab=\xe9"])
def test_nobody_is_served_without_the_key(cookie: str) -> None:
    with served(Key()) as port:
        status, said, headers = ask(port, "/?token=guess", cookie=cookie)
        assert status == 403
        assert "tunelab dashboard" in said
        assert "Set-Cookie" not in headers


def test_the_cookie_of_another_start_does_not_open() -> None:
    key = Key()
    name = cookie_of(key).partition("=")[0]
    with served(key) as port:
        assert ask(port, cookie=cookie_of(Key()))[0] == 403
        assert ask(port, cookie=f"{name}={Key().secret}")[0] == 403
        assert ask(port, cookie=cookie_of(key))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]", "192.0.2.7", ":"]
)
def test_a_name_that_was_made_to_lead_here_is_refused_with_the_key_too(host: str) -> None:
    key = Key()
    with served(key) as port:
        for path in ("/", f"/?token={key.secret}"):
            status, said, headers = ask(port, path, cookie=cookie_of(key), host=host)
            assert (status, "Set-Cookie" in headers) == (403, False)
            assert "localhost" in said


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_requests_that_could_change_something_are_refused(method: str) -> None:
    key = Key()
    with served(key) as port, served(key, reading=False) as other:
        assert ask(port, method=method, cookie=cookie_of(key))[0] == 405
        assert ask(other, method=method, cookie=cookie_of(key))[0] == 200


def test_a_line_break_in_an_address_gets_into_no_header() -> None:
    key = Key()
    with served(key) as port:
        _, _, headers = ask(port, f"//evil.example/%0d%0aX-Made: 1?token={key.secret}".replace(" ", "%20"))
        assert "X-Made" not in headers
        assert headers["Location"].startswith("/evil.example/"), "and it leads to no other machine"


def test_it_listens_on_the_loopback_interface_alone_and_no_more_afterwards() -> None:
    with Served(hello) as server:
        assert server._server.server_address[0] == "127.0.0.1"
        with socket.create_connection((HOST, server.port), timeout=5):
            pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, server.port), timeout=5)


def test_a_port_that_is_taken_is_refused_with_its_number() -> None:
    with Served(hello) as server, pytest.raises(InputError, match=rf"--port {server.port} cannot be taken: .*in use"):
        Served(hello, server.port)
