"""A network of the user's own: built by its factory, and counted by running it, without numbers where that works."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tunelab.config import CustomSpec
from tunelab.errors import RefusedError
from tunelab.foreign import load_factory, place_of, say

_BATCH = 2  # images of a trial run; with one alone a mistaken order of dimensions may go unnoticed
_PRODUCTS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "BmmBackward", "LinearBackward")


class Counted(NamedTuple):
    """What a network costs, as `tunelab.models.check.NetworkStats` has it, with all its products of matrices."""

    params: int
    multiply_adds: float
    activations: int
    depth: int
    convs: int


def build_custom(spec: CustomSpec, channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The network that the factory makes, its weights drawn as the factory draws them; lazy layers are shaped.

    Raises:
        InputError: the factory's file is missing or has changed, or this user has not allowed it.
        RefusedError: the factory raises, or makes something else, or what it made cannot be run.
    """
    factory = load_factory(spec)
    try:
        network = factory(channels, classes, image_size, **copy.deepcopy(dict(spec.arguments)))
    except (Exception, SystemExit) as error:
        raise RefusedError(f"the factory {spec.factory} raised {say(error)}{place_of(error)}") from error
    if not isinstance(network, nn.Module):
        raise RefusedError(f"the factory {spec.factory} made {type(network).__name__}, not a torch.nn.Module")
    if any(isinstance(weight, UninitializedParameter) for weight in network.parameters()):
        with torch.no_grad():  # lazy layers take their shape from what they first see
            scores_of(spec, network, torch.zeros(_BATCH, channels, *image_size), classes)
    return network


def count_custom(spec: CustomSpec, channels: int, classes: int, image_size: tuple[int, int]) -> Counted:
    """What the network costs, from a run of two images; it is kept, so that the same network is run once.

    Raises:
        InputError: as `build_custom`.
        RefusedError: it cannot be built or run, has no weights, or does not give (N, classes) scores.
    """
    found = _counted(
        spec.factory, spec.sha256, json.dumps(dict(spec.arguments), sort_keys=True), channels, classes, image_size
    )
    if isinstance(found, str):
        raise RefusedError(found)
    return found


@functools.lru_cache(maxsize=10_000)
def _counted(
    factory: str, sha256: str, arguments: str, channels: int, classes: int, image_size: tuple[int, int]
) -> Counted | str:
    """The counts, or why the network is refused."""
    spec = CustomSpec(factory, json.loads(arguments), sha256)
    load_factory(spec)  # what is wrong with the file is no fault of these arguments
    try:
        with torch.device("meta"):
            return _run(spec, channels, classes, image_size)
    except Exception:  # not all code can do without numbers
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            return _run(spec, channels, classes, image_size)
    except RefusedError as error:
        return str(error)


def _run(spec: CustomSpec, channels: int, classes: int, image_size: tuple[int, int]) -> Counted:
    network = build_custom(spec, channels, classes, image_size)
    params = sum(weight.numel() for weight in network.parameters())
    if params == 0:
        raise RefusedError(f"the network of {spec.factory} has no weights to train")
    images = torch.zeros(_BATCH, channels, *image_size)
    outputs, products = _Outputs(), FlopCounterMode(display=False)
    scores_of(spec, network.train(), images, classes)
    with products, outputs:
        scores = scores_of(spec, network.eval(), images, classes)
    return Counted(
        params=params,
        multiply_adds=products.get_total_flops() / 2 / _BATCH,
        activations=outputs.numbers // _BATCH,
        depth=_longest_path(scores),
        convs=outputs.convs,
    )


def scores_of(spec: CustomSpec, network: nn.Module, images: Tensor, classes: int) -> Tensor:
    """What the network says of some images.

    Raises:
        RefusedError: it raises, or gives something else than (N, classes) scores.
    """
    try:
        scores = network(images)
    except (Exception, SystemExit) as error:
        size = "x".join(map(str, images.shape[1:]))
        raise RefusedError(
            f"the network of {spec.factory} fails on images of {size}: {say(error)}{_last_line(error)}"
        ) from error
    wanted = (len(images), classes)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted or not scores.is_floating_point():
        is_tensor = isinstance(scores, Tensor)
        found = f"{scores.dtype} of shape {tuple(scores.shape)}" if is_tensor else type(scores).__name__
        mode = "training" if network.training else "evaluation"
        raise RefusedError(
            f"the network of {spec.factory} gives {found} for {len(images)} images in {mode}; it must give scores "
            f"of shape {wanted}, one for each of the {classes} classes"
        )
    return scores


def _last_line(error: BaseException) -> str:
    """The last line of the user's own code, not of torch's."""
    trace, last = error.__traceback__, None
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if not module.startswith(("torch", "tunelab.")):
            last = trace
        trace = trace.tb_next
    return f" ({last.tb_frame.f_code.co_filename}, line {last.tb_lineno})" if last is not None else ""


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions and the numbers that they put out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0
        self.convs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.convolution:
            self.numbers += out.numel()
            self.convs += 1
        return out


def _longest_path(scores: Tensor) -> int:
    """The most convolutions and products of matrices on one path from the images to the scores."""
    depths: dict[Any, int] = {}
    waiting = [scores.grad_fn]
    while waiting:
        node = waiting[-1]
        before = [one for one, _ in node.next_functions if one is not None] if node is not None else []
        missing = [one for one in before if one not in depths]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        own = int(node is not None and node.name().startswith(_PRODUCTS))
        depths[node] = own + max((depths[one] for one in before), default=0)
    return depths[scores.grad_fn]
