"""Units that no longer take part: dead, dormant and constant ones, which are three different things.

All take a stage's output as it comes, (*lanes, n, ..., units), units last: a unit of a convolution is a
channel at all positions. `lanes` is the number of leading axes kept, so `lanes=1` takes
(lanes, n, ..., units) to (lanes,). A share is over exactly the samples given: a minibatch overstates it. A
lane with a non-finite number is NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from neoteny.probes.arrays import PerLane, measured, stage_output


def dead_fraction(activations: ArrayLike, *, lanes: int = 0) -> PerLane:
    """Share of units that are exactly 0 over all other axes: (*lanes, n, ..., units) -> (*lanes,), in [0, 1].

    arXiv:2207.02099, section 7. Only activations that are flat at 0, such as ReLU, have dead units: for tanh
    and ELU see `constant_fraction`. ValueError for too few axes.
    """
    array = stage_output(activations, lanes)
    return _share((array == 0).all(axis=_samples(array, lanes)), array, lanes)


def dormant_fraction(activations: ArrayLike, tau: float = 0.025, *, lanes: int = 0) -> PerLane:
    """Share of units with mean |a| <= tau * the layer's mean of it: (*lanes, n, ..., units) -> (*lanes,).

    Sokar et al., arXiv:2302.12902 (tau-dormant). Dead units are dormant; in a zero layer all are: 1.
    ValueError for too few axes, or unless 0 <= tau < 1.
    """
    if not 0 <= tau < 1:
        raise ValueError(f"tau is {tau}; it is a share of the layer's mean: at least 0 and below 1, 0.025 for example")
    array = stage_output(activations, lanes)
    size = np.abs(array).mean(axis=_samples(array, lanes), dtype=np.float64)
    with np.errstate(invalid="ignore"):  # 0 * inf, in a lane that is NaN in the result
        dormant = size <= tau * size.mean(axis=-1, keepdims=True)
    return _share(dormant, array, lanes)


def constant_fraction(activations: ArrayLike, tolerance: float = 1e-6, *, lanes: int = 0) -> PerLane:
    """Share of units with max - min < tolerance over all other axes: (*lanes, n, ..., units) -> (*lanes,).

    What to report where units saturate instead of dying (tanh, ELU); a definition of this library. The
    tolerance is absolute. Dead units are constant. ValueError for too few axes, or unless tolerance is
    positive and finite.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}; give a positive number, 1e-6 for example")
    array = stage_output(activations, lanes)
    samples = _samples(array, lanes)
    largest, smallest = array.max(axis=samples), array.min(axis=samples)
    with np.errstate(invalid="ignore"):  # inf - inf, in a lane that is NaN in the result
        constant = largest.astype(np.float64) - smallest.astype(np.float64) < tolerance
    return _share(constant, array, lanes)


def _samples(array: np.ndarray, lanes: int) -> tuple[int, ...]:
    """The axes between lanes and units."""
    return tuple(range(lanes, array.ndim - 1))


def _share(units: np.ndarray, array: np.ndarray, lanes: int) -> PerLane:
    finite = np.isfinite(array).all(axis=tuple(range(lanes, array.ndim)))
    return measured(units.mean(axis=-1), finite)
