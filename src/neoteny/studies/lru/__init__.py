"""Are the special ingredients of state-space models needed for long sequences?

Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu and De: Resurrecting recurrent neural networks for long sequences, ICML
2023 (arXiv:2303.06349). A recurrent layer made linear, complex diagonal, stable by its parametrisation, with
eigenvalues on a ring and a normalised state (the LRU) is climbed to one change at a time, and compared with S4D and S5
in the same block.
"""

from __future__ import annotations

import polars as pl

from neoteny.analysis import paired_difference
from neoteny.lab.study import Study
from neoteny.studies.lru.claims import CLAIMS, Undecidable, by_seed, final_scores, paired
from neoteny.studies.lru.figures import FIGURES
from neoteny.studies.lru.models import TITLES
from neoteny.studies.lru.sequences import discretisation, ladder, recall, stability, text
from neoteny.studies.lru.speed import speed
from neoteny.studies.lru.toys import filters, phase, theory

PRESETS = {
    "smoke": "seconds, to see that everything works; its numbers mean nothing",
    "quick": (
        "reduced: 16x16 digits pixel by pixel, two blocks of width 64, 300 to 600 updates, 5 seeds; "
        "planned for about an hour on two CPU cores"
    ),
    "paper": "the paper's table of settings on the Long Range Arena, 3 seeds, for GPUs",
}


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """The ladder in a sentence for each task, and the LRU on text against a bag of the same symbols."""
    told = []
    for experiment, opening in (("ladder", "Test accuracy on {}: "), ("text", "On {}: ")):
        try:
            for (data,), rows in sorted(final_scores(frame, experiment).partition_by("data", as_dict=True).items()):
                told += _told(rows, opening.format(data.replace("_", " ")))
        except Undecidable:
            continue
    return tuple(told)


def _told(rows: pl.DataFrame, opening: str) -> list[str]:
    """The models' mean accuracies on one task, the bag's distance, and what diverged."""
    of_model = {model: part for (model,), part in rows.partition_by("model", as_dict=True).items()}
    means = {model: float(of_model[model]["accuracy"].to_numpy().mean()) for model in TITLES if model in of_model}
    told = [f"{opening}{', '.join(f'{TITLES[model]} {mean:.1f}' for model, mean in means.items())} %."]
    if {"bag", "lru"} <= set(of_model):
        gap = paired_difference(*paired(by_seed(of_model["lru"]), by_seed(of_model["bag"])))
        told.append(
            f"The LRU is {gap.value:.1f} points above a bag of the same symbols "
            f"(95 % interval {gap.low:.1f} to {gap.high:.1f})."
        )
    lost = rows.filter(pl.col("diverged"))
    if len(lost):
        models = ", ".join(TITLES[model] for model in sorted(set(lost["model"])))
        told.append(f"{len(lost)} of these runs diverged and count as chance: {models}.")
    return told


STUDY = Study(
    name="lru",
    title="Linear recurrent units on long sequences",
    paper=(
        "Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De: Resurrecting Recurrent Neural Networks for Long "
        "Sequences, ICML 2023"
    ),
    paper_url="https://arxiv.org/abs/2303.06349",
    question=(
        "State-space models learn long sequences with a continuous-time discretisation and a special initialisation. "
        "Does a plain recurrent layer do as well once it is linear, diagonal, stable and normalised?"
    ),
    experiments=(theory, filters, phase, ladder, stability, discretisation, recall, text, speed),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "A diverged run counts as chance, and the summary says how many did.",
        "The paper tabulates no learning rates but sCIFAR's 0.004; the others here are choices. One serves all models "
        "of a task, and none is selected on a development split.",
        "Wall-clock is kept apart from the records: LRU-10 is computed from the packs' timings.",
    ),
    summary=summary,
)
