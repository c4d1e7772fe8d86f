"""The paper's toy system: learning a causal filter (Orvieto et al. 2023, arXiv:2303.06349, toy of section 3)."""

from __future__ import annotations

import numpy as np

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sequences.rows import from_parts, positive

FREQUENCIES = 5.0
"""a and c are uniform on [0, FREQUENCIES]; the paper says only that they are random."""


def filtered_waves(examples: int = 32, *, length: int = 100, seed: int = 0) -> Arrays:
    """u_k = sin(0.05 a k) cos(0.05 c k)^2 and its convolution with 0.1 exp(-0.015 k) cos(0.04 k)^2.

    inputs: (n, length, 1) float32; targets: (n, length) float32, the filter's output at every step. All rows are train.
    """
    rng = np.random.default_rng([seed, 4])
    k = np.arange(positive(length, "length"))
    a, c = rng.uniform(0, FREQUENCIES, (2, positive(examples, "examples"), 1))
    waves = np.sin(0.05 * a * k) * np.cos(0.05 * c * k) ** 2
    kernel = 0.1 * np.exp(-0.015 * k) * np.cos(0.04 * k) ** 2
    filtered = np.stack([np.convolve(wave, kernel)[:length] for wave in waves])
    return from_parts(
        f"filtered-waves-{examples}-{length}-{seed}",
        {"train": (waves[..., None].astype(np.float32), filtered.astype(np.float32))},
        classes=None,
        source=f"generated, seed {seed}; Orvieto et al. 2023",
    )
