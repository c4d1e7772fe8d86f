"""Pareto fronts of cost against score, and how sure membership is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from neoteny.analysis.aggregates import _check, _chunks


def pareto_front(points: ArrayLike) -> Int[np.ndarray, " front"]:
    """Row numbers of the points that no other point beats, by rising cost.

    points: (n, 2), column 0 a cost (smaller is better), column 1 a score (larger is better; give errors with
    their sign changed). A point is beaten by one that costs no more and scores no less, and is better in one
    of the two; equal points are on the front together. A point with a NaN is never on the front and beats
    nothing.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (n, 2): cost and score; their shape is {points.shape}")
    rows = np.flatnonzero(~_beaten(points[None, :, 0], points[None, :, 1])[0])
    return rows[np.argsort(points[rows, 0], kind="stable")]


def front_membership(
    costs: ArrayLike, scores: ArrayLike, *, rng: np.random.Generator, resamples: int = 2_000
) -> Float[np.ndarray, " methods"]:
    """Share of paired bootstrap resamples of seeds in which a method's mean cost and score are on the front.

    costs, scores: (methods, seeds), seed j of every method paired. A method with a NaN in any seed is on no
    front.
    """
    costs, scores = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if costs.ndim != 2 or costs.shape != scores.shape or costs.size == 0:
        raise ValueError(
            "costs and scores must both be non-empty (methods, seeds); "
            f"their shapes are {costs.shape} and {scores.shape}"
        )
    _check(rng, resamples, 0.5)
    methods, seeds = costs.shape
    costs = np.where(np.isnan(costs + scores).any(axis=1, keepdims=True), np.nan, costs)
    counts = np.zeros(methods)
    for count in _chunks(resamples, methods * max(methods, seeds)):
        drawn = rng.integers(seeds, size=(count, seeds))
        counts += (~_beaten(costs[:, drawn].mean(axis=2).T, scores[:, drawn].mean(axis=2).T)).sum(axis=0)
    return counts / resamples


def _beaten(cost: Float[np.ndarray, "batch n"], score: Float[np.ndarray, "batch n"]) -> np.ndarray:
    """(batch, n): whether another point of the same batch entry beats this one, or it has a NaN."""
    cheaper, better = cost[:, None, :], score[:, None, :]
    own_cost, own_score = cost[:, :, None], score[:, :, None]
    as_good = (cheaper <= own_cost) & (better >= own_score)
    beats = as_good & ((cheaper < own_cost) | (better > own_score))
    return beats.any(axis=2) | np.isnan(cost) | np.isnan(score)
