"""How representations relate: to one another (CKA), and to the classes they should tell apart (variances)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Integer
from numpy.typing import ArrayLike

from neoteny.probes.arrays import PerLane, as_features, as_labels, centre, measured, unit_scale


def linear_cka(x: ArrayLike, y: ArrayLike) -> PerLane:
    """Linear centred kernel alignment of x (..., n, d) and y (..., n, e); leading axes are broadcast.

        <K, L>_F / (||K||_F ||L||_F),  K = H x x^T H,  L = H y y^T H,  H = I - 1 1^T / n

    Kornblith et al., arXiv:1905.00414 (the usual, biased estimator). Rows of x and y are the same samples in
    the same order. NaN where x or y is constant over samples, hence for a single one, or not finite.
    ValueError for unequal n or leading axes that do not broadcast.
    """
    x_values, x_finite = as_features(x, "x")
    y_values, y_finite = as_features(y, "y")
    _check_pair(x_values.shape, y_values.shape)
    x_values, y_values = _centred(x_values), _centred(y_values)
    n, d, e = *x_values.shape[-2:], y_values.shape[-1]
    # For centred x and y, ||K||_F = ||x^T x||_F and <K, L>_F = ||x^T y||_F^2: take the cheaper form.
    if d * d + d * e + e * e < n * (d + e):
        agreement = _square_norm(_transposed(x_values) @ y_values)
        x_norm = _square_norm(_transposed(x_values) @ x_values)
        y_norm = _square_norm(_transposed(y_values) @ y_values)
    else:
        x_gram = x_values @ _transposed(x_values)
        y_gram = y_values @ _transposed(y_values)
        agreement = (x_gram * y_gram).sum(axis=(-2, -1))
        x_norm, y_norm = _square_norm(x_gram), _square_norm(y_gram)
    scale = np.sqrt(x_norm) * np.sqrt(y_norm)
    ratio = np.divide(agreement, scale, out=np.zeros(np.shape(scale)), where=scale > 0)
    # Rounding may pass 1 by a unit in the last place.
    return measured(np.minimum(ratio, 1.0), x_finite & y_finite & (scale > 0))


def class_variances(features: ArrayLike, labels: ArrayLike) -> tuple[PerLane, PerLane]:
    """Variance within classes and between their means: features (..., n, d), labels (n,) or (..., n).

        within = mean_c mean_{i in c} ||f_i - mu_c||^2,   between = mean_{c != c'} ||mu_c - mu_c'||^2

    Masarczyk et al., arXiv:2305.19753. Classes count alike whatever their size, and `between` is over ordered
    pairs. Labels are any integers; a class without samples does not count. `between` is NaN with one class,
    both are where the features are not finite. Both grow with the square of the features' scale: compare
    their ratio across layers. ValueError for labels that are not integers or do not fit the features.
    """
    values, finite = as_features(features)
    classes = as_labels(labels, values.shape)
    lanes = values.shape[:-2]
    within, between = np.empty(lanes), np.empty(lanes)
    for lane in np.ndindex(lanes):
        within[lane], between[lane] = _variances(values[lane], classes[lane])
    return measured(within, finite), measured(between, finite)


def _variances(features: Float64[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"]) -> tuple[float, float]:
    spreads, means = [], []
    for label in np.unique(labels):
        members = features[labels == label]
        centred = centre(members)
        spreads.append((centred**2).sum(axis=-1).mean())
        means.append(members[0] - centred[0])  # exact for a class collapsed into one point
    within = float(np.mean(spreads))
    if len(means) < 2:
        return within, np.nan
    # ||a - b||^2 summed over ordered pairs of k points is 2k times their squared distances from their mean.
    return within, float(2 * (centre(np.stack(means)) ** 2).sum() / (len(means) - 1))


def _check_pair(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if x[-2] != y[-2]:
        raise ValueError(f"x has {x[-2]} samples and y has {y[-2]}; give the same samples in the same order to both")
    try:
        np.broadcast_shapes(x[:-2], y[:-2])
    except ValueError:
        raise ValueError(
            f"the leading axes of x, {x[:-2]}, and of y, {y[:-2]}, do not broadcast; add axes of length 1"
        ) from None


def _centred(values: Float64[np.ndarray, "*lanes n d"]) -> Float64[np.ndarray, "*lanes n d"]:
    # CKA has no scale, so fourth powers of entries near 1 are taken instead of overflowing or vanishing ones.
    return unit_scale(centre(unit_scale(values)))


def _transposed(matrix: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrix, -1, -2)


def _square_norm(matrix: np.ndarray) -> np.ndarray:
    return np.square(matrix).sum(axis=(-2, -1))
