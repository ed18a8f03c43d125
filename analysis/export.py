"""A trained model as a file that other programs run, compared with torch before it is written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunelab.config import to_json
from tunelab.data.augment import normalize, normalizer
from tunelab.data.raw import Pixels
from tunelab.errors import InputError, TunelabError
from tunelab.files import write_atomically
from tunelab.training.model_files import FromPixels, Model, ModelInfo, find_model, open_model

TOLERANCE = 1e-4
"""The largest difference of a score that is taken for rounding."""
BATCHES = (1, 2, 7, 64)
"""The batches of random images that are compared; none is as large as the one that the network is traced with."""
OPSET = 18
"""The version of ONNX's operators that torch's exporter is written for; onnxruntime knows it from 1.14 on."""
NEEDED = "onnx", "onnxruntime", "onnxscript"
_TRACED = 3  # images that the network is traced with: 1 would be taken for a constant


def export(model: str | Path, kind: str = "onnx", out: str | Path | None = None) -> dict[str, Any]:
    """Writes a model as an ONNX file and returns what was written and how well it agrees with torch.

    The file's input `pixels` is uint8 (N, C, H, W), its outputs `scores` and `probabilities` are float32 (N, classes).

    Args:
        model: the folder of a model, its file of weights, or a study that was retrained once.
        kind: the format; "onnx" is the only one.
        out: the file; by default the model's, with the ending `.onnx`.

    Raises:
        InputError: there is no such model, the format is unknown, a package is missing, or the file cannot be written.
        TunelabError: onnxruntime and torch disagree; no file is written then.
    """
    if kind != "onnx":
        raise InputError(f"--format {kind!r} is unknown; there is onnx")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs {' and '.join(missing)}; `python -m pip install {' '.join(missing)}` installs "
            f"{'it' if len(missing) == 1 else 'them'}"
        )
    opened = open_model(find_model(Path(model).expanduser()))
    file = opened.path.with_suffix(".onnx") if out is None else Path(out).expanduser()
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise InputError(f"--out {file} cannot be written: {'it is a folder' if file.is_dir() else 'no such folder'}")
    checks = [_random_images(opened.info, batch) for batch in BATCHES]
    wanted = [_scores(opened, images) for images in checks]  # before the network is made ready for tracing
    content = _to_onnx(opened)
    difference = float(np.max(list(map(_difference, _run(content, checks), wanted))))  # NaN stays NaN
    if not difference <= TOLERANCE:
        raise TunelabError(
            f"onnxruntime's scores differ from torch's by {difference:.2g}, more than {TOLERANCE:g}; "
            "nothing was written"
        )
    try:
        write_atomically(file, content)
    except OSError as error:
        raise InputError(f"--out {file} cannot be written: {error.strerror}") from error
    return {
        "file": str(file),
        "bytes": len(content),
        "format": kind,
        "opset": OPSET,
        "classes": len(opened.info.classes),
        "input": ["N", opened.info.channels, *opened.info.image_size],
        "checked_batches": list(BATCHES),
        "largest_difference": difference,
        "tolerance": TOLERANCE,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }


def describe(content: Mapping[str, Any]) -> str:
    """What was written, for people."""
    batches = ", ".join(map(str, content["checked_batches"]))
    size = " x ".join(map(str, content["input"]))
    return (
        f"{content['file']}: {content['bytes'] / 2**20:.2f} MiB, ONNX operators of version {content['opset']}; "
        f"input pixels uint8 {size}, outputs scores and probabilities of {content['classes']} classes\n"
        f"checked: the scores of onnxruntime {content['onnxruntime']} and torch differ by at most "
        f"{content['largest_difference']:.2g} on random images in batches of {batches} "
        f"({content['tolerance']:g} is allowed)"
    )


def metadata(info: ModelInfo) -> dict[str, str]:
    """What stands in the file beside the network: all texts, the first three of them JSON."""
    height, width = info.image_size
    preprocessing = {
        "colours": {1: "grey", 3: "RGB"}.get(info.channels, f"{info.channels} channels"),
        "height": height,
        "width": width,
        "resize": "stretched to height x width, bicubic with antialias (Pillow's BICUBIC), where the size differs",
        "input": "pixels, uint8 (N, C, H, W), 0 to 255; the network normalises them itself",
        "mean": list(info.mean),
        "std": list(info.std),
    }
    return {
        "classes": json.dumps(list(info.classes)),
        "preprocessing": json.dumps(preprocessing),
        "arch": json.dumps(to_json(info.trial_config.arch)),
        "data_fingerprint": info.data_fingerprint,
        "producer": f"tunelab {importlib.metadata.version('tunelab')}",
    }


def _random_images(info: ModelInfo, batch: int) -> Pixels:
    """Random images uint8 (B, H, W, C), the same ones each time."""
    return np.random.default_rng(batch).integers(0, 256, (batch, *info.image_size, info.channels), dtype=np.uint8)


def _scores(model: Model, images: Pixels) -> Pixels:
    """The scores of torch in float32, by the way that `tunelab predict` takes."""
    scale, shift = normalizer(model.info.mean, model.info.std, images.shape[2], torch.device("cpu"))
    with torch.inference_mode():
        scores: Pixels = model.network(normalize(torch.from_numpy(images), scale, shift, torch.float32)).numpy()
        return scores


def _to_onnx(model: Model) -> bytes:
    """The file's content. The network's weights are put into torch's usual order in memory for it."""
    whole = FromPixels(model.network.to(memory_format=torch.contiguous_format), model.info).eval()  # type: ignore[call-overload]
    example = torch.zeros((_TRACED, model.info.channels, *model.info.image_size), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter and of onnxscript, about their own insides
        program = torch.onnx.export(
            whole,
            (example,),
            input_names=["pixels"],
            output_names=["scores", "probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto: Any = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # where in this machine's files an operation comes from
    for name, text in metadata(model.info).items():
        proto.metadata_props.add(key=name, value=text)
    content: bytes = proto.SerializeToString()
    return content


def _run(content: bytes, batches: list[Pixels]) -> list[Any]:
    """The scores of onnxruntime on the processor for each batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about what it cannot optimise
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [session.run(["scores"], {"pixels": images.transpose(0, 3, 1, 2)})[0] for images in batches]


def _difference(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays; infinite where they are not of one shape, NaN where one is."""
    return float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
