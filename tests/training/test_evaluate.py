from __future__ import annotations

import pytest
import torch
from torch import nn

from tunelab.data.batches import Split
from tunelab.data.cache import DataInfo
from tunelab.training.evaluate import evaluate


class Brightness(nn.Module):
    """Class 0, 1 or 2 by the mean of the image, and a batch norm that must not learn."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.norm(images)
        level = images.float().mean((1, 2, 3))
        return torch.stack([-((level - centre) ** 2) * 100 for centre in (0.0, 0.5, 1.0)], 1)


@pytest.fixture
def info() -> DataInfo:
    return DataInfo(
        name="test",
        image_size=(4, 4),
        channels=1,
        classes=("dark", "grey", "white"),
        counts={"train": 1, "val": 6, "test": 1},
        fingerprint="0" * 16,
        mean=(0.0,),
        std=(1.0,),
        notes=(),
    )


def split(levels: list[int], labels: list[int]) -> Split:
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 1).contiguous()
    return Split(images, torch.tensor(labels))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counts_confusion_and_accuracy(info, precision):
    images = split([0, 0, 128, 255, 255, 255], [0, 0, 1, 2, 2, 1])
    found = evaluate(Brightness(), images, info, device="cpu", precision=precision)
    assert (found.n, found.correct, found.accuracy) == (6, 5, pytest.approx(5 / 6))
    assert found.confusion == ((2, 0, 0), (0, 1, 1), (0, 0, 2))
    assert found.class_correct == (2, 1, 2)
    assert found.class_counts == (2, 2, 2)
    assert found.to_json()["class_counts"] == [2, 2, 2]


def test_the_loss_is_the_mean_over_images_not_over_batches(info):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2500,), generator=generator).tolist()
    labels = torch.randint(0, 3, (2500,), generator=generator).tolist()
    model = Brightness()
    found = evaluate(model, split(levels, labels), info, device="cpu", precision="float32")
    logits = model(split(levels, labels).images.float() / 255)
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert found.loss == pytest.approx(float(expected), rel=1e-4)
    assert found.n == 2500


def test_the_model_is_left_as_it_was(info):
    model = Brightness().train()
    evaluate(model, split([0, 255], [0, 2]), info, device="cpu", precision="float32")
    assert model.training
    assert float(model.norm.running_mean) == 0.0
    evaluate(model.eval(), split([0, 255], [0, 2]), info, device="cpu", precision="float32")
    assert not model.training
