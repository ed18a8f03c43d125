"""What happened: the metrics of an epoch, and a trial with its end."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BY_MODEL = "model"
"""The origin of trials that the model of all trials proposed."""

PROGRESS = 1e-4
"""A loss that is lower by less than this share counts as no better; PyTorch's choice for ReduceLROnPlateau."""

OVER_FITTING, UNDER_FITTING = "over-fitting", "under-fitting"
REMARKS = (OVER_FITTING, UNDER_FITTING)
"""The names of findings that say how a network learns; all others say that something is wrong."""


class TrialStatus(str, enum.Enum):
    """How a trial stands. COMPLETED means full length, or its recipe's early stopping; only such trials are ranked."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    PAUSED = "PAUSED"
    DIVERGED = "DIVERGED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """True if the trial will never go on."""
        return self not in (TrialStatus.RUNNING, TrialStatus.PAUSED)


@dataclass(frozen=True)
class EpochMetrics:
    """What was measured in one epoch. Losses are mean cross-entropy in nats, accuracies lie in [0, 1].

    `epoch` counts from 1. `train_loss` and `train_accuracy` are over the augmented training batches as they were
    trained on; `val_loss` and `val_accuracy`, of the average of weights where the recipe has one by then, are None when
    the validation images were trained on too. `lr` is the rate of the epoch's last step. `seconds` covers training and
    validation; `images_per_second` the training alone. `peak_memory_mib` is the process's peak resident memory, or the
    device's peak allocation on a GPU. `weight_norm` is the Euclidean norm, after the epoch, over the weights with two
    or more dimensions; `grad_norm` that of all gradients of the last step, and `update_ratio` the norm of its change of
    the weights as a share of theirs. These three are None where a number is not finite, and in older records.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float
    images_per_second: float
    peak_memory_mib: float
    weight_norm: float | None = None
    grad_norm: float | None = None
    update_ratio: float | None = None

    @property
    def score(self) -> float:
        """What trials are compared by: validation accuracy, or training accuracy where nothing was held out."""
        return self.train_accuracy if self.val_accuracy is None else self.val_accuracy

    @property
    def loss(self) -> float:
        """The loss beside `score`: of the validation images, or of the training images where nothing was held out."""
        return self.train_loss if self.val_loss is None else self.val_loss

    @property
    def effective_lr(self) -> float | None:
        """`lr` divided by the square of `weight_norm`; None where that is not known, or 0.

        It says how far a step of plain SGD at `lr` turns weights before a norm layer, whose scale has no effect: as far
        as one at this rate would turn them if their norm were 1 (van Laarhoven, arXiv 1706.05350). The norm is that of
        all weights together, those behind which there is no norm layer included; momentum has no part in it, and Adam
        and RMSprop turn weights by what is in proportion to lr / norm.
        """
        return self.lr / self.weight_norm**2 if self.weight_norm else None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def out_of_patience(history: Sequence[EpochMetrics], patience: float | None, epochs: int) -> str:
    """Why a training of `epochs` epochs ends after these, "" if it does not: early stopping (Prechelt 1998).

    It does when the loss has not been lower by PROGRESS for the fraction `patience` of the epochs, at least for one.
    The loss is that of the validation images, or of the training images where nothing is held out.
    """
    if patience is None or len(history) >= epochs:
        return ""
    best, since = math.inf, 0
    for metrics in history:
        if metrics.loss < best * (1.0 - PROGRESS):
            best, since = metrics.loss, metrics.epoch
    waited = len(history) - since
    if waited == 0 or waited < patience * epochs - 1e-9:
        return ""
    return f"early stopping: no progress of the loss since epoch {since}, for {waited} of {epochs} epochs"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a network or its training, or a remark on how it learns (`REMARKS`).

    `layer` is the layer that it is found in, or the worst of several, "" if it is in none. `evidence` are the numbers
    that it was found by. It was found in `epoch`, from 1; by a look at `step`, from 1, or by the whole epoch, and then
    `step` is None. `hopeless`: nothing was learnt and nothing that was seen could change that.
    """

    name: str
    layer: str
    evidence: Mapping[str, float | str]
    suggestion: str
    epoch: int
    step: int | None = None
    hopeless: bool = False

    @property
    def is_remark(self) -> bool:
        """True if nothing is wrong."""
        return self.name in REMARKS

    @property
    def what(self) -> str:
        """The name, the layer and the numbers, in one line: "dead units in features.3 (dead share 0.97)"."""
        where = f" in {self.layer}" if self.layer else ""
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in self.evidence.items()
        )
        return f"{self.name}{where}" + (f" ({numbers})" if numbers else "")

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass
class Trial:
    """One configuration trained once, as the record tells it.

    `config` is a TrialConfig as plain JSON (kept plain, so that reading a large study costs nothing); `params` are the
    values that the space suggested. `reason` says why a trial ended before its full length, by early stopping too.
    `decisions` are the scheduler's, one for each rung reached, with the numbers that they were made from. `origin` says
    where the configuration came from ("baseline", "starter", "sampler", ...). A trial with `repeat_of` trains the
    configuration of that trial again with another seed, to measure noise; it is no configuration of its own. `notes`
    say what went differently from plan while it was trained, `findings` what is wrong with it, in the order in which it
    was found, causes before what they lead to. Each of its batches is computed in `split` parts, more than one where
    the memory did not suffice. `retries` tell of each time when it was lost and went on: `cause`, `why`, `epoch`,
    `split`, and `fewer` if only with fewer trials beside it.
    """

    number: int
    config: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    status: TrialStatus = TrialStatus.RUNNING
    reason: str = ""
    epochs: list[EpochMetrics] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    arch_id: str = ""
    origin: str = ""
    repeat_of: int | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    split: int = 1
    retries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def diagnosis(self) -> Finding | None:
        """The cause of what is wrong, None if nothing is: the finding that left no hope, else the first."""
        wrong = [finding for finding in self.findings if not finding.is_remark]
        return next((finding for finding in wrong if finding.hopeless), next(iter(wrong), None))

    def lacking(self, findings: Sequence[Finding]) -> list[Finding]:
        """Those of these findings that the trial does not have yet; seen again, their numbers may be rounded."""
        known = {(finding.name, finding.hopeless) for finding in self.findings}
        return [finding for finding in findings if (finding.name, finding.hopeless) not in known]

    @property
    def score(self) -> float | None:
        """The score of the last epoch, None before the first."""
        return self.epochs[-1].score if self.epochs else None

    def to_json(self) -> dict[str, Any]:
        """The trial as plain JSON values, with its metrics of every epoch."""
        return {
            "number": self.number,
            "status": self.status.value,
            "reason": self.reason,
            "origin": self.origin,
            "repeat_of": self.repeat_of,
            "score": self.score,
            "arch_id": self.arch_id,
            "stats": self.stats,
            "params": self.params,
            "config": self.config,
            "epochs": [metrics.to_json() for metrics in self.epochs],
            "decisions": self.decisions,
            "notes": self.notes,
            "findings": [finding.to_json() for finding in self.findings],
            "split": self.split,
            "retries": self.retries,
        }
