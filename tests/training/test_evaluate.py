from __future__ import annotations

import pytest
import torch
from torch import nn

from tunelab.data.batches import Split
from tunelab.data.cache import DataInfo
from tunelab.data.share import Share
from tunelab.training.evaluate import class_scores, ensemble, evaluate, judge
from tunelab.training.group import Group


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_are_judged_as_their_network_is(info, precision):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2500,), generator=generator).tolist()
    labels = torch.randint(0, 3, (2500,), generator=generator).tolist()
    model = Brightness().train()
    scores = class_scores(model, split(levels, labels), info, device="cpu", precision=precision)
    assert scores.shape == (2500, 3)
    assert (scores.dtype, model.training) == (torch.float32, True)
    judged = judge(scores, torch.tensor(labels))
    found = evaluate(model, split(levels, labels), info, device="cpu", precision=precision)
    assert judged.confusion == found.confusion
    assert judged.loss == pytest.approx(found.loss, rel=1e-5)


def test_an_ensemble_is_the_mean_of_probabilities():
    """Two networks that are wrong alone and right together, by hand."""
    first = torch.tensor([[0.60, 0.40, 0.00], [0.1, 0.8, 0.1]]).clamp_min(1e-30)
    second = torch.tensor([[0.30, 0.30, 0.40], [0.3, 0.4, 0.3]])
    third = torch.tensor([[0.00, 0.50, 0.50], [0.2, 0.6, 0.2]]).clamp_min(1e-30)
    labels = torch.tensor([1, 1])
    scores = [one.log() + shift for one, shift in ((first, 3.0), (second, 0.0), (third, -50.0))]
    together = ensemble(scores)
    torch.testing.assert_close(together.exp(), torch.tensor([[0.3, 0.4, 0.3], [0.2, 0.6, 0.2]]))
    assert [judge(one, labels).correct for one in scores[:2]] == [1, 1]
    found = judge(together, labels)
    assert found.correct == 2
    assert found.loss == pytest.approx(-(torch.tensor(0.4).log() + torch.tensor(0.6).log()).item() / 2)


def test_an_ensemble_that_is_sure_and_wrong_has_a_finite_loss():
    scores = [torch.tensor([[200.0, -200.0]]), torch.tensor([[300.0, 0.0]])]
    assert judge(ensemble(scores), torch.tensor([1])).loss == pytest.approx(300.0, abs=1.0)


def test_a_process_without_images_asks_the_network_nothing(info):
    class Last(Group):
        share = Share(3, 4)

    class Folds(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.reshape(len(images), -1)[:, :3]

    images = split([0, 128, 255], [0, 1, 2])
    assert evaluate(Folds(), images, info, device="cpu", group=Last()).n == 0
    assert evaluate(Folds(), images, info, device="cpu").n == 3
