"""The kernels beside torch's own operations, in numbers twice as precise."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tunelab.config import ArchSpec, BlockSpec, StemSpec
from tunelab.models import fused
from tunelab.models.blocks import ACTIVATIONS, NORMS
from tunelab.models.fused import MaxPool, norm_act, reads_output
from tunelab.models.network import build_network

OURS = [norm for norm in NORMS if norm != "none"]
FOLLOWING: dict[str, Callable[[], nn.Module | None]] = {**ACTIVATIONS, "nothing": lambda: None}
PRECISION = {torch.float32: 3e-5, torch.bfloat16: 2e-2}
"""What a result may be off by, as a share of the largest value."""


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_torch(images: Tensor, norm: nn.Module, activation: nn.Module | None, shortcut: Tensor | None) -> Tensor:
    out = norm(images)
    if shortcut is not None:
        out = out + shortcut
    return out if activation is None else activation(out)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (2 * torch.randn(shape) + 1).to(dtype).to(memory_format=torch.channels_last)


def norm_of(name: str, width: int) -> nn.Module:
    norm = NORMS[name](width)
    with torch.no_grad():
        norm.weight.normal_(1.0, 0.3)
        norm.bias.normal_(0.0, 0.3)
    return norm


def assert_near(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype, sides: Tensor | None = None) -> None:
    assert found is not None
    assert expected is not None
    apart = (found.double() - expected).abs()
    if sides is not None:  # where rounding decides on which side of 0 a value lies
        apart = apart[sides]
    assert apart.max() <= PRECISION[dtype] * expected.abs().max().clamp_min(1e-2)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("name", "following", "summed"), list(product(OURS, FOLLOWING, (False, True))))
def test_values_and_gradients_are_torchs(
    name: str, following: str, summed: bool, dtype: torch.dtype, threads: int
) -> None:
    for shape in ((5, 24, 7, 9), (33, 12, 4, 4), (16, 3, 16, 16), (8, 160, 1, 1)):
        torch.manual_seed(0)
        norm, activation = norm_of(name, shape[1]), FOLLOWING[following]()
        exact_norm = copy.deepcopy(norm).double()
        images = drawn(shape, dtype).requires_grad_()
        shortcut = drawn(shape, dtype).requires_grad_() if summed else None
        gradient = drawn(shape, dtype)
        exact = images.detach().double().requires_grad_()
        exact_shortcut = shortcut.detach().double().requires_grad_() if shortcut is not None else None

        total = by_torch(exact, exact_norm, None, exact_shortcut)
        clear = total.detach().abs() > 0.01
        expected = total if activation is None else activation(total.clone())
        (expected * clear).backward(gradient.double())
        out = norm_act(images, norm, activation, shortcut)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
        (out * clear).backward(gradient)

        assert_near(out.detach(), expected.detach(), dtype)
        assert_near(images.grad, exact.grad, dtype)
        for (_, ours), (_, theirs) in zip(norm.named_parameters(), exact_norm.named_parameters(), strict=True):
            assert_near(ours.grad, theirs.grad, dtype)
        for ours, theirs in zip(norm.buffers(), exact_norm.buffers(), strict=True):
            assert_near(ours, theirs, dtype)
        if shortcut is not None and exact_shortcut is not None:
            assert_near(shortcut.grad, exact_shortcut.grad, dtype)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", OURS)
def test_evaluation_uses_the_running_statistics(name: str, dtype: torch.dtype) -> None:
    norm = norm_of(name, 12)
    norm_act(drawn((8, 12, 5, 5), dtype), norm, None)
    exact = copy.deepcopy(norm).double().eval()
    images, shortcut = drawn((3, 12, 5, 5), dtype), drawn((3, 12, 5, 5), dtype)
    with torch.inference_mode():
        found = norm_act(images, norm.eval(), nn.GELU(), shortcut)
        assert_near(found, by_torch(images.double(), exact, nn.GELU(), shortcut.double()), dtype)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(norm.buffers(), exact.buffers(), strict=True))


def test_a_network_in_evaluation_has_gradients() -> None:
    norm = norm_of("batch", 12).eval()
    images = drawn((3, 12, 5, 5), torch.float32).requires_grad_()
    norm_act(images, norm, nn.SiLU()).sum().backward()
    ours, images.grad = images.grad, None
    by_torch(images, norm, nn.SiLU(), None).sum().backward()
    assert ours is not None
    assert torch.equal(ours, images.grad)


@pytest.mark.parametrize("name", OURS)
def test_gradients_and_shortcuts_may_lie_in_any_order(name: str) -> None:
    norm, images = norm_of(name, 12), drawn((4, 12, 6, 6), torch.float32)
    answers = []
    for order in (torch.channels_last, torch.contiguous_format):
        x = images.clone().requires_grad_()
        shortcut = images.clone(memory_format=order).requires_grad_()
        gradient = (images * 3).contiguous(memory_format=order)
        norm_act(x, norm, nn.SiLU(), shortcut).backward(gradient)
        answers.append((x.grad, shortcut.grad))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("following", FOLLOWING)
def test_what_is_not_a_number_stays_so(name: str, following: str) -> None:
    images = drawn((4, 12, 6, 6), torch.float32)
    images[1, 5, 2, 2] = float("nan")
    out = norm_act(images, norm_of(name, 12), FOLLOWING[following]())
    assert out[1, 5].isnan().any()


@pytest.mark.parametrize("name", OURS)
def test_large_means_cost_no_precision(name: str) -> None:
    torch.manual_seed(0)
    images = (torch.randn(16, 16, 8, 8) + 1000.0).to(memory_format=torch.channels_last)
    norm = NORMS[name](16)
    expected = copy.deepcopy(norm).double()(images.double())
    assert (norm_act(images, norm, None) - expected).abs().max() < 2e-3


def test_one_pixel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act(torch.randn(1, 8, 1, 1), nn.BatchNorm2d(8), None)


def test_what_the_kernels_cannot_do_is_left_to_torch() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    for images in (torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5).double()):
        same = copy.deepcopy(norm).to(images.dtype)
        other = copy.deepcopy(same)
        assert torch.equal(
            norm_act(images, same, nn.Softplus(), images), by_torch(images, other, nn.Softplus(), images)
        )
    empty = torch.randn(0, 8, 5, 5).to(memory_format=torch.channels_last)
    assert norm_act(empty, nn.GroupNorm(1, 8), nn.ReLU()).shape == empty.shape


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 3, 0)])
def test_maxima_and_their_gradients_are_torchs(
    kernel: int, stride: int, padding: int, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(0)
    for shape in ((5, 12, 16, 16), (3, 6, 28, 28), (4, 3, 7, 9), (2, 16, 5, 4)):
        images = drawn(shape, dtype).relu().requires_grad_()  # half of the values are equal
        same = images.detach().clone().requires_grad_()
        out, expected = (
            MaxPool(kernel, stride, padding)(images),
            nn.functional.max_pool2d(same, kernel, stride, padding),
        )
        assert torch.equal(out, expected)
        gradient = drawn(out.shape, dtype).round()  # whole numbers add up without rounding
        out.backward(gradient)
        expected.backward(gradient)
        assert images.grad is not None
        assert torch.equal(images.grad, same.grad)


def test_a_maximum_of_what_is_not_a_number_is_none() -> None:
    images = torch.zeros(1, 4, 6, 6).to(memory_format=torch.channels_last)
    images[0, 2, 3, 3] = float("nan")
    assert torch.equal(MaxPool(3, 1, 1)(images).isnan(), nn.MaxPool2d(3, 1, 1)(images).isnan())


def test_torch_keeps_its_threads(threads: int) -> None:
    norm_act(drawn((4, 12, 6, 6), torch.float32), norm_of("batch", 12), nn.ReLU())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_is_the_same_with_and_without_kernels(
    norm: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = tuple(
        BlockSpec(kind, 16, stride, 2) for kind, stride in (("basic", 1), ("bottleneck", 2), ("inception", 1))
    )
    arch = ArchSpec(StemSpec(8, 3, pool=True), (blocks,), norm, activation, dropout=0.0)
    images = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    found = []
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(fused, "_is_ours", lambda images: False)
        torch.manual_seed(0)
        network = build_network(arch, 3, 10, (16, 16))
        for weight in network.parameters():
            weight.data += 0.01  # norm "none" starts with branches that give nothing
        loss = network(images).square().mean()
        loss.backward()
        found.append((loss.detach(), [weight.grad for weight in network.parameters()]))
    (loss, gradients), (plain_loss, plain_gradients) = found
    torch.testing.assert_close(loss, plain_loss, rtol=1e-4, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in plain_gradients)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        assert (gradient - plain).abs().max() < 1e-3 * largest


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda norm: norm.to(torch.bfloat16),
        lambda norm: norm.register_forward_hook(lambda *args: None),
        lambda norm: setattr(norm, "__class__", type("Other", (nn.BatchNorm2d,), {})),
    ],
)
def test_norms_that_are_not_plain_are_left_to_torch(spoilt: Callable[[nn.Module], object]) -> None:
    norm = nn.BatchNorm2d(12)
    spoilt(norm)
    images = drawn((4, 12, 5, 5), norm.weight.dtype)
    other = copy.deepcopy(norm)
    assert torch.equal(norm_act(images, norm, nn.ReLU()), by_torch(images, other, nn.ReLU(), None))


@pytest.mark.parametrize("training", [True, False])
def test_a_hook_that_reads_the_output_alone_leaves_it_one_operation(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, norm, activation = drawn((4, 12, 5, 5), torch.float32), norm_of("batch", 12).train(training), nn.ReLU()
    with torch.set_grad_enabled(training):
        expected = norm_act(images, copy.deepcopy(norm), activation)
        seen: list[torch.Tensor] = []

        def look(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            seen.append(output)

        activation.register_forward_hook(reads_output(look))
        monkeypatch.setattr(type(norm), "forward", None)  # so that torch's own cannot run
        out = norm_act(images, norm, activation)
    assert torch.equal(out, expected)
    assert seen == [out]


def test_a_shortcut_of_one_pixel_is_added_to_all() -> None:
    images, norm = drawn((4, 12, 5, 5), torch.float32), norm_of("batch", 12)
    expected = by_torch(images, copy.deepcopy(norm), None, images[..., :1, :1])
    torch.testing.assert_close(norm_act(images, norm, None, images[..., :1, :1]), expected)


def test_torchs_defaults_do_not_matter() -> None:
    images, norm = drawn((4, 12, 5, 5), torch.float32), norm_of("batch", 12)
    expected = norm_act(images, norm, nn.SiLU())
    expected.square().sum().backward()
    gradient, norm.weight.grad = norm.weight.grad, None
    torch.set_default_dtype(torch.float64)
    try:
        out = norm_act(images, norm, nn.SiLU())
        out.square().sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)
    assert gradient is not None
    assert torch.equal(gradient, norm.weight.grad)


def test_an_infinite_value_is_cut_off_by_relu() -> None:
    norm = nn.BatchNorm2d(4).eval()
    images = torch.zeros(1, 4, 3, 3).to(memory_format=torch.channels_last)
    images[0, 1, 1, 1] = -torch.inf
    with torch.inference_mode():
        assert torch.equal(norm_act(images, norm, nn.ReLU()), torch.zeros(1, 4, 3, 3))


@pytest.mark.parametrize(
    "pool", [MaxPool(3, 2, 1, ceil_mode=True), MaxPool(2, 1, dilation=2), MaxPool((2, 3)), MaxPool(17, 1, 8)]
)
def test_windows_that_the_kernel_does_not_know_are_left_to_torch(pool: MaxPool) -> None:
    images = drawn((2, 4, 20, 20), torch.float32)
    assert torch.equal(pool(images), nn.MaxPool2d.forward(pool, images))


def test_a_padding_that_torch_refuses_is_refused() -> None:
    with pytest.raises(RuntimeError, match="pad should be"):
        MaxPool(2, 2, 2)(drawn((2, 4, 8, 8), torch.float32))


def test_a_network_can_be_traced() -> None:
    arch = ArchSpec(StemSpec(8, 3, pool=True), ((BlockSpec("basic", 8, 1, 2),),), "batch", "relu", dropout=0.0)
    network = build_network(arch, 3, 10, (16, 16)).eval()
    images = drawn((2, 3, 16, 16), torch.float32)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, images)
        torch.testing.assert_close(traced(images), network(images), rtol=1e-4, atol=1e-5)


KERNELS = """
import os, sys, torch
from torch import nn
from tunelab.models.fused import norm_act, reads_output
from tunelab.models.kernels import usable
torch.manual_seed(0)
images = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
print(usable(), float(norm_act(images, nn.BatchNorm2d(8), nn.ReLU()).sum()))
child = os.fork()
if child == 0:
    print(usable(), float(norm_act(images, nn.BatchNorm2d(8), nn.ReLU()).sum()), flush=True)
    os._exit(0)
os._exit(os.waitpid(child, 0)[1])
"""


def kernels_in_a_process(folder: Path) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-u", "-W", "ignore::DeprecationWarning", "-c", KERNELS],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_compiled_code_is_kept_and_a_damaged_folder_is_mended(tmp_path: Path) -> None:
    """And a fork, which has no threads, leaves it all to torch."""
    (first, forked) = kernels_in_a_process(tmp_path)
    assert (first[0], forked[0]) == ("True", "False")
    assert float(first[1]) == pytest.approx(float(forked[1]), rel=1e-4)
    indices = list(tmp_path.rglob("*.nbi"))
    assert indices
    for index in indices:
        index.write_bytes(b"")
    assert kernels_in_a_process(tmp_path)[0] == first
    assert any(index.exists() and index.stat().st_size for index in indices)
