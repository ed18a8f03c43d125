from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest

from tunelab.config import ArchSpec, LeNetSpec, StemSpec, TrainConfig, TrialConfig, to_json
from tunelab.tuning.speed import USUAL, Load, Point, Speed, guess_step, load_of

IMAGES, VAL = 1000, 200
EPOCH = 0.03  # what an epoch takes beside training and validation


def draw(random_: random.Random) -> Load:
    activations = math.exp(random_.uniform(7, 10.5))
    return Load(
        mflops=activations / 1e4 * math.exp(random_.gauss(0, 0.7)),
        activations=activations,
        convs=random_.randrange(10, 140),
        batch_size=random_.choice((16, 32, 64, 128, 256, 512, 1024)),
    )


def true_step(load: Load, costs: tuple[float, ...], size: int | None = None) -> float:
    """What a machine with these costs takes."""
    size = size or load.batch_size
    return (load.mflops * costs[0] + load.activations * costs[1]) * size + load.convs * costs[2] + costs[3]


def true_epoch(load: Load, costs: tuple[float, ...]) -> float:
    """The same for an epoch; validation costs 0.3 of training."""
    size = min(load.batch_size, IMAGES)
    image = load.mflops * costs[0] + load.activations * costs[1]
    return IMAGES // size * true_step(load, costs, size) + 0.3 * VAL * image + EPOCH


def measured(load: Load, costs: tuple[float, ...]) -> Point:
    image = load.mflops * costs[0] + load.activations * costs[1]
    return Point(load, true_step(load, costs), 0.3 * image)


SLOW = tuple(3 * cost for cost in USUAL["cpu"])  # another machine of the same kind
WIDE = (2e-4, 3e-9, 1e-4, 1e-3)  # one that is slow at multiplying and fast at all else


@pytest.mark.parametrize("costs", [SLOW, WIDE])
@pytest.mark.parametrize("points", [3, 12])
def test_few_points_tell_the_speed_of_the_rest(costs: tuple[float, ...], points: int) -> None:
    random_ = random.Random(1)
    loads = [draw(random_) for _ in range(60)]
    speed = Speed([measured(load, costs) for load in loads[:points]], IMAGES, VAL)
    off = [math.log(speed.predict(load) / true_epoch(load, costs)) for load in loads[points:]]
    close = 0.05 if costs is SLOW else 0.5 if points == 3 else 0.3
    assert abs(statistics.fmean(off)) < close
    assert statistics.pstdev(off) < close


def test_what_was_measured_itself_is_exact() -> None:
    random_ = random.Random(2)
    odd = draw(random_)
    points = [measured(draw(random_), SLOW) for _ in range(5)]
    point = Point(odd, 7.0)
    speed = Speed([*points, point], IMAGES, VAL)
    steps = IMAGES // min(IMAGES, odd.batch_size)
    assert speed.predict(odd) == pytest.approx(7.0 * steps, rel=0.2)
    assert speed.spread(odd) < speed.spread(dataclasses.replace(odd, convs=odd.convs + 1))
    twice = Speed([*points, point, Point(odd, 28.0)], IMAGES, VAL)
    assert twice.predict(odd) == pytest.approx(2 * speed.predict(odd), rel=0.1), "the geometric mean"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(Load(0.0, 0.0, 1, 16), 1e-5)],
        [Point(Load(1.0, 1e4, 20, 64), 0.1, 1e-5)] * 3,
        [Point(Load(mflops, 0.0, 0, 64), 1 / mflops**3, 1e-5) for mflops in (0.1, 1.0, 10.0)],  # fewer cost more
        [Point(Load(1.0, 1e4, 20, 64), 0.1, None), Point(Load(2.0, 2e4, 40, 64), 0.01, None)],
        [Point(Load(40.0, 1e6, 20, 1024), 90.0, 0.03), Point(Load(1e-6, 1.0, 1, 1), 1e-6, 1e-9)],
    ],
)
def test_no_points_are_degenerate(points: list[Point]) -> None:
    for device in USUAL:
        speed = Speed(points, IMAGES, VAL, device)
        before = 0.0
        for size in (0.01, 1.0, 100.0):
            epoch = speed.predict(Load(size, size * 1e4, 30, 64))
            assert math.isfinite(epoch)
            assert epoch >= before
            before = epoch
        assert 0 < speed.spread(Load(1.0, 1e4, 30, 64)) < 5


def test_batches_larger_than_the_data_are_one_step() -> None:
    speed = Speed([], 100, 0)
    assert speed.predict(Load(1.0, 1e4, 30, 1024)) == speed.predict(Load(1.0, 1e4, 30, 100))
    assert speed.predict(Load(1.0, 1e4, 30, 10)) > speed.predict(Load(1.0, 1e4, 30, 100))


def test_nothing_held_out_takes_no_validation() -> None:
    load = Load(1.0, 1e4, 30, 100)
    assert Speed([], 100, 50).predict(load) > Speed([], 100, 0).predict(load)


def test_what_happens_corrects_the_rest() -> None:
    random_ = random.Random(3)
    loads = [draw(random_) for _ in range(80)]
    speed = Speed([], IMAGES, VAL)
    unsure = speed.shift_spread
    first = speed.predict(loads[-1])
    for number, load in enumerate(loads[:40]):
        for _ in range(3):
            speed.observe(number, load, 4 * true_epoch(load, USUAL["cpu"]))
    off = [math.log(speed.predict(load) / (4 * true_epoch(load, USUAL["cpu"]))) for load in loads[40:]]
    assert abs(statistics.fmean(off)) < 0.25, "after 40 trials little is left of the calibration"
    assert speed.predict(loads[-1]) > 3 * first
    assert speed.shift_spread < unsure / 2


def test_the_spread_follows_what_was_seen() -> None:
    random_ = random.Random(4)
    load = draw(random_)
    calm, wild = Speed([], IMAGES, VAL), Speed([], IMAGES, VAL)
    for number in range(60):
        calm.observe(number, load, 2 * calm.predict(load) / math.exp(calm.shift))
        wild.observe(number, load, math.exp(random_.gauss(0, 0.8)) * wild.predict(load) / math.exp(wild.shift))
    assert calm.spread(load) < 0.15
    assert 0.6 < wild.spread(load) < 1.0


def test_a_trial_is_known_by_its_own_epochs() -> None:
    load = Load(1.0, 1e4, 30, 64)
    speed = Speed([], IMAGES, VAL)
    assert speed.own(3) is None
    for seconds in (1.0, 2.0, 3.0, 0.0):
        speed.observe(3, load, seconds)
    assert speed.own(3) == pytest.approx(2.0 + EPOCH)
    once, often = Speed([], IMAGES, VAL), Speed([], IMAGES, VAL)
    once.observe(0, load, 5.0)
    for _ in range(50):
        often.observe(0, load, 5.0)
    assert once.shift == pytest.approx(often.shift), "a long trial says no more of the others than a short one"


def test_a_norm_counts_as_outputs_of_its_own() -> None:
    config = to_json(TrialConfig(ArchSpec(StemSpec(4), ((),)), TrainConfig(batch_size=32)))
    stats = {"mflops": 0.5, "activations": 100, "convs": 7, "depth": 3}
    assert load_of(config, stats) == Load(0.5, 200.0, 7.0, 32)
    config["arch"]["norm"] = "none"
    assert load_of(config, stats) == Load(0.5, 100.0, 7.0, 32)
    del stats["convs"]
    assert load_of(config, stats).convs == 3, "a study of an earlier version"


def test_a_lenet_has_no_norm() -> None:
    config = to_json(TrialConfig(LeNetSpec(), TrainConfig(batch_size=32)))
    assert load_of(config, {"mflops": 0.5, "activations": 100, "convs": 2, "depth": 5}) == Load(0.5, 100.0, 2.0, 32)


def test_a_guess_grows_with_the_batch() -> None:
    load = Load(1.0, 1e4, 30, 64)
    assert guess_step(dataclasses.replace(load, batch_size=128), "cpu") > guess_step(load, "cpu") > 0
