"""The training of one configuration, an epoch at a time: `Trainer`.

What is drawn at random in an epoch derives from (`TrialConfig.seed`, its purpose, the epoch), and the learning rate
from the progress and the history. So a training that goes on from a checkpoint measures the same as an unbroken one; on
a processor, with the same number of threads, to the last bit, unless it is compiled (`tunelab.training.compiling`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tunelab.capacity import describe_size
from tunelab.config import ComputeConfig, Telemetry, TrialConfig, derive_seed
from tunelab.data.batches import Split, TrainBatches, load_data
from tunelab.errors import DivergedError, InputError, OutOfTimeError
from tunelab.models.network import build_network
from tunelab.records import EpochMetrics, out_of_patience
from tunelab.training import checkpoint
from tunelab.training.averaging import Averager
from tunelab.training.compiling import seconds_left, try_out, worth_trying
from tunelab.training.device import (
    autocast_dtype,
    claim_device,
    contiguous,
    peak_memory_mib,
    return_freed_memory,
    set_up_threads,
)
from tunelab.training.evaluate import Evaluation, evaluate
from tunelab.training.folder import TrialFolder
from tunelab.training.group import ALONE, Group
from tunelab.training.observe import Eye, LastStep, Observer, Scene, weight_norm
from tunelab.training.optim import build_optimizer
from tunelab.training.parts import in_parts, note_of
from tunelab.training.pulse import Beats, NoBeats
from tunelab.training.saver import AT_ONCE, Room
from tunelab.training.schedules import epoch_rates, find_schedule
from tunelab.training.stages import check_optimizers, recipe_of, stage_of
from tunelab.training.step import Forward, Steps, graph_recorder


@dataclass(frozen=True)
class _Trained:
    """What the training part of an epoch measured."""

    loss: float
    accuracy: float
    lr: float
    images: int


class Trainer:
    """Trains one configuration, epoch by epoch. `notes` says what went differently from plan.

    It sets torch's global seed, number of threads and flushing of denormal numbers, and on a processor how the process
    keeps freed memory, so use one at a time. After an exception from `run_epoch`, `resume` or `close` it.

    An epoch's checkpoint is written while the next is trained; it is on the disk before the next epoch is returned, and
    the last one's before the last epoch is. So a process that is killed loses what it trained since the epoch that it
    returned last, and at most that one too: trained again, it measures the same, as said above.
    """

    def __init__(
        self,
        config: TrialConfig,
        *,
        folder: Path | None = None,
        device: str = "auto",
        threads: int | None = None,
        telemetry: Telemetry = "scalars",
        compute: ComputeConfig | None = None,
        memory: int | None = None,
        split: int = 1,
        observers: Sequence[Observer] = (),
        pulse: Beats | None = None,
        room: Room = AT_ONCE,
        group: Group = ALONE,
    ):
        """Open the data and build the network; nothing is written to `folder` before the first epoch ends.

        Args:
            config: what to train.
            folder: where `checkpoint/` and `events/` go; None keeps nothing.
            device: "auto", "cpu", "cuda" or "cuda:N".
            threads: the number of processors to compute with; None leaves torch's number as it is.
            telemetry: "scalars" writes TensorBoard events of the epochs' numbers into `folder`, "full" also histograms,
                pictures and the graph of the network.
            compute: how this machine computes; by default in the type that its hardware has, in channels_last order.
            memory: the most bytes of images that the process may hold; what is more is streamed from the cache. None is
                what the machine has free. On a GPU its own memory decides what is streamed to it.
            split: in how many parts each batch is computed, one after the other, for want of memory; their gradients
                are added up. It is then neither recorded nor compiled.
            observers: see the training as it runs.
            pulse: is told what is being done, and of each step.
            room: what is done while the disk has no room for a checkpoint.
            group: the processes that train it together; only the first one's folder and observers are used.

        Raises:
            InputError: a name or value in the configuration, the device or the data cannot be used.
        """
        self.notes: list[str] = []
        self._pulse = pulse or NoBeats()
        self._pulse.enter("opening the data")
        self._group = group
        self._kept = TrialFolder(folder if group.first else None, telemetry, config.train.epochs, self.notes, room)
        find_schedule(config.train.schedule)
        check_optimizers(config.train)
        self.config = config
        self.device = claim_device(device, threads)
        self.threads = threads
        self.history: list[EpochMetrics] = []
        compute = compute or ComputeConfig()
        stated = config.train.precision
        self._compile = compute.compile if split == 1 and group.share is None else "off"  # copies take memory too
        self._precision = compute.precision if stated == "auto" else stated
        self._channels_last = compute.channels_last
        self._dtype = autocast_dtype(self._precision, self.device)
        self.info, self._train_split, self._val = load_data(config.data, self.device, memory)
        train = self._train_split
        self._last_step = LastStep()
        looking = (*self._kept.observers(), *observers) if group.first else ()
        self._observers: tuple[Observer, ...] = (self._last_step, *looking)
        if train.streamed:
            size = describe_size(len(train.labels) * math.prod(train.image_shape))
            self.notes.append(f"the {size} of training images are streamed from the cache")
        self._batches = TrainBatches.of(config, train, self.info, self._dtype or torch.float32, group.share)
        self._split = group.parts(split, self._batches.batch_size)
        self._start()

    @property
    def finished(self) -> bool:
        """True once all epochs are in the history, or those after which the recipe's early stopping ends it."""
        train = self.config.train
        return len(self.history) >= train.epochs or bool(out_of_patience(self.history, train.patience, train.epochs))

    def run_epoch(self, stop_at: float = math.inf) -> EpochMetrics:
        """Train and validate the next epoch; its metrics. Its checkpoint may still be being written, none before it.

        Args:
            stop_at: when to break it off, on the monotonic clock.

        Raises:
            DivergedError: a loss or a weight is no longer finite, or the norm that a rate is divided by is 0. No
                checkpoint is written.
            OutOfTimeError: `stop_at` came before the last step was done, and nothing of the epoch is kept.
            InputError: all epochs are done.
            OSError: the checkpoint, or that of the epoch before, could not be written.
        """
        if self.finished:
            raise InputError(f"all {len(self.history)} epochs are done")
        self._kept.check()
        set_up_threads(self.threads)
        self._fresh = False
        epoch = len(self.history) + 1
        self._enter_stage(epoch)
        self._compile_where_it_pays(stop_at)
        begin = time.perf_counter()
        torch.manual_seed(derive_seed(self.config.seed, "dropout", epoch, *self._group.salt(self.config.arch)))
        trained = self._train(epoch, stop_at)
        self._seconds.append(time.perf_counter() - begin)
        norm = self._weight_norm(epoch, trained.lr)
        self._average_epoch(epoch)
        found = self._validate(epoch, trained.lr)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            val_loss=None if found is None else found.loss,
            val_accuracy=None if found is None else found.accuracy,
            lr=trained.lr,
            seconds=time.perf_counter() - begin,
            images_per_second=trained.images / self._seconds[-1],
            peak_memory_mib=peak_memory_mib(self.device),
            weight_norm=norm,
            grad_norm=self._last_step.grad_norm,
            update_ratio=self._last_step.update_ratio,
        )
        metrics = self._group.agree(metrics)
        self._pulse.enter("looking at the epoch")
        for observer in self._observers:
            observer.epoch_ended(metrics, found, self._evaluated)
        self.history.append(metrics)
        self._pulse.enter("waiting for the disk")
        self._save()
        self._kept.record(metrics)
        return metrics

    def resume(self) -> bool:
        """Go on from a good checkpoint: the last one, else the previous, else the best one, else from the start.

        Each one that is passed over is named in `notes`. One that is still being written is waited for.

        Returns:
            True if there was one to go on from.

        Raises:
            OSError: one that this trainer was writing could not be; a second call goes on from the one before.
        """
        self._pulse.enter("reading the checkpoint")
        self._kept.wait()
        if not self._fresh:
            self._start()
        for path, found in self._group.each(self._kept.checkpoints(self.device)):
            try:
                self._restore(found)
            except checkpoint.CheckpointError as error:
                self.notes.append(f"{path} was passed over: {error}")
                self._start()
                continue
            self._kept.go_on_after(self.history[-1])
            self._tell_observers()
            return True
        return False

    def practise(self) -> Iterator[int]:
        """Train on one batch after another without end, for measuring; gives the images of each batch when it is done.

        The steps are those of the first epoch over and over, at its first learning rate. Nothing is recorded, and no
        loss is looked at. The network is of no use afterwards: `close` the trainer.
        """
        self._fresh = False
        lr = epoch_rates(self.config.train, [], self._fresh_norm)(0.5 / self._batches.steps_per_epoch)
        self.model.train()
        while True:
            for batch in self._batches.epoch(1):
                self._steps.train(batch, lr)
                yield len(batch.labels)

    def practise_validation(self, images: int) -> int:
        """Validate on the first `images` images, or all if there are fewer; how many they were, 0 without any."""
        if self._val is None:
            return 0
        some = self._val.first(images)
        self._evaluate(some)
        return len(some.labels)

    def close(self) -> None:
        """Let go of network, optimizer, data and event file, and give unused memory back; the history stays.

        Raises:
            OSError: the last checkpoint could not be written; all the same is done.
        """
        try:
            self._kept.close(ended=self.finished)
        finally:
            self._kept.close_events()
            if "_steps" in self.__dict__:
                self._steps.close()
            self._observers = ()
            for name in ("model", "optimizer", "_steps", "_averager", "_batches", "_train_split", "_val"):
                self.__dict__.pop(name, None)
            return_freed_memory(self.device)

    def _start(self) -> None:
        """Stand before the first epoch, with fresh weights."""
        self._pulse.enter("building the network")
        self.history.clear()
        self._fresh = True
        self._seconds: list[float] = []  # of the training part of each epoch since here
        self._may_compile = self._compile == "auto"
        self._kept.close_events()
        torch.manual_seed(derive_seed(self.config.seed, "init"))
        model = build_network(self.config.arch, self.info.channels, len(self.info.classes), self.info.image_size)
        order = torch.channels_last if self._channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=order)  # type: ignore[call-overload]
        self._stage, self._recipe = 0, self.config.train
        self.optimizer = build_optimizer(self.model, self._recipe)
        self._steps = self._make_steps(self._group.join(self.model, self.config.arch), self.optimizer)
        self._note(note_of(self.model, self._split))
        self._note(self._group.note)
        self._averager = Averager(self.config.train)
        self._fresh_norm = weight_norm(self.model) if self._recipe.schedule.by_norm else None
        self._tell_observers()

    def _tell_observers(self) -> None:
        scene = Scene(self.model, self.config, self.info, self._train_split, self._val, self.history)
        for observer in self._observers:
            observer.begin(scene)

    def _enter_stage(self, epoch: int) -> None:
        """Has the optimizer that the recipe says for `epoch`: a new one, if that is another stage."""
        stage = stage_of(self.config.train, epoch)
        if stage != self._stage:
            self._stage, self._recipe = stage, recipe_of(self.config.train, stage)
            self.optimizer = build_optimizer(self.model, self._recipe)
            self._steps.change_optimizer(self.optimizer)

    def _make_steps(self, model: Forward, optimizer: torch.optim.Optimizer) -> Steps:
        return Steps(
            model, optimizer, device=self.device, dtype=self._dtype, channels_last=self._channels_last,
            smoothing=self.config.train.label_smoothing, split=self._split, group=self._group,
            recorder=graph_recorder() if self.device.type == "cuda" else None,
        )  # fmt: skip

    def _compile_where_it_pays(self, stop_at: float) -> None:
        """Goes on compiled if much of the training is left and that is measured to be faster; tried once."""
        epochs = self.config.train.epochs - len(self.history)
        left = min(seconds_left(self._seconds, epochs), stop_at - time.monotonic())
        if self._may_compile and worth_trying(self.model, left, epochs * self._batches.steps_per_epoch):
            self._may_compile = False
            self._pulse.enter("compiling")
            lr = self.history[-1].lr
            found = try_out(self.model, self._make_steps, self._recipe, self._batches, lr, self.device)
            self.notes.append(found.note)
            if found.form is not None:
                self._steps.go_on_with(found.form)

    def _train(self, epoch: int, stop_at: float) -> _Trained:
        """One pass over the training batches."""
        steps, epochs = self._batches.steps_per_epoch, self.config.train.epochs
        rate = epoch_rates(self._recipe, self.history, self._fresh_norm)
        images, lr = self._batches.images_per_epoch, 0.0
        self._steps.begin()
        self.model.train()
        for step, batch in enumerate(self._pulse.each(self._batches.epoch(epoch), "training")):
            progress = (epoch - 1 + (step + 0.5) / steps) / epochs
            lr = rate(progress)
            watching = [one for one in self._observers if one.wants(epoch, step, steps)]
            eye = Eye(self.model, watching, epoch, step, steps, lr) if watching else None
            loss = self._steps.train(batch, lr, eye)
            self._averager.after_step(self.model, epoch)
            if time.monotonic() > stop_at and step + 1 < steps:
                raise OutOfTimeError(f"epoch {epoch} was broken off at step {step + 1} of {steps}")
            if loss is not None and not math.isfinite(loss):
                raise self._diverged(epoch, lr, f"the training loss became {loss} at step {step + 1} of {steps}")
        self._pulse.enter("summing up the epoch")
        self._note(self._steps.note)
        loss_sum, correct = self._steps.totals()
        if not math.isfinite(loss_sum):
            raise self._diverged(epoch, lr, f"the training loss became {loss_sum / images}")
        return _Trained(loss_sum / images, correct / images, lr, images)

    def _average_epoch(self, epoch: int) -> None:
        """Lets the average of weights take in those of the epoch."""
        if not self._averager.after_epoch(self.model, epoch):
            return
        images = self._pulse.each(in_parts(self._batches.as_they_are(), self._split), "averaging")
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            self._averager.renew_statistics(images if self._channels_last else map(contiguous, images))

    def _validate(self, epoch: int, lr: float) -> Evaluation | None:
        if self._val is None:
            return None
        found = self._evaluate(self._val)
        if not math.isfinite(found.loss):
            raise self._diverged(epoch, lr, f"the validation loss became {found.loss}")
        return found

    @property
    def _evaluated(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.model if self._averager.network is None else self._averager.network

    def _evaluate(self, split: Split) -> Evaluation:
        return evaluate(
            self._evaluated, split, self.info, device=self.device, precision=self._precision,
            channels_last=self._channels_last, parts=self._split, pulse=self._pulse, group=self._group,
        )  # fmt: skip

    def _weight_norm(self, epoch: int, lr: float) -> float | None:
        try:
            norm = weight_norm(self.model)
        except ValueError as error:
            raise self._diverged(epoch, lr, str(error)) from None
        return norm if math.isfinite(norm) else None

    def _note(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)

    def _diverged(self, epoch: int, lr: float, what: str) -> DivergedError:
        train = self._recipe
        return DivergedError(f"epoch {epoch}: {what} (lr {lr:.4g}, peak {train.lr:.4g}, optimizer {train.optimizer})")

    def _save(self) -> None:
        if self._kept.path is None:
            return
        *earlier, newest = self.history
        best = all(newest.score > metrics.score for metrics in earlier)
        more = self._steps.scaler_state(), self._averager.state()
        state = checkpoint.capture(self.config, self.info, self.history, self.model, self.optimizer, *more)
        self._kept.save(state, best=best, wait=self.finished)

    def _restore(self, found: checkpoint.Checkpoint | checkpoint.CheckpointError) -> None:
        if isinstance(found, checkpoint.CheckpointError):
            raise found
        self._fresh = False
        self._enter_stage(len(found.history))
        history = checkpoint.restore(found, self.config, self.info, self.model, self.optimizer)
        self._averager.load(found.averaged, self.model)
        self.history[:] = history
        self._steps.adapt()
        self._steps.load_scaler(found.scaler)
