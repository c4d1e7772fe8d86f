"""Do deep classifiers split into an extractor and a tunnel?

Masarczyk, Ostaszewski, Imani, Pascanu, Milos and Trzcinski: The tunnel effect: building data representations in deep
neural networks, NeurIPS 2023 (arXiv:2305.19753). The first K layers of a trained, over-parameterised network (the
extractor) build linearly separable features; the others (the tunnel) add almost no accuracy, compress the features to
about as many dimensions as there are classes, and hurt transfer. K is the first layer whose linear probe reaches 95 %
of the network's own test accuracy.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.lab.study import Study
from neoteny.studies.tunnel.claims import CLAIMS
from neoteny.studies.tunnel.experiments import classes, depth, dynamics, families, samples, swap, width
from neoteny.studies.tunnel.figures import FIGURES, runs_looked_at
from neoteny.studies.tunnel.runs import network_name
from neoteny.studies.tunnel.settings import CONVERGED

PRESETS = {
    "smoke": "8x8 digits, width 32, 2 epochs, one seed: seconds, to see that all works; its numbers mean nothing",
    "quick": "MLPs of width 512 and a narrow VGG-11 on 5,000 images of CIFAR-10, 5 seeds: an hour on two CPU cores",
    "paper": "MLPs of width 1024, VGG-19 and ResNet-34 on the whole of CIFAR-10 and CIFAR-100, 3 seeds, for a GPU",
}


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each network."""
    told = []
    runs = runs_looked_at(frame)
    for name in dict.fromkeys(network_name(run) for run in runs):
        own = [run for run in runs if network_name(run) == name]
        fitted = [run for run in own if run.converged]
        if not fitted:
            told.append(f"{name}: none of {len(own)} runs reached training accuracy {CONVERGED}.")
            continue
        cuts = sorted(run.cut for run in fitted)
        spread = f"{cuts[0]}" if cuts[0] == cuts[-1] else f"{cuts[0]} to {cuts[-1]}"
        accuracy = 100 * float(np.mean([run.accuracy() for run in fitted]))
        told.append(
            f"{name}: {accuracy:.0f} % test accuracy; the tunnel starts after layer {spread} of {fitted[0].layers} "
            f"(runs: {len(fitted)} fitted of {len(own)})."
        )
    return tuple(told)


STUDY = Study(
    name="tunnel",
    title="The tunnel effect",
    paper=(
        "Masarczyk, Ostaszewski, Imani, Pascanu, Milos, Trzcinski: The tunnel effect: building data representations in "
        "deep neural networks, NeurIPS 2023"
    ),
    paper_url="https://arxiv.org/abs/2305.19753",
    question=(
        "Do the first layers of a deep classifier do all the work, and what do the others do: compress, hurt transfer, "
        "and serve any task alike?"
    ),
    experiments=(depth, width, families, classes, samples, dynamics, swap),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "No table of the paper was at hand: what it says is second-hand, from reading notes and "
        "re-implementations, and the "
        "thresholds of the verdicts are this study's, set before anything was run.",
        f"Runs whose training accuracy is below {CONVERGED} are left out of the claims, not of the figures.",
        "The linear probe's optimiser is a choice of this library (docs/probes.md); no epoch is chosen by the test "
        "images.",
        "K is the last layer of the extractor, counted from 1; layers are the outputs of hidden stages.",
    ),
    summary=summary,
)
