from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from tunelab.tuning import surrogate
from tunelab.tuning.surrogate import (
    CostModel,
    GaussianProcess,
    Hyperparameters,
    Seen,
    acquisition,
    expected_improvement,
    fit,
    process_of,
    subset,
    trust,
)


def sample(n: int, columns: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of a smooth function of the first two columns."""
    x = np.random.default_rng(seed).random((n, columns))
    return x, np.sin(4 * x[:, 0]) + x[:, 1] ** 2


def seen(n: int, seed: int = 0, log_seconds: np.ndarray | None = None) -> Seen:
    x, y = sample(n, seed=seed)
    y = (y - y.mean()) / y.std()
    return Seen(x, y, np.full(n, 0.05), np.full(n, np.nan) if log_seconds is None else log_seconds)


def test_the_gradient_is_that_of_the_loss() -> None:
    x, y = sample(15)
    noise = np.linspace(0.1, 1.0, 15)
    start, spread = np.zeros(5), np.full(5, 0.8)
    theta = np.array([-0.5, 0.3, 0.6, 0.1, -1.5])
    _, gradient = surrogate._loss(theta, x, y, noise, start, spread)
    numeric = approx_fprime(theta, lambda t: surrogate._loss(t, x, y, noise, start, spread)[0], 1e-6)
    assert gradient == pytest.approx(numeric, abs=1e-3)


def test_a_fitted_process_predicts_and_knows_what_it_does_not_know() -> None:
    x, y = sample(60)
    found = fit(x, y, np.full(60, 0.05))
    process = GaussianProcess(x, y, np.full(60, 0.05), found)
    new, truth = sample(40, seed=1)
    mean, spread = process.predict(new)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.1
    assert process.mean(new) == pytest.approx(mean)
    far = process.predict(np.full((1, 3), 9.0))
    assert far[1][0] > 3 * spread.mean()
    assert found.lengths[2] > 2 * found.lengths[0], "the column that does not matter has a long scale"


def test_believed_rows_narrow_the_prediction_and_do_not_move_it() -> None:
    x, y = sample(30)
    found = fit(x, y, np.full(30, 0.05))
    more, _ = sample(5, seed=2)
    alone = GaussianProcess(x, y, np.full(30, 0.05), found)
    beside = GaussianProcess(x, y, np.full(30, 0.05), found, more, 0.05)
    told = GaussianProcess(np.vstack([x, more]), np.append(y, alone.mean(more)), np.full(35, 0.05), found)
    new, _ = sample(40, seed=1)
    mean, spread = beside.predict(new)
    assert mean == pytest.approx(alone.predict(new)[0])
    assert mean == pytest.approx(told.predict(new)[0], abs=1e-5)  # the noise is never quite 0
    assert spread == pytest.approx(told.predict(new)[1])
    assert (spread < alone.predict(new)[1]).all()
    assert beside.fitted == pytest.approx(alone.mean(np.vstack([x, more])))


def test_equal_data_give_equal_hyperparameters() -> None:
    x, y = sample(30)
    one, two = fit(x, y, np.ones(30)), fit(x.copy(), y.copy(), np.ones(30))
    assert one.lengths.tolist() == two.lengths.tolist()
    assert (one.signal, one.noise) == (two.signal, two.noise)


def test_expected_improvement() -> None:
    mean, spread = np.array([0.0, 1.0, 0.0]), np.array([1.0, 1e-6, 1e-6])
    found = expected_improvement(mean, spread, 0.5)
    assert found == pytest.approx([0.1978, 0.5, 0.0], abs=1e-3)


def test_what_is_good_is_preferred_and_what_runs_already_is_not() -> None:
    known = seen(40)
    hyper = fit(known.x, known.y, known.noise)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 2), axis=-1).reshape(-1, 2)
    candidates = np.column_stack([grid, np.full(len(grid), 0.5)])
    none = np.zeros((0, 3))
    worth = acquisition(known, none, candidates, hyper, None)
    truth = np.sin(4 * candidates[:, 0]) + candidates[:, 1] ** 2
    best = int(worth.argmax())
    assert truth[best] > np.quantile(truth, 0.8)
    again = acquisition(known, candidates[[best]], candidates, hyper, None)
    assert again[best] < worth[best], "a trial that runs there takes the hope away"


def test_of_equal_hopes_the_cheap_one_comes_first() -> None:
    x, _ = sample(40)
    known = Seen(x, np.zeros(40), np.full(40, 0.05), 3.0 * x[:, 2])
    hyper = Hyperparameters(np.full(3, 1.0), 1.0, 0.05)
    cost = fit(x, (known.log_seconds - known.log_seconds.mean()) / known.log_seconds.std(), np.ones(40))
    candidates = np.array([[0.5, 0.5, 0.05], [0.5, 0.5, 0.95]])
    without = acquisition(known, np.zeros((0, 3)), candidates, hyper, None)
    dear = acquisition(known, np.zeros((0, 3)), candidates, hyper, CostModel(x, known.log_seconds, cost))
    difference = (dear[0] - without[0]) - (dear[1] - without[1])
    assert difference == pytest.approx(surrogate.COST_POWER * 3.0 * 0.9, rel=0.2)


def test_earlier_studies_lose_their_weight_when_they_disagree() -> None:
    y = np.linspace(-1.5, 1.5, 20)
    noise = np.full(20, 0.05)
    agreeing, wrong = trust(y, noise, [y, -y])
    assert agreeing > 0.7
    assert wrong < 0.05
    assert trust(np.zeros(0), np.zeros(0), [np.zeros(0), np.zeros(0)]) == pytest.approx([0.4, 0.4])


def test_an_earlier_study_guides_before_anything_is_seen_and_after() -> None:
    earlier = process_of(seen(60))
    candidates, truth = sample(100, seed=2)
    empty = Seen(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))
    first = acquisition(empty, np.zeros((0, 3)), candidates, None, None, [earlier])
    assert np.corrcoef(first, truth)[0, 1] > 0.9
    few = seen(4, seed=3)
    hyper = fit(few.x, few.y, few.noise)
    alone = acquisition(few, np.zeros((0, 3)), candidates, hyper, None)
    helped = acquisition(few, np.zeros((0, 3)), candidates, hyper, None, [earlier])
    assert truth[helped.argmax()] >= truth[alone.argmax()] - 1e-9
    assert truth[helped.argmax()] > np.quantile(truth, 0.8)


def test_of_many_the_best_and_the_last_are_kept() -> None:
    y = np.arange(100.0)[::-1]
    kept = subset(y, 20)
    assert kept.tolist() == [*range(10), *range(90, 100)]
    assert subset(y, 200).tolist() == list(range(100))


def test_the_cost_is_known_from_the_last_that_were_timed() -> None:
    x, _ = sample(surrogate.MOST_TO_KNOW + 60)
    log_seconds = 3.0 * x[:, 2]
    log_seconds[:40] = 50.0  # too long ago
    log_seconds[-20:] = np.nan
    hyper = Hyperparameters(np.full(3, 1.0), 1.0, 0.05)
    found = CostModel(x, log_seconds, hyper).log_cost(np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.9]]))
    assert found[1] - found[0] == pytest.approx(3.0 * 0.8, rel=0.2)
    assert found[0] < 0 < found[1], "the mean of those known is 0"
