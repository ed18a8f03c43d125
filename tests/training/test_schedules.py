from __future__ import annotations

import math

import pytest

from tunelab.config import ScheduleConfig, TrainConfig
from tunelab.errors import DivergedError, InputError
from tunelab.records import EpochMetrics
from tunelab.training import schedules
from tunelab.training.schedules import ONE_CYCLE_END, ONE_CYCLE_START, SCHEDULES, epoch_rates, lr_factor

STEPS = 10_000
GRID = [step / STEPS for step in range(STEPS + 1)]
ENDS = {  # the factor at the first and at the last moment
    "constant": (1.0, 1.0),
    "step": (1.0, 0.001),  # drops at 0.3, 0.6 and 0.9
    "cosine": (1.0, 0.0),
    "warm_restarts": (1.0, 0.0),
    "one_cycle": (ONE_CYCLE_START, ONE_CYCLE_END),
    "cyclic": (0.1, 0.1),
    "plateau": (1.0, 1.0),  # nothing measured, no drop
}


def test_every_schedule_has_its_ends_listed():
    assert set(ENDS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_range(name):
    schedule = ScheduleConfig(name)
    factors = [lr_factor(schedule, progress) for progress in GRID]
    assert (factors[0], factors[-1]) == pytest.approx(ENDS[name], abs=1e-12)
    assert min(factors) >= 0.0
    assert max(factors) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_a_line_from_zero_to_the_first_rate(name):
    schedule = ScheduleConfig(name, warmup=0.2)
    first = ENDS[name][0]
    assert lr_factor(schedule, 0.0) == 0.0
    assert lr_factor(schedule, 0.05) == pytest.approx(first / 4)
    assert lr_factor(schedule, 0.2) == pytest.approx(first)
    assert max(lr_factor(schedule, progress) for progress in GRID) == pytest.approx(1.0)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_step_drops_after_every_period_of_the_whole_training(warmup):
    schedule = ScheduleConfig("step", warmup=warmup, period=0.3, factor=0.5)
    assert lr_factor(schedule, warmup + 0.299) == 1.0
    assert lr_factor(schedule, warmup + 0.301) == 0.5
    assert lr_factor(schedule, warmup + 0.601) == 0.25


def test_cosine_is_half_way_down_in_the_middle():
    assert lr_factor(ScheduleConfig("cosine"), 0.5) == pytest.approx(0.5)


def test_warm_restarts_start_again_at_the_peak():
    schedule = ScheduleConfig("warm_restarts", cycles=4)
    assert lr_factor(schedule, 0.2499) == pytest.approx(0.0, abs=1e-3)
    assert lr_factor(schedule, 0.25) == 1.0
    assert lr_factor(schedule, 0.125) == pytest.approx(0.5)


def test_cyclic_peaks_in_the_middle_of_each_cycle():
    schedule = ScheduleConfig("cyclic", cycles=2, factor=0.2)
    assert [lr_factor(schedule, at) for at in (0.25, 0.5, 0.75)] == pytest.approx([1.0, 0.2, 1.0])
    assert lr_factor(schedule, 0.125) == pytest.approx(0.6)


def test_one_cycle_peaks_after_three_tenths():
    schedule = ScheduleConfig("one_cycle")
    assert max(GRID, key=lambda at: lr_factor(schedule, at)) == pytest.approx(0.3)


def test_plateau_drops_when_the_loss_stands_still_for_a_period():
    schedule = ScheduleConfig("plateau", period=0.2, factor=0.1)
    losses = [(0.1, 2.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.5)]
    assert lr_factor(schedule, 0.35, losses[:3]) == 1.0
    assert lr_factor(schedule, 0.45, losses) == pytest.approx(0.1)
    assert lr_factor(schedule, 0.65, [*losses, (0.5, 1.0), (0.6, 1.0)]) == pytest.approx(0.01)
    assert lr_factor(schedule, 0.65, [*losses, (0.5, 0.9), (0.6, 0.9)]) == pytest.approx(0.1)


def test_plateau_does_not_count_the_warm_up():
    schedule = ScheduleConfig("plateau", period=0.2, warmup=0.3)
    losses = [(0.1, 1.0), (0.2, 2.0), (0.3, 2.0), (0.4, 2.0)]
    assert lr_factor(schedule, 0.45, losses) == 1.0
    assert lr_factor(schedule, 0.55, [*losses, (0.5, 2.0)]) == pytest.approx(0.1)


def test_plateau_does_not_take_nan_for_progress():
    schedule = ScheduleConfig("plateau", period=0.1)
    assert lr_factor(schedule, 0.3, [(0.1, 1.0), (0.2, math.nan)]) == pytest.approx(0.1)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"schedule 'linear' is unknown; allowed are constant, step"):
        lr_factor(ScheduleConfig("linear"), 0.0)


def epochs(norms: list[float | None], loss: float = 1.0) -> list[EpochMetrics]:
    return [
        EpochMetrics(place, 2.0, 0.5, loss, 0.5, 0.1, 1.0, 100.0, 100.0, weight_norm=norm)
        for place, norm in enumerate(norms, start=1)
    ]


def test_by_norm_divides_by_the_norm_after_the_epoch_before():
    train = TrainConfig(epochs=4, lr=3.0, schedule=ScheduleConfig("cosine", by_norm=True))
    assert epoch_rates(train, [], 12.0)(0.0) == 3.0 / 12.0
    assert epoch_rates(train, epochs([11.0, 7.0]), 12.0)(0.5) == pytest.approx(3.0 * 0.5 / 7.0)
    without = TrainConfig(epochs=4, lr=3.0)
    assert epoch_rates(without, epochs([11.0, 7.0]), 12.0)(0.5) == 3.0 * lr_factor(without.schedule, 0.5)


@pytest.mark.parametrize(("history", "fresh"), [([], 0.0), (epochs([5.0, 0.0]), 12.0), (epochs([None]), 12.0)])
def test_no_rate_is_divided_by_nothing(history, fresh):
    train = TrainConfig(epochs=4, schedule=ScheduleConfig("constant", by_norm=True))
    with pytest.raises(DivergedError, match=rf"epoch {len(history) + 1}: the norm of the weights is (0.0|None); no"):
        epoch_rates(train, history, fresh)


def test_plateau_counts_the_losses_of_all_epochs_once_for_an_epoch(monkeypatch):
    train = TrainConfig(epochs=10, lr=1.0, schedule=ScheduleConfig("plateau", period=0.2, factor=0.5))
    counted = []
    plain = schedules.count_drops
    monkeypatch.setattr(schedules, "count_drops", lambda *given: counted.append(1) or plain(*given))
    rate = epoch_rates(train, epochs([9.0] * 5), 9.0)
    assert {rate(0.5 + step / 1000) for step in range(100)} == {0.25}
    assert len(counted) == 1
