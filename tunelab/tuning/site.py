"""Where a search runs: on this machine alone, or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from tunelab.tuning.fleet import Fleet


@dataclass(frozen=True)
class Site:
    """Where Ray is, as a command says it; a study does not keep it, so that it can go on anywhere.

    `address` is that of a running cluster, as Ray takes it ("auto", "HOST:PORT", "ray://HOST:PORT"); None starts Ray on
    this machine. With `dashboard` Ray shows its dashboard, where it is started here. `fleet` are the cluster's nodes
    and `token` the RAY_AUTH_MODE that it was reached with ("": none), both known when it was asked
    (`tunelab.tuning.survey`).
    """

    address: str | None = None
    dashboard: bool = False
    fleet: Fleet | None = None
    token: str = ""
