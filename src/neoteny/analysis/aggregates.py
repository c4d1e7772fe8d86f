"""Aggregates over seeds and tasks, with intervals.

The interquartile mean, the stratified bootstrap and the probability of improvement are those of Agarwal et
al. 2021 (arXiv:2108.13264). Every random draw comes from a `numpy.random.Generator` that the caller passes:
the same generator state gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

SMALLEST_BOOTSTRAP = 6
"""Seeds below which a percentile bootstrap of a mean is too narrow to trust; the t interval is used then."""

LEAST_DEFINED = 0.5
"""Share of the resamples of clusters in which a statistic must be defined for an interval to be given."""

_CHUNK = 2_000_000  # array elements drawn at once, so that memory does not grow with the number of resamples


@dataclass(frozen=True)
class Interval:
    """An estimate `value` with its interval [`low`, `high`] at confidence `level`, from `n` seeds.

    NaN bounds mean that no interval can be had, as with a single seed; that is never written as zero width.
    A percentile interval need not contain `value`.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __post_init__(self):
        if self.n < 0:
            raise ValueError(f"an interval cannot come from n={self.n} units")
        if self.low > self.high:
            raise ValueError(f"interval bounds are the wrong way round: low={self.low} is above high={self.high}")


class Band(NamedTuple):
    """Elementwise means over seeds with interval bounds; three arrays of one shape."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of all scores, runs and tasks pooled.

    scores: (runs, tasks), or any non-empty shape. Exactly `scipy.stats.trim_mean(scores, 0.25, axis=None)`:
    of n scores floor(n / 4) are cut at each end. NaN if any score is NaN. Raises ValueError if there are no
    scores.
    """
    flat = np.asarray(scores, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError("iqm needs at least one score and got none")
    if np.isnan(flat).any():
        return math.nan
    cut = flat.size // 4
    return float(np.sort(flat)[cut : flat.size - cut].mean())


def task_median(scores: ArrayLike) -> float:
    """Median over tasks of the mean over runs. scores: (runs, tasks)."""
    return float(np.median(_matrix(scores, "scores").mean(axis=0)))


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """Mean amount by which scores fall short of `target`; what lies above it counts nothing.

    scores: (runs, tasks), on a scale where `target` (1 for human-normalised scores) is the wanted level.
    """
    return float(target - np.minimum(_matrix(scores, "scores"), target).mean())


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """P(a run of x scores above a run of y), averaged over tasks; a tie counts one half.

    x: (runs_x, tasks), y: (runs_y, tasks). Per task this is the Mann-Whitney U statistic over runs_x *
    runs_y. NaN if any score is NaN. Raises ValueError if the tasks differ in number.
    """
    x, y = _matrix(x, "x"), _matrix(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} tasks and y has {y.shape[1]}; they must have the same tasks in one order")
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    pairs = x[:, None, :], y[None, :, :]
    return float((np.greater(*pairs) + 0.5 * np.equal(*pairs)).mean())


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    *,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic`, resampling runs within each task on its own.

    scores: (runs, tasks); statistic: (runs, tasks) -> float, for example `iqm`. `n` is the number of runs;
    one run gives NaN bounds. Raises TypeError unless `rng` is a `numpy.random.Generator`.
    """
    scores = _matrix(scores, "scores")
    _check(rng, resamples, level)
    runs, tasks = scores.shape
    value = float(statistic(scores))
    if runs < 2:
        return Interval(value, math.nan, math.nan, runs, level)
    columns = np.arange(tasks)
    draws = []
    for count in _chunks(resamples, scores.size):
        rows = rng.integers(runs, size=(count, runs, tasks))
        draws.extend(float(statistic(sample)) for sample in scores[rows, columns])
    return _percentile_interval(value, np.array(draws), runs, level)


def seed_bootstrap(
    samples: Sequence[ArrayLike],
    statistic: Callable[..., float],
    *,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic(*samples)`, resampling the seeds of every sample on its own.

    samples: arrays (seeds_i, ...), seeds on the first axis; their numbers may differ, as for a method and its
    baseline.
    Values of one seed stay together; for paired designs stack both sides into one array. `n` is the smallest
    number of seeds; below two the bounds are NaN.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if not arrays or any(array.ndim == 0 or len(array) == 0 for array in arrays):
        raise ValueError("seed_bootstrap needs one array or more, each with at least one seed on its first axis")
    _check(rng, resamples, level)
    n = min(len(array) for array in arrays)
    value = float(statistic(*arrays))
    if n < 2:
        return Interval(value, math.nan, math.nan, n, level)
    draws = np.empty(resamples)
    for index in range(resamples):
        draws[index] = statistic(*(array[rng.integers(len(array), size=len(array))] for array in arrays))
    return _percentile_interval(value, draws, n, level)


def cluster_bootstrap(
    clusters: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    *,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic(rows)`, resampling whole clusters of rows.

    clusters: (rows,) label of each row's cluster, usually its seed, because rows of one seed are not
    independent. statistic: row numbers (m,) -> float; a cluster drawn twice brings its rows twice. `n` is the
    number of clusters. Resamples without a defined statistic (NaN) are left out, and the bounds are NaN if fewer than
    `LEAST_DEFINED` of them remain.
    """
    labels = np.asarray(clusters)
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"clusters must be a non-empty vector of labels; its shape is {labels.shape}")
    _check(rng, resamples, level)
    names, membership = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(membership == index) for index in range(len(names))]
    value = float(statistic(np.arange(len(labels))))
    if len(names) < 2:
        return Interval(value, math.nan, math.nan, len(names), level)
    draws = np.empty(resamples)
    for index in range(resamples):
        chosen = rng.integers(len(names), size=len(names))
        draws[index] = statistic(np.concatenate([members[cluster] for cluster in chosen]))
    return _interval_of_defined(value, draws, len(names), level)


def mean_interval(values: ArrayLike, *, rng: np.random.Generator | None = None, level: float = 0.95) -> Band:
    """Mean over seeds with its interval, elementwise: (mean, low, high), each of shape values.shape[1:].

    values: (seeds, ...). NaN entries are missing and left out, so each element has its own number of seeds;
    none left gives NaN throughout, one left gives a mean with NaN bounds. Without `rng` the interval is
    Student's t; with `rng` it is the percentile bootstrap (10,000 resamples of whole seeds) wherever at least
    `SMALLEST_BOOTSTRAP` seeds are left, and Student's t elsewhere.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0:
        raise ValueError("values must have seeds on the first axis and got a single number")
    _check_level(level)
    present = ~np.isnan(values)
    n = present.sum(axis=0)
    # Infinite values make the mean infinite and the bounds NaN, quietly: they are data, not a mistake.
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, values, 0.0).sum(axis=0) / n
        squares = np.where(present, values - mean, 0.0) ** 2
        error = np.sqrt(squares.sum(axis=0) / (n - 1) / n)
        half = np.where(n > 1, stdtrit(np.maximum(n - 1, 1), (1 + level) / 2) * error, np.nan)
        low, high = mean - half, mean + half
    if rng is not None:
        _check_generator(rng)
        low, high = _bootstrap_means(values, present, low, high, rng, level)
    return Band(mean[()], low[()], high[()])


def mean_estimate(values: ArrayLike, *, rng: np.random.Generator | None = None, level: float = 0.95) -> Interval:
    """Mean over seeds as an `Interval`: `mean_interval` for a vector (seeds,), NaN entries missing."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be a vector with one number a seed; its shape is {values.shape}")
    mean, low, high = mean_interval(values, rng=rng, level=level)
    return Interval(float(mean), float(low), float(high), int(np.count_nonzero(~np.isnan(values))), level)


def paired_difference(
    x: ArrayLike, y: ArrayLike, *, rng: np.random.Generator | None = None, level: float = 0.95
) -> Interval:
    """Mean of x - y over seeds, paired by position, with the interval of `mean_estimate`.

    x, y: (seeds,), entry i of both from the same seed. A pair with a NaN is missing. Raises ValueError if the
    shapes differ: a pair without a partner must be written as NaN, not left out.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"x and y must be vectors of one length, paired by seed; their shapes are {x.shape} and {y.shape}"
        )
    present = ~(np.isnan(x) | np.isnan(y))
    with np.errstate(invalid="ignore"):
        difference = x[present] - y[present]
    if np.isnan(difference).any():
        # Two infinities of one sign: not a missing pair but one without a difference.
        return Interval(math.nan, math.nan, math.nan, len(difference), level)
    return mean_estimate(difference, rng=rng, level=level)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Share successes / trials with the Wilson score interval (Wilson 1927), which stays inside [0, 1].

    No trials gives NaN throughout. Raises ValueError unless 0 <= successes <= trials.
    """
    from scipy.special import ndtri

    _check_level(level)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials; got {successes} of {trials}")
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    share, z2 = successes / trials, float(ndtri((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    # At shares 0 and 1 one bound is the share itself; rounding must not move it across.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), trials, level)


def _bootstrap_means(values, present, low, high, rng, level):
    """(low, high) with percentile bounds written in where SMALLEST_BOOTSTRAP seeds or more are present."""
    seeds, resamples = len(values), 10_000
    shape = np.shape(low)
    low, high = np.array(low).ravel(), np.array(high).ravel()
    if seeds < SMALLEST_BOOTSTRAP:
        return low.reshape(shape), high.reshape(shape)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)
    values, present = values.reshape(seeds, -1), present.reshape(seeds, -1)
    finite = ~np.isinf(values).any(axis=0)
    columns = np.flatnonzero((present.sum(axis=0) >= SMALLEST_BOOTSTRAP) & finite)
    for start in range(0, len(columns), max(1, _CHUNK // resamples)):
        block = columns[start : start + max(1, _CHUNK // resamples)]
        held = present[:, block].astype(np.float64)
        # Centring keeps means of equal numbers exact. 0 / 0, a resample of missing seeds only, is left out.
        offset = np.where(present[:, block], values[:, block], -np.inf).max(axis=0)
        sums = weights @ np.where(present[:, block], values[:, block] - offset, 0.0)
        with np.errstate(invalid="ignore"):
            means = offset + sums / (weights @ held)
        low[block], high[block] = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    low[~finite], high[~finite] = np.nan, np.nan
    return low.reshape(shape), high.reshape(shape)


def _percentile_interval(value: float, draws: Float[np.ndarray, " resamples"], n: int, level: float) -> Interval:
    if np.isnan(draws).any():
        return Interval(value, math.nan, math.nan, n, level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, level)


def _interval_of_defined(value: float, draws: Float[np.ndarray, " resamples"], n: int, level: float) -> Interval:
    """The percentile interval of the draws that are defined, NaN bounds if fewer than `LEAST_DEFINED` are."""
    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or len(defined) < LEAST_DEFINED * len(draws):
        return Interval(value, math.nan, math.nan, n, level)
    return _percentile_interval(value, defined, n, level)


def _chunks(resamples: int, elements: int) -> list[int]:
    """Sizes of the blocks in which `resamples` draws of `elements` numbers are made."""
    size = max(1, _CHUNK // max(1, elements))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _matrix(scores: ArrayLike, name: str) -> Float[np.ndarray, "runs tasks"]:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must be a non-empty matrix (runs, tasks); its shape is {matrix.shape}")
    return matrix


def _check_generator(rng: object) -> None:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0); got {type(rng).__name__}"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1; got {level}")


def _check(rng: object, resamples: int, level: float) -> None:
    _check_generator(rng)
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}")
