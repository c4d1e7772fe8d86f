"""Where the extractor ends and the tunnel begins (Masarczyk et al., arXiv:2305.19753), and what a tunnel costs elsewhere.

Layers are counted from 1 among the measured ones, in the network's order. Layer K is the last of the extractor: its
output is already separable; the tunnel is K + 1 to the last.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from neoteny.probes.arrays import PerLane, measured


class TunnelStart(NamedTuple):
    """layer: the last extractor layer, counted from 1 (NaN if nothing was measured). found: whether a layer fits."""

    layer: int | float
    found: bool


def tunnel_start(probe_accuracies: ArrayLike, final_accuracy: float, threshold: float = 0.95) -> TunnelStart:
    """The first layer whose linear probe reaches `threshold` times the network's own test accuracy.

        K = min {l : probe_l >= threshold * final},   (last layer, False) if there is none

    probe_accuracies: (layers,), in the network's order. final_accuracy: of the network itself on the same test split,
    not of the best probe. (NaN, False) if any of them is not finite. Masarczyk et al., arXiv:2305.19753, who use 0.95
    and 0.98. ValueError for no layers, or a threshold that is not positive.
    """
    accuracies = np.asarray(probe_accuracies, np.float64)
    if accuracies.ndim != 1 or not len(accuracies):
        raise ValueError(f"probe_accuracies has shape {accuracies.shape}; give one accuracy a layer, (layers,)")
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold is {threshold}; give a positive share of the final accuracy, 0.95 for example")
    if not (np.isfinite(accuracies).all() and math.isfinite(final_accuracy)):
        return TunnelStart(math.nan, False)
    reached = np.flatnonzero(accuracies >= threshold * final_accuracy)
    return TunnelStart(int(reached[0]) + 1, True) if len(reached) else TunnelStart(len(accuracies), False)


def trivially_separable(start: TunnelStart) -> bool:
    """Whether the first layer already separates the classes: such a data set cannot test for a tunnel."""
    return start.found and start.layer == 1


def tunnel_percent(layer: float, layers: int) -> float:
    """Length of the tunnel after layer K of `layers` measured ones, in percent: 100 (layers - K) / layers."""
    if layers < 1 or layer > layers or layer < 1:
        raise ValueError(f"layer {layer} of {layers}: layers are counted from 1 to the last")
    return 100 * (layers - layer) / layers


def ood_retained(ood_accuracies: ArrayLike) -> PerLane:
    """Out-of-distribution accuracy kept at the last layer, in percent of the best layer's; (..., layers).

    100 * ood_last / max_l ood_l, Harun et al., arXiv:2405.15018, where the last measured layer is the penultimate one of
    the network. NaN if the best is 0 or an accuracy is not finite.
    """
    ood, finite = _curve(ood_accuracies, "ood_accuracies")
    best = ood.max(axis=-1)
    valid = finite & (best > 0)
    return measured(100 * np.divide(ood[..., -1], best, out=np.zeros(best.shape), where=valid), valid)


def ood_correlation(id_accuracies: ArrayLike, ood_accuracies: ArrayLike) -> PerLane:
    """Pearson correlation across layers of the curves within and out of distribution; both (..., layers).

    Harun et al., arXiv:2405.15018. NaN if a curve is constant or not finite.
    """
    ours, ours_finite = _curve(id_accuracies, "id_accuracies")
    theirs, theirs_finite = _curve(ood_accuracies, "ood_accuracies")
    if ours.shape != theirs.shape:
        raise ValueError(f"the curves have shapes {ours.shape} and {theirs.shape}; give one accuracy a layer to each")
    x, y = (curve - curve[..., :1] for curve in (ours, theirs))  # a constant curve becomes exactly 0
    x, y = (curve - curve.mean(axis=-1, keepdims=True) for curve in (x, y))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    ratio = np.divide((x * y).sum(axis=-1), scale, out=np.zeros(scale.shape), where=scale > 0)
    return measured(np.clip(ratio, -1.0, 1.0), ours_finite & theirs_finite & (scale > 0))


def alignment(
    id_accuracy: ArrayLike, ood_accuracy: ArrayLike, *, id_chance: float, ood_chance: float
) -> np.float64 | np.ndarray:
    """(id - chance_id) (ood - chance_ood), for every pair of accuracies; chance is 1 / classes if they are balanced.

    Harun et al., arXiv:2405.15018. High only where a representation serves both data sets.
    """
    within, out = np.asarray(id_accuracy, np.float64), np.asarray(ood_accuracy, np.float64)
    return (within - id_chance) * (out - ood_chance)


def _curve(accuracies: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Curves (..., layers) as float64, 0 where they are not finite, and which ones (...) are."""
    curve = np.asarray(accuracies, np.float64)
    if curve.ndim < 1 or not curve.shape[-1]:
        raise ValueError(f"{name} has shape {curve.shape}; give one accuracy a layer, (..., layers)")
    finite = np.isfinite(curve).all(axis=-1)
    return np.where(finite[..., None], curve, 0.0), finite
