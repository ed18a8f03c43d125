"""The processes that train one network together: a `Team` of several, or a `Group` of one, which is the usual case.

Each takes its share of every batch, and the gradients are averaged by torch's DistributedDataParallel. Norms over a
batch are over that of all processes (`tunelab.training.shared_norms`), losses and right answers are added up. So the
training is that of one process within rounding, but for dropout, whose draws are each process's own.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tunelab.config import AnyArch, CustomSpec
from tunelab.data.share import Share
from tunelab.training.shared_norms import share_norms

Value = TypeVar("Value")
PATIENCE = datetime.timedelta(hours=1)
"""So long the others wait for one: longer than a checkpoint waits for room (our choice)."""


class Group:
    """One process that trains by itself: nothing is shared, and nothing is done."""

    share: Share | None = None
    note = ""

    @property
    def first(self) -> bool:
        """True in the process that writes, looks and tells."""
        return self.share is None or self.share.rank == 0

    def salt(self, arch: AnyArch) -> tuple[int, ...]:
        """What sets the draws of this process, such as dropout's, apart from those of the first.

        A network of the user's own may leave out layers by them, for whole batches: all leave out the same ones.
        """
        return () if self.share is None or self.first or isinstance(arch, CustomSpec) else (self.share.rank,)

    def parts(self, parts: int, images: int) -> int:
        """In how many parts each process's part of a batch of so many images is computed."""
        return parts

    def join(self, model: nn.Module, arch: AnyArch) -> nn.Module:
        """What trains `model`, on its device, in this group; `model` itself evaluates.

        Raises:
            InputError: it has a norm that cannot be shared.
        """
        return model

    def unaveraged(self, model: object) -> AbstractContextManager[Any]:
        """While gradients of parts of a batch are added up in what `join` gave; those of the last part are averaged."""
        return contextlib.nullcontext()

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Each tensor becomes its sum over the processes."""

    def total(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over the processes."""
        return numbers

    def agree(self, value: Value) -> Value:
        """What the first process gives."""
        return value

    def each(self, values: Iterable[Value]) -> Iterable[Value]:
        """What the first process has, one after the other, until all have enough."""
        return values


ALONE = Group()


class Team(Group):
    """One of several processes, between which torch.distributed has been set up.

    Args:
        share: which of them, and how many they are.
        device: what this one computes on.
    """

    def __init__(self, share: Share, device: torch.device) -> None:
        self.share: Share = share
        self.note = f"trained by {share.size} processes, which shared each batch"
        self._device = device

    def parts(self, parts: int, images: int) -> int:
        """As many in each process, whose norms wait for each other."""
        return max(1, min(parts, images // self.share.size // 2))  # at least 2 images: as `tunelab.training.parts`

    def join(self, model: nn.Module, arch: AnyArch) -> nn.Module:
        """DistributedDataParallel around `model`, with norms over the batch of all processes."""
        share_norms(model)
        if not any(weight.requires_grad for weight in model.parameters()):
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            find_unused_parameters=isinstance(arch, CustomSpec),  # it may leave out layers
        )

    def unaveraged(self, model: object) -> AbstractContextManager[Any]:
        """While gradients of parts of a batch are added up in what `join` gave; those of the last part are averaged."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Each tensor becomes its sum over the processes."""
        for tensor in tensors:
            distributed.all_reduce(tensor)

    def total(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over the processes."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        distributed.all_reduce(sums)
        return tuple(sums.tolist())

    def agree(self, value: Value) -> Value:
        """What the first process gives."""
        held: list[Value] = [value]
        distributed.broadcast_object_list(held, 0)
        return held[0]

    def each(self, values: Iterable[Value]) -> Iterator[Value]:
        """What the first process has, one after the other, until all have enough."""
        mine = iter(values)
        while found := self.agree([*itertools.islice(mine, 1)] if self.first else []):
            yield found[0]


@contextlib.contextmanager
def together(share: Share, device: torch.device, meeting: Path) -> Iterator[Team]:
    """This process in a group on one machine: through NCCL on GPUs, one for each process, else through gloo.

    They find each other by a file and talk over the loopback interface: nothing else can reach them.

    Args:
        share: which of them, and how many they are.
        device: what this one computes on.
        meeting: the path of the file, for this group alone; its folder exists and is this user's alone.
    """
    loopback = "lo" if sys.platform == "linux" else "lo0"
    os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # a hint about speed
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=distributed.FileStore(str(meeting), share.size),  # type: ignore[attr-defined]  # a URL ends at a "#"
            rank=share.rank,
            world_size=share.size,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        yield Team(share, device)
        distributed.destroy_process_group()  # after an error it would wait for the others; the process ends then


def is_parting(error: BaseException) -> bool:
    """True if an error says that another process of the group is gone, or did not come."""
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or any(word in text for word in ("gloo", "nccl", "closed by peer"))
