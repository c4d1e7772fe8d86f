"""From records to answers: aggregates with intervals, continual metrics, association, verdicts, claims.

Pure functions of NumPy arrays. Nothing here imports JAX; SciPy is imported by the functions that use it.
Specification: the claims of every study (section 8 of each paper's page) rest on this room.
"""

from neoteny.analysis.aggregates import (
    Band,
    Interval,
    cluster_bootstrap,
    iqm,
    mean_estimate,
    mean_interval,
    optimality_gap,
    paired_difference,
    probability_of_improvement,
    seed_bootstrap,
    stratified_bootstrap,
    task_median,
    wilson_interval,
)
from neoteny.analysis.anova import Anova, Effect, anova
from neoteny.analysis.association import (
    Coefficient,
    association,
    association_within,
    kendall,
    partial_spearman,
    spearman,
)
from neoteny.analysis.claims import Claim, evaluate, write_claims
from neoteny.analysis.continual import (
    average_performance,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    forward_transfer_by_task,
)
from neoteny.analysis.pareto import front_membership, pareto_front
from neoteny.analysis.verdicts import (
    Above,
    AllOf,
    Below,
    Equivalent,
    Expectation,
    NonInferior,
    Outcome,
    Verdict,
    all_of,
    holm,
    holm_verdicts,
    inconclusive,
    not_run,
    verdict,
)

__all__ = [
    "Above",
    "AllOf",
    "Anova",
    "Band",
    "Below",
    "Claim",
    "Coefficient",
    "Effect",
    "Equivalent",
    "Expectation",
    "Interval",
    "NonInferior",
    "Outcome",
    "Verdict",
    "all_of",
    "anova",
    "association",
    "association_within",
    "average_performance",
    "cluster_bootstrap",
    "evaluate",
    "forgetting",
    "forgetting_by_task",
    "forward_transfer",
    "forward_transfer_by_task",
    "front_membership",
    "holm",
    "holm_verdicts",
    "inconclusive",
    "iqm",
    "kendall",
    "mean_estimate",
    "mean_interval",
    "not_run",
    "optimality_gap",
    "paired_difference",
    "pareto_front",
    "partial_spearman",
    "probability_of_improvement",
    "seed_bootstrap",
    "spearman",
    "stratified_bootstrap",
    "task_median",
    "verdict",
    "wilson_interval",
    "write_claims",
]
