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
from neoteny.interventions.leave_followers import LeaveFollowers
from neoteny.interventions.redo import Redo, dormant_units, redo
from neoteny.interventions.reset import Moments, Reset, ResetOptimizer, reset, reset_optimizer
from neoteny.interventions.shrink_perturb import ShrinkPerturb, shrink_perturb
from neoteny.interventions.splice import Restore, Splice, UseHead, restore, restored, splice, spliced
from neoteny.interventions.widen import Widen, widen

__all__ = [
    "EMPTY",
    "Context",
    "FoldLinear",
    "HeadNormAbove",
    "Inject",
    "InjectedMoments",
    "Intervention",
    "LeaveFollowers",
    "Moments",
    "Nothing",
    "PrepareInjection",
    "Redo",
    "Reset",
    "ResetOptimizer",
    "Restore",
    "ShrinkPerturb",
    "Splice",
    "UseHead",
    "Variant",
    "Widen",
    "dormant_units",
    "fold_linear",
    "inject",
    "prepare_injection",
    "redo",
    "reset",
    "reset_optimizer",
    "restore",
    "restored",
    "shrink_perturb",
    "splice",
    "spliced",
    "widen",
]
