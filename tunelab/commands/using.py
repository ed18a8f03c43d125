"""The commands that use a trained model: predict, export."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import click

from tunelab.commands.studies import here_or_inside
from tunelab.errors import InputError
from tunelab.shared_options import FOLDER, JSON, RUNS_DIR, shared

_MODEL = click.argument("model", type=FOLDER)


@click.command()
@_MODEL
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="Tell so many classes of each image."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1, max=65_536),
    help="Images that are computed at once  [default: up to 1000, by their size]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="File for the answers  [default: standard output]")
@click.option("--skip-unreadable", is_flag=True, help="Go on when a file is not an image.")
@shared(RUNS_DIR, JSON)
def predict(
    model: Path,
    images: tuple[Path, ...],
    runs_dir: Path,
    top_k: int,
    batch_size: int | None,
    device: str,
    out: Path | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Say which class MODEL takes IMAGES for: files, and folders with all folders in them.

    MODEL is the folder of a retraining, or a study that was retrained once, here or inside --runs-dir. Images of
    another size are stretched to the model's, and colours turned to grey or grey to colours, as for the training. The
    answer is CSV with the columns file, class, probability, and with --top-k class_2, probability_2 and so on; with
    --json a list of the same.

    \b
    tunelab predict runs/arch-20261121-2330 photo.jpg
    tunelab predict retrain-1a2b3c4d photos --top-k 3 --out answers.csv
    """
    with _written_to(out) as stream:
        module = importlib.import_module("tunelab.analysis.predict")
        skipped: list[str] = []
        with _bar(out) as progress:
            rows = module.predictions(
                here_or_inside(model, runs_dir),
                images,
                top_k=top_k,
                batch_size=batch_size,
                device=device,
                skip_unreadable=skip_unreadable,
                skipped=skipped,
                progress=progress,
            )
            (_write_json if as_json else _write_csv)(_readable(rows), stream)
    if skipped:
        files = "file" if len(skipped) == 1 else "files"
        click.echo(f"note: {len(skipped)} unreadable {files} skipped, the first is {skipped[0]}", err=True)


@click.command()
@_MODEL
@click.option("--format", "kind", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write  [default: model.onnx beside MODEL's]")
@shared(RUNS_DIR, JSON)
def export(model: Path, kind: str, out: Path | None, runs_dir: Path, as_json: bool) -> None:
    """Write MODEL as an ONNX file that other programs run, and check it against torch.

    MODEL is as for `tunelab predict`. The file's input `pixels` takes images uint8 (N, C, H, W), any number of them, of
    the model's size, with values from 0 to 255; the network normalises them itself. Its outputs are `scores` and
    `probabilities` (N, classes). Its metadata has `classes` and `preprocessing`, both JSON. Nothing is written unless
    onnxruntime and torch agree within 1e-4 on random images.

    \b
    tunelab export runs/arch-20261121-2330 --out digits.onnx
    """
    module = importlib.import_module("tunelab.analysis.export")
    content = module.export(here_or_inside(model, runs_dir), kind, out)
    click.echo(json.dumps(content) if as_json else module.describe(content))


@contextlib.contextmanager
def _written_to(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or the file `out`, which is there when all of it is written and not before."""
    if out is None:
        yield sys.stdout
        return
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; it must be a file")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        stream = temporary.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from error
    try:
        with stream:
            yield stream
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _bar(out: Path | None) -> Iterator[Any]:
    """A bar while images are computed, where the answers do not go to the same terminal."""
    if out is None and sys.stdout.isatty():
        yield None
        return
    from tunelab.tuning.progress import ImagesBar

    with ImagesBar(sys.stderr, "classifying images") as bar:
        yield bar


def _readable(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with names of files that any text can hold: bytes that are no text are written as \\xNN."""
    for row in rows:
        name = os.fsencode(row["file"]).decode("utf-8", "backslashreplace")
        yield {**row, "file": name}


def _write_csv(rows: Iterator[dict[str, Any]], stream: TextIO) -> None:
    first = next(rows, None)
    if first is None:
        return
    writer = csv.DictWriter(stream, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)
    stream.flush()


def _write_json(rows: Iterator[dict[str, Any]], stream: TextIO) -> None:
    """A list with a line for each row."""
    begin = "["
    for row in rows:
        stream.write(f"{begin}\n{json.dumps(row)}")
        begin = ","
    stream.write("[]\n" if begin == "[" else "\n]\n")
    stream.flush()
