"""What `telemetry="full"` adds for TensorBoard: histograms of each layer, pictures, and the graph of the network.

Everything is read from the last step of an epoch, which is looked at anyway, and from a copy of the network: the
training computes the same to the last bit. A part that fails is a note and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn

from tunelab.data.batches import Batch, Split, eval_batches
from tunelab.data.cache import DataInfo
from tunelab.records import EpochMetrics
from tunelab.training import pictures
from tunelab.training.evaluate import Evaluation
from tunelab.training.insight import Insight, look_inside
from tunelab.training.module_graph import graph_of
from tunelab.training.observe import Look, Scene
from tunelab.training.summaries import histogram, image
from tunelab.training.telemetry import EventWriter, bytes_in, is_shown

HISTOGRAM_EPOCHS = 16
"""Of about so many epochs there are histograms; pictures of those that are powers of 2, and the last. Our choice."""

MOST_BYTES = 16 * 2**20
"""With so many bytes of events a trial's get no histograms and no pictures any more; our choice."""

PROBE_IMAGES = 36
"""So many validation images, always the same, are what activations, maps and examples are of; our choice."""

_PROBE_PIXELS = PROBE_IMAGES * 64 * 64  # in all; of larger images there are fewer, down to 4
_LONGEST_REASON = 150  # characters of a note; torch says pages

Write = Callable[[int, Callable[[EventWriter], None]], None]
"""Lets a function write events of a step, as `TrialFolder.write_events`."""


class FullTelemetry:
    """Sees the last step of some epochs; an observer.

    Args:
        folder: where the events are.
        write: writes them.
        notes: takes what could not be made.
    """

    def __init__(self, folder: Path, write: Write, notes: list[str]) -> None:
        self._folder, self._write, self._notes = folder, write, notes
        self._held: list[Summary.Value] = []  # of the epoch's last step, until the epoch has ended
        self._first: list[Summary.Value] = []  # of the weights before the first step

    def begin(self, scene: Scene) -> None:
        """Takes the weights of a network that is not trained yet; nothing is written before an epoch ends."""
        self._epochs, self._info = scene.config.train.epochs, scene.info
        self._probe = scene.train if scene.val is None or len(scene.val.labels) == 0 else scene.val
        self._held, self._first = [], []
        if not scene.history:
            self._attempt("histograms", lambda: self._first.extend(_histograms("weights", _weights_of(scene.model))))

    def wants(self, epoch: int, step: int, steps: int) -> bool:
        """True for the last step of the epochs that are shown."""
        return step + 1 == steps and is_shown(epoch, self._epochs, HISTOGRAM_EPOCHS)

    def before(self, model: nn.Module, batch: Batch) -> None:
        """Nothing: the step itself is left alone."""

    def after(self, look: Look) -> None:
        """Takes the weights after the step, their gradients, and what the step changed them by."""
        self._held = []
        self._attempt("histograms", lambda: self._held.extend(_of_step(look)))

    def epoch_ended(self, metrics: EpochMetrics, evaluation: Evaluation | None, model: nn.Module) -> None:
        """Writes what was taken, looks into the network, and draws it."""
        epoch = metrics.epoch
        if not is_shown(epoch, self._epochs, HISTOGRAM_EPOCHS) or self._has_enough():
            return
        if epoch == 1:
            self._attempt("graph", lambda: self._write_graph(model))
        values, self._held = self._held, []
        seen: list[Insight] = []
        self._attempt("activations", lambda: self._look_inside(model, values, seen))
        if is_shown(epoch, self._epochs, 0):
            self._attempt("filters", lambda: values.extend(_filters(model, self._info)))
            if evaluation is not None:
                self._attempt("confusion matrix", lambda: values.append(_confusion(evaluation, self._info)))
            for insight in seen:
                self._attempt("pictures", lambda insight=insight: values.extend(self._draw(insight)))  # type: ignore[misc]
        if self._first:
            first, self._first = self._first, []
            self._write(0, lambda events: events.add(0, first))
        self._write(epoch, lambda events: events.add(epoch, values))

    def _write_graph(self, model: nn.Module) -> None:
        graph = graph_of(model, (self._info.channels, *self._info.image_size))
        self._write(0, lambda events: events.add_graph(graph))

    def _look_inside(self, model: nn.Module, values: list[Summary.Value], seen: list[Insight]) -> None:
        """Adds histograms of activations to `values`, and to `seen` what else was seen."""
        some = _probe_of(self._probe)
        ((images, _),) = eval_batches(some, self._info, len(some.labels))

        def see(name: str, output: Tensor) -> None:
            values.extend(_histograms("activations", [(name, output)]))

        seen.append(look_inside(model, images, see))

    def _draw(self, insight: Insight) -> Iterator[Summary.Value]:
        """Examples with their answers, and the maps of chosen layers."""
        some = _probe_of(self._probe)
        (pixels,) = some.batches(len(some.labels))
        labels = some.labels.tolist()
        yield image("predictions/examples", pictures.examples(pixels, labels, insight.scores, self._info.classes))
        for name, maps in insight.maps.items():
            yield image(f"feature_maps/{name}", pictures.feature_maps(maps))

    def _has_enough(self) -> bool:
        try:
            enough = bytes_in(self._folder) > MOST_BYTES
        except OSError:
            return False  # what cannot be read cannot be written, which is said there
        if enough:
            self._note(f"no more histograms and pictures: the trial's events have {MOST_BYTES // 2**20} MiB")
        return enough

    def _attempt(self, what: str, make: Callable[[], object]) -> None:
        """No training ends of what could not be shown: networks of one's own may do anything."""
        try:
            make()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._note(f"no {what} for TensorBoard: {reason[:_LONGEST_REASON]}")

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)


def _weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of layers, by the layers' names; biases and those of norms are left out."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            yield _layer(name), weight


def _of_step(look: Look) -> Iterator[Summary.Value]:
    names = [name for name, weight in look.model.named_parameters() if weight.ndim >= 2]
    yield from _histograms("weights", _weights_of(look.model))
    gradients = ((name, look.gradient(name)) for name in names)
    yield from _histograms("gradients", ((_layer(name), one) for name, one in gradients if one is not None))
    yield from _histograms("updates", ((_layer(name), look.change(name)) for name in names))


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _histograms(section: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Summary.Value]:
    for name, tensor in tensors:
        found = histogram(f"{section}/{name}", tensor)
        if found is not None:
            yield found


def _filters(model: nn.Module, info: DataInfo) -> Iterator[Summary.Value]:
    """Those of the first layer, if they can be shown as pictures."""
    for name, weight in _weights_of(model):
        drawn = pictures.first_filters(weight, (info.channels, *info.image_size))
        if drawn is not None:
            yield image(f"filters/{name}", drawn)
        return


def _confusion(evaluation: Evaluation, info: DataInfo) -> Summary.Value:
    return image("predictions/confusion_matrix", pictures.confusion_matrix(evaluation.confusion, info.classes))


def _probe_of(split: Split) -> Split:
    height, width, _ = split.image_shape
    return split.evenly(max(4, min(PROBE_IMAGES, _PROBE_PIXELS // (height * width))))
