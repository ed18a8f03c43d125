"""Images per second of `tunelab.training.loop.fit` and of a plain PyTorch loop, side by side.

The plain loop is what a user writes: torchvision transforms on PIL images (crop, flip, to tensor, normalise) in a
DataLoader, float32 in the default memory order. Both train the same network (a stem and 10 residual blocks, width 16 to
64) on the same images, held in memory, with the same batch size, optimizer and schedule, on the same processors: each
measurement is a fresh process that may run on as many processors as it has threads. The DataLoader is measured without
and with a worker process, and the faster is compared. Training alone is timed, from the second epoch on, validation and
starting up left out. The contenders take turns, so that a change of the machine meets them all; on a machine that is
busy with other work the figures for two threads mean nothing.

    python benchmarks/training_speed.py --threads 1 --threads 2
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

CONTENDERS = {
    "plain": "plain loop, DataLoader in the process",
    "plain-worker": "plain loop, DataLoader with 1 worker",
    "fit-float32": "tunelab fit, float32",
    "fit": "tunelab fit",
}
PEERS = ("plain", "plain-worker")


@click.command(help=__doc__)
@click.option(
    "--threads", type=int, multiple=True, default=(1, 2), show_default=True, help="Measure with so many threads."
)
@click.option("--data", default=None, help="folder:PATH or npz:PATH; left out, random images of 32x32.")
@click.option("--images", default=1024, show_default=True, help="Training images per epoch.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--epochs", default=3, show_default=True, help="Per measurement; the first is not timed.")
@click.option("--repeats", default=3, show_default=True, help="Measurements of each contender.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--contender", type=click.Choice(list(CONTENDERS)), default=None, hidden=True)
def main(
    threads: tuple[int, ...],
    data: str | None,
    images: int,
    batch_size: int,
    epochs: int,
    repeats: int,
    as_json: bool,
    contender: str | None,
) -> None:
    """Measure, or, with the hidden `--contender`, be one measurement."""
    if contender is not None:
        assert data is not None
        click.echo(json.dumps(measure(contender, threads[0], data, images, batch_size, epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TUNELAB_CACHE", folder)
        if data is None:
            data = f"npz:{random_images(Path(folder) / 'random.npz', images)}"
        options = [f"--data={data}", f"--images={images}", f"--batch-size={batch_size}", f"--epochs={epochs}"]
        figures = [compare(count, options, repeats) for count in threads]
    click.echo(json.dumps(figures, indent=2) if as_json else "\n".join(table(figure) for figure in figures))


def random_images(path: Path, train: int) -> Path:
    """Write `train` random images of 10 classes, and a tenth as many for validation and test."""
    import numpy as np

    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("val", max(100, train // 10)), ("test", max(100, train // 10))):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return path


def compare(threads: int, options: list[str], repeats: int) -> dict[str, Any]:
    """The images per second of every contender with `threads` threads, and how much faster fit is than the peers."""
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, found in speeds.items():
            command = [sys.executable, __file__, f"--contender={name}", f"--threads={threads}", *options]
            found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            click.echo(f"{threads} thread(s), {CONTENDERS[name]}: {found[-1]:.0f} images/s", err=True)
    median = {name: statistics.median(found) for name, found in speeds.items()}
    peer = max(PEERS, key=lambda name: median[name])
    return {"threads": threads, "images_per_second": speeds, "peer": peer, "ratio": median["fit"] / median[peer]}


def table(figure: dict[str, Any]) -> str:
    """One number of threads as a table."""
    lines = [f"{figure['threads']} thread(s)                            images/s   (lowest to highest)   to the peer"]
    speeds = figure["images_per_second"]
    peer = statistics.median(speeds[figure["peer"]])
    for name, found in speeds.items():
        median = statistics.median(found)
        mark = " (peer)" if name == figure["peer"] else ""
        lines.append(
            f"  {CONTENDERS[name]:<38} {median:8.0f}   ({min(found):.0f} to {max(found):.0f})".ljust(72)
            + f"{median / peer:.2f}{mark}"
        )
    return "\n".join(lines) + "\n"


def measure(contender: str, threads: int, data: str, images: int, batch_size: int, epochs: int) -> float:
    """The images per second of one contender, in this process."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        raise click.ClickException(f"{threads} threads need as many processors; this process may use {len(allowed)}")
    os.sched_setaffinity(0, allowed[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from tunelab.config import (
        ArchSpec,
        AugmentConfig,
        BlockSpec,
        DataConfig,
        StemSpec,
        TrainConfig,
        TrialConfig,
    )
    from tunelab.training.loop import fit

    torch.set_num_threads(threads)
    blocks = tuple(BlockSpec("basic", 16 * 2 ** (i // 4), 2 if i in (4, 8) else 1) for i in range(10))
    config = TrialConfig(
        arch=ArchSpec(StemSpec(16), (blocks,)),
        train=TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            augment=AugmentConfig(crop=0.125, flip=True),
            precision="float32" if contender == "fit-float32" else "auto",
        ),
        data=DataConfig(name=data, limit_train=images),
    )
    if contender not in PEERS:
        history = fit(config, device="cpu", threads=threads)
        return statistics.median(metrics.images_per_second for metrics in history[1:])
    return plain(config, workers=int(contender == "plain-worker"))


def plain(config: Any, workers: int) -> float:
    """The images per second of the loop that a user writes, after the first epoch."""
    import torch
    from PIL import Image
    from torch import nn

    from tunelab.data.batches import load_split
    from tunelab.data.cache import prepare
    from tunelab.data.vision import import_torchvision
    from tunelab.models.network import build_network

    import_torchvision()
    from torchvision import transforms

    info = prepare(config.data)
    split = load_split(config.data, "train", torch.device("cpu"))
    pixels, labels = split.images.permute(0, 2, 3, 1).numpy().copy(), split.labels.tolist()
    height, width = info.image_size
    transform = transforms.Compose(
        [
            transforms.RandomCrop((height, width), padding=round(0.125 * height)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(info.mean, info.std),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(pixels[index].squeeze())), labels[index]

    loader = torch.utils.data.DataLoader(
        Images(),
        config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    model = build_network(config.arch, info.channels, len(info.classes), info.image_size)
    model = model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.train.epochs * len(loader))
    criterion = nn.CrossEntropyLoss()
    speeds = []
    for _ in range(config.train.epochs):
        begin, seen, total = time.perf_counter(), 0, 0.0
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            seen, total = seen + len(targets), total + loss.item()
        speeds.append(seen / (time.perf_counter() - begin))
    return statistics.median(speeds[1:])


if __name__ == "__main__":
    main()
