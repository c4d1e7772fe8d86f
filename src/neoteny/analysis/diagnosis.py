"""Is a run limited by lost plasticity? From paired gains of an injected copy to an answer (Nikishin et al. 2023)."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from neoteny.analysis.aggregates import Interval, mean_estimate

MARGIN = 0.05
"""Share of the score range within which a gain counts as none."""


class Limited(enum.StrEnum):
    """What the gain of injection says about a run."""

    YES = "plasticity-limited"
    NO = "not limited"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Diagnosis:
    """The answer, the gain it rests on, and the margin within which a gain would have counted as none."""

    answer: Limited
    gain: Interval
    margin: float


def diagnose_gains(
    gains: ArrayLike, score_range: float, *, rng: np.random.Generator, margin: float = MARGIN
) -> Diagnosis:
    """The answer to gains (pairs,) of injected copies over untreated ones with the same draws.

    Plasticity-limited if the 95 % interval of the mean gain is above 0; not limited if it lies within `margin` times
    the score range of 0; else undecided, also where there is no interval. Bootstrap from six pairs on, Student's t
    below. ValueError for a score range that is negative or not finite, or a margin that is not positive.
    """
    if not (math.isfinite(score_range) and score_range >= 0):
        raise ValueError(f"the score range must be finite and not negative, not {score_range}")
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    gain, delta = mean_estimate(gains, rng=rng), margin * score_range
    if gain.low > 0:
        answer = Limited.YES
    elif -delta <= gain.low and gain.high <= delta:
        answer = Limited.NO
    else:
        answer = Limited.UNDECIDED
    return Diagnosis(answer, gain, delta)
