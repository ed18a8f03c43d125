"""Serves applications to the browsers of this machine's user: on the loopback interface, behind a secret.

Whoever opens the address with the secret in it gets a cookie, and is sent on to the same address without it. Nobody
else is served: not another user of the machine, and not a page elsewhere whose name was made to lead here (DNS
rebinding), because the name that a browser asks for must be that of this machine.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from tunelab.errors import InputError

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_READING = ("GET", "HEAD")
_SAFE = (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), ("X-Frame-Options", "DENY"))

Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]
"""A WSGI application (PEP 3333)."""


class Key:
    """The secret of one start, and the cookie that stands for it; servers with one key open each other."""

    def __init__(self) -> None:
        self.secret = secrets.token_urlsafe(24)
        self._cookie = f"tunelab-{secrets.token_hex(4)}"  # others may be open in the same browser

    def opens(self, environ: Mapping[str, Any]) -> bool:
        """True if a request brings the cookie."""
        try:
            brought = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(self._cookie)
        except CookieError:
            return False
        return brought is not None and self.fits(brought.value)

    def fits(self, given: str) -> bool:
        """True if it is the secret."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.secret.encode())

    def header(self) -> tuple[str, str]:
        """What gives a browser the cookie, until it is closed."""
        return "Set-Cookie", f"{self._cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict"


class Door:
    """Lets requests through to an application that come from a browser of this machine with the key.

    Args:
        app: what is behind it.
        key: what opens it.
        reading: refuses every request that could change something.
    """

    def __init__(self, app: App, key: Key, *, reading: bool = True) -> None:
        self._app, self._key, self._reading = app, key, reading

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answers a request, or has the application answer it."""
        name, _, _ = environ.get("HTTP_HOST", "").partition(":")
        if name.lower() not in _NAMES:
            return _refuse(start, "403 Forbidden", "this is served to 127.0.0.1 and localhost alone")
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if any(field == "token" and self._key.fits(value) for field, value in query):
            rest = urlencode([(field, value) for field, value in query if field != "token"])
            there = "/" + environ.get("PATH_INFO", "").lstrip("/") + (f"?{rest}" if rest else "")
            start("303 See Other", [("Location", _quoted(there)), self._key.header(), ("Content-Length", "0"), *_SAFE])
            return [b""]
        if not self._key.opens(environ):
            return _refuse(start, "403 Forbidden", "open the address that `tunelab dashboard` printed: it has the key")
        if self._reading and environ.get("REQUEST_METHOD") not in _READING:
            return _refuse(start, "405 Method Not Allowed", "this shows a study, and changes nothing in it")
        return self._app(environ, start)


def _quoted(there: str) -> str:
    """An address as a header can carry it."""
    return there.encode("ascii", "ignore").decode("ascii").replace("\r", "").replace("\n", "")


def _refuse(start: Start, status: str, why: str) -> list[bytes]:
    content = f"{why}\n".encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(content))), *_SAFE])
    return [content]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """As usual, but without asking for the machine's name, which can take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that goes away in the middle is no error."""


class _Handler(WSGIRequestHandler):
    timeout = 60.0  # seconds that a request may take to arrive; our choice

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the addresses have secrets in them."""


class Served:
    """An application that is being served, by threads of this process. `port` is where; use it as a context.

    Raises:
        InputError: the port is taken.
    """

    def __init__(self, app: App, port: int = 0) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} cannot be taken: {getattr(error, 'strerror', None) or error}") from error
        self._server.set_app(app)
        self.port = self._server.server_port

    def __enter__(self) -> Served:
        threading.Thread(target=self._server.serve_forever, name=f"port {self.port}", daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
