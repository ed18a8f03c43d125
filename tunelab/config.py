"""What a trial is made of, as frozen data that turns into JSON and back.

A `TrialConfig` is everything needed to train a network again, and the only thing that travels to a worker. Unknown
names, wrong types and values out of range are refused when an object is made, with the name and what is allowed.
Durations inside a recipe are fractions of `epochs`, so that a longer training changes one field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticSerializationError

from tunelab.errors import InputError, brief

T = TypeVar("T")

_FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Width = Annotated[int, Field(ge=1, le=8192)]

Telemetry: TypeAlias = Literal["off", "scalars", "full"]
"""What a training writes for TensorBoard: nothing, its epochs' numbers, or also histograms, pictures and its graph."""


@dataclass(frozen=True, config=_FORBID)
class StemSpec:
    """The first convolution: stride 1, followed by norm, activation and, with `pool`, a 3x3 max-pool of stride 2."""

    width: Width = 16
    kernel: Literal[3, 5, 7] = 3
    pool: bool = False


@dataclass(frozen=True, config=_FORBID)
class BlockSpec:
    """One block; `stride` 2 halves the resolution. `width` counts its output channels.

    `kind` is a key of `tunelab.models.blocks.BLOCKS`. `convs` is the number of 3x3 convolutions of a "basic" or
    "plain" block; the other kinds have a fixed number and leave it at its default.
    """

    kind: str
    width: Width
    stride: Literal[1, 2] = 1
    convs: Annotated[int, Field(ge=1, le=5)] = 2


@dataclass(frozen=True, config=_FORBID)
class ArchSpec:
    """A network: a stem, one to three parallel branches of blocks, and a head.

    Every branch reads the stem's output. Each branch's output is pooled to a vector; with several branches the vectors
    are normalised and summed, which needs equal widths. `dropout` is the probability before the classifier.
    """

    stem: StemSpec
    branches: Annotated[tuple[tuple[BlockSpec, ...], ...], Field(min_length=1, max_length=3)]
    norm: Literal["batch", "group", "layer", "none"] = "batch"
    activation: Literal["relu", "leaky_relu", "gelu", "silu"] = "relu"
    bias: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


@dataclass(frozen=True, config=_FORBID)
class LeNetSpec:
    """LeNet-5 (LeCun et al. 1998), as `tunelab.models.classic` builds it; the defaults are nearest to the paper.

    `init` is how the weights are drawn, a key of `tunelab.models.init.CLASSIC_INITS`; "zero" is there to show what
    becomes of it.
    """

    activation: Literal["sigmoid", "tanh", "relu"] = "tanh"
    pooling: Literal["average", "max"] = "average"
    init: Literal["torch", "lecun", "xavier", "he", "zero"] = "lecun"


@dataclass(frozen=True, config=_FORBID)
class MLPSpec:
    """Fully connected layers of `hidden` outputs each, then the classifier, as `tunelab.models.dense` builds them.

    `init` is how the weights are drawn, a key of `tunelab.models.init.DENSE_INITS`. `dropout` is the probability after
    each hidden layer.
    """

    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)] = (256,)
    init: Literal["normal", "zero", "uniform", "he", "sparse", "xavier_uniform", "xavier_normal"] = "he"
    activation: Literal["sigmoid", "tanh", "relu"] = "relu"
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


@dataclass(frozen=True, config=_FORBID)
class CustomSpec:
    """A network of the user's own: whatever `factory(channels, classes, image_size, **arguments)` makes.

    `factory` is "path/to/file.py:function" or "package.module:function"; a space may write a path as from its own
    folder, the search makes it absolute. `image_size` is (height, width) in pixels; what comes back is a
    `torch.nn.Module` from images (N, channels, height, width) to scores (N, classes). `arguments` are plain JSON
    values. `sha256` is that of the factory's file, which the search fills in.
    """

    factory: Annotated[str, Field(pattern=r"^[^\x00-\x1f]+:[A-Za-z_]\w*$", max_length=4096)]
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain(cls, arguments: Any) -> dict[str, Any]:
        if not isinstance(arguments, Mapping):
            raise ValueError("must be a dictionary")
        for name in arguments:
            if not isinstance(name, str) or not name.isidentifier() or name in ("channels", "classes", "image_size"):
                raise ValueError(f"{name!r} cannot be an argument's name")
        try:
            plain: dict[str, Any] = json.loads(json.dumps(dict(arguments), allow_nan=False))  # tuples become lists
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be plain JSON values ({error})") from error
        return plain


AnyArch: TypeAlias = ArchSpec | LeNetSpec | MLPSpec | CustomSpec
"""A network of any family."""

_FAMILIES: dict[str, type[Any]] = {
    "ArchSpec": ArchSpec,
    "LeNetSpec": LeNetSpec,
    "MLPSpec": MLPSpec,
    "CustomSpec": CustomSpec,
}


def _family(arch: Any) -> str | None:
    """The family whose description this is: of JSON, the one that knows most of its names, the first of equals."""
    if not isinstance(arch, Mapping):
        return next((name for name, family in _FAMILIES.items() if isinstance(arch, family)), None)
    return max(_FAMILIES, key=lambda name: len(_FAMILIES[name].__dataclass_fields__.keys() & arch.keys()))


@dataclass(frozen=True, config=_FORBID)
class DataConfig:
    """Which images, and how they are divided.

    `name` is a key of `tunelab.data.datasets.DATASETS`, or `folder:PATH`, or `npz:PATH`. `image_size` (pixels) resizes;
    None keeps the size of the data. `val_fraction` and `test_fraction` are used only where the data has no such split.
    `limit_train` keeps that many training images, the same share of each class. `train_on` is "train" in a search and
    "train+val" in a final training. `normalise` False leaves pixels as they are, 0 to 255, in place of mean 0 and
    variance 1 of each channel; a space may say so too.
    """

    name: str = "digits"
    data_dir: str | None = None
    download: bool = False
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    limit_train: Annotated[int, Field(ge=2)] | None = None
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    split_seed: int = 0
    skip_unreadable: bool = False
    train_on: Literal["train", "train+val"] = "train"
    normalise: bool = True

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As in TrainConfig."""
        plain: dict[str, Any] = write(self)
        return {name: value for name, value in plain.items() if name != "normalise" or not value}


@dataclass(frozen=True, config=_FORBID)
class AugmentConfig:
    """Random changes of the training images, drawn anew for each image of each batch.

    `crop` pads by this fraction of the image size and cuts out a random window; `flip` mirrors half of the images;
    `cutout` greys a square whose side is this fraction of the image size (DeVries & Taylor, arXiv 1708.04552).
    `mixup` is the alpha of Zhang et al. (arXiv 1710.09412, section 2), 0 for none, and ends after the fraction
    `mixup_until` of the epochs.
    """

    crop: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    flip: bool = False
    cutout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    mixup: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    mixup_until: Fraction = 1.0


@dataclass(frozen=True, config=_FORBID)
class ScheduleConfig:
    """How the learning rate moves; a key of `tunelab.training.schedules.SCHEDULES` and its numbers.

    `warmup`: fraction of the training with a linear rise from 0. `period`: fraction of the training between two drops
    (step), or without progress before a drop (plateau). `factor`: the multiplier at a drop (step, plateau), the lowest
    rate as a share of `lr` (cyclic). `cycles`: number of cycles (warm_restarts, cyclic). With `by_norm` the rates of an
    epoch are divided by the norm of the weights before it (`tunelab.training.schedules`).
    """

    name: str = "cosine"
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    period: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    cycles: Annotated[int, Field(ge=1, le=100)] = 3
    by_norm: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As `TrainConfig._as_before`."""
        plain: dict[str, Any] = write(self)
        return {name: value for name, value in plain.items() if value or name != "by_norm"}


@dataclass(frozen=True, config=_FORBID)
class StageSpec:
    """From the fraction `begin` of the epochs on, another optimizer, which knows nothing of the one before it.

    `optimizer`, `lr`, `momentum` and `weight_decay` are as in TrainConfig; None is what the recipe itself says. The
    schedule goes on: it spans the whole training, and `lr` is multiplied by its factor at that point. A stage begins
    with an epoch, the first of which `begin` of all are past.
    """

    begin: Annotated[float, Field(gt=0.0, lt=1.0)]
    optimizer: str
    lr: Annotated[float, Field(gt=0.0, le=1000.0)]
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None


@dataclass(frozen=True, config=_FORBID)
class AveragingConfig:
    """From the fraction `start` of the epochs on, the network that is evaluated and kept is an average of weights.

    "swa" is the equal average of the weights after each epoch; the statistics of batch norms are computed anew over the
    training images (Izmailov et al., arXiv 1803.05407, section 3.2; they begin at 75% of the training, section 4.1).
    "ema" moves at every step by 1 - `decay` towards the weights and statistics (Polyak & Juditsky, SIAM J. Control
    Optim. 30, 1992, average all steps equally); after n steps by at least 9 / (10 + n), so that what it began with does
    not last. `decay` is not used by "swa". At least the last epoch is part of either.
    """

    kind: Literal["ema", "swa"]
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999


@dataclass(frozen=True, config=_FORBID)
class TrainConfig:
    """A training recipe. `optimizer` is a key of `tunelab.training.optim.OPTIMIZERS`; `lr` is its peak rate.

    `momentum` is used by sgd (with Nesterov's form if `nesterov`) and rmsprop. Norms and biases are never decayed.
    `precision` "auto" is what a search found fastest on its machine; elsewhere bfloat16 autocast where the processor or
    GPU computes in it, float16 on other GPUs, else float32. `stages` are other optimizers for later parts, in the order
    in which they begin; `averaging` None keeps the weights of the last step. The training ends early when its loss has
    made no progress for the fraction `patience` of the epochs (`tunelab.records.out_of_patience`); None never does.
    """

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    optimizer: str = "sgd"
    lr: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 5e-4
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    stages: tuple[StageSpec, ...] = ()
    averaging: AveragingConfig | None = None
    patience: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[StageSpec, ...]) -> tuple[StageSpec, ...]:
        begins = [stage.begin for stage in stages]
        if begins != sorted(set(begins)):
            raise ValueError("each stage must begin later than the one before it")
        return stages

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later is left out where it is not used: ids, which are made of this, stay what they were."""
        plain: dict[str, Any] = write(self)
        return {
            name: value for name, value in plain.items() if value or name not in ("stages", "averaging", "patience")
        }


@dataclass(frozen=True, config=_FORBID)
class TrialConfig:
    """Everything needed to train one network again."""

    arch: Annotated[
        Annotated[ArchSpec, Tag("ArchSpec")]
        | Annotated[LeNetSpec, Tag("LeNetSpec")]
        | Annotated[MLPSpec, Tag("MLPSpec")]
        | Annotated[CustomSpec, Tag("CustomSpec")],
        Discriminator(_family, "family", f"Input should be a dictionary, {' or '.join(_FAMILIES)}"),
    ]
    train: TrainConfig = Field(default_factory=TrainConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=_FORBID)
class ComputeConfig:
    """How a machine computes a trial. It is no part of the trial: results change by less than between two seeds.

    `precision` is what "auto" of a recipe stands for; "auto" again leaves it to the hardware. With `channels_last` the
    values of a pixel lie side by side in memory, else those of a channel. `compile` "auto" lets a long training go on
    with `torch.compile` if its own steps are measured to be faster so.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = True
    compile: Literal["auto", "off"] = "off"


_MOST_TOLD = 20
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    try:
        plain: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json")
    except PydanticSerializationError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C just now, which pydantic makes an error of
            raise error.__cause__ from None
        raise
    return plain


def from_json(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The configuration that `to_json` wrote.

    Raises:
        InputError: a name is unknown, or a value has the wrong type or is out of range; all of them in one line.
    """
    try:
        made: T = _adapter(kind).validate_python(dict(plain))
    except ValidationError as error:
        raise InputError(f"{kind.__name__}: {one_line(error)}") from error
    return made


def one_line(error: ValidationError) -> str:
    """What pydantic found, as `name: what is allowed (got value)`, joined by semicolons."""
    found = []
    for item in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"] if part not in _FAMILIES)
        found.append(f"{name[:200]}: {item['msg'][:1].lower()}{item['msg'][1:]} (got {brief(item['input'])})")
        if len(found) == _MOST_TOLD:
            break
    return "; ".join(found)


def _digest(plain: Any, length: int) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def arch_id(arch: AnyArch) -> str:
    """A short hash of the architecture alone: equal networks have equal ids (8 hex digits)."""
    return _digest(to_json(arch), 8)


def config_id(config: TrialConfig) -> str:
    """A hash of the whole configuration except its seed: two trials with one id differ by chance only."""
    plain = to_json(config)
    del plain["seed"]
    return _digest(plain, 16)


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**31) from a study's seed and what it is for, e.g. `derive_seed(seed, number, "order", epoch)`."""
    return int(_digest(list(parts), 16), 16) % 2**31
