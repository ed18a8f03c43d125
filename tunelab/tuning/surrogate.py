"""A model of what configurations come to and what they cost, from all trials of a search and of earlier ones.

A Gaussian process predicts the rank that a configuration would have at full length (`tunelab.tuning.outcomes`), another
one the seconds of an epoch. What is tried next has the most expected improvement (Jones et al., "Efficient Global
Optimization", Journal of Global Optimization 13, 1998) per root of its cost: between none and all of the division by
cost of Snoek et al. (arXiv 1206.2944, section 3.2), because a search that prefers what is cheap alone misses what is
good (our choice; measured by benchmarks/search_quality.py). Trials that run count as if they came out as expected.

Earlier studies, on other data too, each have a process of their own. The prediction begins with their weighted sum, the
weights fitted to the trials of this search: they fall as a study disagrees with what is seen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize, nnls
from scipy.spatial.distance import cdist
from scipy.special import ndtr

Array = npt.NDArray[np.float64]

COST_POWER = 0.5
MOST_TO_FIT = 120
MOST_TO_KNOW = 300
_STEPS = 25
_LENGTH = 0.6 / 2.0
"""The length scale that is expected in one dimension; it grows with the root of their number (Hvarfner et al., arXiv
2402.02229, section 4)."""
_LENGTH_SPREAD = 1.0
_NOISE = 0.05
_NOISE_SPREAD = 1.0
_SIGNAL_SPREAD = 0.5
_TRUST = 0.8
"""What the weights of earlier studies sum to before anything is seen here (our choice)."""
_TRUST_STRENGTH = 4.0
"""As many trials as that first trust counts for (our choice)."""


@dataclass(frozen=True)
class Hyperparameters:
    """Of a process: length scales by column, the variance of the signal and of the noise."""

    lengths: Array
    signal: float
    noise: float


class GaussianProcess:
    """A process with a Matern 5/2 kernel, a length scale per column, zero mean.

    Args:
        x: rows (n, columns), about [0, 1] each.
        y: values (n,), about standard normal.
        noise: relative variance of the noise of each value (n,).
        hyperparameters: what `fit` found.
        believed: more rows (k, columns), taken to come out as expected: they narrow the prediction and do not move it.
        believed_noise: the relative variance of their noise.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        noise: Array,
        hyperparameters: Hyperparameters,
        believed: Array | None = None,
        believed_noise: float = 1.0,
    ) -> None:
        self._lengths = hyperparameters.lengths
        self._signal = hyperparameters.signal
        self._known = len(y)
        if believed is not None and len(believed):
            x, noise = np.vstack([x, believed]), np.append(noise, np.full(len(believed), believed_noise))
        self._x = x / self._lengths
        kernel = self._signal * _matern(_squared_distances(self._x, self._x))
        self._among = kernel[:, : self._known].copy()
        kernel[np.diag_indices_from(kernel)] += hyperparameters.noise * noise + 1e-6
        self._factor = cholesky(kernel, lower=True, overwrite_a=True, check_finite=False)
        # A row that comes out as expected changes no expectation: the weights are those of the known rows alone.
        known = self._factor[: self._known, : self._known]
        self._weights = cho_solve((known, True), y, check_finite=False)

    @property
    def fitted(self) -> Array:
        """The expected values of its own rows (n + k,)."""
        found: Array = self._among @ self._weights
        return found

    def mean(self, x: Array) -> Array:
        """The expected values of rows (m, columns)."""
        found: Array = self._cross(x, self._known) @ self._weights
        return found

    def predict(self, x: Array) -> tuple[Array, Array]:
        """The expected values of rows (m, columns), and their standard deviations without noise."""
        cross = self._cross(x, len(self._x))
        solved = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = self._signal - np.einsum("ij,ij->j", solved, solved)
        return cross[:, : self._known] @ self._weights, np.sqrt(np.maximum(variance, 1e-9))

    def _cross(self, x: Array, rows: int) -> Array:
        found: Array = self._signal * _matern(_squared_distances(x / self._lengths, self._x[:rows]))
        return found


def fit(x: Array, y: Array, noise: Array) -> Hyperparameters:
    """The hyperparameters of the greatest posterior probability, from a fixed start: equal data give equal ones."""
    columns = x.shape[1]
    start = np.append(np.full(columns, math.log(_LENGTH * math.sqrt(columns))), [0.0, math.log(_NOISE)])
    spread = np.append(np.full(columns, _LENGTH_SPREAD), [_SIGNAL_SPREAD, _NOISE_SPREAD])
    bounds = [(-3.0, 5.0)] * columns + [(-3.0, 3.0), (-9.0, 1.0)]
    found = minimize(
        _loss, start, args=(x, y, noise, start, spread), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": _STEPS},
    ).x  # fmt: skip
    return Hyperparameters(np.exp(found[:columns]), math.exp(found[columns]), math.exp(found[columns + 1]))


def _loss(theta: Array, x: Array, y: Array, noise: Array, start: Array, spread: Array) -> tuple[float, Array]:
    """The negative logarithm of the posterior probability up to a constant, and its gradient.

    Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), equations 5.8 and 5.9.
    """
    columns = x.shape[1]
    scaled = x / np.exp(theta[:columns])
    signal, error = math.exp(theta[columns]), math.exp(theta[columns + 1])
    distance = cdist(scaled, scaled)
    decay = np.exp(-math.sqrt(5.0) * distance)
    shape = (1 + math.sqrt(5.0) * distance + 5.0 / 3.0 * distance**2) * decay
    kernel = signal * shape
    kernel[np.diag_indices_from(kernel)] += error * noise + 1e-6
    factor = cho_factor(kernel, lower=True)
    weights = cho_solve(factor, y)
    off = (theta - start) / spread
    loss = 0.5 * float(y @ weights) + float(np.log(np.diag(factor[0])).sum()) + 0.5 * float(off @ off)
    outer = np.outer(weights, weights) - cho_solve(factor, np.eye(len(y)))
    gradient = off / spread
    pull = outer * (signal * 5.0 / 3.0 * (1 + math.sqrt(5.0) * distance) * decay)
    # sum_ij pull_ij (x_ik - x_jk)^2 for every column k, without an array of (n, n, columns)
    gradient[:columns] -= (scaled**2 * pull.sum(axis=1)[:, None]).sum(axis=0) - ((pull @ scaled) * scaled).sum(axis=0)
    gradient[columns] -= 0.5 * float((outer * signal * shape).sum())
    gradient[columns + 1] -= 0.5 * float((np.diag(outer) * error * noise).sum())
    return loss, gradient


def _squared_distances(a: Array, b: Array) -> Array:
    """(n, m) of rows (n, columns) and (m, columns)."""
    found: Array = a @ (-2.0 * b.T)
    found += np.einsum("ij,ij->i", a, a)[:, None]
    found += np.einsum("ij,ij->i", b, b)
    return np.maximum(found, 0.0, out=found)


def _matern(squared: Array) -> Array:
    """Of squared distances, which are overwritten."""
    squared *= 5.0
    scaled = np.sqrt(squared)
    squared /= 3.0
    squared += scaled
    squared += 1.0
    np.negative(scaled, out=scaled)
    squared *= np.exp(scaled, out=scaled)
    return squared


@dataclass(frozen=True)
class Seen:
    """What is known of one study: rows (n, columns), normal scores (n,), relative noise (n,), and log seconds (n,).

    The logarithm of the seconds of an epoch is NaN where it is not known.
    """

    x: Array
    y: Array
    noise: Array
    log_seconds: Array


def subset(y: Array, most: int) -> npt.NDArray[np.intp]:
    """At most so many places of `y`: half of them its best, half its last, in order."""
    if len(y) <= most:
        return np.arange(len(y))
    best = np.argsort(-y, kind="stable")[: most // 2]
    found: npt.NDArray[np.intp] = np.union1d(best, np.arange(len(y) - most // 2, len(y)))
    return found


def process_of(seen: Seen, hyperparameters: Hyperparameters | None = None) -> GaussianProcess:
    """The process of an earlier study's outcomes."""
    fitted = subset(seen.y, MOST_TO_FIT)
    found = hyperparameters or fit(seen.x[fitted], seen.y[fitted], seen.noise[fitted])
    known = subset(seen.y, MOST_TO_KNOW)
    return GaussianProcess(seen.x[known], seen.y[known], seen.noise[known], found)


def trust(y: Array, noise: Array, predicted: Sequence[Array]) -> Array:
    """The weights of earlier studies (studies,), at least 0, from what each predicts for the trials of this search.

    Least squares with a first guess that counts for a few trials: what disagrees loses its weight.
    """
    studies = len(predicted)
    first = np.full(studies, _TRUST / studies)
    root = 1 / np.sqrt(0.25 + noise)
    strength = math.sqrt(_TRUST_STRENGTH)
    design = np.vstack([np.stack(predicted, axis=1) * root[:, None], strength * np.eye(studies)])
    return np.asarray(nnls(design, np.append(y * root, strength * first))[0])


def acquisition(
    seen: Seen,
    running: Array,
    candidates: Array,
    outcome: Hyperparameters | None,
    cost: CostModel | None,
    earlier: Sequence[GaussianProcess] = (),
) -> Array:
    """How much each candidate is worth trying (m,): the logarithm of its improvement per root of its cost.

    Args:
        seen: of this search; may be empty if there are earlier studies.
        running: rows of the trials that nothing is known of yet (k, columns).
        candidates: rows (m, columns).
        outcome: hyperparameters of the outcomes; None: nothing is known but earlier studies.
        cost: what is known of the cost; None: it is not considered.
        earlier: the processes of earlier studies.
    """
    base_seen, base_running, base = (np.zeros(len(x)) for x in (seen.x, running, candidates))
    if earlier:
        predicted = [process.mean(seen.x) if len(seen.x) else np.zeros(0) for process in earlier]
        weights = trust(seen.y, seen.noise, predicted)
        for weight, process, there in zip(weights, earlier, predicted, strict=True):
            base_seen += weight * there
            base += weight * process.mean(candidates)
            if len(running):
                base_running += weight * process.mean(running)
    if outcome is None or not len(seen.x):
        return base
    known = subset(seen.y, MOST_TO_KNOW)
    x, rest, noise = seen.x[known], (seen.y - base_seen)[known], seen.noise[known]
    base_known = base_seen[known]
    process = GaussianProcess(x, rest, noise, outcome, running, float(seen.noise.min()))
    mean, spread = process.predict(candidates)
    best = float((process.fitted + np.append(base_known, base_running)).max())
    worth = np.log(expected_improvement(mean + base, spread, best) + 1e-12)
    return worth if cost is None else worth - COST_POWER * cost.log_cost(candidates)


def expected_improvement(mean: Array, spread: Array, best: float) -> Array:
    """Of normal predictions over the best (Jones et al., equation 15)."""
    z = (mean - best) / spread
    found: Array = spread * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
    return found


def standardised_cost(log_seconds: Array) -> tuple[Array, float, float]:
    """Log seconds with mean 0 and deviation 1, and what they had before."""
    mean, deviation = float(log_seconds.mean()), float(log_seconds.std()) + 1e-9
    return (log_seconds - mean) / deviation, mean, deviation


class CostModel:
    """Predicts the cost of configurations from the last `MOST_TO_KNOW` whose epochs were timed.

    Args:
        x: rows (n, columns).
        log_seconds: the logarithm of the seconds of an epoch (n,), NaN where it is not known.
        hyperparameters: what `fit` found.
    """

    def __init__(self, x: Array, log_seconds: Array, hyperparameters: Hyperparameters) -> None:
        known = np.flatnonzero(~np.isnan(log_seconds))[-MOST_TO_KNOW:]
        y, _, self._deviation = standardised_cost(log_seconds[known])
        self._process = GaussianProcess(x[known], y, np.ones(len(y)), hyperparameters)

    def log_cost(self, x: Array) -> Array:
        """The expected logarithm of the seconds of an epoch of rows (m, columns), from the mean of those known."""
        found: Array = self._process.mean(x) * self._deviation
        return found
