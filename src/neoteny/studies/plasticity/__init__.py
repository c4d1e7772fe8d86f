"""Does a network stay able to learn when its targets keep changing?

Lyle, Zheng, Nikishin, Avila Pires, Pascanu and Dabney: Understanding plasticity in neural networks, ICML 2023
(arXiv:2303.01486). Case study 1, optimiser instability: the same images get new random labels after every task. With
Adam's defaults the second moment lags a thousand steps behind the abrupt change of targets, updates grow several times
too large, and units die; with a short second moment and a constant inside the root they do not.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.lab.study import Study
from neoteny.studies.plasticity.claims import CLAIMS
from neoteny.studies.plasticity.figures import FIGURES
from neoteny.studies.plasticity.labels import DEFAULT, TUNED, case1, remedies
from neoteny.studies.plasticity.runs import (
    SETTINGS,
    accuracy_by_task,
    by_task,
    case1_rows,
    last_third,
    together,
    varied,
    why_unfit,
)

PRESETS = {
    "smoke": "a few seconds, to see that everything works; its numbers mean nothing",
    "demo": "5,000 MNIST digits, width 128, 4 seeds: about three minutes on two CPU cores",
    "quick": "5,000 MNIST digits, width 512, 5 seeds: about an hour on two CPU cores",
    "quick_full": "the paper's width of 1024, 20 tasks, 5 seeds: several hours on two CPU cores",
    "paper": "width 1024, batch 512, 30 tasks of 3,000 steps (90,000 in all), for a GPU",
}


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each Adam setting, and what the claims alone would hide."""
    told, starts = [], {}
    if varied(case1_rows(frame)):
        return (f"Several settings of {', '.join(varied(case1_rows(frame)))}: the figures have a panel for each.",)
    for setting, name in SETTINGS.items():
        if why_unfit(frame, setting) is not None:
            continue
        accuracy, dead = together(accuracy_by_task(frame, setting), by_task(frame, setting, "dead_units", "all"))
        first = starts[setting] = float(np.nanmean(accuracy[:, : accuracy.shape[1] // 3]))
        told.append(
            f"{name[0].upper()}{name[1:]}: {first:.0f} % of labels fitted in the first third of tasks, "
            f"{float(np.nanmean(last_third(accuracy))):.0f} % in the last, "
            f"{100 * float(np.nanmean(dead[:, -1])):.0f} % of units dead at the end."
        )
    if DEFAULT in starts and TUNED in starts and starts[TUNED] < 0.5 * starts[DEFAULT]:
        told.append(
            "Mind the level: tuned Adam is stable here, but fits far fewer labels than default Adam does at first. "
            "With eps_root = 1e-3 inside the root, updates are small once gradients are, so a budget this short is not "
            "enough for it."
        )
    return tuple(told)


STUDY = Study(
    name="plasticity",
    title="Loss of plasticity under changing labels",
    paper="Lyle, Zheng, Nikishin, Avila Pires, Pascanu, Dabney: Understanding plasticity in neural networks, ICML 2023",
    paper_url="https://arxiv.org/abs/2303.01486",
    question=(
        "The same images get new random labels, again and again. Does the network fit the last labels as well as the "
        "first, and if it does not, is Adam to blame?"
    ),
    experiments=(case1, remedies),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "The paper gives neither the batch size nor the number of steps between label resets; those here are choices.",
        "A diverged run counts with its last finite network: none is dropped.",
    ),
    summary=summary,
)
