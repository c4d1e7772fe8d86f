"""Rank association between two quantities, with confounders held fixed and seeds resampled as clusters.

Rows are runs; runs of one seed share data and draws, so intervals resample whole seeds (spec of the rank
study, arXiv:2207.02099). Pooling runs as if they were independent would overstate what is known.

A bootstrap over clusters only changes how often each row counts. Ranks and pair counts are therefore computed
from integer weights, all resamples at once, and equal what the coefficient gives on the repeated rows.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from neoteny.analysis.aggregates import Interval, _check, _chunks, _interval_of_defined

_DETERMINED = 1e-12  # left-over variance, of 1, below which a variable is a function of the covariates' ranks


class Coefficient(enum.Enum):
    """Which association is measured."""

    SPEARMAN = "spearman"
    KENDALL = "kendall"


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rho of x and y (n,): Pearson's of average ranks. NaN if either is constant or has a NaN."""
    x, y = _pair(x, y)
    return float(_from_covariance(_rank_covariance([x, y])))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b of x and y (n,), corrected for ties. NaN if either is constant or has a NaN.

    Time grows with n squared: meant for up to some ten thousand rows.
    """
    x, y = _pair(x, y)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    pairs = _cluster_pairs(x, y, np.zeros(len(x), dtype=np.intp))
    return float(_tau(pairs, np.ones((1, 1)))[0])


def partial_spearman(x: ArrayLike, y: ArrayLike, covariates: ArrayLike) -> float:
    """Spearman's rho of x and y given covariates: the partial correlation of the average ranks.

    x, y: (n,); covariates: (n,) or (n, k). With one covariate z this is (r_xy - r_xz r_yz) / sqrt((1 -
    r_xz^2)(1 - r_yz^2)). A constant covariate changes nothing. NaN if x or y is constant or is determined by
    the covariates' ranks, or if anything is NaN.
    """
    x, y = _pair(x, y)
    return float(_from_covariance(_rank_covariance([x, y, *_columns(covariates, len(x))])))


def association(
    x: ArrayLike,
    y: ArrayLike,
    *,
    method: Coefficient = Coefficient.SPEARMAN,
    clusters: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Association of x and y with a percentile interval, resampling whole clusters of rows.

    x, y: (rows,). clusters: (rows,) labels, usually the seed; without them every row is its own cluster.
    covariates: (rows,) or (rows, k), for partial Spearman. `n` is the number of clusters; below two the
    bounds are NaN. Resamples in which a variable is constant are left out, and the bounds are NaN if fewer
    than `aggregates.LEAST_DEFINED` of them remain. A NaN in any variable gives NaN: which runs to leave out is
    the caller's decision. Raises ValueError for Kendall with covariates, and TypeError unless `rng` is a
    `numpy.random.Generator`.
    """
    x, y = _pair(x, y)
    if not isinstance(method, Coefficient):
        raise TypeError(f"method must be a Coefficient, such as Coefficient.SPEARMAN; got {method!r}")
    if method is Coefficient.KENDALL and covariates is not None:
        raise ValueError("covariates are for Coefficient.SPEARMAN; there is no partial Kendall coefficient here")
    _check(rng, resamples, level)
    group = _groups(clusters, len(x))
    count = int(group.max()) + 1
    others = [] if covariates is None else _columns(covariates, len(x))
    if any(np.isnan(column).any() for column in (x, y, *others)):
        return Interval(math.nan, math.nan, math.nan, count, level)
    value = (
        kendall(x, y) if method is Coefficient.KENDALL else float(_from_covariance(_rank_covariance([x, y, *others])))
    )
    if count < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan, count, level)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    if method is Coefficient.KENDALL:
        draws = _tau(_cluster_pairs(x, y, group), weights)
    else:
        draws = _resampled_rank_correlation([x, y, *others], group, weights)
    return _interval_of_defined(value, draws, count, level)


def association_within(
    x: ArrayLike,
    y: ArrayLike,
    cells: ArrayLike,
    *,
    method: Coefficient = Coefficient.SPEARMAN,
    clusters: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> dict[str | int | float, Interval]:
    """`association` within each cell on its own: {cell label: Interval}, labels in sorted order.

    cells: (rows,) labels, such as the learning rate, or "loss/activation" strings for a product of factors.
    """
    x, y = _pair(x, y)
    labels = np.asarray(cells)
    if labels.shape != x.shape:
        raise ValueError(f"cells must have one label for each of the {len(x)} rows; their shape is {labels.shape}")
    group = _groups(clusters, len(x))
    others = None if covariates is None else np.stack(_columns(covariates, len(x)), axis=1)
    found = {}
    for label in np.unique(labels).tolist():
        rows = labels == label
        found[label] = association(
            x[rows],
            y[rows],
            method=method,
            clusters=group[rows],
            covariates=None if others is None else others[rows],
            rng=rng,
            resamples=resamples,
            level=level,
        )
    return found


@dataclass(frozen=True)
class Reversal:
    """An association pooled over cells, and within each of them.

    within: cell -> its interval; cells in which a variable is constant have NaN. mean: of the cells' values, weighted
    by their rows, cells without a value left out; NaN without any. opposite: cells whose sign is not that of the pooled
    value. reversed: whether pooled and mean differ in sign (Simpson 1951).
    """

    pooled: Interval
    within: dict[str | int | float, Interval]
    mean: float
    opposite: tuple[str | int | float, ...]

    @property
    def reversed(self) -> bool:
        """Whether the pooled association has the other sign than the mean of those within cells."""
        return self.pooled.value * self.mean < 0


def simpson(
    x: ArrayLike,
    y: ArrayLike,
    cells: ArrayLike,
    *,
    method: Coefficient = Coefficient.SPEARMAN,
    clusters: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Reversal:
    """`association` pooled and `association_within` cells, and whether pooling turns the sign; arguments as there."""
    shared = {"method": method, "clusters": clusters, "rng": rng, "resamples": resamples, "level": level}
    pooled = association(x, y, **shared)
    within = association_within(x, y, cells, **shared)
    labels = np.asarray(cells)
    rows = {label: int(np.sum(labels == label)) for label in within}
    defined = {label: each.value for label, each in within.items() if not math.isnan(each.value)}
    total = sum(rows[label] for label in defined)
    mean = sum(rows[label] * value for label, value in defined.items()) / total if total else math.nan
    opposite = tuple(label for label, value in defined.items() if value * pooled.value < 0)
    return Reversal(pooled, within, mean, opposite)


def _average_ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1; equal values share the average of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _rank_covariance(columns: list[np.ndarray]) -> Float[np.ndarray, "v v"]:
    """Sums of products of centred average ranks; all NaN if anything is NaN."""
    if any(np.isnan(column).any() for column in columns):
        return np.full((len(columns), len(columns)), np.nan)
    ranks = np.stack([_average_ranks(column) for column in columns])
    centred = ranks - (ranks.shape[1] + 1) / 2
    return centred @ centred.T


def _resampled_rank_correlation(
    columns: list[np.ndarray],
    group: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, "resamples clusters"],
) -> Float[np.ndarray, " resamples"]:
    """(Partial) Spearman of every resample, from how often each cluster was drawn."""
    rows, variables = len(group), len(columns)
    below = np.stack([_counts_below(column, group, weights.shape[1]) for column in columns])
    draws, start = [], 0
    for count in _chunks(len(weights), rows * variables):
        block = weights[start : start + count]
        start += count
        repeats = block[:, group]
        # A resample has m = sum(repeats) rows. Its average ranks are counts below + 1/2; mean (m + 1) / 2.
        centred = block @ below.swapaxes(1, 2) - repeats.sum(axis=1)[:, None] / 2
        centred = centred.swapaxes(0, 1)  # (resamples, variables, rows)
        draws.append(_from_covariance((centred * repeats[:, None]) @ centred.swapaxes(1, 2)))
    return np.concatenate(draws)


def _counts_below(
    x: Float[np.ndarray, " rows"], group: Int[np.ndarray, " rows"], clusters: int
) -> Float[np.ndarray, "rows clusters"]:
    """For each row: the rows of each cluster with a smaller x, equal ones (itself too) counting one half."""
    values, inverse = np.unique(x, return_inverse=True)
    table = np.zeros((len(values), clusters))
    np.add.at(table, (inverse, group), 1.0)
    return (np.cumsum(table, axis=0) - table / 2)[inverse]


def _from_covariance(covariance: Float[np.ndarray, "*batch v v"]) -> Float[np.ndarray, "*batch"]:
    """Correlation of the first two variables given the others; NaN where one has no variance left."""
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    # Sums of products of half-integers are exact, so a constant variable has a variance of exactly 0.
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    correlation = covariance / (scale[..., :, None] * scale[..., None, :])
    ends = correlation[..., :2, :2]
    if covariance.shape[-1] > 2:
        across, among = correlation[..., :2, 2:], correlation[..., 2:, 2:]
        # The pseudo-inverse lets constant and collinear covariates count for what they hold and no more.
        among = np.where(np.isnan(among), 0.0, among)
        ends = ends - across @ np.linalg.pinv(among, rcond=1e-12, hermitian=True) @ across.swapaxes(-1, -2)
    left = ends[..., 0, 0], ends[..., 1, 1]
    defined = (left[0] > _DETERMINED) & (left[1] > _DETERMINED)
    rho = ends[..., 0, 1] / np.sqrt(np.where(defined, left[0] * left[1], 1.0))
    return np.where(defined, np.clip(rho, -1.0, 1.0), np.nan)


def _cluster_pairs(
    x: Float[np.ndarray, " rows"], y: Float[np.ndarray, " rows"], group: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "3 clusters clusters"]:
    """Ordered pairs of rows between clusters: concordant minus discordant, untied in x, untied in y."""
    order = np.argsort(group, kind="stable")
    x, y = _average_ranks(x)[order], _average_ranks(y)[order]
    clusters, starts = np.unique(group[order], return_index=True)
    total = np.zeros((3, len(clusters), len(clusters)))
    for index, start in enumerate(starts):
        stop = starts[index + 1] if index + 1 < len(starts) else len(x)
        for first in range(start, stop, 512):
            rows = slice(first, min(first + 512, stop))
            sign_x, sign_y = np.sign(x[rows, None] - x), np.sign(y[rows, None] - y)
            for measure, signs in enumerate((sign_x * sign_y, np.abs(sign_x), np.abs(sign_y))):
                total[measure, index] += np.add.reduceat(signs.sum(axis=0), starts)
    return total


def _tau(
    pairs: Float[np.ndarray, "3 clusters clusters"], weights: Float[np.ndarray, "resamples clusters"]
) -> Float[np.ndarray, " resamples"]:
    """Tau-b of every resample. Copies of one row are ties in both variables, which count for nothing."""
    score, untied_x, untied_y = ((weights @ matrix * weights).sum(axis=1) for matrix in pairs)
    defined = (untied_x > 0) & (untied_y > 0)
    tau = score / np.sqrt(np.where(defined, untied_x * untied_y, 1.0))
    return np.where(defined, np.clip(tau, -1.0, 1.0), np.nan)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) == 0:
        raise ValueError(f"x and y must be non-empty vectors of one length; their shapes are {x.shape} and {y.shape}")
    return x, y


def _columns(covariates: ArrayLike, rows: int) -> list[np.ndarray]:
    covariates = np.asarray(covariates, dtype=np.float64)
    if covariates.ndim == 1:
        covariates = covariates[:, None]
    if covariates.ndim != 2 or len(covariates) != rows:
        raise ValueError(f"covariates must be ({rows},) or ({rows}, k) like x and y; their shape is {covariates.shape}")
    return list(covariates.T)


def _groups(clusters: ArrayLike | None, rows: int) -> Int[np.ndarray, " rows"]:
    """Cluster numbers from 0."""
    if clusters is None:
        return np.arange(rows)
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        raise ValueError(f"clusters must have one label for each of the {rows} rows; their shape is {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]
