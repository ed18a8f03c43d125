"""What is found on the nodes of a cluster, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

LEAVE_OUT = "or stop Ray there (ray stop) to go on without it"
"""What mends any finding."""
_SHOWN = 6  # findings in one line of an error (our choice)


@dataclass(frozen=True)
class NodeFinding:
    """One thing of a node that was looked at: what was measured, how that is judged, how it is mended ("" if ok).

    An error is what trials would fail of there, a warning is worth knowing.
    """

    node: str
    name: str
    measured: str
    verdict: Literal["ok", "warning", "error"] = "ok"
    mend: str = ""


def refusal(findings: Sequence[NodeFinding], address: str | None) -> str:
    """Why no search starts, in one line: the errors with their nodes and mends, the same of several nodes as one."""
    errors = [one for one in findings if one.verdict == "error"]
    some = told(errors)
    shown = [*some[:_SHOWN], *([f"and {len(some) - _SHOWN} more findings"] if len(some) > _SHOWN else [])]
    count = len({one.node for one in errors})
    many = f"{count} nodes of the cluster are" if count > 1 else "a node of the cluster is"
    return f"{many} not fit: {'; '.join(shown)}. `tunelab doctor --address {address}` looks again"


def told(findings: Iterable[NodeFinding]) -> list[str]:
    """Findings in words, with their nodes and mends; what several nodes have alike is told once."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        alike.setdefault((one.name, one.measured, one.mend), []).append(one.node)
    lines = []
    for (name, measured, mend), nodes in alike.items():
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        lines.append(f"{', '.join(nodes[:3])}{more}: {name}: {measured}{f' ({mend})' if mend else ''}")
    return lines
