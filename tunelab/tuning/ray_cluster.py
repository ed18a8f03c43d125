"""Joins a Ray cluster that somebody else has started, for the time of a search."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from tunelab.errors import TunelabError
from tunelab.tuning.ray_home import SETTINGS, first_line
from tunelab.tuning.site import Site


@contextlib.contextmanager
def joined(site: Site) -> Iterator[None]:
    """This process as a driver of the cluster at `site.address`; its actors are gone afterwards.

    Raises:
        TunelabError: the cluster does not answer, or this process runs Ray already.
    """
    import ray

    if ray.is_initialized():
        raise TunelabError("this process runs Ray already; call ray.shutdown() before tunelab.search()")
    os.environ.update(SETTINGS)
    try:
        ray.init(
            address=site.address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": dict(SETTINGS)},
        )
    except Exception as error:
        raise TunelabError(f"the cluster {site.address} does not answer: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
