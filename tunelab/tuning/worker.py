"""One trial after another in one process: Ray's trainable around `training.loop.Trainer`.

A step is an epoch. What comes back is one text, `report`: the JSON of an epoch's metrics with the notes and findings so
far, of an early end, or of a loss. Ray sees no number of it, so that none can end a search. Checkpoints are tunelab's
own, in the trial's folder; Ray keeps none. The record may be an epoch ahead of them: what is then trained and told
again changes nothing in it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tunelab.capacity import all_memory_mib, held_mib
from tunelab.config import ComputeConfig, TrialConfig, from_json
from tunelab.credentials import hide
from tunelab.errors import DivergedError, InputError, OutOfTimeError
from tunelab.files import NO_ROOM, make_private
from tunelab.foreign import borrow
from tunelab.records import EpochMetrics, Finding, TrialStatus
from tunelab.training.group import ALONE
from tunelab.training.health import Health
from tunelab.training.loop import Trainer
from tunelab.training.pulse import Phase, Pulse, beat_path
from tunelab.training.saver import Room
from tunelab.training.shortage import describe_shortage, has_room, is_shortage, release
from tunelab.training.verdicts import NOT_FINITE
from tunelab.tuning.memory_guard import Limits, MemoryGuard, NodeLimits, Word, end_process
from tunelab.tuning.outpost import beats_folder, word_folder
from tunelab.tuning.quota import RAY_MIB
from tunelab.tuning.trial_mirror import TrialMirror, home_of, is_passing

_NO_STORAGE = {*NO_ROOM, errno.EROFS, errno.EIO, errno.ESTALE}
"""Errors that no other trial would be spared: they pause the search, and none fails of them."""
_PATIENCE = 35 * 60.0  # seconds that a checkpoint waits for room: longer than the driver, which says why; our choice
_LAST_COPY = 30.0  # seconds that the end of a process waits for the store; our choice
_GUARD = MemoryGuard()  # of the process, whichever trial it trains


class TrialWorker(tune.Trainable):
    """Trains the configuration that it is given, epoch by epoch, from the trial's last checkpoint if there is one.

    Its config: `number`; `trial_config`, the JSON text of a TrialConfig; `folder`, the trial's; `known_epochs`, how
    many epochs the record holds; `split`, `device`, `threads`, `telemetry`, `memory` as `Trainer` takes them;
    `compute`, the JSON of a ComputeConfig; `stop_at`, as `run_epoch` takes it, or `stop_time`, the same
    on the wall clock; `beats`, where the watchdog sees its beats, as `beats_folder` takes it, with `least` and `pause`
    as `Pulse` takes them; without it there are none; `limits`, the JSON of the `Limits` of its memory, or of
    `NodeLimits`, or None; `fewer`, whether there are fewer trials beside it than usual; `code`, on a cluster, the JSON
    of what `tunelab.foreign.lend` gives for its network; `name`, which comes before the number in the name of a trial;
    `storage`, the place of the study in its store, if it has one, and `lease`, the nonce of the driver's lease there.
    """

    _group = ALONE

    def setup(self, config: dict[str, Any]) -> None:
        """Takes a configuration; the work begins in `step`, where a failure can be told."""
        config = {**config, "folder": self._home(config)}
        self._config = config
        self._mirror: TrialMirror | None = None
        self._mirrors: list[TrialMirror] = getattr(self, "_mirrors", [])
        self._mirror_notes: list[str] = []
        self._trainer: Trainer | None = None
        self._health = Health(Path(config["folder"]))
        self._pulse: Pulse | None = None
        self._unsaved: OSError | None = None
        self._untold: deque[EpochMetrics] = deque()
        limits = None if config["limits"] is None else _find_limits(config["limits"])
        self._words = self._find_words()
        _GUARD.watch(config["number"], self._words, limits, fewer=config["fewer"])

    def __repr__(self) -> str:
        """What Ray's dashboard calls the process for good: by the trial that it began with, of several one by one."""
        return f"{self._title} and later"

    @property
    def _title(self) -> str:
        """What people call the trial that it trains: "arch-0042"."""
        return f"{self._config.get('name', 'trial')}-{self._config['number']:04d}"

    def _home(self, config: dict[str, Any]) -> str:
        """The trial's folder on this machine, which the study's is not where that cannot be seen."""
        storage = config.get("storage")
        return str(home_of(Path(config["folder"]), storage)) if storage else str(config["folder"])

    def _find_words(self) -> Path:
        """Where this process writes of its memory: the trial's folder, or, if the driver cannot see it, the beats'."""
        folder, beats = Path(self._config["folder"]), self._config.get("beats")
        if beats is not None and is_passing(folder):
            with contextlib.suppress(OSError):
                return word_folder(beats_folder(beats), self._config["number"])
        return folder

    def _begin_mirror(self) -> None:
        """Brings what there is of the trial to this machine."""
        storage = self._config.get("storage")
        if storage and self._mirror is None:
            folder, notes = Path(self._config["folder"]), self._mirror_notes
            for earlier in self._mirrors:
                if earlier.folder == folder:  # this trial was lost and comes again
                    earlier.wait(_LAST_COPY)
            try:
                self._mirror = TrialMirror(storage, folder, notes.append, self._config["lease"])
            except InputError as error:  # a package that this machine lacks, say
                if is_passing(folder):  # nothing of the trial would remain
                    raise
                notes.append(str(error))
                return
            self._mirror.fetch()

    def stop(self) -> None:
        """Frees the last trial, and waits for what is still on its way to the store."""
        super().stop()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
        end = time.monotonic() + _LAST_COPY
        for mirror in self._mirrors:
            mirror.wait(max(0.0, end - time.monotonic()))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Frees the last trial and takes the next."""
        self.cleanup()
        unsaved = self._unsaved
        self.setup(new_config)
        self._unsaved = unsaved
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, or the telling again of one that was trained before a restart."""
        self._tell("beginning an epoch")
        _entitle(self._title)
        content = self._step()
        self._tell("idle")
        return {"report": json.dumps(content)}

    def _tell(self, phase: Phase) -> None:
        if self._pulse is not None:
            self._pulse.enter(phase)

    def _step(self) -> dict[str, Any]:
        lacking = ""
        try:
            content = self._next_report()
        except OutOfTimeError:
            content = {"halt": "deadline"}
        except DivergedError as error:
            content = self._told_of_divergence(str(error))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_STORAGE:
                return {"halt": f"the trials' storage: {error.strerror}"}
            lacking = describe_shortage(error, self._config["device"]) if is_shortage(error) else ""
            content = {} if lacking else {"status": TrialStatus.FAILED.value, "reason": self._explain(error)}
        if lacking:  # here nothing holds the error any more, whose frames hold the network
            content = self._give_up_for_memory(lacking)
        return content

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial has checkpoints of its own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `step` goes on from the trial's own checkpoint."""

    def cleanup(self) -> None:
        """Frees the network, its optimizer and the device's memory, when the last checkpoint is on the disk.

        If it cannot be written, the trial has ended, or goes on from the one before. Where nothing can be written any
        more, the next `step` halts the search; for room the next trial waits.
        """
        _GUARD.rest()
        trainer, self._trainer = self._trainer, None
        pulse, self._pulse = self._pulse, None
        try:
            if trainer is not None:
                trainer.close()
        except OSError as error:
            self._explain(error)
            self._unsaved = error if error.errno in _NO_STORAGE - NO_ROOM else None
        finally:
            self._end_mirror()
            if pulse is not None:
                pulse.close()

    def _end_mirror(self) -> None:
        """What is left of the trial goes to the store while the next one begins."""
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.finish()
            self._mirrors = [one for one in self._mirrors if not one.wait(0.0)] + [mirror]

    def _give_up_for_memory(self, why: str) -> dict[str, Any]:
        """What is told when memory is lacking. The process gives back what it holds; some end for that.

        What CUDA and its libraries hold on a GPU is given back by the end of the process alone.
        """
        with contextlib.suppress(Exception):  # of a checkpoint that there was no memory to write, say
            self.cleanup()
        folder = Path(self._config["folder"])
        self._health = Health(folder)
        release()
        if self._config["device"].startswith("cuda") or not has_room():
            number, process = self._config["number"], os.getpid()
            end_process(self._words, Word(number, process, held_mib(process) or 0.0, 0.0, ended=True, why=why))
        return {"lost": {"cause": "memory", "why": why}}

    def _next_report(self) -> dict[str, Any]:
        metrics = self._next_metrics()
        content: dict[str, Any] = {"metrics": metrics.to_json()}
        notes = [*(self._trainer.notes if self._trainer is not None else ()), *self._mirror_notes[:1]]
        if notes:
            content["notes"] = notes
        findings = [finding for finding in self._health.findings if finding.epoch <= metrics.epoch]
        if findings:
            content["findings"] = _plain(findings)
        if self._health.hopeless and not self._untold:
            content["hopeless"] = self._with_cause(self._health.hopeless)
        return content

    def _told_of_divergence(self, reason: str) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # health.json: the record has the same
            self._health.broke_off(reason)
        findings = _plain(self._health.findings)
        return {"status": TrialStatus.DIVERGED.value, "reason": self._with_cause(reason), "findings": findings}

    def _with_cause(self, reason: str) -> str:
        """The reason with what led to it, where something was found."""
        causes = [finding for finding in self._health.findings if finding.hopeless and finding.name != NOT_FINITE]
        return f"{reason}; {causes[-1].what}" if causes else reason

    def _next_metrics(self) -> EpochMetrics:
        if self._unsaved is not None:
            raise self._unsaved
        if self._trainer is None:
            self._trainer = self._begin()
        if self._untold:
            return self._untold.popleft()
        metrics = self._trainer.run_epoch(self._stop_at())
        if self._mirror is not None:
            self._mirror.sync()
        return metrics

    def _stop_at(self) -> float:
        """When the epoch is broken off, on this machine's monotonic clock."""
        if "stop_time" in self._config:
            return time.monotonic() + float(self._config["stop_time"]) - time.time()
        return float(self._config["stop_at"])

    def _make_pulse(self) -> Pulse | None:
        """What the watchdog sees; None where it does not watch, or there is no room for it."""
        if self._config.get("beats") is None:
            return None
        number = self._config["number"]
        with contextlib.suppress(OSError):
            folder = beats_folder(self._config["beats"])
            return Pulse(beat_path(folder, number), number, least=self._config["least"], pause=self._config["pause"])
        return None

    def _begin(self) -> Trainer:
        self._pulse = self._make_pulse()
        if "code" in self._config:
            borrow(json.loads(self._config["code"]))
        self._tell("reading the checkpoint")
        self._begin_mirror()
        trainer = Trainer(
            from_json(TrialConfig, json.loads(self._config["trial_config"])),
            folder=Path(self._config["folder"]),
            device=self._config["device"],
            threads=self._config["threads"],
            telemetry=self._config["telemetry"],
            compute=from_json(ComputeConfig, self._config["compute"]),
            memory=self._config["memory"],
            split=self._config["split"],
            observers=(self._health,),
            room=Room(_PATIENCE, self._wait_for_room),
            pulse=self._pulse,
            group=self._group,
        )
        if trainer.resume():
            known = self._config["known_epochs"]
            self._untold.extend(trainer.history[known:] or trainer.history[-1:])
        return trainer

    def _wait_for_room(self, why: str) -> None:
        self._tell("waiting for room" if why else "waiting for the disk")

    def _explain(self, error: Exception) -> str:
        """The cause in one line; the traceback goes to `error.txt` in the trial's folder."""
        folder = Path(self._config["folder"])
        with contextlib.suppress(OSError):  # on a full disk, say: the reason goes into the record all the same
            make_private(folder)
            (folder / "error.txt").write_text(hide(traceback.format_exc()), encoding="utf-8", errors="backslashreplace")
        return f"{type(error).__name__}: {' '.join(hide(str(error)).split())[:300]}"


def _find_limits(plain: dict[str, Any]) -> Limits:
    if "each" in plain:
        return Limits.from_json(plain)
    cpus, gpus = _node_resources()
    return NodeLimits(**plain).on(cpus, gpus, max(0.0, all_memory_mib() - RAY_MIB))


@functools.cache
def _node_resources() -> tuple[float, float]:
    """The processors and GPUs that Ray has on the node of this process."""
    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own lacks annotations
    has = next(node["Resources"] for node in nodes if node["NodeID"] == here)
    return has.get("CPU", 0.0), has.get("GPU", 0.0)


def _entitle(name: str) -> None:
    """Has the process's title say which trial it trains: in Ray's dashboard, in `ps`, in `top -c`.

    Ray puts its own title back after each step. What knows trials by their titles knows them by the beginning.
    """
    from ray._raylet import getproctitle, setproctitle  # type: ignore[attr-defined]  # compiled

    if getproctitle().startswith("ray::"):  # else it is no process of Ray's
        setproctitle(f"ray::TrialWorker({name}).train")


def _plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.to_json() for finding in findings]
