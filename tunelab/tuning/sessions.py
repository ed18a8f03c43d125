"""The trials of a study as TensorBoard's HPARAMS tab compares them: each with its parameters, its status, its metrics.

Who decides knows how a trial ends, so the process that runs the search writes this: beside the events of a trial, in
files of their own, one when it is started first and one when it has ended for good. Both are there whole or not at
all; what a process that was killed did not write, the next one does.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunelab.records import Trial, TrialStatus

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

_STARTED, _ENDED = "started", "ended"  # kinds of files
_COSTS = ("params", "mflops", "depth")  # of a trial's stats, those that one compares networks by
_NUMBERED = re.compile(r"(^|_)\d+(_|$)")  # the name of a parameter of one of many parts, such as branch_1_block_02_kind
MOST_PARAMS = 30
"""Of a trial with more parameters than this those of numbered parts are left out of the table; our choice."""


class Sessions:
    """Tells TensorBoard of the trials of a study; nothing of what it cannot write ends a search.

    Args:
        study: the name of the study, which tells its trials from those of others beside it.
        folder_of: from a trial's number to its folder.
        known: trials of earlier starts.
    """

    def __init__(self, study: str, folder_of: Callable[[int], Path], known: Collection[Trial] = ()) -> None:
        self._study, self._folder_of = study, folder_of
        self._begun: set[int] = set()  # whose parameters are written
        for trial in known:
            if trial.status.ended and folder_of(trial.number).is_dir():  # people remove folders to have room
                self.ended(trial)

    def started(self, trial: Trial) -> None:
        """Writes the parameters of a trial, once."""
        if trial.number not in self._begun and self._write(trial, _STARTED, lambda: _start_of(trial, self._study)):
            self._begun.add(trial.number)

    def reported(self, trial: Trial) -> None:
        """Nothing: the trial writes the numbers of its epochs itself."""

    def retried(self, trial: Trial, why: str) -> None:
        """Nothing: the trial goes on in the same folder."""

    def ended(self, trial: Trial) -> None:
        """Writes how a trial has ended, once, and its parameters where that was not done."""
        self.started(trial)
        self._write(trial, _ENDED, lambda: _end_of(trial))

    def _write(self, trial: Trial, kind: str, content: Callable[[], Summary.Value]) -> bool:
        """True if it is there now."""
        from tunelab.training.telemetry import has_aside, write_aside  # 0.1 s, and not needed without telemetry

        folder = self._folder_of(trial.number) / "events"
        with contextlib.suppress(OSError):  # the record needs the disk too, and says so
            if not has_aside(folder, kind):
                write_aside(folder, kind, [content()])
            return True
        return False


def flat_params(trial: Trial) -> dict[str, bool | float | str]:
    """What TensorBoard's table shows of a trial: what the space suggested, its costs and its origin.

    With more than `MOST_PARAMS` parameters, those of numbered parts, such as single blocks, are left out. Of a trial
    that no space suggested (of a retraining, say) the numbers and names of its recipe and its seed.
    """
    values: dict[str, Any] = dict(trial.params)
    if len(values) > MOST_PARAMS:
        values = {name: value for name, value in values.items() if not _NUMBERED.search(name)}
    if not values:
        values = {**dict(_leaves(trial.config.get("train", {}))), "seed": trial.config.get("seed", 0)}
    more = {name: trial.stats[name] for name in _COSTS if name in trial.stats}
    values = {**more, "origin": trial.origin, **values}
    return {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in values.items()}


def _leaves(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        elif value is not None and not isinstance(value, (list, tuple)):
            yield before + name, value


def _start_of(trial: Trial, study: str) -> Summary.Value:
    """The runs of one configuration are one group, of which TensorBoard shows the mean."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    first = trial.number if trial.repeat_of is None else trial.repeat_of
    start = SessionStartInfo(group_name=f"{study} {first:04d}", start_time_secs=time.time())
    for name, value in flat_params(trial).items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    return _value("_hparams_/session_start_info", HParamsPluginData(session_start_info=start))


def _end_of(trial: Trial) -> Summary.Value:
    """Success is full length, failure a trial that diverged or failed; one that was stopped early is neither."""
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = {
        TrialStatus.COMPLETED: api_pb2.STATUS_SUCCESS,
        TrialStatus.DIVERGED: api_pb2.STATUS_FAILURE,
        TrialStatus.FAILED: api_pb2.STATUS_FAILURE,
    }.get(trial.status, api_pb2.STATUS_UNKNOWN)
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _value("_hparams_/session_end_info", HParamsPluginData(session_end_info=end))


def _value(tag: str, content: HParamsPluginData) -> Summary.Value:
    """What TensorBoard's hparams plugin reads under that tag; its own functions for this need TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=nothing)
