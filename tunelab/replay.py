"""From the events of a record to the trials that it tells of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunelab.errors import InputError
from tunelab.record_checks import (
    BadEventError,
    epoch_of,
    finding_of,
    kind_of,
    number_of,
    require_decision,
    require_proposal,
    retry_of,
    split_of,
    status_of,
    texts_of,
)
from tunelab.records import Trial


def replay(events: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """The trials that a record tells of, in the order of their numbers.

    Raises:
        InputError: an event lacks something, or has something that cannot be; its place in the record is named.
    """
    trials: dict[int, Trial] = {}
    read = 0
    try:
        for event in events:
            read += 1
            _take(event, trials)
    except BadEventError as error:
        raise InputError(f"event {read} of the record cannot be believed: {error}") from None
    return [trials[number] for number in sorted(trials)]


def _take(event: Mapping[str, Any], trials: dict[int, Trial]) -> None:
    """Adds what an event tells to the trials; events that this version does not know are passed over."""
    kind = kind_of(event)
    if not kind:
        return
    number = number_of(event)
    if kind == "proposed":
        require_proposal(event)
        trials[number] = Trial(
            number=number,
            config=event["config"],
            params=event["params"],
            stats=event["stats"],
            arch_id=event["arch_id"],
            origin=event.get("origin", ""),
            repeat_of=event.get("repeat_of"),
            split=split_of(event.get("split", 1)),
        )
        return
    trial = trials.get(number)
    if trial is None:
        raise BadEventError(f"it is about trial {number}, which was not proposed before it")
    if kind == "result":
        trial.epochs.append(epoch_of(event.get("metrics")))
        if "notes" in event:
            trial.notes += texts_of(event["notes"], "notes")
    elif kind == "decision":
        trial.decisions.append(require_decision(event.get("decision")))
    elif kind == "retried":
        trial.retries.append(retry_of(event))
        trial.split = event["split"]
    else:
        trial.status = status_of(event)
        trial.reason = event["reason"]
    if "findings" in event:
        trial.findings += [finding_of(plain) for plain in event["findings"]]
