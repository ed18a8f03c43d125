"""Models on the disk: what was written is what is read, and a file from anywhere is data or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunelab.config import AnyArch, ArchSpec, BlockSpec, DataConfig, LeNetSpec, MLPSpec, StemSpec, TrialConfig, to_json
from tunelab.data.cache import prepare
from tunelab.errors import InputError
from tunelab.models.blocks import BLOCKS, NORMS
from tunelab.models.network import build_network
from tunelab.training.model_files import FromPixels, find_model, open_model, write_model

if TYPE_CHECKING:
    from tests.conftest import MakeModel, MakeStudy

BLOCKS_OF_ALL_KINDS = tuple(BlockSpec(kind, 16) for kind in BLOCKS)


def refused(work: Callable[[], Any], *words: str) -> None:
    """It is an InputError of one line that is not endless, with these words."""
    with pytest.raises(InputError) as raised:
        work()
    said = str(raised.value)
    assert len(said.splitlines()) == 1
    assert len(said) < 900, said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        *((ArchSpec(StemSpec(8), (BLOCKS_OF_ALL_KINDS,), norm=norm), (8, 8)) for norm in NORMS),
        (ArchSpec(StemSpec(16), (BLOCKS_OF_ALL_KINDS, ())), (7, 9)),
        (LeNetSpec(), (28, 28)),
        (MLPSpec((9, 7), dropout=0.5), (5, 7)),
    ],
)
def test_what_is_opened_gives_the_scores_of_what_was_written(
    arch: AnyArch, size: tuple[int, int], make_model: MakeModel
) -> None:
    folder = make_model(arch, channels=3, image_size=size)
    written = build_network(arch, 3, 3, size)
    written.load_state_dict(load_file(folder / "model.safetensors"))
    model = open_model(find_model(folder))
    assert model.info.classes == ("cat", "dog", "ox, or cow")
    assert (model.info.image_size, model.info.channels, model.info.data_fingerprint) == (size, 3, "0123456789abcdef")
    assert not model.network.training
    assert not any(values.requires_grad for values in model.network.parameters())
    images = torch.rand(2, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert model.network(images).equal(written.eval()(images))


def test_the_normalisation_of_pixels_is_that_of_the_data(make_model: MakeModel) -> None:
    model = open_model(find_model(make_model(channels=3)))
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.info.mean, model.info.std))
    with torch.inference_mode():
        scores, probabilities = FromPixels(model.network, model.info)(pixels)
        torch.testing.assert_close(scores, model.network((pixels / 255 - mean) / std), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(probabilities, scores.softmax(1))


def test_a_model_of_pixels_as_they_are_reads_pixels(tmp_path: Path) -> None:
    config = TrialConfig(MLPSpec((5,)), data=DataConfig(normalise=False))
    network = build_network(config.arch, 1, 10, (8, 8))
    write_model(tmp_path, network, config, prepare(config.data))
    model = open_model(find_model(tmp_path))
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        scores, _ = FromPixels(model.network, model.info)(pixels)
        assert scores.equal(network(pixels.float()))


def test_a_model_is_found_by_its_folder_its_file_or_its_study(make_model: MakeModel, make_study: MakeStudy) -> None:
    folder = make_model()
    assert find_model(folder) == find_model(folder / "model.safetensors") == folder / "model.safetensors"
    study = make_study()
    refused(lambda: find_model(study.path), "has no trained model yet", f"tunelab best {study.path} --retrain")
    one = make_model(folder=study.path / "retrain-one")
    assert find_model(study.path) == one / "model.safetensors"
    make_model(folder=study.path / "retrain-two")
    refused(lambda: find_model(study.path), "2 models", "retrain-one, retrain-two")
    refused(lambda: find_model(study.path / "trials"), "there is no model", "model.safetensors and config.json")
    (study.path / "trials").mkdir()
    refused(lambda: find_model(study.path / "trials"), "is not a model", "no model.safetensors")


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path(self.path).touch, ()


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_with_another_name_is_not_run(kind: str, make_model: MakeModel, tmp_path: Path) -> None:
    folder, sprung = make_model(), tmp_path / "sprung"
    trap = {"stem.0.weight": Trap(str(sprung))}
    if kind == "pickle":
        (folder / "model.safetensors").write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, folder / "model.safetensors")
    refused(lambda: open_model(folder / "model.safetensors"), "model.safetensors", "no whole safetensors file")
    assert not sprung.exists()
    pickle.loads((folder / "model.safetensors").read_bytes()) if kind == "pickle" else None  # noqa: S301
    assert sprung.exists() == (kind == "pickle"), "the trap works"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        header(b"not JSON at all"),
        header(b"[" * 50_000),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),  # without its data
        header(b'{"a": {"dtype": "F32", "shape": [9999999999, 9999999999], "data_offsets": [0, 4]}}') + bytes(4),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}') + bytes(4),
    ],
)
def test_weights_that_are_no_whole_file_are_refused(content: bytes, make_model: MakeModel) -> None:
    path = make_model() / "model.safetensors"
    path.write_bytes(content)
    refused(lambda: open_model(path), str(path), "is not a model")


def test_weights_that_were_cut_off_are_refused(make_model: MakeModel) -> None:
    path = make_model() / "model.safetensors"
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100):
        path.write_bytes(whole[:length])
        refused(lambda: open_model(path), str(path), "is not a model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("stem.1.running_mean"), ("lacks the weights 'stem.1.running_mean'",)),
        (lambda state: state.update(more=torch.zeros(3)), ("'more'", "no use for")),
        (lambda state: state.update({"stem.0.weight": torch.zeros(4, 1, 5, 5)}), ("F32 [4, 1, 5, 5]", "[4, 1, 3, 3]")),
        (lambda state: state.update({"stem.0.weight": state["stem.0.weight"].half()}), ("F16", "not F32")),
        (lambda state: state["stem.0.weight"].fill_(float("nan")), ("not finite",)),
        (lambda state: state.clear(), ("0 numbers in 0 tensors",)),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], Any], words: tuple[str, ...], make_model: MakeModel
) -> None:
    path = make_model() / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    refused(lambda: open_model(path), str(path), *words)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[1, 2]", "list"),
        (b"{}", "trial_config"),
        (b"[" * 100_000, "is not the description of a model"),
        (b" " * (4 * 2**20 + 1), "4,194,305 bytes"),
        (b'{"model_type": "bert", "architectures": ["BertModel"]}', "trial_config"),
        (b"1" * 5000, "is not the description of a model"),
    ],
)
def test_a_description_of_something_else_is_refused(content: bytes, said: str, make_model: MakeModel) -> None:
    folder = make_model()
    (folder / "config.json").write_bytes(content)
    refused(lambda: open_model(folder / "model.safetensors"), str(folder / "config.json"), said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trial_config": {"arch": {"family": "os.system", "args": ["true"]}}}, "trial_config"),
        ({"trial_config": {"arch": "tunelab.models.network:Network"}}, "trial_config"),
        (
            {"trial_config": {"arch": {"stem": {}, "branches": [[{"kind": "transformer", "width": 8}]]}}},
            "'transformer'",
        ),
        ({"classes": ["one"]}, "classes"),
        ({"classes": [1, 2, 3]}, "classes"),
        ({"classes": ["x" * 1_000_000, 2]}, "classes"),
        ({"channels": 10**9}, "channels"),
        ({"channels": 3}, "3 numbers each"),
        ({"image_size": [8]}, "image_size"),
        ({"image_size": [10**6, 10**6]}, "image_size"),
        ({"image_size": "8x8"}, "image_size"),
        ({"mean": [0.1, 0.2]}, "1 numbers each"),
        ({"mean": [float("nan")]}, "mean"),
        ({"std": [0.0]}, "std"),
        ({"classes": [str(number) for number in range(50_000)]}, "weights in"),
    ],
)
def test_a_wrong_description_is_refused(changes: dict[str, Any], said: str, make_model: MakeModel) -> None:
    folder = make_model()
    change_config(folder, **changes)
    refused(lambda: open_model(folder / "model.safetensors"), said)


def test_a_small_file_cannot_ask_for_a_large_network(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    plain = json.loads((folder / "config.json").read_text())
    built: list[AnyArch] = []
    monkeypatch.setattr("tunelab.training.model_files.build_network", lambda arch, *_more: built.append(arch))
    for block, count in ((BlockSpec("basic", 8192, 1, 5), 300), (BlockSpec("basic", 1, 1, 1), 10_000)):
        arch = ArchSpec(StemSpec(8192 if count == 300 else 1), ((block,) * count,))
        change_config(folder, trial_config={**plain["trial_config"], "arch": to_json(arch)})
        began = time.monotonic()
        refused(lambda: open_model(folder / "model.safetensors"), "does not fit config.json", "convolutions")
        assert time.monotonic() - began < 30
    assert built == []


def test_what_is_no_file_is_refused_and_not_waited_for(make_model: MakeModel) -> None:
    folder = make_model()
    (folder / "config.json").unlink()
    refused(lambda: open_model(folder / "model.safetensors"), str(folder), "no config.json")
    os.mkfifo(folder / "config.json")
    refused(lambda: open_model(folder / "model.safetensors"), str(folder), "no config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(lambda: open_model(folder / "model.safetensors"), "config.json")
    other = make_model(folder=folder / "other")
    (other / "model.safetensors").unlink()
    os.mkfifo(other / "model.safetensors")
    refused(lambda: open_model(find_model(other)), "is not a model")


def test_the_data_that_a_description_names_is_never_looked_for(make_model: MakeModel) -> None:
    folder = make_model()
    assert json.loads((folder / "config.json").read_text())["trial_config"]["data"]["name"] == "folder:/nowhere/at/all"
    assert open_model(find_model(folder)).info.trial_config.data.name == "folder:/nowhere/at/all"
