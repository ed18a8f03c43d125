"""Where Ray's dashboard of a running search is: a small file in the study's folder, gone when the search has ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tunelab.files import read_json, write_atomically

FILE = "ray-dashboard.json"
_BYTES = 4096  # the most that is read
_ADDRESS = re.compile(r"[A-Za-z0-9_.-]{1,253}:[0-9]{1,5}")


@dataclass(frozen=True)
class RayAddress:
    """Where Ray's dashboard is, "HOST:PORT"; where its metrics are, "" if that is not known; who shows it.

    `token` is the path of the file whose content opens it, "" if that is not tunelab's; `pid` the process that
    searches.
    """

    dashboard: str
    metrics: str
    token: str
    pid: int

    @property
    def command(self) -> str:
        """What shows the token, for a shell; "" if the token is not tunelab's."""
        return f"cat {shlex.quote(self.token)}" if self.token else ""

    def describe(self) -> str:
        """One line for a person who wants to open it; the token itself is in no line."""
        asks = f" (it asks for a token; `{self.command}` shows it)" if self.token else ""
        metrics = f"; metrics: http://{self.metrics}/metrics" if self.metrics else ""
        return f"Ray's dashboard: http://{self.dashboard}{asks}{metrics}"


@contextlib.contextmanager
def told(study: Path, address: RayAddress) -> Iterator[None]:
    """The file is in the study's folder meanwhile; a disk that takes none is no error."""
    file = study / FILE
    with contextlib.suppress(OSError):
        write_atomically(file, json.dumps(asdict(address)) + "\n")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def find(study: Path) -> RayAddress | None:
    """Ray's dashboard of the search that runs in a study's folder; None if there is none that can be read.

    A stranger may have written the file: it must be this user's own, name nothing but addresses and a path, and its
    process must live.
    """
    try:
        address = RayAddress(**read_json(study / FILE, _BYTES))
        mine = (study / FILE).lstat().st_uid == os.getuid()
    except (OSError, ValueError, TypeError):
        return None
    texts = (address.dashboard, address.metrics, address.token)
    if not mine or type(address.pid) is not int or not all(isinstance(text, str) for text in texts):
        return None
    known = all(_ADDRESS.fullmatch(text) for text in (address.dashboard, address.metrics) if text)
    lives = address.pid > 1 and psutil.pid_exists(address.pid)
    return address if known and lives and address.dashboard and address.token.isprintable() else None
