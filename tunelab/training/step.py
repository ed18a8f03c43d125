"""One update of the weights: as torch runs it, or, on a GPU, recorded once and replayed.

A small network is bound by the launches of its kernels, not by their work. A CUDA graph launches all kernels of a step
at once (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It reads its batch, its rate and the weight of a
mixup from fixed places in memory, where they are put before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tunelab.data.batches import Batch
from tunelab.training.device import contiguous
from tunelab.training.group import ALONE, Group
from tunelab.training.loss import training_loss
from tunelab.training.observe import Eye
from tunelab.training.optim import set_lr, suit
from tunelab.training.parts import parts_of

Forward = Callable[[torch.Tensor], torch.Tensor]
"""From images to class scores: a network, or a compiled form of it."""

Replay = Callable[[], None]
Recorder = Callable[[Callable[[], None]], Replay]
"""Takes a function of tensors and gives one that does the same work on the same tensors again; it runs neither."""

EAGER_STEPS = 3
"""Steps before the recording, in which libraries choose their kernels and the optimizer makes its state; our choice,
as in torch's examples."""


def graph_recorder() -> Recorder:
    """Records CUDA graphs, whose memory is one pool: of several only one runs at a time.

    A recording raises a RuntimeError if something in it cannot be recorded: it waits for the GPU, say.
    """
    pools: list[Any] = []

    def record(work: Callable[[], None]) -> Replay:
        pools[:] = pools or [torch.cuda.graph_pool_handle()]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pools[0]):
                work()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # which a recording that became invalid leaves changed
            raise
        return graph.replay

    return record


@dataclass
class _Recorded:
    """A recorded step and the places that it reads from."""

    batch: Batch
    replay: Replay


class Steps:
    """Trains `model` batch after batch, and sums up the losses and right answers on its device.

    `note` says why steps are not replayed though they were to be, "" if there is nothing to say.

    Args:
        model: in training mode, on `device`, in the memory order that `channels_last` says; or a compiled form of it.
        optimizer: of its weights.
        device: where batches come from.
        dtype: the type to compute in, None for plain float32.
        channels_last: the memory order of images.
        smoothing: of the labels.
        recorder: records a step; None runs each as it comes. With float16, whose scale changes, none is recorded.
        split: in how many parts a batch is computed, whose gradients are added up; with more than one none is recorded.
        group: the processes that share each batch; in a team `model` is what `Group.join` gives, and nothing is
            recorded.
    """

    def __init__(
        self,
        model: Forward,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        channels_last: bool = True,
        smoothing: float = 0.0,
        recorder: Recorder | None = None,
        split: int = 1,
        group: Group = ALONE,
    ) -> None:
        self.note = ""
        self._model, self._optimizer, self._device, self._dtype = model, optimizer, device, dtype
        self._channels_last, self._smoothing = channels_last, smoothing
        self._scaler = torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
        self._recorder = None if self._scaler or split > 1 or group.share is not None else recorder
        self._split, self._group = split, group
        self._recorded: dict[tuple[bool, tuple[int, ...]], _Recorded] = {}
        self._eager = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._right = torch.zeros((), dtype=torch.float64, device=device)
        self._on_host = [0.0, 0.0]  # the sums on a processor: sooner done in Python
        self.adapt()

    def adapt(self) -> None:
        """Makes the optimizer suit this device, after it has taken another's state too; what was recorded is void."""
        self._recorded.clear()
        self._eager = 0
        self._optimizer.zero_grad(set_to_none=True)
        suit(self._optimizer, self._device, recorded=False)

    def go_on_with(self, model: Forward) -> None:
        """Runs another form of the same network from now on, such as a compiled one; what was recorded is void."""
        self._model = model
        self.adapt()

    def change_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the weights with another optimizer from now on; what was recorded is void."""
        self._optimizer = optimizer
        self.adapt()

    def begin(self) -> None:
        """The sums start at 0."""
        self._loss.zero_()
        self._right.zero_()
        self._on_host = [0.0, 0.0]

    def train(self, batch: Batch, lr: float, eye: Eye | None = None) -> float | None:
        """Updates the weights at the rate `lr`; the loss before it, None on a GPU and in a team: none is waited for.

        With `eye` the step is looked at: the network as it computes the last part, and the gradients of all.
        """
        if not self._channels_last:
            batch.images = contiguous(batch.images)
        set_lr(self._optimizer, lr)
        if self._recorder is None or eye is not None:
            return self._run(batch, eye)
        key = batch.mixed_labels is not None, tuple(batch.images.shape)
        if key in self._recorded:
            self._replay(self._recorded[key], batch)
            return None
        if self._eager < EAGER_STEPS:
            self._eager += 1
            return self._run(batch)
        why = self._record(key, batch, lr)
        if why is None:
            return None
        self._give_up(why)
        return self._run(batch)

    def totals(self) -> tuple[float, float]:
        """The sum over images of their losses and of right answers since `begin`; waits for device and team."""
        loss, right = self._group.total(float(self._loss) + self._on_host[0], float(self._right) + self._on_host[1])
        return loss, right

    def scaler_state(self) -> Mapping[str, Any]:
        """What float16 scales by, for a checkpoint; nothing in other types."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_scaler(self, state: Mapping[str, Any]) -> None:
        """Goes on with the scale of a checkpoint, if this needs one and that has it."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))

    def close(self) -> None:
        """Lets go of what was recorded, and of the memory that it holds."""
        self.adapt()
        self._recorder = None

    def _run(self, batch: Batch, eye: Eye | None = None) -> float | None:
        """A step as it comes."""
        # A graph is recorded without the cache, and compiled code is made for one or the other.
        loss, right = self._update(batch, cache=self._recorder is None, eye=eye)
        if self._device.type != "cpu" or self._group.share is not None:
            self._loss += loss * len(batch.labels)
            self._right += right
            return None
        value = float(loss)
        self._on_host[0] += value * len(batch.labels)
        self._on_host[1] += float(right)
        return value

    def _update(self, batch: Batch, *, cache: bool, eye: Eye | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch and its right answers, before the update that it leads to."""
        *others, last = parts_of(batch, self._split)
        with self._group.unaveraged(self._model):
            before = [self._gradients(part, batch, cache=cache) for part in others]
        loss, right = self._gradients(last, batch, cache=cache, eye=eye)
        for more_loss, more_right in before:
            loss, right = loss + more_loss, right + more_right
        if eye is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self._optimizer)
            eye.before_update()
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if eye is not None:
            eye.after_update(loss)
        self._optimizer.zero_grad(set_to_none=True)
        return loss, right

    def _gradients(
        self, part: Batch, batch: Batch, *, cache: bool, eye: Eye | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds up the gradients of a part of `batch`: what it has of the mean loss, and its right answers."""
        model = self._model
        if eye is not None:
            eye.open(part)
            model = eye.model if self._group.share is None else model  # which also averages the gradients
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None, cache_enabled=cache):
            logits = model(part.images)
        loss, right = training_loss(logits.float(), part, self._smoothing)
        if part is not batch:
            loss = loss * (len(part.labels) / len(batch.labels))
        weighted = loss if batch.weight == 1.0 else loss * batch.weight
        if self._scaler is None:
            weighted.backward()  # type: ignore[no-untyped-call]
        else:
            self._scaler.scale(weighted).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), right

    def _record(self, key: tuple[bool, tuple[int, ...]], batch: Batch, lr: float) -> str | None:
        """Records a step that reads copies of this batch, and replays it; why that cannot be done, None if it was."""
        assert self._recorder is not None
        suit(self._optimizer, self._device, recorded=True)
        set_lr(self._optimizer, lr)
        mixed = None if batch.mixed_labels is None else batch.mixed_labels.clone()
        images = batch.images.clone(memory_format=torch.preserve_format)
        fixed = Batch(images, batch.labels.clone(), mixed, torch.zeros((), device=self._device))

        def work() -> None:
            loss, right = self._update(fixed, cache=False)  # a cached cast would be of weights of another step
            self._loss.add_(loss * len(fixed.labels))
            self._right.add_(right)

        before = self.totals()
        try:
            self._recorded[key] = _Recorded(fixed, self._recorder(work))
        except RuntimeError as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._replay(self._recorded[key], batch)
        return "a replay does nothing" if self.totals() == before else None

    def _replay(self, recorded: _Recorded, batch: Batch) -> None:
        fixed = recorded.batch
        fixed.images.copy_(batch.images)
        fixed.labels.copy_(batch.labels)
        if batch.mixed_labels is not None and fixed.mixed_labels is not None and isinstance(fixed.mix, torch.Tensor):
            fixed.mixed_labels.copy_(batch.mixed_labels)
            fixed.mix.fill_(batch.mix)
        recorded.replay()

    def _give_up(self, why: str) -> None:
        self.close()
        self.note = f"steps are not recorded as a graph: {why}"
