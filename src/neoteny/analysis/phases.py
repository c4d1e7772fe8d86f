"""Phases of learning in a series of ranks: a fall, a rise, and a collapse (arXiv:2207.02099, abstract).

The paper states three phases and no rule; this one is ours. On a series at log-spaced checkpoints, smoothed by a
3-point median, the fall ends at the first local minimum far enough below the first rank; the rise goes from there to
the largest rank and counts if it is high enough; the collapse is what follows and counts if the rank ends far enough
below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from neoteny.analysis.association import spearman

LEAST_FALL, LEAST_RISE, LEAST_COLLAPSE = 0.1, 0.1, 0.2
"""Of the first rank, of the largest possible rank, and of the largest rank of the rise."""


@dataclass(frozen=True)
class Phases:
    """Which phases a series shows; places are positions in it, from 0.

    bottom: where the fall ends, None without one. top: where the rise ends, None without one. collapse: whether the
    rank ends below. together: Spearman's rho of rank and return from bottom to top, both smoothed; NaN without a rise,
    or where either is constant in it.
    """

    bottom: int | None
    top: int | None
    collapse: bool
    together: float

    @property
    def all_three(self) -> bool:
        """Whether there is a fall, a rise and a collapse."""
        return self.bottom is not None and self.top is not None and self.collapse


def smoothed(values: ArrayLike) -> Float[np.ndarray, " points"]:
    """The median of each value (points,) and its two neighbours; the two ends are left as they are."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"a series is a vector, not {values.shape}")
    if len(values) < 3:
        return values.copy()
    inner = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], inner, values[-1:]])


def detect_phases(
    rank: ArrayLike,
    returns: ArrayLike,
    most: float,
    *,
    least_fall: float = LEAST_FALL,
    least_rise: float = LEAST_RISE,
    least_collapse: float = LEAST_COLLAPSE,
) -> Phases:
    """The phases of one run.

    rank, returns: (points,) at the same checkpoints in order, before the first update first. most: the largest
    possible rank. A series with a NaN is judged up to it. ValueError if the two differ in length or are empty.
    """
    rank, returns = np.asarray(rank, np.float64), np.asarray(returns, np.float64)
    if rank.ndim != 1 or rank.shape != returns.shape or len(rank) == 0:
        raise ValueError(
            f"rank and returns must be vectors of one length; their shapes are {rank.shape}, {returns.shape}"
        )
    lost = np.flatnonzero(np.isnan(rank) | np.isnan(returns))
    stop = int(lost[0]) if len(lost) else len(rank)
    rank, returns = smoothed(rank[:stop]), smoothed(returns[:stop])
    bottom = _first_minimum(rank, least_fall)
    if bottom is None:
        return Phases(None, None, False, np.nan)
    top = bottom + int(np.argmax(rank[bottom:]))
    if top == bottom or rank[top] - rank[bottom] < least_rise * most:
        return Phases(bottom, None, False, np.nan)
    rise = slice(bottom, top + 1)
    collapse = bool(rank[-1] <= (1 - least_collapse) * rank[top])
    return Phases(bottom, top, collapse, spearman(rank[rise], returns[rise]))


def _first_minimum(rank: np.ndarray, least_fall: float) -> int | None:
    for place in range(1, len(rank)):
        rises_next = place + 1 == len(rank) or rank[place + 1] > rank[place]
        if rank[place] <= rank[place - 1] and rises_next and rank[place] <= (1 - least_fall) * rank[0]:
            return place
    return None
