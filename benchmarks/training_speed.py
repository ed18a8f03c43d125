"""How fast does tunelab train, beside a plain PyTorch loop? The same networks, data, recipe, processors.

The plain loop is what a user writes: torchvision transforms on PIL images in a DataLoader, float32 in the default
memory order. The DataLoader runs without and with a worker process, and the faster of the two in the first round is the
peer. tunelab trains as a search does (precision "auto": bfloat16 where the processor computes in it) and, as a row of
its own, in float32.

The networks: of 200 random draws of the space `arch` that fit images of 32x32 pixels, 10 classes and the limits of a
search on a processor, those at 10% (small), 50% (median) and 90% (large) of the multiply-adds, always the same ones;
the plain ResNet18 that is trial 0 of such a search; and LeNet-5 (ReLU, maxima) on MNIST without augmentation. The first
four have batches of 128 images with random crops and mirroring, LeNet-5 batches of 64; all have SGD with Nesterov's
momentum and a cosine. Images are random unless --data names real ones.

Each side is a process that may run on as many processors as it has threads. The contenders take turns, so that a change
of the machine meets them all. Training alone is timed, from the second epoch on; starting up and validation are left
out. "The LeNet task" is timed as a whole: 60,000 images, 5 epochs, from opened images to the end. On a machine that is
busy with other work the figures mean little.

    python benchmarks/training_speed.py --mnist FOLDER
    python benchmarks/training_speed.py --accuracy --mnist FOLDER --data folder:PATH

With --accuracy nothing is timed: plain loop and tunelab train real images with several seeds each, and the table says
what their validation accuracies are and whether they differ beyond the noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from scipy import stats
from training_networks import Network, data_of, images_at_hand, lengthened, pick_networks

from tunelab.config import DataConfig, TrialConfig, to_json

SIDE = Path(__file__).with_name("training_contender.py")
CONTENDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("plain loop, no worker", "plain", {"workers": 0, "validate": False}),
    "plain-worker": ("plain loop, 1 worker", "plain", {"workers": 1, "validate": False}),
    "fit-float32": ("tunelab, float32", "tunelab", {}),
    "fit": ("tunelab", "tunelab", {}),
}
"""The words for each, its side, and what the side is asked for beside the configuration."""
PEERS = ("plain", "plain-worker")
IMAGES = {"small": 1024, "median": 384, "large": 384, "resnet18": 384, "lenet": 2560}
"""Training images per epoch; all measurements together take under ten minutes on two processors."""
ACCURACY = {"small": (4000, 8), "median": (4000, 8), "large": (4000, 8), "resnet18": (4000, 8), "lenet": (12_000, 5)}
"""Images and epochs of the trainings whose accuracies are compared."""
TASK_EPOCHS = 5


@contextlib.contextmanager
def started(threads: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both sides, as processes that wait for requests."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {
        side: subprocess.Popen([sys.executable, str(SIDE), side, str(threads)], **pipes)
        for side in ("plain", "tunelab")
    }
    try:
        yield sides
    finally:
        for process in sides.values():
            process.stdin.close()
        for process in sides.values():
            process.wait()


def ask(sides: Mapping[str, subprocess.Popen[str]], name: str, config: TrialConfig, **more: Any) -> dict[str, Any]:
    """The answer of a contender to a configuration."""
    _, side, request = CONTENDERS[name]
    precision = "float32" if name == "fit-float32" else config.train.precision
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    process = sides[side]
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps({"config": to_json(config), **request, **more}) + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise click.ClickException(f"{CONTENDERS[name][0]} has ended; its error is above")
    return json.loads(answer)


def measure(
    sides: Mapping[str, subprocess.Popen[str]], config: TrialConfig, repeats: int, label: str
) -> dict[str, list[float]]:
    """Images per second of each contender in each round; the slower of the two loaders runs in the first alone."""
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(repeats):
        slower = min(PEERS, key=lambda name: speeds[name][0]) if number else ""
        for name in [name for name in CONTENDERS if name != slower]:
            speeds[name].append(statistics.median(ask(sides, name, config)["images_per_second"][1:]))
            click.echo(f"{label}, {CONTENDERS[name][0]}: {speeds[name][-1]:.0f} images/s", err=True)
    return speeds


def ratios(speeds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The peer, and how many times as fast tunelab is: the median, lowest and highest of the rounds."""
    peer = max(PEERS, key=lambda name: (len(speeds[name]), speeds[name][0]))
    found: dict[str, Any] = {"peer": peer}
    for name in ("fit", "fit-float32"):
        rounds = [mine / theirs for mine, theirs in zip(speeds[name], speeds[peer], strict=True)]
        found[name] = {"median": statistics.median(rounds), "low": min(rounds), "high": max(rounds)}
    return found


def whole_task(
    sides: Mapping[str, subprocess.Popen[str]], config: TrialConfig, peer: str, repeats: int, label: str
) -> dict[str, Any]:
    """Seconds of the LeNet task with the faster loader and with tunelab; `opening`: what opening its data took that."""
    seconds: dict[str, list[float]] = {peer: [], "fit": []}
    opening = []
    for _ in range(repeats):
        for name, found in seconds.items():
            answer = ask(sides, name, config)
            found.append(answer["seconds"])
            opening += [] if answer["opening"] is None else [answer["opening"]]
            click.echo(f"{label}, the whole LeNet task, {CONTENDERS[name][0]}: {found[-1]:.1f} s", err=True)
    return {"epochs": config.train.epochs, "seconds": seconds, "opening": opening}


def compare(plain: Sequence[float], fit: Sequence[float]) -> dict[str, Any]:
    """The means and standard deviations, the difference with its 95% interval (Welch's), and whether 0 lies outside."""
    difference = statistics.mean(fit) - statistics.mean(plain)
    spread = [statistics.stdev(found) for found in (plain, fit)]
    low = high = difference
    if any(spread):
        interval = stats.ttest_ind(fit, plain, equal_var=False).confidence_interval(0.95)
        low, high = float(interval.low), float(interval.high)
    return {
        "plain": {"accuracies": list(plain), "mean": statistics.mean(plain), "sd": spread[0]},
        "fit": {"accuracies": list(fit), "mean": statistics.mean(fit), "sd": spread[1]},
        "difference": {"mean": difference, "low": low, "high": high},
        "differ": not low <= 0 <= high,
    }


def speed_table(threads: int, networks: Mapping[str, Network], found: Mapping[str, Any]) -> str:
    """The figures of one number of threads."""
    lines = [f"{threads} thread(s): images per second in training, median (range), and times the faster plain loop"]
    for name, figure in found["networks"].items():
        network = networks[name]
        lines.append(f"  {name}: {network.mflops:.2g} million multiply-adds, {network.params:,} weights")
        for contender, speeds in figure["images_per_second"].items():
            line = f"    {CONTENDERS[contender][0]:<22}{statistics.median(speeds):8.0f}"
            line += f" ({min(speeds):.0f} to {max(speeds):.0f})"
            ratio = figure["ratios"].get(contender)
            if ratio is not None:
                line = f"{line:<58}{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(f"{line:<58}peer" if contender == figure["ratios"]["peer"] else line)
    task = found.get("lenet_task")
    if task is not None:
        times = {name: ", ".join(f"{each:.1f}" for each in took) for name, took in task["seconds"].items()}
        said = [f"{CONTENDERS[name][0]} {took} s" for name, took in times.items()]
        lines.append(f"  the LeNet task, {task['epochs']} epochs: {'; '.join(said)}")
        lines.append(f"    opening its data comes before that: {statistics.median(task['opening']):.2f} s with tunelab")
    return "\n".join(lines) + "\n"


def accuracy_table(found: Mapping[str, Any]) -> str:
    """The accuracies of plain loop and tunelab, and what they say."""
    lines = []
    for name, figure in found.items():
        lines.append(f"{name}: {figure['images']} images, {figure['epochs']} epochs, validation accuracy (+- sd)")
        for side, words in (("plain", "plain loop"), ("fit", "tunelab")):
            one = figure[side]
            each = ", ".join(f"{100 * accuracy:.2f}" for accuracy in one["accuracies"])
            lines.append(f"  {words:<12}{100 * one['mean']:.2f}% +- {100 * one['sd']:.2f} ({each})")
        apart = figure["difference"]
        verdict = "they differ" if figure["differ"] else "no difference beyond the noise"
        interval = f"{100 * apart['low']:+.2f} to {100 * apart['high']:+.2f}"
        lines.append(f"  difference  {100 * apart['mean']:+.2f} points ({interval} at 95%): {verdict}")
    return "\n".join(lines)


def tables(result: Mapping[str, Any], networks: Mapping[str, Network]) -> str:
    """All that was found, for people."""
    machine = result["machine"]
    lines = [f"{machine['hardware']['processor']}, precision auto: {machine['precision auto']}"]
    if "mnist_first_opened" in result:
        lines.append(f"opening MNIST for the first time, decoded into a cache: {result['mnist_first_opened']:.1f} s")
    lines += [speed_table(found["threads"], networks, found) for found in result.get("speed", [])]
    lines += [accuracy_table(result["accuracy"])] if "accuracy" in result else []
    return "\n".join(lines)


def compare_speeds(
    threads: int, networks: Mapping[str, Network], data: Mapping[str, DataConfig], epochs: int, repeats: int, tasks: int
) -> dict[str, Any]:
    """All figures of one number of threads."""
    found: dict[str, Any] = {"threads": threads, "networks": {}}
    with started(threads) as sides:
        for name, network in networks.items():
            label = f"{threads} thread(s), {name}"
            config = lengthened(network, data[name], epochs)
            speeds = measure(sides, config, repeats, label)
            images = config.data.limit_train
            figure = {"images": images, "images_per_second": speeds, "ratios": ratios(speeds)}
            found["networks"][name] = figure
            if name == "lenet" and tasks:
                everything = dataclasses.replace(data[name], limit_train=None, train_on="train+val")
                config = lengthened(network, everything, TASK_EPOCHS)
                found["lenet_task"] = whole_task(sides, config, figure["ratios"]["peer"], tasks, label)
    return found


def compare_accuracies(
    threads: int, networks: Mapping[str, Network], data: Mapping[str, DataConfig], epochs: int | None, seeds: int
) -> dict[str, Any]:
    """The accuracies of the plain loop and of tunelab on the same held-out images, with several seeds."""
    found: dict[str, Any] = {}
    with started(threads) as sides:
        for name, network in networks.items():
            length = epochs or ACCURACY[name][1]
            accuracies: dict[str, list[float]] = {"plain": [], "fit": []}
            for seed in range(seeds):
                config = lengthened(network, data[name], length, seed)
                for contender, more in (("plain", {"validate": True}), ("fit", {})):
                    accuracies[contender].append(ask(sides, contender, config, **more)["val_accuracy"])
                    said = f"{name}, seed {seed}, {CONTENDERS[contender][0]}: {accuracies[contender][-1]:.4f}"
                    click.echo(said, err=True)
            images = data[name].limit_train
            found[name] = {"images": images, "epochs": length, **compare(accuracies["plain"], accuracies["fit"])}
    return found


def seconds_to_open(data: DataConfig) -> float:
    """Seconds of opening the data for the first time, when tunelab decodes it into its cache."""
    from tunelab.data.cache import prepare

    begin = time.perf_counter()
    prepare(data)
    return time.perf_counter() - begin


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from tunelab.training.device import autocast_dtype
    from tunelab.tuning.hardware import describe_hardware

    auto = autocast_dtype("auto", torch.device("cpu"))
    precision = "float32" if auto is None else str(auto).removeprefix("torch.")
    return {"hardware": describe_hardware(), "torch": torch.__version__, "precision auto": precision}


def left_out(wanted: Sequence[str], data: str | None, mnist: str | None, accuracy: bool) -> dict[str, str]:
    """The networks that there are no images for, and why, which is said."""
    found = {}
    if "lenet" in wanted and mnist is None:
        found["lenet"] = "it needs --mnist FOLDER"
    if accuracy and data is None:
        found |= {name: "accuracy needs real images; give --data" for name in wanted if name != "lenet"}
    for name, why in found.items():
        click.echo(f"{name} is left out: {why}", err=True)
    if set(found) == set(wanted):
        raise click.UsageError("nothing is left to measure")
    return found


@click.command(help=__doc__)
@click.option("--network", "names", type=click.Choice(list(IMAGES)), multiple=True, help="These alone.")
@click.option(
    "--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True, help="With so many threads."
)
@click.option("--data", default=None, help="Real images, as folder:PATH or npz:PATH.")
@click.option("--mnist", default=None, help="The folder with torchvision's MNIST; without it LeNet-5 is left out.")
@click.option(
    "--images", type=click.IntRange(128), default=None, help="Training images per epoch, of all networks alike."
)
@click.option(
    "--epochs", type=click.IntRange(2), default=None, help="Of each training, the first not timed.  [default: 3]"
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds.")
@click.option(
    "--tasks",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="How often the whole LeNet task is run; 0 leaves it out.",
)
@click.option("--accuracy", is_flag=True, help="Compare accuracies; without --network those of small and lenet.")
@click.option(
    "--seeds", type=click.IntRange(2), default=3, show_default=True, help="Trainings of each side with --accuracy."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    names: tuple[str, ...],
    threads: tuple[int, ...],
    data: str | None,
    mnist: str | None,
    images: int | None,
    epochs: int | None,
    repeats: int,
    tasks: int,
    accuracy: bool,
    seeds: int,
    as_json: bool,
) -> None:
    """Measure, and print tables or JSON; what is left out is said."""
    wanted = names or (("small", "lenet") if accuracy else tuple(IMAGES))
    skipped = left_out(wanted, data, mnist, accuracy)
    networks = {name: network for name, network in pick_networks().items() if name in wanted and name not in skipped}
    result: dict[str, Any] = {"machine": machine(), "skipped": skipped}
    result["networks"] = {
        name: {"mflops": network.mflops, "params": network.params, "config": to_json(network.config)}
        for name, network in networks.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TUNELAB_CACHE", folder)
        if accuracy:
            source = DataConfig(name=data or "", image_size=32)
            where = {name: data_of(name, source, mnist, images or ACCURACY[name][0]) for name in networks}
            result["accuracy"] = compare_accuracies(max(threads), networks, where, epochs, seeds)
        else:
            counts = {name: images or IMAGES[name] for name in networks}
            most = max((count for name, count in counts.items() if name != "lenet"), default=0)
            at_hand = images_at_hand(Path(folder), data, most) if most else DataConfig()
            where = {name: data_of(name, at_hand, mnist, counts[name]) for name in networks}
            if "lenet" in where:
                result["mnist_first_opened"] = seconds_to_open(where["lenet"])
            result["speed"] = [compare_speeds(count, networks, where, epochs or 3, repeats, tasks) for count in threads]
    click.echo(json.dumps(result, indent=2) if as_json else tables(result, networks))


if __name__ == "__main__":
    main()
