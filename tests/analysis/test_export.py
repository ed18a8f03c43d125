"""ONNX files: onnxruntime makes of them what torch makes of the model, for every part that a network can have."""

from __future__ import annotations

import importlib.util
import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from tunelab.analysis import export as exporting
from tunelab.analysis.export import TOLERANCE, export
from tunelab.analysis.predict import predict

from tunelab.config import AnyArch, ArchSpec, BlockSpec, LeNetSpec, MLPSpec, StemSpec
from tunelab.errors import InputError, TunelabError
from tunelab.models import kernels
from tunelab.models.blocks import ACTIVATIONS, BLOCKS, NORMS
from tunelab.models.classic import ACTIVATIONS as CLASSIC_ACTIVATIONS
from tunelab.models.classic import POOLINGS
from tunelab.models.network import build_network
from tunelab.training.model_files import FromPixels, find_model, open_model

if TYPE_CHECKING:
    from tests.conftest import MakeModel


def of_all_kinds(norm: str, activation: str, branches: int = 1, pool: bool = True) -> ArchSpec:
    """Every kind of block; with one branch with and without a halving, so with and without a projection."""
    blocks = tuple(BlockSpec(kind, 16, stride) for kind in BLOCKS for stride in ((2, 1) if branches == 1 else (2,)))
    plain: Any = {"norm": norm, "activation": activation, "bias": norm == "none"}
    return ArchSpec(StemSpec(8, 5, pool), (blocks,) * branches, dropout=0.3, **plain)


PARTS = [
    *(
        of_all_kinds(norm, activation, branches, pool=branches == 1)
        for norm, activation, branches in zip(NORMS, ACTIVATIONS, (1, 2, 1, 1), strict=True)
    ),
    *(
        LeNetSpec(activation, pooling)
        for activation, pooling in zip(CLASSIC_ACTIVATIONS, [*POOLINGS, *POOLINGS], strict=False)
    ),
    MLPSpec((9, 7), dropout=0.3),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", PARTS, ids=lambda arch: f"{getattr(arch, 'norm', type(arch).__name__)}-{arch.activation}"
)
def test_every_part_of_a_network_can_be_exported(arch: AnyArch, make_model: MakeModel) -> None:
    size = (28, 28) if isinstance(arch, LeNetSpec) else (2 ** (len(BLOCKS) + 1) + 1, 13)  # each kind halves it once
    folder = make_model(arch, channels=3, image_size=size)
    content = export(folder)
    assert 0 < content["largest_difference"] <= TOLERANCE
    file = folder / "model.onnx"
    assert (content["file"], content["bytes"]) == (str(file), file.stat().st_size)
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert {opset.domain for opset in proto.opset_import} == {""}, "no operators but ONNX's own"
    images = np.random.default_rng(3).integers(0, 256, (5, 3, *size), dtype=np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    scores, probabilities = session.run(None, {"pixels": images})
    model = open_model(find_model(folder))
    with torch.inference_mode():
        wanted, shares = FromPixels(model.network, model.info)(torch.from_numpy(images))
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(probabilities, shares.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("norm", "activation"), list(product(NORMS, ACTIVATIONS)))
def test_no_kernel_of_ours_is_in_what_is_traced(norm: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_given: Any) -> None:
        raise AssertionError("a kernel was run on what is no numbers")

    monkeypatch.setattr(kernels, "run", never)
    arch = ArchSpec(StemSpec(8, pool=True), ((BlockSpec("basic", 8, 2, 1),),), norm, activation)  # type: ignore[arg-type]
    network = build_network(arch, 3, 4, (16, 16)).eval()
    images = torch.zeros(3, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        traced = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    called = {str(node.target).partition(".")[0] for node in traced.graph.nodes if node.op == "call_function"}
    assert called <= {"aten"}


def test_the_file_gives_the_classes_of_torch_on_real_images(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(classes=[f"die {digit}" for digit in range(10)])
    digits = np.rint(load_digits().images[:300] * (255 / 16)).astype(np.uint8)
    out = tmp_path / "digits.onnx"
    content = export(folder / "model.safetensors", out=out)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    classes = json.loads(described["classes"])
    (probabilities,) = session.run(["probabilities"], {"pixels": digits[:, None]})
    found = predict(folder, digits)
    assert [classes[place] for place in probabilities.argmax(1)] == [row["class"] for row in found]
    np.testing.assert_allclose(probabilities.max(1), [row["probability"] for row in found], atol=1e-5)
    preprocessing = json.loads(described["preprocessing"])
    assert (preprocessing["colours"], preprocessing["height"], preprocessing["mean"]) == ("grey", 8, [0.3])
    assert described["data_fingerprint"] == "0123456789abcdef"
    assert [(one.name, one.type) for one in session.get_inputs()] == [("pixels", "tensor(uint8)")]
    assert str(tmp_path) not in out.read_bytes().decode("latin1")
    assert "/tunelab/" not in out.read_bytes().decode("latin1"), "no paths of this machine"
    said = exporting.describe(content)
    assert "uint8 N x 1 x 8 x 8" in said
    assert "differ by at most" in said


def test_a_file_that_disagrees_is_not_written(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    (folder / "model.onnx").write_text("of an earlier export")
    run = exporting._run
    for off in (2e-4, float("nan")):
        monkeypatch.setattr(exporting, "_run", lambda *given, off=off: [found + off for found in run(*given)])
        with pytest.raises(
            TunelabError, match=r"differ from torch's by .*more than 0\.0001; nothing was written"
        ) as error:
            export(folder)
        assert error.value.exit_status == 1
    assert (folder / "model.onnx").read_text() == "of an earlier export"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.onnx", "model.safetensors"]


@pytest.mark.parametrize("gone", [["onnxruntime"], ["onnx", "onnxscript"]])
def test_packages_that_are_missing_are_named(
    gone: list[str], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    with pytest.raises(InputError) as raised:
        export(make_model())
    assert " and ".join(gone) in str(raised.value)
    assert f"`python -m pip install {' '.join(gone)}` installs" in str(raised.value)


def test_what_cannot_be_exported_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    with pytest.raises(InputError, match="--format 'pickle' is unknown; there is onnx"):
        export(folder, "pickle")
    with pytest.raises(InputError, match="cannot be written: it is a folder"):
        export(folder, out=tmp_path)
    with pytest.raises(InputError, match="cannot be written: no such folder"):
        export(folder, out=tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(InputError, match="there is no model"):
        export(tmp_path / "nowhere")
