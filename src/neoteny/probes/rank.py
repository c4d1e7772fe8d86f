"""How many dimensions a representation uses: six numbers that are all called its rank somewhere.

Each has a name of its own here, and docs/probes.md sets them side by side. All take features (..., n, d),
samples second to last, and return one number a leading slice: NaN where the slice holds a non-finite number
or LAPACK does not converge on it, 0 for a zero matrix. With s_1 >= ... >= s_m the singular values,
m = min(n, d), no rank exceeds m: measure on many more samples than there are units, always the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from neoteny.probes.arrays import (
    Features,
    PerLane,
    as_features,
    centre,
    gram_spectrum,
    measured,
    singular_values,
    spectrum,
    unit_scale,
)

GRAM_UNITS, GRAM_TOLERANCE = 512, 1e-8
"""From these on `numerical_ranks` decomposes the Gram matrix: 2,000 samples of 8,000 units in a fifth of the time."""


def effective_rank(features: ArrayLike, delta: float = 0.01) -> PerLane:
    """The least k with (s_1 + ... + s_k) / (s_1 + ... + s_m) >= 1 - delta; features (..., n, d), not centred.

    Kumar et al., arXiv:2010.14498 (srank); arXiv:2207.02099, appendix A.11. Singular values, not their
    squares. Also known as the 99 % cumulative rank, and in some packages, wrongly, as stable rank. ValueError
    unless 0 < delta < 1.
    """
    _check_fraction(delta, "delta", 0.01)
    relative = _relative(singular_values(features))
    cumulative = np.cumsum(relative, axis=-1)
    # The total is the last cumulative sum: np.sum rounds differently, and might never be reached.
    below = cumulative < (1 - delta) * cumulative[..., -1:]
    return _rank(below.sum(axis=-1) + 1, relative)


def numerical_rank(features: ArrayLike, tolerance: float = 1e-3) -> PerLane:
    """How many eigenvalues of the covariance exceed `tolerance` times the largest; features (..., n, d).

    Masarczyk et al., arXiv:2305.19753. Centred, and computed as s_i^2 > tolerance * s_1^2 with s the singular
    values of the centred features: `tolerance` is of variances, and 1e-3 of them is 0.0316 of singular
    values. At most min(n - 1, d); 0 for constant features and for a single sample. ValueError
    unless 0 < tolerance < 1.
    """
    return numerical_ranks(features, (tolerance,))[0]


def numerical_ranks(features: ArrayLike, tolerances: Sequence[float]) -> tuple[PerLane, ...]:
    """`numerical_rank` at each of the tolerances, from one decomposition.

    Of large matrices the eigenvalues of the smaller Gram matrix are taken: in float64 their error is about 1e-13 of the
    largest, far below any tolerance of `GRAM_TOLERANCE` or more, at a small part of the time.
    """
    for tolerance in tolerances:
        _check_fraction(tolerance, "tolerance", 1e-3)
    values, finite = as_features(features)
    centred = Features(centre(unit_scale(values)), finite)
    large = min(values.shape[-2:]) >= GRAM_UNITS and min(tolerances) >= GRAM_TOLERANCE
    relative = _relative(gram_spectrum(centred) if large else spectrum(centred))
    return tuple(_rank((relative**2 > tolerance).sum(axis=-1), relative) for tolerance in tolerances)


def feature_rank(features: ArrayLike, epsilon: float = 0.01) -> PerLane:
    """How many singular values of features / sqrt(n) exceed `epsilon`; features (..., n, d), not centred.

    Lyle et al., arXiv:2204.09560. The threshold is absolute: unlike the other ranks, this one grows with the
    scale of the features. ValueError unless epsilon is positive and finite.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; give a positive number, 0.01 for example")
    checked = as_features(features)
    values = spectrum(checked)
    return _rank((values / math.sqrt(checked.values.shape[-2]) > epsilon).sum(axis=-1), values)


def stable_rank(features: ArrayLike) -> PerLane:
    """||A||_F^2 / ||A||_2^2 = sum_i s_i^2 / s_1^2; features (..., n, d), not centred.

    Rudelson and Vershynin, arXiv:math/0503442. Not the 99 % cumulative count to which some packages give this
    name: that one is `effective_rank`.
    """
    relative = _relative(singular_values(features))
    return _rank((relative**2).sum(axis=-1), relative)


def entropy_rank(features: ArrayLike) -> PerLane:
    """exp(-sum_i p_i log p_i) with p = s / sum s; features (..., n, d), not centred.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    relative = _relative(singular_values(features))
    share = _divide(relative, relative.sum(axis=-1, keepdims=True))
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    return _rank(np.exp(-(share * logarithm).sum(axis=-1)), relative)


def participation_ratio(features: ArrayLike) -> PerLane:
    """(sum_i l_i)^2 / sum_i l_i^2 with l = s^2; features (..., n, d), not centred.

    Gao et al., bioRxiv 214262, where l is the covariance spectrum. Here nothing is centred: for that number,
    take the mean of every column away first.
    """
    relative = _relative(singular_values(features))
    squares = relative**2
    return _rank(_divide(squares.sum(axis=-1) ** 2, (squares**2).sum(axis=-1)), relative)


def _check_fraction(value: float, name: str, example: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be above 0 and below 1, {example} for example")


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    out = np.zeros(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)))
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def _relative(values: Float64[np.ndarray, "*lanes m"]) -> Float64[np.ndarray, "*lanes m"]:
    """s / s_1, whose powers neither overflow nor vanish; zeros for a zero matrix, NaN stays NaN."""
    return _divide(values, values[..., :1])


def _rank(value: np.ndarray, values: Float64[np.ndarray, "*lanes m"]) -> PerLane:
    """`value`, but 0 where the singular values are all 0 and NaN where they are NaN."""
    largest = values[..., 0]
    return measured(np.where(largest == 0, 0.0, value), ~np.isnan(largest))
