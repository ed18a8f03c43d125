"""TensorBoard as an application of this process, on the events of a study."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tunelab.dashboards.serving import App

_RELOAD_SECONDS = 5  # between two looks for new events; our choice


class _Taken:
    """In place of TensorBoard's own server: keeps the application, for one that looks who asks."""

    def __init__(self, app: App, _flags: Any) -> None:
        self.app = app

    def serve_forever(self) -> None:
        """Nothing: somebody else serves."""

    def get_url(self) -> str:
        """Nowhere."""
        return ""


def tensorboard(study: Path) -> App:
    """TensorBoard on all events below a study's folder, which a thread of its own reads again and again.

    It has the pages that it comes with; those of other packages are not loaded.
    """
    from tensorboard import assets, default, program

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    taken: list[_Taken] = []

    def take(app: App, flags: Any) -> _Taken:
        taken.append(_Taken(app, flags))
        return taken[0]

    board = program.TensorBoard(default.get_static_plugins(), assets.get_default_assets_zip_provider(), take)
    reload = f"--reload_interval={_RELOAD_SECONDS}"
    board.configure(argv=["", "--logdir", str(study), "--load_fast=false", reload, "--window_title", "tunelab"])
    board.launch()
    return taken[0].app
