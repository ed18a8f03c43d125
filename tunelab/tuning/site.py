"""Where a search runs: on this machine alone, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tunelab.errors import InputError
from tunelab.tuning.fleet import Fleet

_PACKAGES = ("aiohttp", "aiohttp_cors", "grpc", "opencensus", "opentelemetry", "prometheus_client", "pydantic")
"""What Ray needs beside itself for its dashboard, as its own module `ray.dashboard.optional_deps` has it."""


@dataclass(frozen=True)
class Site:
    """Where Ray is, as a command says it; a study does not keep it, so that it can go on anywhere.

    `address` is that of a running cluster, as Ray takes it ("auto", "HOST:PORT", "ray://HOST:PORT"); None starts Ray on
    this machine. With `dashboard` Ray shows its dashboard, where it is started here. `fleet` are the cluster's nodes
    and `token` the RAY_AUTH_MODE that it was reached with ("": none), both known when it was asked
    (`tunelab.tuning.survey`).

    Raises:
        InputError: Ray's dashboard is asked for, and packages that it needs are not installed.
    """

    address: str | None = None
    dashboard: bool = False
    fleet: Fleet | None = None
    token: str = ""

    def __post_init__(self) -> None:
        """Refuses a dashboard that cannot be shown."""
        if self.dashboard and self.address is None:
            lacking = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
            if lacking:
                raise InputError(
                    f"--dashboard needs packages that are not installed ({', '.join(lacking)}): "
                    'python -m pip install "ray[default]"'
                )
