"""The paper's own tables (Lyle et al. 2023, appendix C): mean and standard deviation over an unstated number of seeds.

data set -> (treatment, output) -> network -> (mean, standard deviation or None where it was not read).
"""

from __future__ import annotations

Table = dict[tuple[str, str], dict[str, tuple[float, float | None]]]

NETWORKS = ("resnet18", "vit", "cnn", "mlp")
"""The order of the tables' columns."""


def _row(*entries: tuple[float, float | None] | float | None) -> dict[str, tuple[float, float | None]]:
    cells = zip(NETWORKS, entries, strict=True)
    return {name: cell if isinstance(cell, tuple) else (cell, None) for name, cell in cells if cell is not None}


RISE: dict[str, Table] = {
    "cifar10": {
        ("none", "scalar"): _row((0.20, 0.21), (0.13, 0.03), (0.31, 0.06), (0.27, 0.21)),
        ("none", "two_hot"): _row((0.12, 0.15), (0.05, 0.04), (0.09, 0.17), (0.02, 0.02)),
        ("reset_last", "scalar"): _row((0.00, 0.00), (0.04, 0.07), (0.36, 0.32), (0.10, 0.10)),
        ("weight_decay", "scalar"): _row((0.26, 0.18), (0.17, 0.10), (0.34, 0.08), (0.28, 0.23)),
        ("spectral_norm", "scalar"): _row(None, None, (0.41, 0.21), (0.43, 0.23)),
        ("layer_norm", "scalar"): _row(None, None, (0.24, 0.16), (0.25, 0.21)),
        ("shrink_perturb", "scalar"): _row((0.79, 0.21), (0.23, 0.03), (0.56, 0.20), (0.61, 0.07)),
        ("reset_last", "two_hot"): _row(0.18, 0.19, 0.14, 0.03),
        ("weight_decay", "two_hot"): _row(0.21, 0.00, 0.09, 0.06),
        ("spectral_norm", "two_hot"): _row(None, None, 0.19, 0.01),
        ("layer_norm", "two_hot"): _row(None, None, 0.00, 0.05),
        ("shrink_perturb", "two_hot"): _row(0.08, 0.11, 0.14, 0.04),
    },
    "mnist": {
        ("none", "scalar"): _row(0.32, 0.06, 0.27, 0.34),
        ("none", "two_hot"): _row(0.20, 0.11, -0.02, 0.04),
        ("reset_last", "scalar"): _row(0.01, 0.00, 0.57, 0.11),
        ("weight_decay", "scalar"): _row(0.37, 0.08, 0.25, 0.31),
        ("spectral_norm", "scalar"): _row(None, None, 0.39, 0.40),
        ("layer_norm", "scalar"): _row(None, None, 0.32, 0.43),
        ("shrink_perturb", "scalar"): _row(0.66, 0.11, 0.42, 0.34),
    },
}
"""Rise of the probe loss."""

FINAL: dict[str, Table] = {
    "cifar10": {
        ("none", "scalar"): _row(0.21, 0.41, 0.47, 0.66),
        ("layer_norm", "scalar"): _row(None, None, 0.25, 0.55),
        ("none", "two_hot"): _row(0.20, 0.09, 0.17, 0.49),
        ("shrink_perturb", "scalar"): _row(0.80, 0.50, 0.70, 1.00),
    },
    "mnist": {
        ("none", "scalar"): _row(0.32, 0.45, 0.47, 0.59),
        ("layer_norm", "scalar"): _row(None, None, 0.35, 0.60),
    },
}
"""Probe loss at the end."""

INITIAL: dict[str, Table] = {
    "cifar10": {
        ("none", "scalar"): _row(0.01, 0.28, 0.16, 0.40),
        ("layer_norm", "scalar"): _row(None, None, 0.01, 0.30),
    },
}
"""Probe loss of the untrained network, after it was trained on the probe task."""

STANDS_FOR = {"mnist_digits": "mnist", "mnist": "mnist", "cifar10": "cifar10"}
"""Our data set -> the paper's it is nearest to."""


def published(table: dict[str, Table], data: str, treatment: str, output: str, network: str) -> str:
    """The paper's number as it prints it, or a dash where it has none."""
    found = table.get(STANDS_FOR.get(data, ""), {}).get((treatment, output), {}).get(network)
    if found is None:
        return "-"
    mean, deviation = found
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
