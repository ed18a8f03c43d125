from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tunelab.data.batches import Batch
from tunelab.training.loss import training_loss

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])
OTHERS = torch.tensor([1, 1])


def test_without_mixup():
    loss, right = training_loss(LOGITS, Batch(torch.zeros(2, 1, 4, 4), LABELS, None, 1.0), 0.0)
    torch.testing.assert_close(loss, functional.cross_entropy(LOGITS, LABELS))
    assert int(right) == 1


def test_mixup_is_the_cross_entropy_with_mixed_targets():
    batch = Batch(torch.zeros(2, 1, 4, 4), LABELS, OTHERS, 0.7)
    loss, right = training_loss(LOGITS, batch, 0.1)
    targets = 0.7 * functional.one_hot(LABELS, 3) + 0.3 * functional.one_hot(OTHERS, 3)
    torch.testing.assert_close(loss, functional.cross_entropy(LOGITS, targets, label_smoothing=0.1))
    assert float(right) == pytest.approx(0.7 * 1 + 0.3 * 1)
