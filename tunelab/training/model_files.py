"""A trained network as two files: `model.safetensors` holds the weights, `config.json` all that is needed to use them.

Both are data: reading them runs no code. Nothing of what a file claims is believed before it was compared with the
rest: the description is checked name by name, and no memory is taken for weights that do not fit the network.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tunelab.config import CustomSpec, TrialConfig, from_json, to_json
from tunelab.data.augment import normalizer
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError
from tunelab.files import read_json, write_atomically
from tunelab.models.check import check
from tunelab.models.network import build_network

WEIGHTS = "model.safetensors"
DESCRIPTION = "config.json"
_MOST_BYTES = 4 * 2**20  # of a description: 100,000 classes have room; our choice
_LONGEST_REASON = 300  # characters of what is wrong with a file, which may quote all of it; our choice
# safetensors' names of what networks are made of; tunelab's own need the first two.
_TYPES = {
    "F32": torch.float32, "I64": torch.int64, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_Header = dict[str, tuple[tuple[int, ...], str]]  # of each tensor its shape and safetensors' name of its type

Side = Annotated[int, Field(ge=1, le=16_384)]


@checked_dataclass(frozen=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class ModelInfo:
    """What `config.json` says of a model: how it was trained, and how an image becomes what it reads.

    `image_size` is (H, W) in pixels. `mean` and `std` are per channel, of pixels scaled to [0, 1].
    """

    trial_config: TrialConfig
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    channels: Annotated[int, Field(ge=1, le=1024)]
    image_size: tuple[Side, Side]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0.0)], ...]
    data_fingerprint: str = ""

    @model_validator(mode="after")
    def _per_channel(self) -> ModelInfo:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std must have {self.channels} numbers each, one for each channel")
        return self


@dataclass(frozen=True)
class Model:
    """A trained network in evaluation mode, what is to be known of it, and the file that its weights are from."""

    network: nn.Module
    info: ModelInfo
    path: Path


class FromPixels(nn.Module):
    """A network that normalises by itself: pixels uint8 (N, C, H, W) to scores and probabilities (N, classes).

    The normalisation is the multiply-add of `tunelab.data.augment.normalize`. `network` is used as it is, not copied.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network = network
        scale, shift = normalizer(info.mean, info.std, 1, torch.device("cpu"))
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and their softmax."""
        scores: Tensor = self.network(pixels.to(torch.float32) * self.scale + self.shift)
        return scores, scores.softmax(1)


def write_model(folder: Path, model: nn.Module, config: TrialConfig, info: DataInfo) -> None:
    """Writes the weights and the description of a network into `folder`.

    Raises:
        OSError: they could not be written.
    """
    write_weights(folder / WEIGHTS, model)
    content = {
        "trial_config": to_json(config),
        "classes": list(info.classes),
        "channels": info.channels,
        "image_size": list(info.image_size),
        "mean": list(info.mean),
        "std": list(info.std),
        "data_fingerprint": info.fingerprint,
    }
    write_atomically(folder / DESCRIPTION, json.dumps(content, indent=2) + "\n")


def write_weights(path: Path, model: nn.Module) -> None:
    """Writes the weights of a network alone, as safetensors; what is in two places of the network is there twice."""
    temporary = path.with_name(f".{path.name}.tmp")
    content: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        shared = any(_share(tensor, other) for other in content.values())
        content[name] = tensor.detach().clone() if shared else tensor.detach()
    save_file({name: tensor.cpu().contiguous() for name, tensor in content.items()}, temporary)
    temporary.replace(path)


def _share(one: Tensor, other: Tensor) -> bool:
    """True if the two lie in the same memory."""
    return one.numel() > 0 and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def find_model(path: Path) -> Path:
    """The weights of the model at `path`: a file of weights, a folder that has one, or a study with one retraining.

    Raises:
        InputError: there is nothing there, no model in it, or several.
    """
    if path.is_file():
        return path
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    if not path.is_dir():
        raise InputError(f"there is no model {path}; it is a folder with {WEIGHTS} and {DESCRIPTION}")
    if not (path / "study.json").exists():
        raise InputError(f"{path} is not a model (there is no {WEIGHTS} in it)")
    found = sorted(path.glob(f"retrain-*/{WEIGHTS}"))
    if not found:
        raise InputError(f"the study {path} has no trained model yet; `tunelab best {path} --retrain` makes one")
    if len(found) > 1:
        names = ", ".join(file.parent.name for file in found)
        raise InputError(f"the study {path} has {len(found)} models; give the folder of one of them: {names}")
    return found[0]


def open_model(path: Path, device: torch.device | str = "cpu") -> Model:
    """The network whose weights are in the file `path`, described by `config.json` beside it, on `device`.

    Raises:
        InputError: there are no such files, they are damaged or hold something else, or the weights do not fit the
            description; one line says which.
    """
    info = read_info(path.with_name(DESCRIPTION))
    if not path.is_file():
        raise InputError(f"{path} is not a model: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            network = _build(path, info, {name: _shape_and_type(file, name) for name in file.keys()})  # noqa: SIM118
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a model: it is no whole safetensors file ({_short(error)})") from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError(f"{path} is not a model: some of its weights are not finite numbers")
    # What is no weight of a network of the user's own, and is in no file, must stay what the factory made it.
    network.load_state_dict(state, assign=not isinstance(info.trial_config.arch, CustomSpec))
    whole: nn.Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(whole.requires_grad_(False).eval(), info, path)


def read_info(path: Path) -> ModelInfo:
    """The description of a model, without its weights.

    Raises:
        InputError: there is none, or it describes something else.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path.parent} is not a model (there is no {path.name} in it)")
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise InputError(f"{path} is not the description of a model: it has {size:,} bytes")
        plain = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not the description of a model ({_short(error)})") from error
    if not isinstance(plain, Mapping):
        raise InputError(f"{path} is not the description of a model (it holds {type(plain).__name__}, not names)")
    try:
        return from_json(ModelInfo, plain)
    except (InputError, RecursionError) as error:
        raise InputError(f"{path} is not the description of a model: {_short(error)}") from error


def _shape_and_type(file: Any, name: str) -> tuple[tuple[int, ...], str]:
    part = file.get_slice(name)
    return tuple(part.get_shape()), str(part.get_dtype())


def _build(path: Path, info: ModelInfo, found: _Header) -> nn.Module:
    """The network that is described, without memory for its weights, if the file `path` has weights as it needs them.

    Before a network is built, what it takes is counted and compared with what the file has: a small file cannot ask for
    a large network. One of the user's own is built whole, by code that the user has allowed.
    """
    arch, classes = info.trial_config.arch, len(info.classes)
    own = isinstance(arch, CustomSpec)
    stats = check(arch, image_size=info.image_size, channels=info.channels, classes=classes)
    numbers = sum(torch.Size(shape).numel() for shape, _ in found.values())
    if numbers < stats.params or (len(found) < stats.convs and not own):
        raise InputError(
            f"{path} does not fit {DESCRIPTION} beside it: the network has {stats.params:,} weights in {stats.convs:,} "
            f"convolutions, the file {numbers:,} numbers in {len(found):,} tensors"
        )
    with contextlib.nullcontext() if own else torch.device("meta"):
        network = build_network(arch, info.channels, classes, info.image_size)
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ found.keys()):
        lacks = f"lacks the weights {name!r}" if name in wanted else f"has weights {name[:80]!r} that it has no use for"
        raise InputError(f"{path} does not fit {DESCRIPTION} beside it: it {lacks}")
    for name, (shape, kind) in found.items():
        if (shape, _TYPES.get(kind)) != (tuple(wanted[name].shape), wanted[name].dtype):
            raise InputError(
                f"{path} does not fit {DESCRIPTION} beside it: {name!r} is {kind} {list(shape)}, "
                f"not {_name_of(wanted[name])} {list(wanted[name].shape)}"
            )
    return network


def _name_of(tensor: Tensor) -> str:
    """What safetensors calls the type of a network's tensor."""
    return next(name for name, kind in _TYPES.items() if kind is tensor.dtype)


def _short(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]} ..."
