"""The page that links the dashboards of a study, with how it stands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tunelab import ray_address
from tunelab.dashboards.serving import Start
from tunelab.errors import TunelabError
from tunelab.ray_address import RayAddress
from tunelab.study import Study, describe_counts

_FRESH = 5.0  # seconds for which what was read is shown again; our choice
_RENEWED = 10  # seconds after which a browser asks again; our choice
_TOP = 10  # configurations in the table
_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } table { border-collapse: collapse; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums; } .less { color: #666; }
li { margin: .4rem 0; } code { overflow-wrap: anywhere; }
"""


def state_of(study: Study) -> dict[str, Any]:
    """How a study stands, as plain JSON values: whether it is searched, its trials in words, the best ones.

    Raises:
        InputError: it cannot be read.
    """
    now = Study.open(study.path)
    trials = now.list_trials()
    sign = now.sign_of_life()
    found = ray_address.find(now.path) if now.running else None
    places = now.places_of(trials)[:_TOP]
    return {
        "study": now.name,
        "running": now.running,
        "sign": "" if sign is None else sign.describe(),
        "trials": describe_counts(trials),
        "best": [
            {
                "trial": place.trial.number,
                "mean": place.standing.mean,
                "runs": place.standing.runs,
                "epochs": place.epochs,
            }
            for place in places
        ],
        "ray": None if found is None else _plain(found),
    }


def _plain(found: RayAddress) -> dict[str, str]:
    return {"dashboard": found.dashboard, "metrics": found.metrics, "command": found.command}


class Page:
    """The page, and what it says as JSON at `/state.json`.

    Args:
        look: how the study stands, as `state_of`.
        links: what else is served, from a name to its port; one that is not there has the reason in place of it.
    """

    def __init__(self, look: Callable[[], Mapping[str, Any]], links: Mapping[str, int | str]) -> None:
        self._look, self._links = look, links
        self._lock = threading.Lock()
        self._read = -_FRESH
        self._state: Mapping[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answers a request."""
        path = environ.get("PATH_INFO", "/")
        kind, status = "text/html", "200 OK"
        if path in ("", "/"):
            name = environ.get("HTTP_HOST", "").partition(":")[0]
            text = render(self.state(), self._links, name)
        elif path == "/state.json":
            kind, text = "application/json", json.dumps(self.state())
        else:
            kind, status, text = "text/plain", "404 Not Found", "there is no such page\n"
        content = text.encode("utf-8", "replace")
        start(status, [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(content))), *_HEADERS])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [content]

    def state(self) -> Mapping[str, Any]:
        """How the study stands, read anew if that was a while ago; `error` says why it could not be."""
        with self._lock:
            if time.monotonic() > self._read + _FRESH:
                try:
                    self._state = self._look()
                except (TunelabError, OSError) as error:
                    self._state = {"error": str(error)}
                self._read = time.monotonic()
            return self._state


def render(state: Mapping[str, Any], links: Mapping[str, int | str], host: str) -> str:
    """The page as HTML; nothing of what the study holds is markup in it."""
    title = str(state.get("study", "a study"))
    lines = [f"<h1>{escape(title)}</h1>"]
    if "error" in state:
        lines.append(f"<p>It cannot be read: {escape(str(state['error']))}</p>")
    else:
        sign = f" <span class=less>({escape(state['sign'])})</span>" if state["sign"] else ""
        lines.append(f"<p>{'running' if state['running'] else 'not running'}{sign}: {escape(state['trials'])}</p>")
    lines += ["<ul>", *(f"<li>{_link(name, port, host)}</li>" for name, port in links.items()), _ray(state), "</ul>"]
    if state.get("best"):
        lines.append(_table(state["best"]))
    page = f"<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={_RENEWED}>"
    body = "\n".join(lines)
    return f"{page}\n<title>{escape(title)} - tunelab</title><style>{_STYLE}</style><body>\n{body}\n</body></html>\n"


def _link(name: str, port: int | str, host: str) -> str:
    if isinstance(port, str):
        return f"{escape(name)}: <span class=less>{escape(port)}</span>"
    return f'<a href="http://{escape(host)}:{port}/">{escape(name)}</a>'


def _ray(state: Mapping[str, Any]) -> str:
    ray = state.get("ray")
    if ray is None:
        return "<li>Ray's dashboard: <span class=less>it is there while a search runs with --dashboard</span></li>"
    links = [f'<a href="http://{escape(ray["dashboard"])}/">Ray\'s dashboard</a>']
    if ray["command"]:
        links.append(f"<br><span class=less>it asks for a token:</span> <code>{escape(ray['command'])}</code>")
    if ray["metrics"]:
        links.append(f'<br><a href="http://{escape(ray["metrics"])}/metrics">Ray\'s metrics</a>')
    return f"<li>{''.join(links)}</li>"


def _table(best: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{row['trial']}<td>{100 * row['mean']:.1f}%<td>{row['runs']}<td>{row['epochs']}</tr>" for row in best
    )
    note = (
        "<p class=less>The best ones, as <code>tunelab best</code> ranks them, what luck is in a score taken off.</p>"
    )
    return f"{note}<table><tr><th>trial<th>accuracy, mean<th>runs<th>epochs</tr>{rows}</table>"
