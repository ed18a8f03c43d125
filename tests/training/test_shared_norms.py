"""Batch norms over all processes of a group, in a group of one: there they are torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunelab.data.share import Share
from tunelab.training.group import together
from tunelab.training.shared_norms import share_norms


@pytest.fixture(autouse=True)
def _group_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # which the group sets
    meeting = tmp_path / "one#two ?"
    with together(Share(0, 1), torch.device("cpu"), meeting):
        assert meeting.exists(), "nowhere else"
        yield


@pytest.mark.parametrize(
    ("kind", "shape", "settings"),
    [
        (nn.BatchNorm1d, (6, 3), {}),
        (nn.BatchNorm1d, (6, 3, 4), {"affine": False}),
        (nn.BatchNorm2d, (6, 3, 4, 5), {}),
        (nn.BatchNorm2d, (6, 3, 4, 5), {"bias": False}),
        (nn.BatchNorm2d, (6, 3, 4, 5), {"momentum": None, "eps": 0.1}),
        (nn.BatchNorm2d, (6, 3, 4, 5), {"track_running_stats": False}),
        (nn.BatchNorm3d, (2, 3, 4, 5, 2), {"momentum": 0.3}),
    ],
)
def test_a_shared_norm_is_torchs(kind: type[nn.Module], shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    own = kind(3, **settings)
    for weight in own.parameters():
        nn.init.normal_(weight)
    shared = copy.deepcopy(own)
    share_norms(nn.Sequential(shared))
    assert type(shared) is not kind
    for _ in range(2):
        values = 2 + 3 * torch.randn(shape)
        found = []
        for norm in (own, shared):
            images = values.clone().requires_grad_()
            made = norm(images)
            norm.zero_grad()
            (made * torch.linspace(-1, 1, made.numel()).view(shape)).sum().backward()
            found.append([made, images.grad, *(weight.grad for weight in norm.parameters())])
        torch.testing.assert_close(found[1], found[0])
    assert own.state_dict().keys() == shared.state_dict().keys()
    torch.testing.assert_close(shared.state_dict(), own.state_dict())
    torch.testing.assert_close(shared.eval()(values), own.eval()(values))
