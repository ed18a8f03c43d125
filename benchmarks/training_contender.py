"""One side of benchmarks/training_speed.py, in a process of its own: trains what it is asked to, and says how fast.

    python benchmarks/training_contender.py SIDE THREADS

SIDE is `plain` or `tunelab`. Each line of standard input is a request in JSON, each line of standard output its answer.
The process may run on as many processors as it has threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serves standard input to its end."""
    side, threads = sys.argv[1], int(sys.argv[2])
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        sys.exit(f"{threads} threads need as many processors; this process may use {len(allowed)}")
    os.sched_setaffinity(0, allowed[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from tunelab.config import TrialConfig, from_json

    torch.set_num_threads(threads)
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.1)  # torch imports half of itself for its first optimizer
    for line in sys.stdin:
        request = json.loads(line)
        config = from_json(TrialConfig, request.pop("config"))
        answer = plain(config, **request) if side == "plain" else tunelab(config, threads)
        print(json.dumps(answer), flush=True)


def tunelab(config: Any, threads: int) -> dict[str, Any]:
    """Trains `config` with `tunelab.training.fitting.fit`.

    The images per second of each epoch in training alone, the seconds from opened images to the last epoch's end,
    validation included where the config holds images out, the seconds that opening took, and the last accuracy.
    """
    import torch

    from tunelab.data.batches import load_data
    from tunelab.training.fitting import fit

    load_data.cache_clear()
    begin = time.perf_counter()
    load_data(config.data, torch.device("cpu"))
    opened = time.perf_counter()
    history = fit(config, device="cpu", threads=threads)
    return {
        "images_per_second": [metrics.images_per_second for metrics in history],
        "seconds": time.perf_counter() - opened,
        "opening": opened - begin,
        "val_accuracy": history[-1].val_accuracy,
    }


def plain(config: Any, workers: int, validate: bool) -> dict[str, Any]:
    """Trains `config` with the loop that a user writes, on the images that tunelab opened; the figures as above."""
    import torch
    from torch import nn

    from tunelab.data.batches import load_split
    from tunelab.data.cache import prepare
    from tunelab.models.network import build_network

    recipe = config.train
    assert (recipe.optimizer, recipe.schedule.name, recipe.label_smoothing) == ("sgd", "cosine", 0.0)
    info = prepare(config.data)
    images = pictures(load_split(config.data, "train", torch.device("cpu")), transforms_of(config, info, training=True))
    held_out = None
    if validate:
        split = load_split(config.data, "val", torch.device("cpu"))
        held_out = pictures(split, transforms_of(config, info, training=False))

    begin = time.perf_counter()
    torch.manual_seed(config.seed)
    model = build_network(config.arch, info.channels, len(info.classes), info.image_size)
    model = model.to(memory_format=torch.contiguous_format)
    loader = torch.utils.data.DataLoader(
        images, recipe.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(loader))
    criterion = nn.CrossEntropyLoss()
    speeds = []
    for _ in range(recipe.epochs):
        start, seen, total = time.perf_counter(), 0, 0.0
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            seen, total = seen + len(targets), total + loss.item()
        speeds.append(seen / (time.perf_counter() - start))
    seconds = time.perf_counter() - begin
    accuracy = None if held_out is None else accuracy_of(model, held_out, recipe.batch_size)
    return {"images_per_second": speeds, "seconds": seconds, "opening": None, "val_accuracy": accuracy}


def accuracy_of(model: Any, images: Any, batch_size: int) -> float:
    """The share of the images that the network gets right."""
    import torch

    model.eval()
    right = 0
    with torch.no_grad():
        for inputs, targets in torch.utils.data.DataLoader(images, batch_size):
            right += int((model(inputs).argmax(1) == targets).sum())
    return right / len(images)


def transforms_of(config: Any, info: Any, *, training: bool) -> Any:
    """The transforms that torchvision applies to a PIL image, as in a tutorial."""
    from tunelab.data.vision import import_torchvision

    import_torchvision()
    from torchvision import transforms

    augment = config.train.augment
    assert (augment.cutout, augment.mixup) == (0.0, 0.0)
    steps: list[Any] = [transforms.ToTensor(), transforms.Normalize(info.mean, info.std)]
    if training and augment.flip:
        steps.insert(0, transforms.RandomHorizontalFlip())
    if training and augment.crop:
        steps.insert(0, transforms.RandomCrop(info.image_size, padding=round(augment.crop * info.image_size[0])))
    return transforms.Compose(steps)


def pictures(split: Any, transform: Any) -> Any:
    """A data set of PIL images in memory, which `transform` turns into tensors."""
    import torch
    from PIL import Image

    pixels, labels = split.images.permute(0, 2, 3, 1).numpy().copy(), split.labels.tolist()

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(pixels[index].squeeze())), labels[index]

    return Pictures()


if __name__ == "__main__":
    main()
