"""What the array probes share: checked float64 inputs, centring, singular values, shapes of stage outputs.

Array probes measure NumPy arrays on the host in float64. They take whatever `np.asarray` takes and have any
number of leading axes (lanes) before samples and units. A non-finite number makes its own lane NaN, no other.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike
from threadpoolctl import ThreadpoolController

PerLane = np.float64 | Float64[np.ndarray, "*lanes"]
"""One number a lane: an array with the leading shape, a float64 scalar where there are no leading axes."""


class Features(NamedTuple):
    """Checked features: float64 `values`, 0 in a slice that is not finite, and which slices are `finite`."""

    values: Float64[np.ndarray, "*lanes n d"]
    finite: Bool[np.ndarray, "*lanes"]


def as_real(array: ArrayLike, name: str) -> np.ndarray:
    """`array` as a NumPy array in its own dtype; ValueError if it is complex."""
    real = np.asarray(array)
    if np.iscomplexobj(real):
        raise ValueError(f"{name} is complex; give its modulus, or its real and imaginary parts as separate units")
    return real


def as_features(features: ArrayLike, name: str = "features") -> Features:
    """Features (..., n, d), samples second to last, as float64; ValueError naming `name` for other shapes."""
    real = as_real(features, name)
    if real.ndim < 2:
        raise ValueError(
            f"{name} has shape {real.shape}; it must be (..., n, d), samples second to last: "
            "flatten_features brings a stage's output into that shape"
        )
    if 0 in real.shape[-2:]:
        raise ValueError(f"{name} has shape {real.shape}; give at least one sample and one unit")
    values = real.astype(np.float64, copy=False)
    finite = np.asarray(np.isfinite(values).all(axis=(-2, -1)))
    if not finite.all():
        values = np.where(finite[..., None, None], values, 0.0)
    return Features(values, finite)


def as_labels(labels: ArrayLike, shape: tuple[int, ...], name: str = "labels", of: str = "features") -> np.ndarray:
    """Class labels (n,) or (*lanes, n) of features of `shape` (*lanes, n, d), as (*lanes, n).

    ValueError naming `name`, and what the labels are `of`, for labels that are not integers or do not fit.
    """
    classes = as_real(labels, name)
    lanes, n = shape[:-2], shape[-2]
    if classes.dtype.kind not in "biu":
        raise ValueError(
            f"{name} are {classes.dtype}; give one integer a sample, the argmax of one-hot rows for example"
        )
    if classes.shape not in ((n,), (*lanes, n)):
        wanted = f"{(n,)}" + (f" or {(*lanes, n)}" if lanes else "")
        raise ValueError(f"{name} has shape {classes.shape} and {of} {shape}; give labels of shape {wanted}")
    return np.broadcast_to(classes, (*lanes, n))


def measured(value: ArrayLike, valid: ArrayLike) -> PerLane:
    """`value` where `valid`, NaN elsewhere; a scalar where there are no leading axes."""
    return np.where(valid, value, np.nan)[()]


def unit_scale(values: Float64[np.ndarray, "*lanes n d"]) -> Float64[np.ndarray, "*lanes n d"]:
    """Every slice times the power of two that brings its largest entry into [0.5, 1).

    Exact, and for measures that have no scale: powers of the entries then neither overflow nor vanish.
    """
    _, exponent = np.frexp(np.abs(values).max(axis=(-2, -1), keepdims=True))
    return np.ldexp(values, -exponent)


def centre(values: Float64[np.ndarray, "*lanes n d"]) -> Float64[np.ndarray, "*lanes n d"]:
    """`values` less the mean of every column, over samples.

    The first sample is taken away before the mean is: a column of one repeated value then becomes exactly 0,
    where the rounding of its mean would leave noise that a relative threshold takes for features.
    """
    shifted = values - values[..., :1, :]
    return shifted - shifted.mean(axis=-2, keepdims=True)


def singular_values(features: ArrayLike) -> Float64[np.ndarray, "*lanes m"]:
    """Singular values of features (..., n, d), not centred, in descending order: (..., m) with m = min(n, d).

    From a decomposition of the matrix itself, never of its Gram matrix, which loses half the digits. A slice
    that is not finite, or on which LAPACK does not converge, is NaN. ValueError for fewer than two
    dimensions.
    """
    return spectrum(as_features(features))


def spectrum(features: Features) -> Float64[np.ndarray, "*lanes m"]:
    """Singular values of checked features; NaN for a slice that is not finite or does not converge."""
    return np.where(features.finite[..., None], _decompose(features.values), np.nan)


def gram_spectrum(features: Features) -> Float64[np.ndarray, "*lanes m"]:
    """As `spectrum`, from the Gram matrix: errors of about 1e-8 of the largest value, so only the large ones count."""
    values = features.values
    flat = values.swapaxes(-1, -2)
    with _blas().limit(limits=1, user_api="blas"):
        gram = values @ flat if values.shape[-2] <= values.shape[-1] else flat @ values
        try:
            eigenvalues = np.linalg.eigvalsh(gram)[..., ::-1]
        except np.linalg.LinAlgError:
            return spectrum(features)
    return np.where(features.finite[..., None], np.sqrt(np.maximum(eigenvalues, 0)), np.nan)


@cache
def _blas() -> ThreadpoolController:
    """NumPy's BLAS: its threads slow matrices of this size down, and wait for seconds on another process's."""
    return ThreadpoolController()


def _decompose(values: Float64[np.ndarray, "*lanes n d"]) -> Float64[np.ndarray, "*lanes m"]:
    # Without vectors, LAPACK's gesdd starts a tall matrix from its R and a wide one from its L by itself: a
    # QR here would only repeat that (measured: no gain for tall matrices, a loss for square ones).
    try:
        with _blas().limit(limits=1, user_api="blas"):
            return np.linalg.svd(values, compute_uv=False)
    except np.linalg.LinAlgError:
        if values.ndim == 2:
            return np.full(min(values.shape), np.nan)
        # NumPy gives up the whole batch for one slice; the others are good.
        return np.stack([_decompose(part) for part in values])


def stage_output(activations: ArrayLike, lanes: int) -> np.ndarray:
    """Activations (*lanes, n, ..., units) in their own dtype: a float64 copy of a feature map is large.

    ValueError for too few axes, for no samples or units, and for complex numbers.
    """
    array = as_real(activations, "activations")
    if lanes < 0:
        raise ValueError(f"lanes is {lanes}; it counts the leading axes to keep, so give 0 or more")
    if array.ndim < lanes + 2:
        raise ValueError(
            f"activations has shape {array.shape}, too few axes for lanes={lanes}: "
            "it must be (*lanes, n, ..., units), samples after the lanes and units last"
        )
    if 0 in array.shape[lanes:]:
        raise ValueError(f"activations has shape {array.shape}; give at least one sample and one unit")
    return array


def flatten_features(activations: ArrayLike, *, lanes: int = 0) -> np.ndarray:
    """A stage's output as features: (*lanes, n, ...) -> (*lanes, n, d), one axis after the samples.

    `lanes` is the number of leading axes kept. This is what ranks, CKA and class variances measure; dead and
    dormant units take the stage's output as it is.
    """
    array = stage_output(activations, lanes)
    return array.reshape(*array.shape[: lanes + 1], int(np.prod(array.shape[lanes + 1 :])))


def pool_features(activations: ArrayLike, *, lanes: int = 0) -> np.ndarray:
    """A stage's output averaged over positions: (*lanes, n, ..., c) -> (*lanes, n, c), in float64.

    Global average pooling hides where something is: never compare pooled with flattened features.
    """
    array = stage_output(activations, lanes)
    return array.mean(axis=tuple(range(lanes + 1, array.ndim - 1)), dtype=np.float64)
