"""Probes: measurements of arrays (NumPy, on the host) and of a learner's view (JAX, inside the program).

The functions take arrays or views and can be called on anything; `KNOWN` says how a run applies each of them.
"""

from __future__ import annotations

from collections.abc import Callable

from neoteny.probes.arrays import flatten_features, pool_features, singular_values
from neoteny.probes.curvature import (
    Eigenvalues,
    Spectrum,
    hessian_spectrum,
    hessian_vector_products,
    largest_eigenvalues,
    output_noise_loss,
    output_sharpness,
    output_spectrum,
    sharpness,
    spectral_density,
    training_spectrum,
)
from neoteny.probes.dormancy import constant_fraction, dead_fraction, dormant_fraction
from neoteny.probes.gradients import (
    Interference,
    cluster_order,
    gradient_covariance,
    interference,
    view_cosines,
    view_interference,
)
from neoteny.probes.layers import LayerTable, layerwise
from neoteny.probes.linear import Fitting, LinearProbe, linear_probe, linear_probes
from neoteny.probes.measurement import (
    FeatureProbe,
    LayerMeasure,
    LayerProbe,
    Measurement,
    NetworkProbe,
    Stages,
    Units,
    ViewProbe,
    measurement,
)
from neoteny.probes.plasticity import Plasticity, plasticity, random_sines, regret, view_plasticity, view_regret
from neoteny.probes.rank import (
    effective_rank,
    entropy_rank,
    feature_rank,
    numerical_rank,
    participation_ratio,
    stable_rank,
)
from neoteny.probes.similarity import (
    cka_matrix,
    class_variances,
    linear_cka,
    mean_absolute_difference,
    variance_ratio,
)
from neoteny.probes.tunnel import (
    TunnelStart,
    alignment,
    ood_correlation,
    ood_retained,
    trivially_separable,
    tunnel_percent,
    tunnel_start,
)
from neoteny.probes.weights import WeightChange, gradient_norm, kernel_rank, weight_change, weight_norm, weight_rank

dead_units = FeatureProbe("dead_units", dead_fraction, Stages.HIDDEN, Units.LAST)
"""Share of dead units of every hidden stage, and their mean at place `all`."""

dormant_units = FeatureProbe("dormant_units", dormant_fraction, Stages.HIDDEN, Units.LAST)
"""Share of dormant units of every hidden stage, and their mean at place `all`."""

KNOWN: dict[Callable, Measurement] = {
    **{
        rank: FeatureProbe(rank.__name__, rank)
        for rank in (
            effective_rank,
            numerical_rank,
            feature_rank,
            stable_rank,
            entropy_rank,
            participation_ratio,
        )
    },
    dead_fraction: dead_units,
    dormant_fraction: dormant_units,
    constant_fraction: FeatureProbe("constant_units", constant_fraction, Stages.HIDDEN, Units.LAST),
    weight_norm: ViewProbe("weight_norm", weight_norm),
    gradient_norm: ViewProbe("gradient_norm", gradient_norm),
    weight_rank: NetworkProbe("weight_rank", weight_rank),
    sharpness: ViewProbe("sharpness", sharpness),
    output_sharpness: ViewProbe("output_sharpness", output_sharpness),
    hessian_spectrum: ViewProbe("hessian_spectrum", training_spectrum),
    output_spectrum: ViewProbe("output_spectrum", output_spectrum),
    gradient_covariance: ViewProbe("gradient_covariance", view_interference),
    plasticity: ViewProbe("plasticity", view_plasticity),
    regret: ViewProbe("regret", view_regret),
    layerwise: LayerProbe("layerwise"),
    linear_probe: LayerProbe("linear_probe", (LayerMeasure.ACCURACY,)),
    tunnel_start: LayerProbe("tunnel_start", (LayerMeasure.ACCURACY, LayerMeasure.TUNNEL)),
    class_variances: LayerProbe("class_variances", (LayerMeasure.VARIANCES,)),
    linear_cka: LayerProbe("linear_cka", (LayerMeasure.SIMILARITY,)),
}
"""Probe function -> how a run applies it and under which name it is recorded."""

__all__ = [
    "KNOWN",
    "Eigenvalues",
    "FeatureProbe",
    "Fitting",
    "Interference",
    "LayerMeasure",
    "LayerProbe",
    "LayerTable",
    "LinearProbe",
    "Measurement",
    "NetworkProbe",
    "Plasticity",
    "Spectrum",
    "Stages",
    "TunnelStart",
    "Units",
    "ViewProbe",
    "WeightChange",
    "alignment",
    "cka_matrix",
    "class_variances",
    "cluster_order",
    "constant_fraction",
    "dead_fraction",
    "dead_units",
    "dormant_fraction",
    "dormant_units",
    "effective_rank",
    "entropy_rank",
    "feature_rank",
    "flatten_features",
    "gradient_covariance",
    "gradient_norm",
    "hessian_spectrum",
    "hessian_vector_products",
    "interference",
    "kernel_rank",
    "largest_eigenvalues",
    "layerwise",
    "linear_cka",
    "linear_probe",
    "linear_probes",
    "mean_absolute_difference",
    "measurement",
    "numerical_rank",
    "ood_correlation",
    "ood_retained",
    "output_noise_loss",
    "output_sharpness",
    "output_spectrum",
    "participation_ratio",
    "plasticity",
    "pool_features",
    "random_sines",
    "regret",
    "sharpness",
    "singular_values",
    "spectral_density",
    "stable_rank",
    "training_spectrum",
    "trivially_separable",
    "tunnel_percent",
    "tunnel_start",
    "variance_ratio",
    "view_cosines",
    "view_interference",
    "view_plasticity",
    "view_regret",
    "weight_change",
    "weight_norm",
    "weight_rank",
]
