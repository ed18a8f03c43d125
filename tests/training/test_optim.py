from __future__ import annotations

import pytest
import torch
from torch import nn

from tunelab.config import TrainConfig
from tunelab.errors import InputError
from tunelab.training.optim import OPTIMIZERS, build_optimizer, set_lr


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_are_not_decayed(name):
    torch.manual_seed(0)
    model = network()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, lr=0.1, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == {"0.weight", "3.weight"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_finds_the_minimum_of_a_parabola(name):
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, lr=0.02, weight_decay=0.0, momentum=0.5))
    for _ in range(200):
        optimizer.zero_grad(set_to_none=True)
        model.weight.square().sum().backward()
        optimizer.step()
    assert model.weight.abs().max() < 0.1


def test_sgd_is_torchs_sgd_with_nesterov_momentum():
    torch.manual_seed(0)
    mine, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(mine.state_dict())
    ours = build_optimizer(mine, TrainConfig(lr=0.1, weight_decay=0.0, momentum=0.9, nesterov=True))
    reference = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        inputs = torch.randn(5, 3)
        for model, optimizer in ((mine, ours), (theirs, reference)):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight)


def test_nesterov_without_momentum_is_plain_sgd():
    optimizer = build_optimizer(network(), TrainConfig(momentum=0.0, nesterov=True))
    assert optimizer.param_groups[0]["nesterov"] is False


def test_the_rate_reaches_every_group():
    optimizer = build_optimizer(network(), TrainConfig())
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"optimizer 'lion' is unknown; allowed are sgd, adam, adamw, rmsprop"):
        build_optimizer(network(), TrainConfig(optimizer="lion"))


def test_a_layer_that_is_left_out_of_the_first_steps_begins_later() -> None:
    """Its first step is as that of any other weight: the momentum begins with the first gradient."""
    early, late, alone = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    model = nn.Module()
    model.early, model.late = early, late
    train = TrainConfig(optimizer="sgd", lr=0.1, weight_decay=0.0)
    optimizer = build_optimizer(model, train)
    for step in range(3):
        early.grad = torch.ones(2, 2)
        late.grad = torch.ones(2, 2) if step == 1 else None
        optimizer.step()
    model = nn.Module()
    model.alone = alone
    alone.grad = torch.ones(2, 2)
    build_optimizer(model, train).step()
    assert torch.equal(late, alone)
    assert not torch.equal(early, alone)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complex_weights_are_trained(name):
    model = nn.Linear(3, 2, dtype=torch.complex64)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, lr=0.1))
    model(torch.ones(4, 3, dtype=torch.complex64)).abs().sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
