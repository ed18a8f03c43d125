"""What goes wrong in a search is provoked here: put this folder on PYTHONPATH, and every process of it reads this.

Nothing of tunelab is replaced but for what these variables ask for:

`PROVOKED_QUICK`: nothing is calibrated, which takes seconds.
`PROVOKED_LOG`: a file that each epoch that a worker begins or ends adds a line to: JSON with `what` ("begin", "end"),
    `trial`, `epoch`, `pid`.
`PROVOKED_ORDERS`: a JSON file, a list of orders, read before each epoch: `do`, and where it applies, `trial` (a number;
    left out, all), `epoch` (left out, all), `times` (so many in all processes together; left out, always), `rank` (of
    the processes that train a trial together; left out, the first), `saved` (true: when the checkpoint of the epoch
    before is on the disk; else it may still be being written). The first that applies is done, but of "sleep" and
    "wait" all. What there is to do is in `DEEDS`.
`PROVOKED_CLOCK`: seconds by which the wall clock of the driver jumps ahead, and then back by twice as much, and so on,
    from the moment when a search has been opened: each time that a module of tunelab looks at it, for all others each
    second.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _log(**content: Any) -> None:
    if path := os.environ.get("PROVOKED_LOG"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, json.dumps({**content, "pid": os.getpid()}).encode() + b"\n")
        os.close(descriptor)


def _done(order: int) -> int:
    """How often an order was carried out, by any process."""
    try:
        lines = Path(os.environ["PROVOKED_LOG"]).read_text().splitlines()
    except OSError:
        return 0
    return sum(json.loads(line).get("order") == order for line in lines)


def _raise(_order: dict[str, Any]) -> None:
    raise ValueError("provoked")


def _busy(_order: dict[str, Any]) -> None:
    while True:
        pass


def _hold(_order: dict[str, Any]) -> None:
    """C code that never gives Python's lock back: no other thread of Python runs, no signal is answered."""
    sum(range(10**15))


def _multiply(order: dict[str, Any]) -> None:
    """One computation outside of Python, so long that no signal is answered meanwhile."""
    import torch

    size = int(order.get("size", 6000))
    torch.mm(torch.ones(size, size), torch.ones(size, size))


def _eat(order: dict[str, Any]) -> None:
    """Takes memory, page by page, until something ends it; `bytes` at most."""
    taken = []
    for _ in range(int(order.get("bytes", 2**40)) // 2**24):
        taken.append(bytearray(b"x") * 2**24)
        time.sleep(0.01)


def _wait(order: dict[str, Any]) -> None:
    """Until the order is given no more."""
    while order in _orders():
        time.sleep(0.05)


def _squeeze(order: dict[str, Any]) -> None:
    """From now on the process may take `bytes` of memory beside what it has, and no more.

    The limit counts what malloc keeps for later too: each larger piece becomes one of its own, given back when freed.
    """
    import ctypes
    import resource

    ctypes.CDLL(None).mallopt(-3, 128 * 1024)  # M_MMAP_THRESHOLD

    lines = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + int(order["bytes"]), resource.RLIM_INFINITY))


DEEDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "sleep": lambda order: time.sleep(order["seconds"]),
    "wait": _wait,
    "kill": lambda _order: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda _order: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": _raise,
    "busy": _busy,
    "hold": _hold,
    "multiply": _multiply,
    "eat": _eat,
    "squeeze": _squeeze,
}


def _orders() -> list[dict[str, Any]]:
    path = os.environ.get("PROVOKED_ORDERS")
    return json.loads(Path(path).read_text()) if path else []


def _obey(trial: int, epoch: int, rank: int = 0, wait_until_saved: Callable[[], None] = lambda: None) -> None:
    for index, order in enumerate(_orders()):
        if order.get("trial", trial) != trial or order.get("epoch", epoch) != epoch or order.get("rank", 0) != rank:
            continue
        if "times" in order and _done(index) >= order["times"]:
            continue
        if order.get("saved"):
            wait_until_saved()
        _log(what=order["do"], order=index, trial=trial, epoch=epoch)
        DEEDS[order["do"]](order)
        if order["do"] not in ("sleep", "wait"):
            return


def _watch_epochs(module: Any) -> None:
    trainer, run_epoch = module.Trainer, module.Trainer.run_epoch

    def told(self: Any, *given: Any, **more: Any) -> Any:
        folder, epoch, share = self._kept.path, len(self.history) + 1, self._group.share
        if folder is None:
            if share is not None:  # the others, which keep nothing and do not know their trial's number
                _obey(0, epoch, share.rank)
            return run_epoch(self, *given, **more)
        _log(what="begin", trial=int(folder.name), epoch=epoch)
        _obey(int(folder.name), epoch, wait_until_saved=self._kept.wait)
        metrics = run_epoch(self, *given, **more)
        _log(what="end", trial=int(folder.name), epoch=epoch)
        return metrics

    trainer.run_epoch = told


def _measure_nothing(module: Any) -> None:
    import contextlib

    from tunelab.config import ComputeConfig
    from tunelab.tuning import calibrate, compute

    def pretend(samples: Any, candidates: Any, *_more: Any) -> Any:
        layouts = tuple(calibrate.Layout(slots, 100.0, 300.0) for slots in candidates)
        return calibrate.Calibration(candidates[0], layouts, (), 2.0, 0.1, 4000.0, "nothing was measured")

    calibrate.calibrate = pretend
    compute.recall = lambda _key: None
    compute.fastest = lambda *_given, **_more: compute.Choice(ComputeConfig(), {})
    module.Probes = lambda count: contextlib.nullcontext()


def _jump(_module: Any) -> None:
    """The wall clock alone jumps; the monotonic one does not, as on a machine whose clock is set."""
    import datetime
    import itertools
    import types

    ahead, real = float(os.environ["PROVOKED_CLOCK"]), time.time

    def shift() -> float:
        return ahead if int(time.monotonic()) % 2 else -ahead

    def jumping() -> types.SimpleNamespace:
        shifts = itertools.cycle((ahead, -ahead))
        return types.SimpleNamespace(**{**vars(time), "time": lambda: real() + next(shifts)})

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(real() + shift(), tz)

    for name, module in list(sys.modules.items()):
        if not name.startswith("tunelab."):
            continue
        if getattr(module, "datetime", None) is datetime:
            module.datetime = type("datetime", (), {**vars(datetime), "datetime": Jumping})
        if getattr(module, "time", None) is time:
            module.time = jumping()
    time.time = lambda: real() + shift()
    time.time_ns = lambda: int((real() + shift()) * 1e9)


AFTER: dict[str, tuple[str, Callable[[Any], None]]] = {
    "tunelab.training.loop": ("PROVOKED_LOG", _watch_epochs),
    "tunelab.tuning.prospect": ("PROVOKED_QUICK", _measure_nothing),
    "tunelab.tuning.packing": ("PROVOKED_QUICK", _measure_nothing),
    "tunelab.tuning.runner": ("PROVOKED_CLOCK", _jump),
}


class _After(importlib.abc.MetaPathFinder):
    """Finds modules as ever, and has something done when one was imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        variable, then = AFTER.get(name, ("", None))
        if then is None or variable not in os.environ:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_more(module: Any) -> None:
                run(module)
                then(module)

            spec.loader.exec_module = run_and_more  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _After())
