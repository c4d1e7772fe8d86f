"""Learners: pure functions over one state, one file a learner."""

from neoteny.learners.learner import (
    Batch,
    Learner,
    LearnerState,
    Origin,
    View,
    attach,
    detach,
    init_stages,
)
from neoteny.learners.supervised import CROSS_ENTROPY, SQUARED_ERROR, Objective, supervised

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED_ERROR",
    "Batch",
    "Learner",
    "LearnerState",
    "Objective",
    "Origin",
    "View",
    "attach",
    "detach",
    "init_stages",
    "supervised",
]
