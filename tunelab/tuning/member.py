"""What each process runs of those that train one trial together under Ray Train."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.train

from tunelab.data.share import Share
from tunelab.records import TrialStatus
from tunelab.training.device import claim_device
from tunelab.training.group import Group, is_parting, together
from tunelab.training.shortage import is_shortage
from tunelab.tuning.worker import TrialWorker

_AFTER_YOU = 5.0  # seconds that the first process has to tell of a divergence and what led to it (our choice)


class Member(TrialWorker):
    """Trains a trial as `TrialWorker` does, with others. Ray Tune has no part in it, and is not set up.

    Args:
        config: as of a TrialWorker; only the first process of a group is seen by the watchdog.
        group: the processes that train together.
    """

    def __init__(self, config: dict[str, Any], group: Group) -> None:
        self._group = group
        self.setup(config if group.first else {**config, "beats": None})

    def _next_report(self) -> dict[str, Any]:
        try:
            return super()._next_report()
        except Exception as error:
            if is_parting(error) and not is_shortage(error):
                return {"parted": " ".join(str(error).split())[:300]}
            raise

    def _told_of_divergence(self, reason: str) -> dict[str, Any]:
        if self._group.first:
            return super()._told_of_divergence(reason)
        return {"status": TrialStatus.DIVERGED.value, "reason": reason}  # the first tells, who looks at its health


def train(config: dict[str, Any]) -> None:
    """Trains one process's share until the driver has heard enough, and leaves the trial's checkpoint behind.

    `config` is that of a Member with `inbox`, the driver's actor, and `meeting`, as `together` takes it. The first
    process reports each epoch, and asks whether to go on; whichever cannot go on tells that, and ends all of them.

    Raises:
        RuntimeError: this process could not go on.
    """
    context = ray.train.get_context()
    share = Share(context.get_world_rank(), context.get_world_size())
    inbox = config["inbox"]
    device = claim_device(config["device"], config["threads"])
    with together(share, device, Path(config["meeting"])) as group:
        member = Member(config, group)
        goes_on = True
        while goes_on:
            content = json.loads(member.step()["report"])
            if "metrics" not in content:
                _give_up(inbox, content, first=group.first)
            goes_on = group.agree(group.first and bool(ray.get(inbox.ask.remote(content))))
        member.cleanup()


def _give_up(inbox: Any, content: dict[str, Any], *, first: bool) -> NoReturn:
    """Tells the driver why this process cannot go on; of a divergence, which all should see, the first one may before.

    It never waits for the others: they may be somewhere else in the epoch, and wait for it there.
    """
    if not first and content.get("status") == TrialStatus.DIVERGED.value:
        time.sleep(_AFTER_YOU)
    ray.get(inbox.tell.remote(content))
    raise RuntimeError(str(content))
