"""Learners: pure functions over one state, one file a learner."""

from neoteny.learners.action_values import CopyEvery, Polyak
from neoteny.learners.dqn import atari_rmsprop, dqn, minatar_rmsprop
from neoteny.learners.learner import (
    Batch,
    Learner,
    LearnerState,
    Origin,
    Outcomes,
    Transitions,
    View,
    attach,
    detach,
    init_stages,
)
from neoteny.learners.offline_q import OfflineObjective, offline_q
from neoteny.learners.random_walk import random_walk
from neoteny.learners.supervised import CROSS_ENTROPY, SQUARED_ERROR, Objective, supervised
from neoteny.learners.values import Categorical, Scalar, TwoHot, Values

__all__ = [
    "CROSS_ENTROPY",
    "SQUARED_ERROR",
    "Batch",
    "Categorical",
    "CopyEvery",
    "Learner",
    "LearnerState",
    "Objective",
    "OfflineObjective",
    "Origin",
    "Outcomes",
    "Polyak",
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
    "offline_q",
    "random_walk",
    "supervised",
]
