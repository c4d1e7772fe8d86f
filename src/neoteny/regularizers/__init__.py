"""Regularisers: penalties with a memory per task."""

from neoteny.regularizers.l2 import L2, L2ToInit
from neoteny.regularizers.regularizer import NoPenalty, Parameters, Regularizer

__all__ = ["L2", "L2ToInit", "NoPenalty", "Parameters", "Regularizer"]
