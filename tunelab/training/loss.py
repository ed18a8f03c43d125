"""What a training step minimises."""

from __future__ import annotations

import torch
from torch import nn

from tunelab.data.batches import Batch


def training_loss(logits: torch.Tensor, batch: Batch, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of a batch in nats, and how many answers are right; `logits` are (N, classes) in float32.

    With mixup both are weighted by the share of each of the two labels (Zhang et al., arXiv 1710.09412, section 2).
    `smoothing` is the label smoothing of Szegedy et al. (arXiv 1512.00567, section 7).
    """
    answers = logits.detach().argmax(1)
    loss = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    right = (answers == batch.labels).sum()
    if batch.mixed_labels is None:
        return loss, right
    other = nn.functional.cross_entropy(logits, batch.mixed_labels, label_smoothing=smoothing)
    other_right = (answers == batch.mixed_labels).sum()
    return batch.mix * loss + (1 - batch.mix) * other, batch.mix * right + (1 - batch.mix) * other_right
