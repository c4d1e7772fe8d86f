"""Learners: pure functions over one state, one file a learner."""

from neoteny.learners.dqn import atari_rmsprop, dqn, minatar_rmsprop
from neoteny.learners.learner import (
    Batch,
    Learner,
    LearnerState,
    Origin,
    Transitions,
    View,
    attach,
    detach,
    init_stages,
)
from neoteny.learners.random_walk import random_walk
from neoteny.learners.supervised import CROSS_ENTROPY, SQUARED_ERROR, Objective, supervised
from neoteny.learners.values import Categorical, Scalar, TwoHot, Values

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED_ERROR",
    "Batch",
    "Categorical",
    "Learner",
    "LearnerState",
    "Objective",
    "Origin",
    "Scalar",
    "Transitions",
    "TwoHot",
    "Values",
    "View",
    "atari_rmsprop",
    "attach",
    "detach",
    "dqn",
    "init_stages",
    "minatar_rmsprop",
    "random_walk",
    "supervised",
]
