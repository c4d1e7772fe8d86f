"""Interventions: pure functions of a learner's state, parameters and optimiser state together."""

from neoteny.interventions.inject import (
    FoldLinear,
    HeadNormAbove,
    Inject,
    InjectedMoments,
    PrepareInjection,
    Variant,
    fold_linear,
    inject,
    prepare_injection,
)
from neoteny.interventions.intervention import EMPTY, Context, Intervention, Nothing
from neoteny.interventions.redo import Redo, dormant_units, redo
from neoteny.interventions.reset import Moments, Reset, ResetOptimizer, reset, reset_optimizer
from neoteny.interventions.shrink_perturb import ShrinkPerturb, shrink_perturb

__all__ = [
    "EMPTY",
    "Context",
    "FoldLinear",
    "HeadNormAbove",
    "Inject",
    "InjectedMoments",
    "Intervention",
    "Moments",
    "Nothing",
    "PrepareInjection",
    "Redo",
    "Reset",
    "ResetOptimizer",
    "ShrinkPerturb",
    "Variant",
    "dormant_units",
    "fold_linear",
    "inject",
    "prepare_injection",
    "redo",
    "reset",
    "reset_optimizer",
    "shrink_perturb",
]
